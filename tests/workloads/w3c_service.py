"""A service that knows nothing of tracing: a thread per connection, and a new connection for each call.

    w3c_service.py PORT

It is POSTed a JSON list of {"url", "arguments"}, POSTs each `arguments` to its `url`, in order, and answers with the
list of their statuses.
"""

import json
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def call(url, arguments):
    request = urllib.request.Request(url, json.dumps(arguments).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        response.read()
        return response.status


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        calls = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps([call(**each) for each in calls]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
