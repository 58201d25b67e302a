# A WEBrick service: a thread per connection; calls others with net/http.
require "net/http"
require "webrick"

CALLS = ENV.fetch("CALLS", "").split.map { |item| item.split("=", 2) }

server = WEBrick::HTTPServer.new(BindAddress: "127.0.0.1", Port: ARGV[0].to_i, AccessLog: [],
                                 Logger: WEBrick::Log.new($stderr, WEBrick::Log::WARN), MaxClients: 200)
server.mount_proc("/") do |request, response|
  id = request.path.split("/")[2]
  failed = CALLS.find { |hop, base| Net::HTTP.get_response(URI("#{base}/o/#{id}/#{hop}")).code != "200" }
  response.status = failed ? 502 : 200
  response.body = failed ? "#{id} #{failed[0]} failed" : "#{id} ok"
end
trap("TERM") { server.shutdown }
server.start
