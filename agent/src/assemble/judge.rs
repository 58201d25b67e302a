//! Which evidence makes a parent exact. Pure functions of a record and of what is known of its process; correlation.md
//! A5 and B5 are the rules' grounds.

use spanwire_common::abi::{cause, context_format, flag, ExchangeRecord, ProcessClass};

use crate::span::{Parent, ParentSource, SpanId, TraceId, UnknownReason};

/// What is known of the process that sent the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runtime {
    /// Its class as user space knows it now.
    pub(super) class: ProcessClass,
    /// A thread rule contradicted itself in it, at any time until now.
    pub(super) demoted: bool,
    /// A cause inherited over a fork may be believed.
    pub(super) may_inherit: bool,
}

/// What the evidence says about a client exchange's parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The parent, the trace it is in, and by what it is known.
    Exact {
        source: ParentSource,
        span: SpanId,
        trace: TraceId,
    },
    /// There is a parent, and it cannot be told which.
    Unknown(UnknownReason),
    /// Nothing names a parent.
    Nothing,
    /// The process has no class yet.
    Waits,
}

/// A parent that is exact.
pub(super) const fn exact(source: ParentSource, span: SpanId) -> Parent {
    Parent {
        source,
        span_id: Some(span),
        reason: None,
    }
}

/// There is no parent.
pub(super) const ROOT: Parent = Parent {
    source: ParentSource::Root,
    span_id: None,
    reason: None,
};

/// The parent is not known.
pub(super) const fn unknown(reason: UnknownReason) -> Parent {
    Parent {
        source: ParentSource::Unknown,
        span_id: None,
        reason: Some(reason),
    }
}

pub(super) fn has(record: &ExchangeRecord, flags: u32) -> bool {
    record.flags & flags != 0
}

/// True if a context with a parent id came in a header.
pub(super) fn header_names_parent(record: &ExchangeRecord) -> bool {
    record.context_format != context_format::NONE && record.header_parent_id != [0; 8]
}

/// True if the header of this client exchange was made by the application's own SDK: it is no copy of one that came in.
pub(super) fn sdk_made(record: &ExchangeRecord) -> bool {
    header_names_parent(record) && record.cause != cause::HEADER && !header_is_ambiguous(record)
}

/// Two open requests brought in the pair that the outgoing head carries. With evidence by thread beside it, the flag
/// speaks of the thread, and the header is an SDK's.
fn header_is_ambiguous(record: &ExchangeRecord) -> bool {
    has(record, flag::AMBIGUOUS) && matches!(record.cause, cause::HEADER | cause::NONE)
}

/// The parent of a client exchange, by the first rule that applies: the header it carries, then the request its unit of
/// execution was serving.
pub(super) fn client(record: &ExchangeRecord, runtime: Runtime) -> Evidence {
    if header_names_parent(record) {
        if header_is_ambiguous(record) {
            return Evidence::Unknown(UnknownReason::Overlap);
        }
        let span = if record.cause == cause::HEADER {
            record.cause_span_id
        } else {
            record.header_parent_id
        };
        if span != [0; 8] {
            let source = ParentSource::Header;
            return Evidence::Exact {
                source,
                span: SpanId(span),
                trace: TraceId(record.trace_id),
            };
        }
    }
    by_cause(record, runtime)
}

/// The request that the unit of execution was serving, whatever the head says.
pub(super) fn by_cause(record: &ExchangeRecord, runtime: Runtime) -> Evidence {
    if record.cause_span_id == [0; 8] || matches!(record.cause, cause::NONE | cause::HEADER) {
        return Evidence::Nothing;
    }
    let source = match record.cause {
        cause::THREAD => ParentSource::Thread,
        cause::PROCESS => ParentSource::Process,
        _ => ParentSource::Io,
    };
    match may_rest_on_cause(record, runtime) {
        Some(Ok(())) => {
            // A cause without a trace id bears the one this exchange took over from it.
            let trace = TraceId(record.cause_trace_id);
            let trace = if trace.is_valid() {
                trace
            } else {
                TraceId(record.trace_id)
            };
            Evidence::Exact {
                source,
                span: SpanId(record.cause_span_id),
                trace,
            }
        }
        Some(Err(reason)) => Evidence::Unknown(reason),
        None => Evidence::Waits,
    }
}

