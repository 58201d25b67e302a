//! What others' agents were seen to break: requests to be left alone, and connections that are not HTTP at all.

use rand::rngs::StdRng;
use rand::Rng;

use super::http::answer;
use super::message::{body, response, target, word, Request};
use crate::differential::exchange::{Cut, Draft, Side, Step};
use Side::{Client, Server};

const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A request that must go out as it is, and its answer.
fn untouched(draft: &mut Draft, rng: &mut StdRng, head: &[u8]) {
    let cut = Cut::any(rng);
    draft.head(Client, head, false).say(Client, cut, rng);
    answer(draft, rng);
    draft.step(Step::Close(Client));
}

/// A header of the application's own: as it is, however it is written and whatever it holds.
pub(super) fn has_context(draft: &mut Draft, rng: &mut StdRng) {
    let name = ["traceparent", "Traceparent", "TRACEPARENT", "TraceParent"][rng.random_range(0..4)];
    let value = match rng.random_range(0..6) {
        0..=2 => {
            let (trace, parent): (u128, u64) = (rng.random(), rng.random());
            format!("00-{trace:032x}-{parent:016x}-0{}", rng.random_range(0..4))
        }
        3 => "00-00000000000000000000000000000000-b7ad6b7169203331-01".to_owned(),
        4 => "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what".to_owned(),
        _ => "nonsense".to_owned(),
    };
    let mut request = Request::any(rng);
    if rng.random_ratio(1, 3) {
        request = request.field("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE");
    }
    let size = request.0.len() + rng.random_range(60..3_000);
    request = if rng.random() {
        request.field(name, &value).of_size(size, rng)
    } else {
        request.of_size(size, rng).field(name, &value)
    };
    if rng.random_ratio(1, 6) {
        request = request.field(name, VALID);
    }
    untouched(draft, rng, &request.done());
}

/// A signature may cover the list of headers.
pub(super) fn signed(draft: &mut Draft, rng: &mut StdRng) {
    let mut request = Request::any(rng);
    if rng.random() {
        request = request
            .field(
                "Signature-Input",
                "sig1=(\"@method\" \"@path\" \"host\");created=1618884473;keyid=\"k\"",
            )
            .field("Signature", "sig1=:K2qGT5srn2OGbOIDzQ6kYT+ruaycnDAAUpKv+ePFfD0=:");
    } else {
        request = request.field(
            "Signature",
            "keyId=\"k\",algorithm=\"rsa-sha256\",headers=\"host date\",signature=\"Zm9v\"",
        );
    }
    let request = request.usual(rng).done();
    untouched(draft, rng, &request);
}

/// Heads near which a server refuses what comes on top: 8 KiB, 100 fields.
pub(super) fn at_the_limits(draft: &mut Draft, rng: &mut StdRng) {
    draft.options().read_size = 65_536;
    let mut request = Request::new("GET", &target(rng));
    if rng.random() {
        for field in 0..99 {
            request = request.field(&format!("x-{field}"), &word(rng, 10));
        }
    } else {
        let size = 8_192 - rng.random_range(0..72);
        request = request.of_size(size, rng);
    }
    untouched(draft, rng, &request.done());
}

/// Upgraded: from then on bytes are anything, and look like requests too.
pub(super) fn upgrade(draft: &mut Draft, rng: &mut StdRng) {
    let request = Request::new("GET", &target(rng))
        .field("Connection", "Upgrade")
        .field(
            "Upgrade",
            ["websocket", "h2c", "tcp", "SPDY/3.1"][rng.random_range(0..4)],
        )
        .field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .field("Sec-WebSocket-Version", "13")
        .done();
    draft.head(Client, &request, true).say(Client, Cut::Whole, rng);
    let switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    draft.put(Server, switching);
    if rng.random() {
        draft.say(Server, Cut::Whole, rng);
    }
    tunnelled(draft, rng);
    draft.step(Step::Close(Client));
}

