# A rack application for puma: a reactor reads, pool threads answer; calls others with net/http.
require "net/http"

CALLS = ENV.fetch("CALLS", "").split.map { |item| item.split("=", 2) }

run lambda { |env|
  id = env["PATH_INFO"].split("/")[2]
  failed = CALLS.find { |hop, base| Net::HTTP.get_response(URI("#{base}/o/#{id}/#{hop}")).code != "200" }
  if failed
    [502, { "content-type" => "text/plain" }, ["#{id} #{failed[0]} failed"]]
  else
    [200, { "content-type" => "text/plain" }, ["#{id} ok"]]
  end
}
