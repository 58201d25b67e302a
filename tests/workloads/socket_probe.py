"""What system calls on a TCP connection say, step by step: one line for each probe.

socket_probe.py ipv4|ipv6 STATE [PROBE]

Every probe is made from both ends of a connection of that family in that state:
  fresh     nothing was sent
  waiting   a request was sent, no answer yet
  answered  a request was answered
The lines of two runs must be equal. Only what a call returned is in them, nothing that depends on time.
The last lines, which begin with `#`, tell how many requests and responses carried an added header.

Written against the C library, not Python's socket methods: these repeat interrupted calls.
"""

import ctypes
import errno
import fcntl
import os
import re
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
for function in (LIBC.recv, LIBC.send, LIBC.write, LIBC.sendfile, LIBC.splice):
    function.restype = ctypes.c_ssize_t
LIBC.sendfile.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
LIBC.splice.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint]
LIBC.recv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
LIBC.send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
LIBC.write.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]

REQUEST = b"GET /probe HTTP/1.1\r\nHost: probe.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ADDED = re.compile(rb"(traceparent|tracestate|server-timing): [^\r\n]*\r\n")
SO_ZEROCOPY, MSG_ZEROCOPY, MSG_ERRQUEUE = 60, 0x4000000, 0x2000
TCP_ULP, SIOCATMARK = 31, 0x8905
RECVFROM = "45"
# How many times as long as usual everything takes on an emulated machine.
PATIENCE = int(os.environ.get("SPANWIRE_PATIENCE", "1"))
# Long enough that the other thread is in its call.
SOON = 0.03 * PATIENCE

carried = {"requests": [0, 0], "responses": [0, 0]}


def called(function, *arguments):
    """What a call said: its result, or the error's name."""
    result = function(*arguments)
    return result if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def receive(sock, size=4096, flags=0):
    """The bytes received, or the error's name."""
    room = ctypes.create_string_buffer(size)
    result = called(LIBC.recv, sock.fileno(), room, size, flags)
    return room.raw[:result] if isinstance(result, int) else result


def send(sock, data, flags=socket.MSG_NOSIGNAL):
    return called(LIBC.send, sock.fileno(), data, len(data), flags)


def queued(sock, request=termios.FIONREAD):
    return struct.unpack("i", fcntl.ioctl(sock, request, b"\0" * 4))[0]


def head_of(sock, kind):
    """Reads up to the end of the message and counts what was added to it."""
    wanted = REQUEST if kind == "requests" else ANSWER
    data = b""
    while len(ADDED.sub(b"", data)) < len(wanted):
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    carried[kind][0] += ADDED.search(data) is not None
    carried[kind][1] += 1
    return ADDED.sub(b"", data) == wanted


def readable(sock, limit=2000):
    """Waits for something to read and says what poll says."""
    poller = select.poll()
    poller.register(sock, select.POLLIN | select.POLLRDHUP)
    return sorted(event for _, event in poller.poll(limit))


def later(action, delay=SOON):
    """Does something in another thread while this one is blocked in recv."""
    blocked = f"/proc/self/task/{threading.get_native_id()}/syscall"

    def run():
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            with open(blocked, encoding="ascii") as call:
                if call.read().split()[0] == RECVFROM:
                    break
            time.sleep(0.001)
        time.sleep(delay)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def received_all(sock, size):
    data = b""
    while len(data) < size:
        piece = sock.recv(min(65536, size - len(data)))
        if not piece:
            break
        data += piece
    return data


# Each probe gets the socket under test and its peer, and returns what the calls said.


def probe_fionread(one, peer):
    peer.sendall(b"hello")
    return readable(one), queued(one), receive(one, 2), queued(one), receive(one), queued(one)


def probe_peek(one, peer):
    peer.sendall(b"hello")
    readable(one)
    return receive(one, 3, socket.MSG_PEEK), receive(one, 9, socket.MSG_PEEK), receive(one), queued(one)


def probe_nothing_there(one, peer):
    return receive(one, 9, socket.MSG_DONTWAIT), receive(one, 9, socket.MSG_DONTWAIT | socket.MSG_PEEK), queued(one)


def probe_blocked_until_data(one, peer):
    thread = later(lambda: peer.sendall(b"late"))
    got = receive(one)
    thread.join()
    return got


