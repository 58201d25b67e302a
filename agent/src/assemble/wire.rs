//! Both ends of an exchange meet: by the kernel's word, by a link that came later, or here by their wire key.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use spanwire_common::abi::{family, flag, protocol_id, side, ExchangeRecord, METHOD_BYTES, PATH_BYTES};

use super::judge::{has, header_names_parent};
use super::recent::Recent;
use crate::span::{SpanId, TraceId};

/// The client's end of an exchange, as the server's end came to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) span: SpanId,
    pub(super) trace: TraceId,
}

/// A pair that met here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) client: Client,
    pub(super) server_span: SpanId,
    pub(super) server_trace: TraceId,
    /// The server's trace id came in a header.
    pub(super) server_adopted: bool,
}

/// An end that waits for the other under its wire key.
#[derive(Clone, Copy, Debug)]
struct End {
    span: SpanId,
    trace: TraceId,
    shape: u64,
    start_ns: u64,
    is_server: bool,
    unix: bool,
    adopted: bool,
    /// Another end on the same side has the same key: neither is believed.
    doubtful: bool,
}

#[derive(Debug)]
pub(super) struct Wire {
    hasher: RandomState,
    ends: Recent<u64, End>,
    /// Client ends by the server's span id, for servers whose record does not name the client.
    links: Recent<SpanId, Client>,
    /// Client spans that will never leave: their process, path or user agent is excluded.
    excluded: Recent<SpanId, ()>,
    /// Client spans whose header seems to be an SDK's, and their processes.
    sdk_made: Recent<SpanId, u32>,
    /// (process, parent id) of headers that came in.
    came_in: Recent<(u32, [u8; 8]), ()>,
    late: u64,
    doubtful: u64,
}

/// The sender's hook runs after its send, so the receiver's clock may be ahead of it, by no more than a preemption.
const CLOCK_SLACK_NS: u64 = 50_000_000;
/// Links and marks are kept for as long as a long exchange may run after they were made.
const LINK_SPAN_NS: u64 = 600_000_000_000;

impl Wire {
    pub(super) fn new(capacity: usize, settle_ns: u64) -> Self {
        Self {
            hasher: RandomState::default(),
            ends: Recent::new(capacity.saturating_mul(2), settle_ns),
            links: Recent::new(capacity, LINK_SPAN_NS),
            excluded: Recent::new(capacity, LINK_SPAN_NS),
            sdk_made: Recent::new(capacity, LINK_SPAN_NS),
            came_in: Recent::new(capacity, LINK_SPAN_NS),
            late: 0,
            doubtful: 0,
        }
    }

    /// Takes an end that the kernel did not pair, and returns the pair if its other end is here.
    pub(super) fn meet(&mut self, record: &ExchangeRecord) -> Option<Pair> {
        if !has(record, flag::WIRE_KEY) || record.protocol != protocol_id::HTTP1 {
            return None;
        }
        let end = self.end(record);
        match self.ends.get_mut(&record.wire_key) {
            None => {
                self.ends.insert(record.wire_key, end);
                None
            }
            Some(other) if other.span == end.span => None,
            Some(other) if other.is_server == end.is_server => {
                other.doubtful = true;
                self.doubtful += 1;
                None
            }
            Some(other) => {
                let (client, server) = if end.is_server {
                    (&*other, &end)
                } else {
                    (&end, &*other)
                };
                let fits = client.shape == server.shape
                    && client.unix == server.unix
                    && client.start_ns <= server.start_ns.saturating_add(CLOCK_SLACK_NS);
                if other.doubtful || !fits {
                    self.doubtful += 1;
                    return None;
                }
                let pair = Pair {
                    client: Client {
                        span: client.span,
                        trace: client.trace,
                    },
                    server_span: server.span,
                    server_trace: server.trace,
                    server_adopted: server.adopted,
                };
                self.late += 1;
                Some(pair)
            }
        }
    }

    /// The server exchange `server` was sent by `client`.
    pub(super) fn link(&mut self, server: SpanId, client: Client) {
        self.links.insert(server, client);
    }

    /// The other end of a server exchange.
    pub(super) fn client_of(&mut self, record: &ExchangeRecord) -> Option<Client> {
        if record.wire_span_id != [0; 8] {
            let trace = TraceId(if record.wire_trace_id == [0; 16] {
                record.trace_id
            } else {
                record.wire_trace_id
            });
            return Some(Client {
                span: SpanId(record.wire_span_id),
                trace,
            });
        }
        if self.links.is_empty() {
            return None;
        }
        self.links.peek(&SpanId(record.span_id)).copied()
    }

    /// This client span will never leave, so it is nobody's parent; or it will after all.
    pub(super) fn exclude(&mut self, client: SpanId, excluded: bool) {
        if excluded {
            self.excluded.insert(client, ());
        } else {
            self.excluded.remove(&client);
        }
    }

    pub(super) fn is_excluded(&self, client: SpanId) -> bool {
        !self.excluded.is_empty() && self.excluded.contains(&client)
    }

    /// This client exchange's header seems to be an SDK's.
    pub(super) fn mark_sdk_made(&mut self, record: &ExchangeRecord) {
        self.sdk_made.insert(SpanId(record.span_id), record.pid);
    }

    /// True if the header that a client sent, and that came in with the server exchange `record`, was made by an SDK.
    pub(super) fn is_sdk_made(&self, client: SpanId, record: &ExchangeRecord) -> bool {
        if self.sdk_made.is_empty() {
            return false;
        }
        self.sdk_made
            .peek(&client)
            .is_some_and(|pid| !self.came_in_on(*pid, record.header_parent_id))
    }

    /// Notes the parent id that came in with a server exchange.
    pub(super) fn note_header(&mut self, record: &ExchangeRecord) {
        if header_names_parent(record) {
            self.came_in.insert((record.pid, record.header_parent_id), ());
        }
    }

    /// True if the header that goes out with `record` came in on its process before: whoever forwards it made no span.
    pub(super) fn came_in(&self, record: &ExchangeRecord) -> bool {
        self.came_in_on(record.pid, record.header_parent_id)
    }

    pub(super) fn came_in_on(&self, pid: u32, parent_id: [u8; 8]) -> bool {
        !self.came_in.is_empty() && self.came_in.contains(&(pid, parent_id))
    }

    pub(super) fn advance(&mut self, now_ns: u64) {
        self.ends.advance(now_ns);
        self.links.advance(now_ns);
        self.excluded.advance(now_ns);
        self.sdk_made.advance(now_ns);
        self.came_in.advance(now_ns);
    }

    /// Pairs that met here.
    pub(super) fn late(&self) -> u64 {
        self.late
    }

    /// Ends that had the same key and were no pair.
    pub(super) fn doubtful(&self) -> u64 {
        self.doubtful
    }

    /// Ends and links forgotten for want of room.
    pub(super) fn evicted(&self) -> u64 {
        self.ends.evicted() + self.links.evicted()
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len() + self.links.len()
    }

    fn end(&self, record: &ExchangeRecord) -> End {
        let method = &record.method[..usize::from(record.method_len).min(METHOD_BYTES)];
        let path = &record.path[..usize::from(record.path_len).min(PATH_BYTES)];
        End {
            span: SpanId(record.span_id),
            trace: TraceId(record.trace_id),
            shape: self.hasher.hash_one((method, path)),
            start_ns: record.request_first_ns,
            is_server: record.side == side::SERVER,
            unix: record.family == family::UNIX,
            adopted: has(record, flag::ADOPTED_HEADER),
            doubtful: false,
        }
    }
}
