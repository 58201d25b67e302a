//! Stage: enrich. A settled exchange becomes a span with the attributes of OpenTelemetry's semantic conventions.
//!
//! Pure: no I/O, no clock. Which process it was is found out by `discover` and handed in; the offset between the
//! kernel's clock and the world's too. Never delays or drops a span: what is unknown is left out.
//!
//! What a client sent is not kept: the record's path is overwritten before its memory is given back.

mod address;
mod method;
mod outcome;
mod recent;
mod resource;
mod routes;
mod template;

use std::borrow::Cow;
use std::sync::Arc;

use spanwire_common::abi::{family, flag, protocol_id, side, ExchangeRecord};

pub use address::ClientAddress;
pub use resource::{resource, service_name, Node};

use crate::discover::Process;
use crate::span::{Attribute, Settled, Span, SpanId, SpanKind, SpanStatus, Value};
use address::{address, AddressTexts};
use method::{attribute_method, method_index, span_method, METHODS};
use outcome::{error_type, outcome_text};
use routes::{Bounds, Route, Routes};

/// `capture.paths`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paths {
    /// `url.path` and `http.route` are templates.
    #[default]
    Templated,
    /// `url.path` is what came over the wire; route and name stay templates.
    Raw,
    /// No path at all.
    Off,
}

/// What of an exchange becomes part of its span.
#[derive(Clone, Debug)]
pub struct Options {
    /// Paths.
    pub paths: Paths,
    /// Clients' addresses.
    pub client_address: ClientAddress,
    /// Names of the listed request headers, in the configuration's order.
    pub header_names: Vec<String>,
    /// The node.
    pub node: Node,
}

/// Unix time minus CLOCK_MONOTONIC, in nanoseconds, as read by the caller now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset(pub i64);

impl ClockOffset {
    fn unix_ns(self, monotonic_ns: u64) -> u64 {
        monotonic_ns.saturating_add_signed(self.0)
    }
}

/// Attributes of an ordinary span; more makes the list grow once. From 1 KiB on the allocator keeps memory in sorted lists,
/// which costs as much as filling it.
const ATTRIBUTES: usize = 20;
const _: () = assert!(ATTRIBUTES * size_of::<Attribute>() < 1000);

/// The stage.
pub struct Enricher {
    paths: Paths,
    client_address: ClientAddress,
    /// `http.request.header.<name>`.
    header_attributes: Vec<String>,
    node: Node,
    routes: Routes,
    addresses: AddressTexts,
    /// Names of spans without a route, by method.
    bare_names: [Arc<str>; METHODS.len()],
    connect_name: Arc<str>,
}

impl Enricher {
    /// A stage with empty caches.
    pub fn new(options: Options) -> Self {
        let header_attributes = options.header_names.iter();
        Self {
            paths: options.paths,
            client_address: options.client_address,
            header_attributes: header_attributes
                .map(|name| format!("http.request.header.{}", name.to_lowercase()))
                .collect(),
            node: options.node,
            routes: Routes::new(Bounds::default()),
            addresses: AddressTexts::new(),
            bare_names: std::array::from_fn(|method| span_method(method).into()),
            connect_name: "connect".into(),
        }
    }