/// `None`: the class is needed to tell.
fn may_rest_on_cause(record: &ExchangeRecord, runtime: Runtime) -> Option<Result<(), UnknownReason>> {
    if record.cause == cause::PROCESS {
        if !runtime.may_inherit {
            return Some(Err(UnknownReason::Runtime));
        }
        return Some(undisputed(record, runtime));
    }
    // The kernel's idea of the class at request time and user space's of now: each must allow it, where there is one.
    let then = ProcessClass::from_u8(record.class);
    let mut known = false;
    for class in [then, runtime.class] {
        if class == ProcessClass::Unclassified {
            continue;
        }
        known = true;
        if let Err(reason) = class_allows(class, record) {
            return Some(Err(reason));
        }
    }
    if has(record, flag::DEMOTED) || runtime.demoted || known {
        return Some(undisputed(record, runtime));
    }
    None
}

/// No contradiction was seen, and no second request was open.
fn undisputed(record: &ExchangeRecord, runtime: Runtime) -> Result<(), UnknownReason> {
    if has(record, flag::DEMOTED) || runtime.demoted {
        return Err(UnknownReason::Contradiction);
    }
    if has(record, flag::AMBIGUOUS) {
        return Err(UnknownReason::Overlap);
    }
    Ok(())
}

fn class_allows(class: ProcessClass, record: &ExchangeRecord) -> Result<(), UnknownReason> {
    match (class, record.cause) {
        // A non-blocking socket is the mark of a runtime that the class does not describe.
        (ProcessClass::ThreadPerRequest, cause::THREAD) if !has(record, flag::CAUSE_BLOCKING) => {
            Err(UnknownReason::Runtime)
        }
        // Another thread read part of the request (a reactor): it was handed over.
        (ProcessClass::ThreadReadsWhole, cause::THREAD) if !has(record, flag::CAUSE_COMPLETE) => {
            Err(UnknownReason::Handoff)
        }
        (
            ProcessClass::ThreadPerRequest | ProcessClass::ThreadReadsWhole | ProcessClass::ProcessPerRequest,
            cause::THREAD,
        )
        | (ProcessClass::Nginx, cause::IO) => Ok(()),
        _ => Err(UnknownReason::Runtime),
    }
}

/// Why the parent of a client exchange is unknown when nothing names one, in a process that serves.
pub(super) fn why_nothing(record: &ExchangeRecord, runtime: Runtime) -> UnknownReason {
    let class = class_of(record, runtime);
    let by_unit = class == ProcessClass::Nginx || one_at_a_time(class);
    if !by_unit {
        UnknownReason::Runtime
    } else if has(record, flag::DEMOTED) || runtime.demoted {
        UnknownReason::Contradiction
    } else if has(record, flag::AMBIGUOUS) {
        UnknownReason::Overlap
    } else if has(record, flag::LATE_JOIN) {
        UnknownReason::AttachedLate
    } else {
        UnknownReason::Handoff
    }
}

/// The class to go by: user space's, else the kernel's.
pub(super) fn class_of(record: &ExchangeRecord, runtime: Runtime) -> ProcessClass {
    match runtime.class {
        ProcessClass::Unclassified => ProcessClass::from_u8(record.class),
        class => class,
    }
}

/// A thread of such a process does one thing after the other.
pub(super) const fn one_at_a_time(class: ProcessClass) -> bool {
    matches!(
        class,
        ProcessClass::ThreadPerRequest | ProcessClass::ThreadReadsWhole | ProcessClass::ProcessPerRequest
    )
}
