"""Odd but legal socket use, both ends: every call that sends or receives, and every corner of HTTP/1.1 framing.

    sockets.py serve DIR      listens, one listener for each pair of calls and family; writes DIR/listeners.json
    sockets.py call DIR       opens connections that will be older than the agent, writes DIR/waiting, waits for DIR/go,
                              makes every exchange, writes DIR/truth.json

The truth is one object for each exchange: path, method, status, and the bodies' sizes where the framing tells them.
A path with "fake" in it is only ever part of a body: a span of it is wrong.
"""

import ctypes
import ctypes.util
import json
import mmap
import os
import socket
import struct
import sys
import threading
import time

libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)

SENDS = ["write", "send", "sendto", "writev", "sendmsg", "sendmmsg", "bytewise", "pieces", "sendfile", "splice"]
RECEIVES = ["read", "recv", "recvfrom", "readv", "recvmsg", "recvmmsg", "bytewise", "peek", "waitall", "nonblocking"]
PAIRS = list(zip(SENDS, RECEIVES))
FAMILIES = {"four": socket.AF_INET, "six": socket.AF_INET6, "unix": socket.AF_UNIX}


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class Msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(Iovec)),
                ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                ("flags", ctypes.c_int)]


class Mmsghdr(ctypes.Structure):
    _fields_ = [("hdr", Msghdr), ("len", ctypes.c_uint)]


def many_messages(buffers):
    """An array for sendmmsg and recvmmsg, one buffer a message; the second value keeps the memory alive."""
    iovecs = (Iovec * len(buffers))()
    messages = (Mmsghdr * len(buffers))()
    for at, buffer in enumerate(buffers):
        iovecs[at] = Iovec(ctypes.addressof(buffer), ctypes.sizeof(buffer))
        messages[at].hdr.iov = ctypes.pointer(iovecs[at])
        messages[at].hdr.iovlen = 1
    return messages, (iovecs, buffers)


