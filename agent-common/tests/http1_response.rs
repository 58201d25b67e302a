//! Response heads and bodies, case by case.
#![cfg(feature = "host")]

mod support;

use spanwire_common::protocol::http1::Method;
use support::*;

const GET: u8 = Method::Get as u8;
const HEAD: u8 = Method::Head as u8;
const CONNECT: u8 = Method::Connect as u8;

#[test]
fn rfc_9112_examples() {
    let hello =
        b"HTTP/1.1 200 OK\r\nDate: Mon, 27 Jul 2009 12:28:53 GMT\r\nServer: Apache\r\nETag: \"34aa387-d-1568eb00\"\r\n\
        Accept-Ranges: bytes\r\nContent-Length: 51\r\nVary: Accept-Encoding\r\nContent-Type: text/plain\r\n\r\n\
        Hello World! My content includes a trailing CRLF.\r\n";
    assert_eq!(shape(&responses(&[GET], hello)), "begin 200 end:51");
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1a; ignore-stuff-here\r\nabcdefghijklmnopqrstuvwxyz\r\n\
        10\r\n1234567890abcdef\r\n0\r\nsome-footer: some-value\r\nanother-footer: another-value\r\n\r\n";
    assert_eq!(shape(&responses(&[GET], chunked)), "begin 200 end:42");
}

#[test]
fn responses_without_a_body() {
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 Not Modified\r\n\
        Content-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok";
    let events = responses(&[HEAD, GET, GET, HEAD, GET], bytes);
    assert_eq!(
        shape(&events),
        "begin 200 end:0 begin 204 end:0 begin 304 end:0 begin 200 end:0 begin 200 end:2"
    );
}

#[test]
fn interim_responses_belong_to_the_final_one() {
    let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 3\r\n\r\n\
        HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        shape(&responses(&[GET, GET], bytes)),
        "begin interim:100 begin interim:103 begin 404 end:1 begin 200 end:0"
    );
}

#[test]
fn upgrades_and_tunnels_are_opaque_afterwards() {
    let upgraded = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x05HTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(shape(&responses(&[GET], upgraded)), "begin upgraded:101");
    let tunnel = b"HTTP/1.1 200 Connection established\r\nContent-Length: 3\r\n\r\n\x16\x03\x01";
    assert_eq!(shape(&responses(&[CONNECT], tunnel)), "begin upgraded:200");
    let refused = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nnoo";
    assert_eq!(shape(&responses(&[CONNECT], refused)), "begin 407 end:3");
}

#[test]
fn until_close_counts_its_bytes() {
    let mut stream = Stream::new(Direction::Responses(vec![GET]), Settings::default());
    let mut events = Vec::new();
    stream.feed(
        b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        &mut events,
    );
    stream.feed(&[0; 5000], &mut events);
    assert_eq!(shape(&events), "begin 200");
    assert_eq!(
        stream.framing.phase,
        spanwire_common::protocol::http1::phase::UNTIL_CLOSE
    );
    assert_eq!(stream.framing.body_bytes, 5019);
}

#[test]
fn status_lines() {
    for (line, shape_of) in [
        ("HTTP/1.1 200 OK", "begin 200"),
        ("HTTP/1.0 599 ", "begin 599"),
        ("HTTP/1.1 200", "begin 200"),
        ("HTTP/1.1 200 Ol\u{e9}\tol\u{e9}", "begin 200"),
        ("HTTP/1.1 20 OK", "begin opaque:protocol"),
        ("HTTP/1.1 2000", "begin opaque:protocol"),
        ("HTTP/1.1 2x0 OK", "begin opaque:protocol"),
        ("HTTP/1.1 :00 OK", "begin opaque:protocol"),
        ("HTTP/1.1 099 OK", "begin opaque:protocol"),
        ("HTTP/1.1  200 OK", "begin opaque:protocol"),
        ("HTTP/1.2 200 OK", "begin opaque:protocol"),
        ("HTTP/2 200 OK", "begin opaque:protocol"),
        ("http/1.1 200 OK", "begin opaque:protocol"),
        ("ICY 200 OK", "begin opaque:protocol"),
        ("220 mail.example ESMTP", "begin opaque:protocol"),
        ("", "opaque:protocol"),
    ] {
        assert_eq!(
            shape(&responses(&[GET], format!("{line}\r\n\r\n").as_bytes())),
            shape_of,
            "{line}"
        );
    }
    let long = format!("HTTP/1.1 500 {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(4000));
    assert_eq!(shape(&responses(&[GET], long.as_bytes())), "begin 500 end:0");
}

#[test]
fn chunk_sizes() {
    for (size, bytes) in [
        ("5", 5),
        ("00000000005", 5),
        ("A", 10),
        ("1f", 31),
        ("5;a=\"b;c\"", 5),
        ("5 ;a", 5),
        ("5\t", 5),
    ] {
        let mut body = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\n").into_bytes();
        body.extend(vec![b'\r'; bytes]);
        body.extend(b"\r\n0\r\n\r\n");
        assert_eq!(
            shape(&responses(&[GET], &body)),
            format!("begin 200 end:{bytes}"),
            "{size}"
        );
    }
    for size in [
        "",
        " 5",
        "g",
        "0x5",
        "-5",
        "5,",
        "5g",
        "1000000000001",
        "ffffffffffffffff",
        "11111111111111111111",
        ";x",
    ] {
        let body = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\nhello\r\n0\r\n\r\n");
        assert_eq!(
            shape(&responses(&[GET], body.as_bytes())),
            "begin 200 opaque:framing",
            "{size}"
        );
    }
    let largest = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000000000000\r\n";
    assert_eq!(shape(&responses(&[GET], largest)), "begin 200");
}

#[test]
fn a_long_chunk_extension_is_passed_over() {
    for len in [900, 1100, 5000] {
        let body = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;{}\r\nhello\r\n0;{0}\r\n\r\n",
            "x".repeat(len)
        );
        assert_eq!(shape(&responses(&[GET], body.as_bytes())), "begin 200 end:5", "{len}");
    }
    let endless = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;{}",
        "x".repeat(17_000)
    );
    assert_eq!(
        shape(&responses(&[GET], endless.as_bytes())),
        "begin 200 opaque:framing"
    );
}

#[test]
fn many_chunks_and_trailers_have_no_limit_together() {
    let mut body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..5000 {
        body.extend(b"3\r\nabc\r\n");
    }
    body.extend(b"0\r\nX-Sum: 1\r\n\r\n");
    assert_eq!(shape(&responses(&[GET], &body)), "begin 200 end:15000");
    let trailers = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}\r\n",
        "a: b\r\n".repeat(3000)
    );
    assert_eq!(
        shape(&responses(&[GET], trailers.as_bytes())),
        "begin 200 opaque:framing"
    );
}