    /// Makes the span of an exchange of `process`.
    pub fn push(&mut self, mut settled: Settled, process: &Process, clock: ClockOffset) -> Span {
        let resource = Arc::clone(process.resource_or(|process| resource(process, &self.node)));
        let record = &*settled.record;
        let mut list = Attributes(Vec::with_capacity(ATTRIBUTES));
        let name = match record.protocol {
            protocol_id::HTTP1 => self.http(record, &resource.service_name, &mut list),
            protocol_id::CONNECT => Arc::clone(&self.connect_name),
            _ => opaque(record, &mut list),
        };
        self.network(record, &mut list);
        self.headers(std::mem::take(&mut settled.headers), &mut list);
        if settled.sdk.is_some() {
            list.put("spanwire.sdk", Value::Bool(true));
        }
        if settled.resend_count > 0 {
            list.int("http.request.resend_count", settled.resend_count.into());
        }
        let error = error_type(record);
        list.some_static("error.type", error);
        list.some_static("spanwire.outcome", outcome_text(record));
        list.put("spanwire.parent.source", Value::Static(settled.parent.source.as_str()));
        list.some_static(
            "spanwire.parent.reason",
            settled.parent.reason.map(crate::span::UnknownReason::as_str),
        );
        if let Some(tenant) = &settled.tenant {
            list.put("spanwire.tenant", Value::Str(Arc::clone(tenant)));
        }
        if record.flags & flag::WIRE_KEY != 0 {
            list.put("spanwire.wire.key", Value::Str(hex64(record.wire_key)));
        }
        let (start_ns, end_ns) = times(record, &mut list);
        let span = Span {
            trace_id: settled.trace_id,
            span_id: SpanId(record.span_id),
            parent_span_id: settled.parent.span_id,
            parent_source: settled.parent.source,
            trace_flags: u8::from(record.flags & flag::SAMPLED != 0) | u8::from(record.flags & flag::RANDOM != 0) << 1,
            trace_state: settled.tracestate.take(),
            kind: if record.side == side::SERVER {
                SpanKind::Server
            } else {
                SpanKind::Client
            },
            name,
            start_unix_ns: clock.unix_ns(start_ns),
            end_unix_ns: clock.unix_ns(end_ns),
            status: if error.is_some() {
                SpanStatus::Error
            } else {
                SpanStatus::Unset
            },
            attributes: list.0,
            resource,
            tenant: settled.tenant.take(),
        };
        wipe_path(&mut settled.record);
        span
    }

    /// Request and response; the span's name.
    fn http(&mut self, record: &ExchangeRecord, service: &str, list: &mut Attributes) -> Arc<str> {
        let method = method_index(used(&record.method, record.method_len.into()));
        list.put("http.request.method", Value::Static(attribute_method(method)));
        if record.status != 0 {
            list.int("http.response.status_code", record.status.into());
        }
        list.put("url.scheme", Value::Static("http"));
        list.put(
            "network.protocol.version",
            Value::Static(if record.flags & flag::HTTP10 != 0 { "1.0" } else { "1.1" }),
        );
        if record.flags & flag::REQUEST_SIZE_KNOWN != 0 {
            list.int("http.request.body.size", record.request_body_bytes as i64);
        }
        if record.flags & flag::RESPONSE_SIZE_KNOWN != 0 {
            list.int("http.response.body.size", record.response_body_bytes as i64);
        }
        match self.route(record, service, list) {
            Some(route) => route.name(method),
            None => self
                .bare_names
                .get(method)
                .map_or_else(|| span_method(method).into(), Arc::clone),
        }
    }

    fn route(&mut self, record: &ExchangeRecord, service: &str, list: &mut Attributes) -> Option<Arc<Route>> {
        if self.paths == Paths::Off || record.path_len == 0 {
            return None;
        }
        let raw = used(&record.path, record.path_len.into());
        let route = self
            .routes
            .route(service, record.side, raw, record.flags & flag::PATH_CUT != 0);
        let name = if record.side == side::SERVER {
            "http.route"
        } else {
            "url.template"
        };
        list.put(name, Value::Str(Arc::clone(&route.path)));
        list.put(
            "url.path",
            Value::Str(match self.paths {
                Paths::Raw => String::from_utf8_lossy(raw).into(),
                _ => Arc::clone(&route.path),
            }),
        );
        Some(route)
    }

    /// Both ends of the connection. On the server side the peer is the client: its address is reduced wherever it
    /// appears.
    fn network(&mut self, record: &ExchangeRecord, list: &mut Attributes) {
        list.put(
            "network.transport",
            Value::Static(if record.family == family::UNIX { "unix" } else { "tcp" }),
        );
        let (Some(local), Some(remote)) = (
            address(record.family, record.local_addr),
            address(record.family, record.remote_addr),
        ) else {
            return;
        };
        if record.side == side::SERVER {
            list.put("server.address", Value::Str(self.addresses.text(local)));
            list.int("server.port", record.local_port.into());
            if let Some(client) = self.client_address.reduce(remote) {
                let client = self.addresses.text(client);
                list.put("client.address", Value::Str(Arc::clone(&client)));
                list.int("client.port", record.remote_port.into());
                list.put("network.peer.address", Value::Str(client));
                list.int("network.peer.port", record.remote_port.into());
            }
        } else {
            let server = self.addresses.text(remote);
            list.put("server.address", Value::Str(Arc::clone(&server)));
            list.int("server.port", record.remote_port.into());
            list.put("network.peer.address", Value::Str(server));
            list.int("network.peer.port", record.remote_port.into());
        }
    }

