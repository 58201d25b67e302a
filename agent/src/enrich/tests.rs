#![allow(clippy::unwrap_used, reason = "test")]

use std::fmt::Write;

use spanwire_common::abi::outcome;
use zerocopy::FromZeros;

use super::*;
use crate::discover::ProcessInfo;
use crate::span::{Parent, ParentSource, TraceId, UnknownReason};

const MS: u64 = 1_000_000;
/// 2023-11-14T22:13:20Z minus an hour of uptime.
const CLOCK: ClockOffset = ClockOffset(1_700_000_000_000_000_000 - 3_600_000 * MS as i64);
const T0: u64 = 3_600_000 * MS;

fn enricher(paths: Paths, client_address: ClientAddress) -> Enricher {
    let node = Node {
        host_name: "node-a".into(),
        distro_version: "0.1.0",
    };
    Enricher::new(Options {
        paths,
        client_address,
        header_names: vec!["X-Tenant-Id".into(), "x-request-id".into()],
        node,
    })
}

fn process() -> Process {
    Process::new(ProcessInfo {
        pid: 7,
        exe: Some("/usr/bin/shop".into()),
        ..ProcessInfo::default()
    })
}

/// `GET /users/4711`, 200, from 203.0.113.77:50000 to 10.0.0.1:8080, with every time and size.
fn get(side: u8) -> ExchangeRecord {
    let mut record = ExchangeRecord::new_zeroed();
    let (client, server) = ([203, 0, 113, 77], [10, 0, 0, 1]);
    record.side = side;
    record.protocol = protocol_id::HTTP1;
    record.family = family::INET;
    let (local, remote) = if side == side::SERVER {
        (server, client)
    } else {
        (client, server)
    };
    record.local_addr[..4].copy_from_slice(&local);
    record.remote_addr[..4].copy_from_slice(&remote);
    (record.local_port, record.remote_port) = if side == side::SERVER {
        (8080, 50000)
    } else {
        (50000, 8080)
    };
    (record.request_first_ns, record.request_last_ns) = (T0, T0 + MS);
    (record.response_first_ns, record.response_last_ns) = (T0 + 5 * MS, T0 + 6 * MS);
    record.status = 200;
    record.span_id = [0xb; 8];
    record.wire_key = 0x1_0000_00ff;
    record.request_body_bytes = 3;
    record.response_body_bytes = 1234;
    record.flags = flag::SAMPLED | flag::RANDOM | flag::REQUEST_SIZE_KNOWN | flag::RESPONSE_SIZE_KNOWN | flag::WIRE_KEY;
    with_path(with_method(record, "GET"), "/users/4711")
}

fn with_method(mut record: ExchangeRecord, method: &str) -> ExchangeRecord {
    record.method = [0; 16];
    record.method[..method.len()].copy_from_slice(method.as_bytes());
    record.method_len = method.len() as u8;
    record
}

fn with_path(mut record: ExchangeRecord, path: &str) -> ExchangeRecord {
    record.path[..path.len()].copy_from_slice(path.as_bytes());
    record.path_len = path.len() as u16;
    record
}

fn settled(record: &ExchangeRecord) -> Settled {
    Settled {
        record: Box::new(*record),
        trace_id: TraceId([0xa; 16]),
        parent: Parent {
            source: ParentSource::Root,
            span_id: None,
            reason: None,
        },
        tenant: None,
        tracestate: None,
        headers: Vec::new(),
        resend_count: 0,
        sdk: None,
    }
}

fn span(record: &ExchangeRecord) -> Span {
    enricher(Paths::Templated, ClientAddress::Prefix).push(settled(record), &process(), CLOCK)
}

/// A span as text: name, kind, status, then one attribute per line.
fn shown(span: &Span) -> String {
    let mut text = format!("{} | {} | {:?}", span.name, span.kind.as_str(), span.status);
    for (name, value) in &span.attributes {
        let value = match value {
            Value::Str(text) => text.to_string(),
            Value::Static(text) => (*text).to_string(),
            Value::Int(number) => number.to_string(),
            other => format!("{other:?}"),
        };
        write!(text, "\n{name}={value}").unwrap();
    }
    text
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    span.attributes
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}