def split(data, parts):
    size = max(1, -(-len(data) // parts))
    return [data[at:at + size] for at in range(0, len(data), size)]


def send_all(sock, data, call):
    """The whole of data by one kind of call, however many of them it takes."""
    fd = sock.fileno()
    if call == "write":
        while data:
            data = data[os.write(fd, data):]
    elif call == "sendto" and sock.family != socket.AF_UNIX:
        # A destination on a connected stream is ignored; send() is sendto() with none.
        while data:
            data = data[sock.sendto(data, sock.getpeername()):]
    elif call == "writev":
        while data:
            data = data[os.writev(fd, split(data, 5)):]
    elif call == "sendmsg":
        while data:
            data = data[sock.sendmsg(split(data, 3)):]
    elif call == "sendmmsg":
        parts = split(data, 4)
        messages, keep = many_messages([ctypes.create_string_buffer(part, len(part)) for part in parts])
        sent = 0
        while sent < len(parts):
            done = libc.sendmmsg(fd, ctypes.byref(messages[sent]), len(parts) - sent, 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            assert all(messages[at].len == len(parts[at]) for at in range(sent, sent + done)), "short message"
            sent += done
        del keep
    elif call == "bytewise":
        for at in range(len(data)):
            sock.sendall(data[at:at + 1])
    elif call == "pieces":
        for piece in split(data, 7):
            sock.sendall(piece)
            time.sleep(0.002)
    elif call in ("sendfile", "splice"):
        # Heads from memory, bodies from files, as servers do it.
        head, mark, body = data.partition(b"\r\n\r\n")
        sock.sendall(head + mark, socket.MSG_MORE if body else 0)
        if body:
            send_file(fd, body, call)
    else:
        sock.sendall(data)


def send_file(fd, body, call):
    if call == "sendfile":
        file = os.memfd_create("body")
        os.write(file, body)
        at = 0
        while at < len(body):
            at += os.sendfile(fd, file, at, len(body) - at)
        os.close(file)
        return
    read_end, write_end = os.pipe()
    os.write(write_end, body)
    left = len(body)
    while left:
        moved = libc.splice(read_end, None, fd, None, ctypes.c_size_t(left), 0)
        if moved < 0:
            raise OSError(ctypes.get_errno(), "splice")
        left -= moved
    os.close(read_end)
    os.close(write_end)


def receive(sock, call, want):
    """Some bytes by one kind of call; empty at the end."""
    fd = sock.fileno()
    if call == "read":
        return os.read(fd, 65536)
    if call == "recvfrom":
        return sock.recvfrom(65536)[0]
    if call == "readv":
        buffers = [bytearray(11), bytearray(100), bytearray(65536)]
        got = os.readv(fd, buffers)
        return b"".join(buffers)[:got]
    if call == "recvmsg":
        buffers = [bytearray(7), bytearray(65536)]
        got = sock.recvmsg_into(buffers)[0]
        return b"".join(buffers)[:got]
    if call == "recvmmsg":
        messages, (_, buffers) = many_messages([ctypes.create_string_buffer(9), ctypes.create_string_buffer(65536)])
        # MSG_WAITFORONE: a stream has no second message to wait for.
        done = libc.recvmmsg(fd, messages, 2, 0x10000, None)
        if done < 0:
            raise OSError(ctypes.get_errno(), "recvmmsg")
        return b"".join(buffers[at].raw[:messages[at].len] for at in range(done))
    if call == "bytewise":
        return sock.recv(1)
    if call == "peek":
        sock.recv(65536, socket.MSG_PEEK)
        sock.recv(3, socket.MSG_PEEK)
        return sock.recv(65536)
    if call == "waitall" and want:
        return sock.recv(want, socket.MSG_WAITALL)
    if call == "nonblocking":
        for _ in range(100000):
            try:
                return sock.recv(23, socket.MSG_DONTWAIT)
            except BlockingIOError:
                time.sleep(0.0005)
        raise TimeoutError("nothing to receive")
    return sock.recv(65536)


class Peer:
    """One end of a connection and the two calls it uses."""

    def __init__(self, sock, send="send", recv="recv"):
        self.sock, self.send_call, self.recv_call, self.data = sock, send, recv, b""
        sock.settimeout(None)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data):
        send_all(self.sock, data, self.send_call)

    def more(self, want=0):
        piece = receive(self.sock, self.recv_call, want)
        self.data += piece
        return bool(piece)

    def head(self):
        """Start line and headers in lower case; None when the other side has closed."""
        while b"\r\n\r\n" not in self.data:
            if not self.more():
                return None
        head, self.data = self.data.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        return lines[0], {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:] if ":" in line)}

    def exactly(self, size):
        while len(self.data) < size:
            if not self.more(size - len(self.data)):
                raise ConnectionError("closed inside a body")
        body, self.data = self.data[:size], self.data[size:]
        return body

    def line(self):
        while b"\r\n" not in self.data:
            if not self.more():
                raise ConnectionError("closed inside a chunk")
        line, self.data = self.data.split(b"\r\n", 1)
        return line

    def body(self, headers):
        if "chunked" in headers.get("transfer-encoding", ""):
            body = b""
            while size := int(self.line().split(b";")[0], 16):
                body += self.exactly(size)
                self.line()
            while self.line():
                pass
            return body
        return self.exactly(int(headers.get("content-length", 0)))


def chunked(body, trailer=b""):
    chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in split(body, 3)) if body else b""
    return chunks + b"0\r\n" + trailer + b"\r\n"


LOOKS_LIKE_REQUEST = b"GET /r/fake HTTP/1.1\r\nHost: fake\r\nContent-Length: 0\r\n\r\n"
LOOKS_LIKE_RESPONSE = b"HTTP/1.1 500 Fake\r\nContent-Length: 0\r\n\r\n"