    /// Listed request headers, values of one name together.
    fn headers(&self, mut headers: Vec<(u8, Box<str>)>, list: &mut Attributes) {
        headers.sort_by_key(|(index, _)| *index);
        for same in headers.chunk_by(|(first, _), (second, _)| first == second) {
            let name = same
                .first()
                .and_then(|(index, _)| self.header_attributes.get(usize::from(*index)));
            if let Some(name) = name {
                let values = same.iter().map(|(_, value)| Arc::from(&**value)).collect();
                list.0.push((Cow::Owned(name.clone()), Value::StrArray(values)));
            }
        }
    }
}

/// A call that is not understood: how much went each way.
fn opaque(record: &ExchangeRecord, list: &mut Attributes) -> Arc<str> {
    list.int("spanwire.sent_bytes", record.request_body_bytes as i64);
    list.int("spanwire.received_bytes", record.response_body_bytes as i64);
    let name = if record.protocol == protocol_id::TLS {
        "TLS"
    } else {
        "opaque"
    };
    let port = if record.side == side::SERVER {
        record.local_port
    } else {
        record.remote_port
    };
    if record.family == family::UNIX {
        name.into()
    } else {
        format!("{name} :{port}").into()
    }
}

/// Start and end by the kernel's clock, and the offsets between. A connect that failed has no request: it starts with
/// the first time the record has.
fn times(record: &ExchangeRecord, list: &mut Attributes) -> (u64, u64) {
    let in_order = [
        record.request_first_ns,
        record.request_last_ns,
        record.response_first_ns,
        record.response_last_ns,
    ];
    let start_ns = in_order.into_iter().find(|time| *time != 0).unwrap_or(0);
    let end_ns = in_order.into_iter().fold(start_ns, u64::max);
    let after_start = |time: u64| (time != 0).then(|| time.saturating_sub(start_ns) as i64);
    if record.protocol != protocol_id::CONNECT {
        list.some_int("spanwire.request.read_ns", after_start(record.request_last_ns));
        list.some_int("spanwire.response.first_byte_ns", after_start(record.response_first_ns));
    }
    (start_ns, end_ns)
}

/// The memory is given back to the allocator, not to the wind.
fn wipe_path(record: &mut ExchangeRecord) {
    let used = usize::from(record.path_len).min(record.path.len());
    if let Some(path) = record.path.get_mut(..used) {
        path.fill(0);
        // Or the compiler would see that nobody reads it again.
        std::hint::black_box(path);
    }
}

fn used(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(..len).unwrap_or(bytes)
}

fn hex64(key: u64) -> Arc<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0u8; 16];
    for (digit, byte) in text.chunks_exact_mut(2).zip(key.to_be_bytes()) {
        digit.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    std::str::from_utf8(&text).unwrap_or("").into()
}

/// The span's list, by kind of value.
struct Attributes(Vec<Attribute>);

impl Attributes {
    fn put(&mut self, name: &'static str, value: Value) {
        self.0.push((Cow::Borrowed(name), value));
    }

    fn int(&mut self, name: &'static str, value: i64) {
        self.put(name, Value::Int(value));
    }

    fn some_int(&mut self, name: &'static str, value: Option<i64>) {
        if let Some(value) = value {
            self.int(name, value);
        }
    }

    fn some_static(&mut self, name: &'static str, value: Option<&'static str>) {
        if let Some(value) = value {
            self.put(name, Value::Static(value));
        }
    }
}

#[cfg(test)]
mod tests;