def probe_blocked_until_reset(one, peer):
    thread = later(lambda: reset(peer))
    got = receive(one)
    thread.join()
    return got, receive(one), send(one, b"x"), one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), readable(one)


def probe_blocked_until_end(one, peer):
    thread = later(lambda: peer.shutdown(socket.SHUT_WR))
    got = receive(one)
    thread.join()
    return got, receive(one), readable(one), send(one, b"still open")


def probe_data_then_reset(one, peer):
    peer.sendall(b"last words")
    readable(one)
    reset(peer)
    time.sleep(SOON)
    return readable(one), receive(one), receive(one), receive(one)


def interrupted(one, peer, restart):
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, not restart)
    main = threading.get_ident()
    threads = [
        later(lambda: signal.pthread_kill(main, signal.SIGUSR1)),
        later(lambda: peer.sendall(b"late"), 3 * SOON),
    ]
    got = receive(one)
    for thread in threads:
        thread.join()
    return got, receive(one, 9, socket.MSG_DONTWAIT)


def probe_signal_restarts(one, peer):
    return interrupted(one, peer, True)


def probe_signal_interrupts(one, peer):
    return interrupted(one, peer, False)


def probe_own_shutdown_while_blocked(one, peer):
    threads = [later(lambda: one.shutdown(socket.SHUT_WR)), later(lambda: peer.sendall(b"answer"), 3 * SOON)]
    got = receive(one)
    for thread in threads:
        thread.join()
    return got, receive(peer), send(one, b"x")


def probe_shutdown_read(one, peer):
    one.shutdown(socket.SHUT_RD)
    return receive(one), readable(one), send(one, b"x"), receive(peer)