def respond(peer, line, headers, body):
    """Answers as the request's X-Do header says. False ends the connection."""
    method, target, _ = line.split(" ")
    do = headers.get("x-do", "")
    ok = b"HTTP/1.1 200 OK\r\n"
    text = b"ok " + target.encode() + b" %d" % len(body)
    if do == "empty":
        peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    elif do == "unchanged":
        peer.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n")
    elif do == "chunked":
        peer.send(ok + b"transfer-encoding:  chunked \r\nTrailer: X-Sum\r\n\r\n" + chunked(LOOKS_LIKE_RESPONSE * 3, b"X-Sum: 1\r\n"))
    elif do == "hints":
        hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        peer.send(hint)
        peer.send(hint + ok + b"Content-Length: %d\r\n\r\n" % len(text) + text)
    elif do == "until-close":
        peer.send(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n" + LOOKS_LIKE_RESPONSE)
        return False
    elif do == "fake":
        peer.send(ok + b"Content-Length: %d\r\n\r\n" % len(LOOKS_LIKE_RESPONSE))
        peer.send(LOOKS_LIKE_RESPONSE)
    elif do == "upgrade":
        peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
        return tunnel(peer)
    elif method == "CONNECT":
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return tunnel(peer)
    elif do.startswith("bytes="):
        peer.send(ok + b"Content-Length: %d\r\n\r\n" % int(do[6:]) + b"b" * int(do[6:]))
    else:
        peer.send(ok + b"CONTENT-LENGTH:%d\r\n\r\n" % len(text) + (b"" if method == "HEAD" else text))
    return True


def tunnel(peer):
    """Echoes until the other side closes."""
    while True:
        data, peer.data = peer.data, b""
        peer.send(data)
        if not peer.more():
            return False


def serve_connection(sock, send, recv):
    peer = Peer(sock, send, recv)
    with sock:
        while (head := peer.head()) is not None:
            line, headers = head
            if headers.get("expect") == "100-continue":
                peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not respond(peer, line, headers, peer.body(headers)):
                return


def serve_listener(listener, send, recv):
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve_connection, args=(sock, send, recv), daemon=True).start()


def serve(folder):
    listeners = []
    for family, number in FAMILIES.items():
        for send, recv in PAIRS:
            path = os.path.join(folder, f"{family}-{send}.sock")
            address = {"four": ("127.0.0.1", 0), "six": ("::1", 0), "unix": path}[family]
            listener = socket.socket(number, socket.SOCK_STREAM)
            listener.bind(address)
            listener.listen(64)
            threading.Thread(target=serve_listener, args=(listener, send, recv), daemon=True).start()
            listeners.append({"family": family, "send": send, "recv": recv, "address": listener.getsockname()})
    store(folder, "listeners.json", listeners)
    while True:
        time.sleep(3600)


def store(folder, name, value):
    path = os.path.join(folder, name)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(path + ".new", path)


class Client:
    """Makes exchanges and remembers what they were."""

    def __init__(self, folder):
        with open(os.path.join(folder, "listeners.json"), encoding="utf-8") as file:
            self.listeners = json.load(file)
        self.truth = []

    def connect(self, family="four", send="send"):
        at = next(one for one in self.listeners if one["family"] == family and one["send"] == send)
        sock = socket.socket(FAMILIES[family], socket.SOCK_STREAM)
        address = at["address"] if family == "unix" else tuple(at["address"])
        sock.connect(address)
        return Peer(sock, at["send"], at["recv"])

    def tell(self, path, method, status, request, response):
        self.truth.append({"path": path, "method": method, "status": status, "request": request, "response": response})

    def exchange(self, peer, ident, method="GET", do="", body=b"", headers="", status=200, response=None, target=None):
        """One request and its whole response."""
        path = f"/r/{ident}"
        if do:
            headers += f"X-Do: {do}\r\n"
        if body:
            headers += f"content-length: {len(body)}\r\n"
        peer.send(f"{method} {target or path} HTTP/1.1\r\nhOsT:x\r\n{headers}\r\n".encode() + body)
        got, answer = self.response(peer, method)
        assert got == status, f"{ident}: status {got}, expected {status}"
        self.tell(path, method, status, len(body), len(answer) if response is None else response)

    def response(self, peer, method):
        while True:
            line, headers = peer.head()
            status = int(line.split(" ")[1])
            if status >= 200 or status == 101:
                break
        if method == "HEAD" or status in (101, 204, 304):
            return status, b""
        return status, peer.body(headers)


def every_call(client):
    for family in FAMILIES:
        for send, recv in PAIRS:
            peer = client.connect(family, send)
            for n in range(3):
                client.exchange(peer, f"{family}{send}{recv}n{n}", "POST", body=b"x" * (40 + n), do="bytes=70")
                client.exchange(peer, f"{family}{send}{recv}g{n}")
            peer.sock.close()