pub(super) fn connect(draft: &mut Draft, rng: &mut StdRng) {
    let request = b"CONNECT inner.test:443 HTTP/1.1\r\nHost: inner.test:443\r\n\r\n";
    draft.head(Client, request, false).say(Client, Cut::Whole, rng);
    draft
        .put(Server, b"HTTP/1.1 200 Connection established\r\n\r\n")
        .say(Server, Cut::Whole, rng);
    tunnelled(draft, rng);
    draft.step(Step::Close(Server));
}

/// Bytes of a connection that is no longer HTTP, in both directions.
fn tunnelled(draft: &mut Draft, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..4) {
        for side in [Client, Server] {
            let length = rng.random_range(1..500);
            let bytes = match rng.random_range(0..3) {
                0 => b"GET /inner HTTP/1.1\r\nHost: inner.test\r\n\r\n".to_vec(),
                1 => record(rng, 0x17),
                _ => body(rng, length),
            };
            let cut = Cut::any(rng);
            draft.put(side, &bytes).say(side, cut, rng);
        }
    }
}

/// The preamble of HAProxy's protocol, then HTTP.
pub(super) fn proxy_protocol(draft: &mut Draft, rng: &mut StdRng) {
    if rng.random() {
        draft.put(Client, b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n");
    } else {
        draft.put(
            Client,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\xdc\x04\x01\xbb",
        );
    }
    if rng.random() {
        draft.say(Client, Cut::Whole, rng);
    }
    let head = Request::any(rng).done();
    draft.head(Client, &head, true).say(Client, Cut::Whole, rng);
    answer(draft, rng);
    draft.step(Step::Close(Server));
}

/// A TLS record of a type, 0x16 a handshake, 0x17 data.
fn record(rng: &mut StdRng, kind: u8) -> Vec<u8> {
    let length: u16 = rng.random_range(1..700);
    let mut bytes = vec![kind, 3, 1];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&body(rng, usize::from(length)));
    bytes
}

/// Handshakes and data on a port that is not known for them.
pub(super) fn tls(draft: &mut Draft, rng: &mut StdRng) {
    for round in 0..rng.random_range(1..5) {
        for side in [Client, Server] {
            let bytes = record(rng, if round == 0 { 0x16 } else { 0x17 });
            let cut = Cut::any(rng);
            draft.put(side, &bytes).say(side, cut, rng);
        }
    }
    draft.step(Step::Close(Server));
}

fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

