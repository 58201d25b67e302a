//! Request heads and bodies, case by case.
#![cfg(feature = "host")]

mod support;

use spanwire_common::protocol::http1::request::otlp;
use support::*;

#[test]
fn a_plain_get() {
    let events = requests(b"GET /a/b?token=x#y HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!(shape(&events), "begin GET /a/b end:0");
    let request = first_request(&events);
    assert_ne!(request.host_hash, 0);
    assert_eq!((request.http10, request.path_cut, request.otlp), (0, 0, 0));
}

#[test]
fn rfc_9112_examples() {
    let get = b"GET /hello.txt HTTP/1.1\r\nUser-Agent: curl/7.64.1\r\nHost: www.example.com\r\nAccept-Language: en, mi\r\n\r\n";
    assert_eq!(shape(&requests(get)), "begin GET /hello.txt end:0");
    assert_eq!(
        shape(&requests(b"GET /where?q=now HTTP/1.1\r\nHost: www.example.org\r\n\r\n")),
        "begin GET /where end:0"
    );
    assert_eq!(
        shape(&requests(
            b"GET http://www.example.org/pub/WWW/TheProject.html HTTP/1.1\r\nHost: www.example.org\r\n\r\n"
        )),
        "begin GET /pub/WWW/TheProject.html end:0"
    );
    assert_eq!(
        shape(&requests(
            b"CONNECT www.example.com:80 HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
        )),
        "begin CONNECT  end:0"
    );
    assert_eq!(
        shape(&requests(b"OPTIONS * HTTP/1.1\r\nHost: www.example.org:8001\r\n\r\n")),
        "begin OPTIONS * end:0"
    );
}

#[test]
fn targets() {
    for (target, path) in [
        ("/", "/"),
        ("/?x", "/"),
        ("/a#b?c", "/a"),
        ("http://h", "/"),
        ("http://h?x", "/"),
        ("HTTPS://h/p?x", "/p"),
        ("http://user:pw@h:80/p/q", "/p/q"),
        ("h:443", ""),
        ("/%C3%A9", "/%C3%A9"),
    ] {
        let events = requests(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
        assert_eq!(shape(&events), format!("begin GET {path} end:0"), "{target}");
    }
    for target in ["", "/a b", " /", "/a ", "/a\tb"] {
        let events = requests(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
        assert!(is_opaque(&events), "{target:?}: {}", shape(&events));
    }
}

#[test]
fn paths_are_cut_at_256_bytes() {
    let path = format!("/{}", "p".repeat(255));
    let whole = requests(format!("GET {path}?q HTTP/1.1\r\n\r\n").as_bytes());
    assert_eq!(
        (path_of(first_request(&whole)), first_request(&whole).path_cut),
        (path.clone(), 0)
    );
    let longer = requests(format!("GET {path}q HTTP/1.1\r\n\r\n").as_bytes());
    assert_eq!(
        (path_of(first_request(&longer)), first_request(&longer).path_cut),
        (path, 1)
    );
}

#[test]
fn methods() {
    for (token, name) in [
        ("QUERY", "QUERY"),
        ("PATCH", "PATCH"),
        ("PROPFIND", "OTHER"),
        ("get", "OTHER"),
        ("M-SEARCH", "OTHER"),
    ] {
        assert_eq!(
            shape(&requests(format!("{token} / HTTP/1.1\r\n\r\n").as_bytes())),
            format!("begin {name} / end:0")
        );
    }
    for token in ["G(T", "G\"T", "", "G\u{e9}T"] {
        assert!(
            is_opaque(&requests(format!("{token} / HTTP/1.1\r\n\r\n").as_bytes())),
            "{token}"
        );
    }
}

#[test]
fn bodies_and_pipelining() {
    let bytes = b"POST /a HTTP/1.1\r\nContent-Length: 16\r\n\r\nGET /x HTTP/1.1\nPUT /b HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n\
        4;name=\"v\"\r\nGET \r\n00a\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nGET /c HTTP/1.0\r\n\r\n";
    let events = requests(bytes);
    assert_eq!(
        shape(&events),
        "begin POST /a end:16 begin PUT /b end:14 begin GET /c end:0"
    );
    assert_eq!(last_request(&events).http10, 1);
}

#[test]
fn content_length_is_read_exactly() {
    for (value, bytes) in [("0", 0), ("000003", 3), (" 12 ", 12), ("3\t", 3)] {
        let mut head = format!("POST / HTTP/1.1\r\ncontent-length:{value}\r\n\r\n").into_bytes();
        head.extend(vec![b'x'; bytes]);
        assert_eq!(
            shape(&requests(&head)),
            format!("begin POST / end:{bytes}"),
            "{value:?}"
        );
    }
    for value in [
        "",
        "-1",
        "+1",
        "1,1",
        "1, 1",
        "0x1",
        "1 1",
        "1e2",
        "18446744073709551616",
        "99999999999999999999999",
    ] {
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {value}\r\n\r\n");
        assert_eq!(shape(&requests(head.as_bytes())), "begin opaque:framing", "{value:?}");
    }
    let same = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(shape(&requests(same)), "begin POST / end:1");
}

#[test]
fn huge_bodies_are_passed_over_without_being_seen() {
    let mut stream = request_stream();
    let mut events = Vec::new();
    stream.feed(b"POST / HTTP/1.1\r\nContent-Length: 9000000000\r\n\r\n", &mut events);
    assert_eq!(stream.framing.left, 9_000_000_000);
    let steps = stream.steps;
    stream.feed(&vec![b'x'; 1 << 20], &mut events);
    assert_eq!(stream.steps, steps + 1, "a body needs no second look");
    assert_eq!(stream.framing.left, 9_000_000_000 - (1 << 20));
}

#[test]
fn one_empty_line_or_proxy_line_in_front() {
    assert_eq!(shape(&requests(b"\r\nGET / HTTP/1.1\r\n\r\n")), "begin GET / end:0");
    assert!(is_opaque(&requests(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n")));
    let proxied = b"PROXY TCP4 192.0.2.1 192.0.2.2 5 80\r\nGET / HTTP/1.1\r\n\r\n";
    assert_eq!(shape(&requests(proxied)), "begin begin GET / end:0");
    assert_eq!(shape(&requests(b"\r\n\r\n\0\r\nQUIT\n\x21")), "opaque:protocol");
}

#[test]
fn other_protocols_are_told_apart() {
    for (bytes, reason) in [
        (&b"\x16\x03\x01\x02\0\x01"[..], "opaque:tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "begin opaque:http2"),
        (b"*1\r\n$4\r\nPING\r\n", "begin opaque:protocol"),
        (b"PING\n", "begin opaque:protocol"),
        (b"get foo\r\n", "begin opaque:protocol"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", "opaque:protocol"),
        (b"\x16\x04rest", "opaque:protocol"),
        (b"GET / HTTP/2.0\r\n\r\n", "begin opaque:protocol"),
        (b"GET / HTTP/1.2\r\n\r\n", "begin opaque:protocol"),
        (b"OPTIONS rtsp://h/ RTSP/1.0\r\n\r\n", "begin opaque:protocol"),
        (b"GET /\n", "begin opaque:framing"),
        (
            b"GET / HTTP/1.1\r\n\r\nnonsense\r\n",
            "begin GET / end:0 begin opaque:framing",
        ),
    ] {
        assert_eq!(shape(&requests(bytes)), reason, "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(shape(&requests(b"\x16")), "", "one byte is not enough to tell");
}

#[test]
fn heads_up_to_16_kib() {
    for (filler, ok) in [(16 * 1024 - 28, true), (16 * 1024 - 27, false)] {
        let head = format!("GET / HTTP/1.1\r\nCookie: {}\r\n\r\n", "c".repeat(filler));
        assert_eq!(head.len() <= 16 * 1024, ok);
        let expected = if ok {
            "begin GET / end:0"
        } else {
            "begin opaque:framing"
        };
        assert_eq!(shape(&requests(head.as_bytes())), expected, "{filler}");
        assert_eq!(
            shape(&requests_by(head.as_bytes(), 700)),
            expected,
            "{filler} in pieces"
        );
        let target = format!("GET /{} HTTP/1.1\r\n\r\n", "t".repeat(filler + 10));
        assert_eq!(target.len() <= 16 * 1024, ok);
        let events = requests(target.as_bytes());
        assert_eq!(is_opaque(&events), !ok, "{filler}");
        if ok {
            assert_eq!(
                (first_request(&events).path_len, first_request(&events).path_cut),
                (256, 1)
            );
        }
    }
}

#[test]
fn a_long_target_still_ends_in_its_version() {
    for bad in ["HTTP/1.2", "HTTP/2.0", "xHTTP/1.1", "HTTP/1.1 "] {
        let head = format!("GET /{} {bad}\r\n\r\n", "t".repeat(5000));
        assert!(is_opaque(&requests(head.as_bytes())), "{bad}");
    }
    for len in 950..1100 {
        let head = format!("GET /{} HTTP/1.0\r\n\r\n", "t".repeat(len));
        let events = requests(head.as_bytes());
        assert_eq!(first_request(&events).http10, 1, "{len}");
        assert_eq!(events, requests_by(head.as_bytes(), 1), "{len}");
    }
}

#[test]
fn a_long_uninteresting_line_is_not_carried() {
    let mut stream = request_stream();
    let mut events = Vec::new();
    stream.feed(b"GET / HTTP/1.1\r\nCookie: abcdefgh", &mut events);
    assert_eq!(stream.framing.carry, 0);
    stream.feed(b"ijkl\r", &mut events);
    assert_eq!(stream.framing.carry, 1);
    stream.feed(b"\nTraceparent: 00-0123", &mut events);
    assert_eq!(stream.framing.carry, 20);
    stream.feed(b"4567\r\nCookie: a\0b\r\n\r\n", &mut events);
    assert_eq!(shape(&events), "begin opaque:framing");
}

#[test]
fn otlp_paths() {
    for (line, kind) in [
        ("POST /v1/traces", otlp::TRACES),
        ("POST /v1/metrics", otlp::OTHER),
        ("POST /v1/logs?x", otlp::OTHER),
        ("GET /v1/traces", otlp::NONE),
        ("POST /v1/traces/", otlp::NONE),
        ("POST /v1/tracez", otlp::NONE),
        ("POST /v1/log", otlp::NONE),
    ] {
        assert_eq!(
            first_request(&requests(format!("{line} HTTP/1.1\r\n\r\n").as_bytes())).otlp,
            kind,
            "{line}"
        );
    }
}

#[test]
fn hosts_are_hashed_in_lower_case() {
    let hash =
        |host: &str| first_request(&requests(format!("GET / HTTP/1.1\r\nhOST:{host}\r\n\r\n").as_bytes())).host_hash;
    assert_eq!(hash(" Shop.Example:8080"), hash("shop.example:8080\t "));
    assert_ne!(hash("shop.example:8080"), hash("shop.example:8081"));
    assert_ne!(hash("shop.example"), hash("shop.exampl"));
    assert_eq!(hash(" "), 0);
}

#[test]
fn listed_headers_and_the_tenant() {
    let settings = settings(&[
        ("x-tenant-id", true, true),
        ("x-request-id", false, true),
        ("user-agent", false, true),
    ]);
    let bytes = b"GET / HTTP/1.1\r\nX-Tenant-ID:  acme \r\nx-tenant-idd: no\r\nX-REQUEST-ID: 42\r\nUser-Agent: kube-probe/1.30\r\n\r\n";
    let events = requests_with(&settings, bytes);
    assert_eq!(
        shape(&events),
        "begin text:2:0:acme text:3:0:acme text:2:1:42 text:2:2:kube-probe/1.30 GET / end:0"
    );
    let request = first_request(&events);
    assert_ne!(request.tenant, 0);
    assert_eq!(request.user_agent_excluded, 1);
    assert!(events
        .iter()
        .any(|event| matches!(event, Event::Text { what: 3, hash, .. } if *hash == request.tenant)));
}

#[test]
fn kept_values_are_cut_at_128_bytes() {
    let settings = settings(&[("x-long", false, true)]);
    for (len, is_cut) in [(128, false), (129, true), (1500, true), (5000, true)] {
        let bytes = format!("GET / HTTP/1.1\r\nx-long: {}\r\n\r\n", "v".repeat(len));
        let events = requests_with(&settings, bytes.as_bytes());
        let kept = Event::Text {
            what: 2,
            index: 0,
            cut: is_cut,
            hash: 0,
            bytes: vec![b'v'; 128],
        };
        assert!(events.contains(&kept), "{len}: {events:?}");
    }
}
