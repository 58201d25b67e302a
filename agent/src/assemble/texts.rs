//! Texts that travel beside an exchange: tracestate, listed headers, user agent; and the tenants of traces.
//!
//! They are kept by span id until the exchange leaves, so it does not matter which of the two came first.

use std::sync::Arc;

use spanwire_common::abi::{text, TextRecord, KEPT_HEADERS, TEXT_BYTES};
use spanwire_common::protocol::tracestate::TraceState;

use super::recent::{Recent, FOREVER_NS};
use crate::span::{SpanId, TraceId};

/// The texts of one exchange.
#[derive(Debug, Default)]
pub(super) struct Texts {
    tracestate: Option<Box<TraceState>>,
    pub(super) headers: Vec<(u8, Box<str>)>,
    pub(super) user_agent: Option<Box<str>>,
}

/// Header lines kept for one exchange: each listed name may come in several lines.
const MAX_HEADER_LINES: usize = 4 * KEPT_HEADERS;

impl Texts {
    fn add(&mut self, record: &TextRecord) {
        let used = &record.bytes[..usize::from(record.len).min(TEXT_BYTES)];
        let cut = record.cut != 0;
        match record.what {
            text::TRACESTATE => self.tracestate.get_or_insert_default().append(used, cut),
            text::HEADER if usize::from(record.index) < KEPT_HEADERS && self.headers.len() < MAX_HEADER_LINES => {
                self.headers.push((record.index, readable(used, cut)));
            }
            text::USER_AGENT => self.user_agent = Some(readable(used, cut)),
            _ => {}
        }
    }

    /// The tracestate, if it is one and not empty.
    pub(super) fn tracestate(&self) -> Option<Box<str>> {
        let list = self.tracestate.as_ref().filter(|list| !list.is_empty())?;
        String::from_utf8(list.bytes()).ok().map(String::into_boxed_str)
    }
}

/// As text; a character that a cut went through is left out.
fn readable(bytes: &[u8], cut: bool) -> Box<str> {
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if cut && error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    };
    String::from_utf8_lossy(whole).into_owned().into_boxed_str()
}

/// Texts by span, and tenants.
#[derive(Debug)]
pub(super) struct Shelf {
    spans: Recent<SpanId, Texts>,
    /// Tenant values by the hash that records carry.
    tenants: Recent<u64, Arc<str>>,
    traces: Recent<TraceId, Tenant>,
}

/// A trace's tenant: that of the exchange that began first among those that bear one.
#[derive(Clone, Copy, Debug)]
struct Tenant {
    hash: u64,
    since_ns: u64,
}

/// How long texts wait for their exchange to end.
const TEXT_SPAN_NS: u64 = 600_000_000_000;

impl Shelf {
    pub(super) fn new(texts: usize, tenants: usize, traces: usize) -> Self {
        Self {
            spans: Recent::new(texts, TEXT_SPAN_NS),
            tenants: Recent::new(tenants, FOREVER_NS),
            traces: Recent::new(traces, TEXT_SPAN_NS),
        }
    }

    pub(super) fn add(&mut self, record: &TextRecord) {
        if record.what == text::TENANT {
            let used = &record.bytes[..usize::from(record.len).min(TEXT_BYTES)];
            if record.hash != 0 && self.tenants.get_mut(&record.hash).is_none() {
                self.tenants.insert(record.hash, readable(used, record.cut != 0).into());
            }
        } else {
            self.spans.entry(SpanId(record.span_id), Texts::default).add(record);
        }
    }

    /// The texts of a span that leaves.
    pub(super) fn take(&mut self, span: SpanId) -> Option<Texts> {
        if self.spans.is_empty() {
            return None;
        }
        self.spans.remove(&span)
    }

    /// Notes that an exchange of `trace`, begun at `since_ns`, bears the tenant `hash`.
    pub(super) fn bears(&mut self, trace: TraceId, hash: u64, since_ns: u64) {
        let tenant = self.traces.entry(trace, || Tenant { hash, since_ns });
        if since_ns < tenant.since_ns {
            *tenant = Tenant { hash, since_ns };
        }
    }

    /// `child` is part of the trace `parent` from now on.
    pub(super) fn joined(&mut self, parent: TraceId, child: TraceId) {
        if self.traces.is_empty() {
            return;
        }
        if let Some(tenant) = self.traces.remove(&child) {
            self.bears(parent, tenant.hash, tenant.since_ns);
        }
    }

    /// The tenant of a trace.
    pub(super) fn tenant(&mut self, trace: TraceId) -> Option<Arc<str>> {
        if self.traces.is_empty() {
            return None;
        }
        let hash = self.traces.get_mut(&trace)?.hash;
        self.tenants.get_mut(&hash).cloned()
    }

    pub(super) fn advance(&mut self, now_ns: u64) {
        self.spans.advance(now_ns);
        self.traces.advance(now_ns);
    }

    /// Spans whose texts are waiting.
    pub(super) fn waiting(&self) -> usize {
        self.spans.len()
    }

    /// Texts, tenants and traces' tenants forgotten for want of room.
    pub(super) fn evicted(&self) -> u64 {
        self.spans.evicted() + self.tenants.evicted() + self.traces.evicted()
    }
}