pub(super) fn h2_preface(draft: &mut Draft, rng: &mut StdRng) {
    draft.put(Client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    if rng.random_ratio(1, 4) {
        draft.say(Client, Cut::Whole, rng);
    }
    draft.put(Client, &h2_frame(4, 0, 0, &[]));
    let cut = Cut::any(rng);
    draft.say(Client, cut, rng);
    draft
        .put(Server, &h2_frame(4, 0, 0, &[]))
        .put(Server, &h2_frame(4, 1, 0, &[]));
    draft.say(Server, Cut::Whole, rng);
    for stream in (1..rng.random_range(3..9)).step_by(2) {
        // :method GET, :scheme http, :path /, :authority; then data.
        draft.put(Client, &h2_frame(1, 4, stream, b"\x82\x86\x84\x41\x08svc.test"));
        draft.put(Client, &h2_frame(0, 1, stream, b"GET / HTTP/1.1\r\n\r\n"));
        let cut = Cut::any(rng);
        draft.say(Client, cut, rng);
        draft
            .put(Server, &h2_frame(1, 5, stream, &[0x88]))
            .say(Server, Cut::Whole, rng);
    }
    draft.step(Step::Close(Client));
}

/// Frames of yamux: version 0, type, flags, stream, length; their payload is HTTP.
pub(super) fn yamux(draft: &mut Draft, rng: &mut StdRng) {
    let frame = |kind: u8, flags: u16, stream: u32, payload: &[u8]| {
        let mut frame = vec![0, kind];
        frame.extend_from_slice(&flags.to_be_bytes());
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    };
    draft.put(Client, &frame(1, 1, 1, &[])).say(Client, Cut::Whole, rng);
    draft.put(Server, &frame(1, 2, 1, &[])).say(Server, Cut::Whole, rng);
    for _ in 0..rng.random_range(1..5) {
        let request = Request::any(rng).done();
        if rng.random() {
            draft
                .put(Client, &frame(0, 0, 1, &request))
                .say(Client, Cut::Whole, rng);
        } else {
            // As implementations do: the frame's head is a send of its own, and the payload begins like a request.
            let bytes = frame(0, 0, 1, &request);
            let (head, payload) = bytes.split_at(12);
            draft.put(Client, head).say(Client, Cut::Whole, rng);
            draft.put(Client, payload).say(Client, Cut::Whole, rng);
        }
        let answer = response("200 OK", "Content-Length: 0\r\n", rng);
        draft.put(Server, &frame(0, 0, 1, &answer)).say(Server, Cut::Whole, rng);
    }
    draft.step(Step::Close(Client));
}

/// The server speaks first, and what the client answers may look like anything.
pub(super) fn server_first(draft: &mut Draft, rng: &mut StdRng) {
    let banner: &[u8] = match rng.random_range(0..3) {
        0 => b"220 mail.test ESMTP\r\n",
        1 => b"SSH-2.0-OpenSSH_9.2p1\r\n",
        _ => b"\x4a\0\0\0\x0a8.0.36\0\x08\0\0\0abcdefgh\0\xff\xf7\xff\x02\0",
    };
    if rng.random() {
        draft.step(Step::Pause(Server, 1));
    }
    draft.put(Server, banner).say(Server, Cut::Whole, rng);
    for _ in 0..rng.random_range(1..5) {
        let length = rng.random_range(1..300);
        let bytes = if rng.random() {
            b"MAIL FROM:<a@mail.test>\r\nRCPT TO:<b@mail.test>\r\nDATA\r\n".to_vec()
        } else {
            body(rng, length)
        };
        let cut = Cut::any(rng);
        draft.put(Client, &bytes).say(Client, cut, rng);
        draft.put(Server, b"250 2.0.0 OK\r\n").say(Server, Cut::Whole, rng);
    }
    draft.step(Step::Close(Client));
}

/// The server answers to what may be the beginning of a request, and the client asks how much has come.
pub(super) fn unfinished(draft: &mut Draft, rng: &mut StdRng) {
    draft.options().peeks = true;
    let beginnings: [&[u8]; 6] = [
        b"ab",
        b"GET",
        b"HELLO",
        b"POST /",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"PUT / HTTP/1.1\r\nX-Name",
    ];
    let beginning = beginnings[rng.random_range(0..beginnings.len())];
    draft.put(Client, beginning).say(Client, Cut::Whole, rng);
    for _ in 0..rng.random_range(1..4) {
        draft
            .put(Server, word(rng, 200).as_bytes())
            .say(Server, Cut::Whole, rng);
        draft.put(Client, word(rng, 20).as_bytes()).say(Client, Cut::Whole, rng);
    }
    draft.step(Step::Close(Server));
}

/// What looks like HTTP/1 and is not, or is read differently by different servers.
pub(super) fn nearly_http(draft: &mut Draft, rng: &mut StdRng) {
    let heads: [&[u8]; 15] = [
        b"DESCRIBE rtsp://cam.test/1 RTSP/1.0\r\nCSeq: 2\r\n\r\n",
        b"OPTIONS sip:b@voip.test SIP/2.0\r\nVia: SIP/2.0/TCP a\r\n\r\n",
        b"REQMOD icap://icap.test/s ICAP/1.0\r\nHost: icap.test\r\n\r\n",
        b"GET /old\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\n: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ];
    let head = heads[rng.random_range(0..heads.len())];
    let cut = Cut::any(rng);
    draft.put(Client, head).say(Client, cut, rng);
    draft
        .put(Server, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        .say(Server, Cut::Whole, rng);
    draft.step(Step::Close(Server));
}

/// Bytes without any meaning.
pub(super) fn noise(draft: &mut Draft, rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..6) {
        let length = rng.random_range(1..2_000);
        let bytes = body(rng, length);
        let side = if rng.random() { Client } else { Server };
        let cut = Cut::any(rng);
        draft.put(side, &bytes).say(side, cut, rng);
    }
    draft.step(Step::Close(Client));
}