fn text_of(span: &Span, name: &str) -> Option<String> {
    match attribute(span, name)? {
        Value::Str(text) => Some(text.to_string()),
        Value::Static(text) => Some((*text).to_string()),
        other => Some(format!("{other:?}")),
    }
}

#[test]
fn server_span() {
    let span = span(&get(side::SERVER));
    assert_eq!(
        shown(&span),
        "GET /users/{id} | server | Unset\n\
         http.request.method=GET\n\
         http.response.status_code=200\n\
         url.scheme=http\n\
         network.protocol.version=1.1\n\
         http.request.body.size=3\n\
         http.response.body.size=1234\n\
         http.route=/users/{id}\n\
         url.path=/users/{id}\n\
         network.transport=tcp\n\
         server.address=10.0.0.1\n\
         server.port=8080\n\
         client.address=203.0.113.0\n\
         client.port=50000\n\
         network.peer.address=203.0.113.0\n\
         network.peer.port=50000\n\
         spanwire.parent.source=root\n\
         spanwire.wire.key=00000001000000ff\n\
         spanwire.request.read_ns=1000000\n\
         spanwire.response.first_byte_ns=5000000"
    );
    assert_eq!(
        (span.start_unix_ns, span.end_unix_ns),
        (1_700_000_000_000_000_000, 1_700_000_000_006_000_000)
    );
    assert_eq!(
        (span.trace_flags, span.trace_id.0, span.span_id.0),
        (3, [0xa; 16], [0xb; 8])
    );
    assert_eq!((span.parent_span_id, &*span.resource.service_name), (None, "shop"));
}

#[test]
fn client_span_with_everything_a_settled_exchange_may_bring() {
    let mut settled = settled(&get(side::CLIENT));
    settled.record.status = 404;
    settled.record.flags = flag::HTTP10;
    settled.parent = Parent {
        source: ParentSource::Unknown,
        span_id: None,
        reason: Some(UnknownReason::Overlap),
    };
    settled.tenant = Some("acme".into());
    settled.tracestate = Some("a=1".into());
    settled.headers = vec![
        (1, "r1".into()),
        (0, "acme".into()),
        (1, "r2".into()),
        (9, "of an older configuration".into()),
    ];
    settled.resend_count = 2;
    let span = enricher(Paths::Templated, ClientAddress::Prefix).push(settled, &process(), CLOCK);
    assert_eq!(
        shown(&span),
        "GET /users/{id} | client | Error\n\
         http.request.method=GET\n\
         http.response.status_code=404\n\
         url.scheme=http\n\
         network.protocol.version=1.0\n\
         url.template=/users/{id}\n\
         url.path=/users/{id}\n\
         network.transport=tcp\n\
         server.address=10.0.0.1\n\
         server.port=8080\n\
         network.peer.address=10.0.0.1\n\
         network.peer.port=8080\n\
         http.request.header.x-tenant-id=StrArray([\"acme\"])\n\
         http.request.header.x-request-id=StrArray([\"r1\", \"r2\"])\n\
         http.request.resend_count=2\n\
         error.type=404\n\
         spanwire.parent.source=unknown\n\
         spanwire.parent.reason=overlap\n\
         spanwire.tenant=acme\n\
         spanwire.request.read_ns=1000000\n\
         spanwire.response.first_byte_ns=5000000"
    );
    assert_eq!(
        (span.trace_flags, span.trace_state.as_deref(), span.tenant.as_deref()),
        (0, Some("a=1"), Some("acme"))
    );
}