def corners(client):
    peer = client.connect()
    exchange = client.exchange
    exchange(peer, "head", "HEAD", response=0)
    exchange(peer, "empty", do="empty", status=204, response=0)
    exchange(peer, "unchanged", do="unchanged", status=304, response=0)
    exchange(peer, "chunkedresponse", do="chunked")
    exchange(peer, "hints", do="hints")
    exchange(peer, "bodylikeananswer", do="fake")
    exchange(peer, "query", target="/r/query?token=secret&x=/r/fake")
    exchange(peer, "absolute", target="http://test.invalid/r/absolute")
    for method in ["PUT", "PATCH", "DELETE", "OPTIONS"]:
        exchange(peer, f"method{method}", method, body=b"body")
    for size in [900, 4000, 9000, 15500]:
        exchange(peer, f"longhead{size}", headers=f"X-Long: {'h' * size}\r\n")
    exchange(peer, "many", headers="".join(f"X-Number-{n}: {n}\r\n" for n in range(90)))
    for size in [1, 4096, 65536, 300000]:
        exchange(peer, f"upload{size}", "POST", body=b"u" * size)
        exchange(peer, f"download{size}", do=f"bytes={size}")
    for n in range(50):
        exchange(peer, f"kept{n}")
    peer.sock.close()


def bodies_like_requests(client):
    peer = client.connect()
    client.exchange(peer, "inbody", "POST", body=LOOKS_LIKE_REQUEST * 4)
    # Each call begins where a request could: head, then the body in calls of its own.
    peer.send(b"POST /r/ownwrites HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (3 * len(LOOKS_LIKE_REQUEST)))
    for _ in range(3):
        time.sleep(0.005)
        peer.send(LOOKS_LIKE_REQUEST)
    status, answer = client.response(peer, "POST")
    client.tell("/r/ownwrites", "POST", status, 3 * len(LOOKS_LIKE_REQUEST), len(answer))
    body = LOOKS_LIKE_REQUEST * 5
    peer.send(b"POST /r/chunkedrequest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, b"X-T: 1\r\n"))
    status, answer = client.response(peer, "POST")
    client.tell("/r/chunkedrequest", "POST", status, len(body), len(answer))
    peer.send(b"POST /r/expect HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(LOOKS_LIKE_REQUEST))
    peer.head()
    peer.send(LOOKS_LIKE_REQUEST)
    status, answer = client.response(peer, "POST")
    client.tell("/r/expect", "POST", status, len(LOOKS_LIKE_REQUEST), len(answer))
    client.exchange(peer, "afterbodies")
    peer.sock.close()


def pipelined(client):
    for name, pieces in [("onewrite", 1), ("cuts", 11), ("bytes", 0)]:
        peer = client.connect()
        paths = [f"/r/pipe{name}{n}" for n in range(6)]
        data = b"".join(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /" % path.encode() for path in paths)
        for piece in split(data, pieces or len(data)):
            peer.send(piece)
        for path in paths:
            status, answer = client.response(peer, "POST")
            assert path.encode() in answer, f"{path}: {answer}"
            client.tell(path, "POST", status, 5, len(answer))
        peer.sock.close()


def tunnels(client):
    for ident, start, status in [
        ("upgrade", b"GET /r/upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\nX-Do: upgrade\r\n\r\n", 101),
        ("connect", b"CONNECT test.invalid:443 HTTP/1.1\r\nHost: test.invalid:443\r\n\r\n", 200),
    ]:
        peer = client.connect()
        peer.send(start)
        peer.head()
        for _ in range(3):
            peer.send(LOOKS_LIKE_REQUEST)
            assert peer.exactly(len(LOOKS_LIKE_REQUEST)) == LOOKS_LIKE_REQUEST
        peer.sock.close()
        if ident == "upgrade":
            client.tell("/r/upgrade", "GET", status, 0, None)


def until_close(client):
    peer = client.connect()
    peer.send(b"GET /r/untilclose HTTP/1.0\r\nX-Do: until-close\r\n\r\n")
    peer.head()
    while peer.more():
        pass
    client.tell("/r/untilclose", "GET", 200, 0, len(LOOKS_LIKE_RESPONSE))
    peer.sock.close()


class Ring:
    """The least of io_uring: one operation at a time, by the system calls themselves."""

    SETUP, ENTER, SEND, RECV, GETEVENTS = 425, 426, 26, 27, 1

    def __init__(self):
        params = (ctypes.c_uint32 * 30)()
        self.fd = libc.syscall(self.SETUP, 4, ctypes.byref(params))
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        # struct io_sq_ring_offsets begins at word 10, struct io_cq_ring_offsets at word 20.
        self.sq_tail, self.sq_mask, self.sq_array = params[11], params[12], params[16]
        self.cq_head, self.cq_mask, self.cqes = params[20], params[22], params[25]
        size = max(params[16] + params[0] * 4, params[25] + params[1] * 16)
        self.ring = mmap.mmap(self.fd, size, mmap.MAP_SHARED, offset=0)
        self.entries = mmap.mmap(self.fd, params[0] * 64, mmap.MAP_SHARED, offset=0x10000000)

    def word(self, at):
        return int.from_bytes(self.ring[at:at + 4], "little")

    def put(self, at, value):
        self.ring[at:at + 4] = value.to_bytes(4, "little")

    def run(self, operation, sock, buffer):
        """Submits one operation on a buffer and returns its result."""
        tail = self.word(self.sq_tail)
        at = tail & self.word(self.sq_mask)
        entry = struct.pack("<BBHiQQII", operation, 0, 0, sock.fileno(), 0, ctypes.addressof(buffer), len(buffer), 0)
        self.entries[at * 64:at * 64 + 64] = entry.ljust(64, b"\0")
        self.put(self.sq_array + at * 4, at)
        self.put(self.sq_tail, tail + 1)
        if libc.syscall(self.ENTER, self.fd, 1, 1, self.GETEVENTS, None, ctypes.c_size_t(0)) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        head = self.word(self.cq_head)
        at = self.cqes + (head & self.word(self.cq_mask)) * 16
        result = struct.unpack_from("<i", self.ring, at + 8)[0]
        self.put(self.cq_head, head + 1)
        if result < 0:
            raise OSError(-result, "io_uring operation")
        return result


def by_io_uring(client):
    """A client whose calls come by io_uring: its side cannot be seen, and must be counted."""
    ring = Ring()
    peer = client.connect()
    for n in range(3):
        request = b"GET /r/uring%d HTTP/1.1\r\nHost: x\r\n\r\n" % n
        assert ring.run(Ring.SEND, peer.sock, ctypes.create_string_buffer(request, len(request))) == len(request)
        buffer = ctypes.create_string_buffer(4096)
        got = ring.run(Ring.RECV, peer.sock, buffer)
        assert buffer.raw[:got].startswith(b"HTTP/1.1 200 OK\r\n"), buffer.raw[:got]
        client.tell(f"/r/uring{n}", "GET", 200, 0, len(f"ok /r/uring{n} 0"))
    peer.sock.close()


def older(client):
    """Connections that will be older than the agent: idle ones, and one in the middle of a body."""
    idle = client.connect()
    for n in range(3):
        client.exchange(idle, f"before{n}")
    middle = client.connect()
    body = LOOKS_LIKE_REQUEST * 8
    middle.send(b"POST /r/middle HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    half = 4 * len(LOOKS_LIKE_REQUEST)
    middle.send(body[:half])
    client.truth.clear()
    return idle, middle, body[half:]


def older_go_on(client, idle, middle, rest):
    for n in range(20):
        client.exchange(idle, f"late{n}")
    for at in range(0, len(rest), len(LOOKS_LIKE_REQUEST)):
        middle.send(rest[at:at + len(LOOKS_LIKE_REQUEST)])
        time.sleep(0.005)
    client.response(middle, "POST")
    for n in range(20):
        client.exchange(middle, f"resumed{n}")
    idle.sock.close()
    middle.sock.close()


def call(folder):
    client = Client(folder)
    old = older(client)
    store(folder, "waiting", True)
    for _ in range(6000):
        if os.path.exists(os.path.join(folder, "go")):
            break
        time.sleep(0.01)
    else:
        sys.exit("nobody said go")
    older_go_on(client, *old)
    for part in [every_call, corners, bodies_like_requests, pipelined, tunnels, until_close, by_io_uring]:
        part(client)
    store(folder, "truth.json", client.truth)
    # Stay: the agent reads what it needs of a process while it lives.
    time.sleep(3600)


{"serve": serve, "call": call}[sys.argv[1]](sys.argv[2])
