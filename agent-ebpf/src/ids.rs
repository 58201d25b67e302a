//! Ids as words: the parser keeps them as bytes, maps and comparisons want eight at a time.

use core::mem::offset_of;

use spanwire_common::abi::context_format;
use spanwire_common::protocol::http1::Request;

const _: () = assert!(align_of::<Request>() == 8 && offset_of!(Request, trace_id) % 8 == 0);
const _: () = assert!(offset_of!(Request, parent_id) % 8 == 0);

/// The request's trace id.
#[inline(always)]
pub fn trace_id(request: &Request) -> [u64; 2] {
    // SAFETY: 16 bytes at an aligned offset (asserted above).
    unsafe { (&raw const request.trace_id).cast::<[u64; 2]>().read() }
}

/// Replaces the request's trace id.
#[inline(always)]
pub fn set_trace_id(request: &mut Request, trace_id: [u64; 2]) {
    // SAFETY: as above.
    unsafe { (&raw mut request.trace_id).cast::<[u64; 2]>().write(trace_id) };
}

/// The parent id that came with the request.
#[inline(always)]
pub fn parent_id(request: &Request) -> u64 {
    // SAFETY: 8 bytes at an aligned offset (asserted above).
    unsafe { (&raw const request.parent_id).cast::<u64>().read() }
}

/// Notes the span id that came back in the response, in the place of the parent id of a request without context: a socket's
/// state has no more room.
#[inline(always)]
pub fn set_returned(request: &mut Request, span_id: u64) {
    if request.context_format == context_format::NONE {
        // SAFETY: as above.
        unsafe { (&raw mut request.parent_id).cast::<u64>().write(span_id) };
    }
}

/// The parent id that came with the request, and the span id that came back with its response; zero: none.
#[inline(always)]
pub fn parent_and_returned(request: &Request) -> (u64, u64) {
    let id = parent_id(request);
    if request.context_format == context_format::NONE {
        (0, id)
    } else {
        (id, 0)
    }
}