#[test]
fn opaque_and_connect_spans() {
    let mut record = get(side::CLIENT);
    record.protocol = protocol_id::TLS;
    record.remote_port = 443;
    record.outcome = outcome::CLOSED;
    (record.status, record.path_len, record.flags) = (0, 0, 0);
    assert_eq!(
        shown(&span(&record)),
        "TLS :443 | client | Unset\n\
         spanwire.sent_bytes=3\n\
         spanwire.received_bytes=1234\n\
         network.transport=tcp\n\
         server.address=10.0.0.1\n\
         server.port=443\n\
         network.peer.address=10.0.0.1\n\
         network.peer.port=443\n\
         spanwire.outcome=closed\n\
         spanwire.parent.source=root\n\
         spanwire.request.read_ns=1000000\n\
         spanwire.response.first_byte_ns=5000000"
    );
    let mut record = get(side::CLIENT);
    record.protocol = protocol_id::CONNECT;
    record.outcome = outcome::CONNECT_REFUSED;
    (record.status, record.path_len, record.flags) = (0, 0, 0);
    (
        record.request_first_ns,
        record.request_last_ns,
        record.response_first_ns,
    ) = (0, 0, 0);
    let span = span(&record);
    assert_eq!(
        shown(&span),
        "connect | client | Error\n\
         network.transport=tcp\n\
         server.address=10.0.0.1\n\
         server.port=8080\n\
         network.peer.address=10.0.0.1\n\
         network.peer.port=8080\n\
         error.type=connection_refused\n\
         spanwire.outcome=connect_refused\n\
         spanwire.parent.source=root"
    );
    assert_eq!(span.start_unix_ns, span.end_unix_ns);
}

#[test]
fn unix_sockets_have_no_addresses() {
    let mut record = get(side::SERVER);
    record.family = family::UNIX;
    let span = span(&record);
    assert_eq!(text_of(&span, "network.transport").as_deref(), Some("unix"));
    for name in [
        "server.address",
        "client.address",
        "network.peer.address",
        "server.port",
        "network.peer.port",
    ] {
        assert_eq!(attribute(&span, name), None, "{name}");
    }
}

#[test]
fn errors_by_side_status_and_outcome() {
    use outcome::{CLOSED, COMPLETE, CONNECT_RESET, CONNECT_TIMEOUT, EXIT, OUT_OF_STEP, RESET, TIMEOUT, UPGRADED};
    let (server, client) = (side::SERVER, side::CLIENT);
    for (side, status, outcome, expected) in [
        (server, 200, COMPLETE, None),
        (server, 404, COMPLETE, None),
        (server, 500, COMPLETE, Some("500")),
        (server, 599, RESET, Some("599")),
        (client, 302, COMPLETE, None),
        (client, 400, COMPLETE, Some("400")),
        (client, 503, COMPLETE, Some("503")),
        (server, 200, CLOSED, Some("connection_closed")),
        (server, 404, RESET, Some("connection_reset")),
        (client, 0, RESET, Some("connection_reset")),
        (client, 0, TIMEOUT, Some("timeout")),
        (client, 0, CONNECT_TIMEOUT, Some("connect_timeout")),
        (client, 0, CONNECT_RESET, Some("connection_reset")),
        (server, 0, EXIT, Some("process_exit")),
        (client, 101, UPGRADED, None),
        (client, 200, OUT_OF_STEP, None),
        (client, 200, 200, None),
    ] {
        let mut record = get(side);
        (record.status, record.outcome) = (status, outcome);
        let span = span(&record);
        assert_eq!(
            text_of(&span, "error.type").as_deref(),
            expected,
            "{side} {status} {outcome}"
        );
        let status = if expected.is_some() {
            SpanStatus::Error
        } else {
            SpanStatus::Unset
        };
        assert_eq!(span.status, status);
    }
    let mut record = get(client);
    (record.status, record.outcome, record.errno) = (0, CONNECT_RESET, libc::EHOSTUNREACH as u16);
    assert_eq!(
        text_of(&span(&record), "error.type").as_deref(),
        Some("host_unreachable")
    );
}

#[test]
fn methods_that_are_not_known() {
    let span = span(&with_method(get(side::SERVER), "PROPFIND"));
    assert_eq!(&*span.name, "HTTP /users/{id}");
    assert_eq!(text_of(&span, "http.request.method").as_deref(), Some("_OTHER"));
}