def probe_space_while_blocked(one, peer):
    """The send buffer is full, this end waits in recv, and the peer makes room before it answers."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)
    sent = 0
    while True:
        result = send(one, b"x" * 3000, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if not isinstance(result, int):
            break
        sent += result
    read = []

    def drain():
        read.append(len(received_all(peer, sent)))
        time.sleep(SOON)
        peer.sendall(b"room")

    thread = later(drain)
    got = receive(one)
    thread.join()
    return result, read[0] - sent, got


def probe_receive_timeout(one, peer):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 60000))
    start = time.monotonic()
    got = receive(one)
    waited = time.monotonic() - start >= 0.055
    peer.sendall(b"x")
    readable(one)
    return got, waited, receive(one)


def probe_wait_for_all(one, peer):
    peer.sendall(b"abc")
    thread = later(lambda: peer.sendall(b"defgh"))
    got = receive(one, 8, socket.MSG_WAITALL)
    thread.join()
    peer.sendall(b"ij")
    peer.shutdown(socket.SHUT_WR)
    return got, receive(one, 8, socket.MSG_WAITALL)


def probe_truncating_receive(one, peer):
    peer.sendall(b"discarded and kept")
    readable(one)
    return called(LIBC.recv, one.fileno(), None, 14, socket.MSG_TRUNC), receive(one)


def probe_scattered_receive(one, peer):
    peer.sendall(b"0123456789")
    readable(one)
    parts = [bytearray(3), bytearray(4), bytearray(9)]
    count, _, flags, _ = one.recvmsg_into(parts)
    return count, flags, parts


def probe_urgent(one, peer):
    peer.sendall(b"ab")
    peer.send(b"!", socket.MSG_OOB)
    peer.sendall(b"cd")
    time.sleep(SOON)
    first = receive(one, 9)
    mark = queued(one, SIOCATMARK)
    return first, mark, receive(one, 9, socket.MSG_OOB), receive(one, 9)


def probe_urgent_sent(one, peer):
    results = [send(one, b"ab"), send(one, b"!", socket.MSG_OOB | socket.MSG_NOSIGNAL), send(one, b"cd")]
    time.sleep(SOON)
    return results, receive(peer, 9), receive(peer, 9, socket.MSG_OOB), receive(peer, 9)


def probe_send_sizes(one, peer):
    """Sizes around those at which the kernel cuts; none may wait for an acknowledgement."""
    results, slow = [], 0
    for size in (1, 600, 4096, 16384, 32768, 40000, 50000, 65536, 70000, 200000):
        data = os.urandom(size)
        read = []
        thread = threading.Thread(target=lambda: read.append(received_all(peer, size)))
        thread.start()
        start = time.monotonic()
        results.append(send(one, data))
        thread.join()
        slow += time.monotonic() - start > 0.2 * PATIENCE
        results.append(read[0] == data)
    return results, slow


def probe_sendmsg_parts(one, peer):
    count = one.sendmsg([b"GET /parts HTTP/1.1\r\n", b"Host: a\r\n", b"Content-Length: 4\r\n\r\n", b"body"])
    return count, ADDED.sub(b"", received_after(peer, b"body"))


def received_after(sock, end):
    data = b""
    while not data.endswith(end):
        piece = sock.recv(4096)
        if not piece:
            break
        data += piece
    return data


def probe_corked(one, peer):
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    results = [send(one, b"GET /cork HTTP/1.1\r\n"), send(one, b"Host: a\r\n\r\n")]
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    return results, ADDED.sub(b"", received_after(peer, b"\r\n\r\n"))


def probe_sendfile(one, peer):
    size = 300000
    data = os.urandom(size)
    file = os.memfd_create("probe")
    os.write(file, data)
    os.lseek(file, 0, os.SEEK_SET)
    read = []
    thread = threading.Thread(target=lambda: read.append(received_all(peer, size)))
    thread.start()
    sent = 0
    while sent < size:
        result = called(LIBC.sendfile, one.fileno(), file, None, size - sent)
        if not isinstance(result, int) or result == 0:
            break
        sent += result
    thread.join()
    position = os.lseek(file, 0, os.SEEK_CUR)
    os.close(file)
    return sent, position, read[0] == data


def probe_splice(one, peer):
    peer.sendall(b"through a pipe")
    readable(one)
    out, into = os.pipe()
    taken = called(LIBC.splice, one.fileno(), None, into, None, 9, 0)
    rest = receive(one)
    given = called(LIBC.splice, out, None, one.fileno(), None, 9, 0)
    got = receive(peer) if isinstance(given, int) else None
    os.close(out)
    os.close(into)
    return taken, rest, given, got


def probe_zero_copy(one, peer):
    """An application frees its buffers by the completions: each send has exactly one."""
    one.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    data = b"z" * 100000
    results, ranges = [], []
    for _ in range(5):
        read = []
        thread = threading.Thread(target=lambda: read.append(len(received_all(peer, len(data)))))
        thread.start()
        results.append(send(one, data, MSG_ZEROCOPY | socket.MSG_NOSIGNAL))
        thread.join()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and sum(last - first + 1 for first, last in ranges) < 5:
        try:
            _, control, _, _ = one.recvmsg(1, 512, MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except BlockingIOError:
            time.sleep(0.005)
            continue
        for _, _, payload in control:
            first, last = struct.unpack_from("II", payload, 8)
            ranges.append((first, last))
    return results, sum(last - first + 1 for first, last in ranges), max((last for _, last in ranges), default=None)


def probe_full_then_drained(one, peer):
    """Everything that a socket said it took arrives, once and in order."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 9000)
    one.setblocking(False)
    data = os.urandom(400000)
    got, sent = b"", 0
    while sent < len(data):
        result = send(one, data[sent : sent + 7001])
        if isinstance(result, int):
            sent += result
        elif result == "EAGAIN":
            some = receive(peer, 5000, socket.MSG_DONTWAIT)
            got += b"" if isinstance(some, str) else some
            # What is sent and not acknowledged yet still fills the buffer.
            select.select([], [one], [], 0.01)
        else:
            return result
    got += received_all(peer, len(data) - len(got))
    return sent, got == data


def probe_options(one, peer):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50000)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 60000)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 9000)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 16000)
    names = ("SO_ERROR", "SO_TYPE", "SO_DOMAIN", "SO_PROTOCOL", "SO_SNDBUF", "SO_RCVBUF", "SO_KEEPALIVE", "SO_REUSEADDR",
             "SO_BROADCAST", "SO_OOBINLINE", "SO_RCVLOWAT", "SO_ACCEPTCONN", "SO_MARK", "SO_PRIORITY")
    values = [one.getsockopt(socket.SOL_SOCKET, getattr(socket, name)) for name in names]
    names = ("TCP_NODELAY", "TCP_CORK", "TCP_KEEPIDLE", "TCP_DEFER_ACCEPT", "TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT")
    values += [one.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    ulp = one.getsockopt(socket.IPPROTO_TCP, TCP_ULP, 16)
    return values, info[0], info[5], ulp.rstrip(b"\0"), one.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)


