"""A server that fails as told: `faulty.py MODE PORT`.

flaky    503 twice for each path, then 200
always   503
reset    reads the request, then resets the connection
close    reads the request, then closes the connection without an answer
"""

import collections
import socket
import struct
import sys
import threading

mode, port = sys.argv[1], int(sys.argv[2])
seen = collections.Counter()
lock = threading.Lock()


def respond(path):
    with lock:
        seen[path] += 1
        failed = mode == "always" or seen[path] <= 2
    ident = path.split("/")[2]
    body = f"{ident} {'busy' if failed else 'ok'}".encode()
    status = b"503 Service Unavailable" if failed else b"200 OK"
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def serve(connection):
    with connection:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                piece = connection.recv(65536)
                if not piece:
                    return
                data += piece
            head, data = data.split(b"\r\n\r\n", 1)
            if mode == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if mode == "close":
                return
            connection.sendall(respond(head.split(b" ")[1].decode()))


with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