#[test]
fn paths_raw_and_off() {
    let raw = enricher(Paths::Raw, ClientAddress::Prefix).push(settled(&get(side::SERVER)), &process(), CLOCK);
    assert_eq!(text_of(&raw, "url.path").as_deref(), Some("/users/4711"));
    assert_eq!(text_of(&raw, "http.route").as_deref(), Some("/users/{id}"));
    assert_eq!(&*raw.name, "GET /users/{id}");
    let off = enricher(Paths::Off, ClientAddress::Prefix).push(settled(&get(side::SERVER)), &process(), CLOCK);
    assert_eq!((text_of(&off, "url.path"), text_of(&off, "http.route")), (None, None));
    assert_eq!(&*off.name, "GET");
}

#[test]
fn client_addresses_full_and_off() {
    let full = enricher(Paths::Off, ClientAddress::Full).push(settled(&get(side::SERVER)), &process(), CLOCK);
    assert_eq!(text_of(&full, "client.address").as_deref(), Some("203.0.113.77"));
    let off = enricher(Paths::Off, ClientAddress::Off).push(settled(&get(side::SERVER)), &process(), CLOCK);
    assert!(
        !shown(&off).contains("203.0.113"),
        "the peer of a server span is the client"
    );
    assert_eq!(text_of(&off, "server.address").as_deref(), Some("10.0.0.1"));
}

#[test]
fn a_path_that_was_cut_and_one_that_never_came() {
    let mut cut = with_path(get(side::SERVER), "/users/profile/jane-do");
    cut.flags |= flag::PATH_CUT;
    assert_eq!(&*span(&cut).name, "GET /users/profile/{*}");
    let mut none = get(side::SERVER);
    none.path_len = 0;
    assert_eq!(&*span(&none).name, "GET");
}

#[test]
fn the_record_gives_back_no_path() {
    let mut record = Box::new(with_path(get(side::SERVER), "/reset/hunter2"));
    wipe_path(&mut record);
    assert_eq!(record.path, [0; 256]);
    record.path_len = 9999;
    wipe_path(&mut record);
}

#[test]
fn times_never_run_backwards_and_missing_ones_are_left_out() {
    let mut record = get(side::SERVER);
    (
        record.request_last_ns,
        record.response_first_ns,
        record.response_last_ns,
    ) = (0, 0, T0 - MS);
    let span = span(&record);
    assert!(span.end_unix_ns >= span.start_unix_ns);
    assert_eq!(attribute(&span, "spanwire.request.read_ns"), None);
    assert_eq!(attribute(&span, "spanwire.response.first_byte_ns"), None);
    let empty = self::span(&ExchangeRecord::new_zeroed());
    assert!(empty.end_unix_ns >= empty.start_unix_ns);
}

#[test]
fn any_record_is_survived() {
    use zerocopy::FromBytes;
    for seed in 0..=255_u8 {
        let bytes: Vec<u8> = (0..size_of::<ExchangeRecord>())
            .map(|at| seed.wrapping_mul(31).wrapping_add(at as u8))
            .collect();
        let record = ExchangeRecord::read_from_bytes(&bytes).unwrap();
        let span = span(&record);
        assert!(!span.name.is_empty() && span.end_unix_ns >= span.start_unix_ns);
        let filled = ExchangeRecord::read_from_bytes(&vec![seed; size_of::<ExchangeRecord>()]).unwrap();
        self::span(&filled);
    }
}

#[test]
fn the_resource_of_a_process_is_one() {
    let process = process();
    let mut enricher = enricher(Paths::Templated, ClientAddress::Prefix);
    let first = enricher.push(settled(&get(side::SERVER)), &process, CLOCK);
    let second = enricher.push(settled(&get(side::CLIENT)), &process, CLOCK);
    assert!(Arc::ptr_eq(&first.resource, &second.resource));
    let names: Vec<&str> = first.resource.attributes.iter().map(|(name, _)| &**name).collect();
    for forbidden in ["process.command", "process.command_args", "process.command_line"] {
        assert!(!names.contains(&forbidden));
    }
}