def probe_kernel_tls(one, peer):
    try:
        one.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "set"


def probe_low_water(one, peer):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 6)
    peer.sendall(b"abc")
    time.sleep(SOON)
    few = readable(one, 0)
    peer.sendall(b"defg")
    return few, readable(one), receive(one)


def probe_edges(one, peer):
    """Edge-triggered epoll tells of each arrival once."""
    events = []
    with select.epoll() as poller:
        poller.register(one, select.EPOLLIN | select.EPOLLET | select.EPOLLRDHUP)
        for data in (b"a", b"b"):
            peer.sendall(data)
            events.append([event for _, event in poller.poll(2)])
            events.append([event for _, event in poller.poll(0.01)])
        events.append(receive(one))
        peer.shutdown(socket.SHUT_WR)
        events.append([event for _, event in poller.poll(2)])
        events.append(receive(one))
    return events


def probe_writable(one, peer):
    poller = select.poll()
    poller.register(one, select.POLLOUT | select.POLLIN)
    return [event for _, event in poller.poll(0)]


def probe_close_with_unread(one, peer):
    peer.sendall(b"never read")
    readable(one)
    one.close()
    time.sleep(SOON)
    return receive(peer), send(peer, b"x")


def probe_peer_gone(one, peer):
    """The first send finds out, the second is told."""
    peer.close()
    time.sleep(SOON)
    first = send(one, b"x")
    time.sleep(SOON)
    return first, send(one, b"x"), readable(one), receive(one)


def probe_inherited(one, peer):
    child = os.fork()
    if child == 0:
        os._exit(0 if send(one, b"from the child") == 14 and receive(one) == b"to the child" else 1)
    got = receive(peer)
    peer.sendall(b"to the child")
    _, status = os.waitpid(child, 0)
    return got, status


def probe_duplicated(one, peer):
    second = socket.socket(fileno=os.dup(one.fileno()))
    results = [send(second, b"ab"), receive(peer)]
    second.close()
    peer.sendall(b"cd")
    readable(one)
    return results, queued(one), receive(one)


def probe_two_more_requests(one, peer):
    """What comes after the first request is sent as before."""
    results = []
    for _ in range(2):
        results.append(send(one, REQUEST))
        results.append(ADDED.sub(b"", received_after(peer, b"\r\n\r\n")) == REQUEST)
        peer.sendall(ANSWER)
        results.append(readable(one))
        results.append(queued(one) >= len(ANSWER))
        results.append(ADDED.sub(b"", received_after(one, b"ok")) == ANSWER)
    return results


PROBES = [(name[6:], function) for name, function in sorted(globals().items()) if name.startswith("probe_")]


def connection(family, state):
    """A connected pair, brought into the state."""
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    listener = socket.create_server((address, 0), family=family)
    client = socket.create_connection(listener.getsockname()[:2])
    server, _ = listener.accept()
    listener.close()
    if state != "fresh":
        client.sendall(REQUEST)
        whole = head_of(server, "requests")
        if state == "answered":
            server.sendall(ANSWER)
            whole = head_of(client, "responses") and whole
        if not whole:
            print(f"a message was damaged in state {state}")
    return client, server


FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


def main():
    version, state = sys.argv[1:3]
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    # Time for whoever watches to find out what this process is.
    time.sleep(3)
    for end in ("client", "server"):
        for name, probe in PROBES:
            if only not in name:
                continue
            client, server = connection(FAMILIES[version], state)
            one, peer = (client, server) if end == "client" else (server, client)
            for sock in (one, peer):
                sock.settimeout(None)
            signal.alarm(10 * PATIENCE)
            try:
                said = probe(one, peer)
            except OSError as error:
                said = f"{type(error).__name__} {errno.errorcode.get(error.errno)}"
            print(f"{version} {state} {end} {name}: {said}", flush=True)
            one.close()
            peer.close()
    signal.alarm(0)
    for kind, (with_header, all_of_them) in carried.items():
        print(f"# {kind} {with_header} {all_of_them}")


if __name__ == "__main__":
    main()
