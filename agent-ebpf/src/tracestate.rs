//! The tracestate of a request that came in: kept until the requests it causes have left.
//!
//! verifier: see `engine`. The member in hand lies in the list, which lies in a map.

use spanwire_common::abi::setting;
use spanwire_common::protocol::http1::cut;
use spanwire_common::protocol::tracestate::{check, locate, take, TraceState, CALLS};

use crate::global::global;
use crate::maps::{blank_tracestate, SETTINGS, TRACESTATES};
use crate::state::{Scratch, SockState};

/// The list of the request under way; null if there is none.
#[inline(always)]
fn list_of(state: &SockState) -> *mut TraceState {
    let span_id = state.exchange.span_id;
    TRACESTATES.get_ptr_mut(&span_id).unwrap_or(core::ptr::null_mut())
}

/// Requests are given trace context: else nobody will ask for the list.
#[inline(always)]
fn is_rewriting() -> bool {
    SETTINGS.get_ptr(0).is_some_and(|settings| {
        // SAFETY: an element of an array.
        unsafe { (*settings).flags & setting::REWRITE != 0 }
    })
}

/// A tracestate line of a request that comes in is in hand.
#[inline(always)]
pub fn keep(state: *mut SockState, scratch: *mut Scratch) {
    // SAFETY: whole objects.
    let (known, working) = unsafe { (&mut *state, &mut *scratch) };
    if known.exchange.has_tracestate == 0 {
        if !is_rewriting() {
            return;
        }
        known.exchange.has_tracestate = 1;
        if blank_tracestate(known.exchange.span_id).is_null() {
            return;
        }
    }
    // The whole of what is in view: more than a text holds.
    let to = working.cursor.value_to;
    let mut from = working.cursor.value_from;
    for _ in 0..CALLS {
        if from >= to {
            break;
        }
        from = find_member(state, scratch, from, to);
        check_member(state, scratch);
        take_member(state, scratch);
    }
}

global! {
    /// Finds the next member of the line in `from..to`.
    pub fn find_member(state: *mut SockState, scratch: *mut Scratch; from: u32, to: u32) else { u32::MAX } {
        // SAFETY: whole objects (rule for pointer arguments of global functions).
        let (known, working) = unsafe { (&mut *state, &mut *scratch) };
        let list = list_of(known);
        if list.is_null() {
            return u32::MAX;
        }
        // SAFETY: a live map value.
        locate(unsafe { &mut *list }, &working.window, from, to, working.cursor.cut == cut::LONG)
    }
}

global! {
    /// Whether it is one.
    pub fn check_member(state: *mut SockState, scratch: *mut Scratch) else { 0 } {
        // SAFETY: as above.
        let (known, working) = unsafe { (&mut *state, &mut *scratch) };
        let list = list_of(known);
        if !list.is_null() {
            // SAFETY: a live map value.
            check(unsafe { &mut *list }, &working.window);
        }
        0
    }
}

global! {
    /// Adds it to the list.
    pub fn take_member(state: *mut SockState, scratch: *mut Scratch) else { 0 } {
        // SAFETY: as above.
        let (known, working) = unsafe { (&mut *state, &mut *scratch) };
        let list = list_of(known);
        if !list.is_null() {
            // SAFETY: a live map value.
            take(unsafe { &mut *list }, &working.window);
        }
        0
    }
}
