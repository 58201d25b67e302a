//! What `spanwire_common::protocol::http1` does with the bytes of one line, each function as one of the kernel's own.
//!
//! verifier: see `engine`.

use spanwire_common::protocol::http1::{self, request, step as code};

use crate::engine::framing;
use crate::global::global;
use crate::maps::SETTINGS;
use crate::state::{Scratch, SockState, TX};

/// Fields of an `x-amzn-trace-id`, and one step to end with.
const XRAY_FIELDS: u32 = 10;

global! {
    /// verifier: see `engine`. Searches the line under way; the result stays in the cursor's memory.
    pub fn scan(state: *mut SockState, scratch: *mut Scratch) else { 0 } {
        // SAFETY: whole objects (rule for pointer arguments of global functions).
        let (state, scratch) = unsafe { (&mut *state, &mut *scratch) };
        let f = framing(state, scratch.call.direction);
        http1::scan(f, &mut scratch.cursor, &scratch.window)
    }
}

/// Wraps one of the request parser's functions.
macro_rules! request_function {
    ($(#[$meta:meta])* $name:ident, |$f:ident, $request:ident, $cursor:ident, $window:ident, $settings:ident| $call:expr) => {
        global! {
            $(#[$meta])*
            pub fn $name(state: *mut SockState, scratch: *mut Scratch) else { code::OPAQUE_FRAMING } {
                let Some(settings) = SETTINGS.get_ptr(0) else { return code::OPAQUE_FRAMING };
                // SAFETY: whole objects (rule for pointer arguments of global functions); an array element.
                let (state, scratch, $settings) = unsafe { (&mut *state, &mut *scratch, &*settings) };
                let [receive, send] = &mut state.framing;
                let $f = if scratch.call.direction == TX { send } else { receive };
                let ($request, $cursor, $window) = (&mut state.exchange.request, &mut scratch.cursor, &scratch.window);
                let _ = $settings;
                $call
            }
        }
    };
}

request_function! {
    /// Header lines of a request that nobody asks for.
    skim_request, |f, request, cursor, window, settings| {
        http1::skim_request(f, request, cursor, window, settings);
        0
    }
}
request_function! {
    /// Header lines of a response that nobody asks for.
    skim_response, |f, _request, cursor, window, _settings| {
        http1::skim_response(f, cursor, window);
        0
    }
}
request_function! {
    /// The start line of a request.
    start_line, |f, request, cursor, window, _settings| request::start_line(f, request, cursor, window)
}
request_function! {
    /// Its target.
    target, |f, request, cursor, window, _settings| request::target(f, request, cursor, window)
}
request_function! {
    /// A header line of a request, or the end of its head.
    header_line, |f, request, cursor, window, settings| http1::header_line(f, request, cursor, window, settings)
}
request_function! {
    /// Where the value of the header in hand lies.
    locate_value, |_f, _request, cursor, window, _settings| {
        http1::locate_value(cursor, window);
        0
    }
}
request_function! {
    /// What is to be done with it.
    field_value, |f, request, cursor, window, settings| http1::field_value(f, request, cursor, window, settings)
}
request_function! {
    /// The value of a header that frames the body.
    framing_value, |f, _request, cursor, window, _settings| http1::framing_value(f, cursor, window)
}
request_function! {
    /// The value of one of the request's own headers.
    own_value, |f, request, cursor, window, settings| http1::value(f, request, cursor, window, settings)
}
request_function! {
    /// The value of another vendor's trace context.
    foreign_value, |f, request, cursor, window, _settings| http1::foreign_value(f, request, cursor, window)
}
request_function! {
    /// The value of another vendor's trace context that holds all of it.
    delimited_value, |f, request, cursor, window, _settings| http1::delimited_value(f, request, cursor, window)
}

request_function! {
    /// The value of an `x-amzn-trace-id`.
    xray_value, |f, request, cursor, window, _settings| http1::xray_value(f, request, cursor, window)
}

/// The contents of a line of a request's head.
#[inline(always)]
pub fn request_line(state: *mut SockState, scratch: *mut Scratch, in_start_line: bool) -> u32 {
    if in_start_line {
        return match start_line(state, scratch) {
            code::TARGET => target(state, scratch),
            other => other,
        };
    }
    let mut next = header_line(state, scratch);
    if next == code::FIELD {
        locate_value(state, scratch);
        next = field_value(state, scratch);
    }
    match next {
        code::FRAMING_VALUE => framing_value(state, scratch),
        code::VALUE => own_value(state, scratch),
        code::FOREIGN_VALUE => foreign_value(state, scratch),
        code::DELIMITED_VALUE => delimited_value(state, scratch),
        code::XRAY_VALUE => {
            for _ in 0..XRAY_FIELDS {
                next = xray_value(state, scratch);
                if next != code::XRAY_VALUE {
                    break;
                }
            }
            next
        }
        other => other,
    }
}

global! {
    /// The contents of a line of a response's head.
    pub fn response_line(state: *mut SockState, scratch: *mut Scratch; method: u32) else { code::OPAQUE_FRAMING } {
        // SAFETY: as above.
        let (state, scratch) = unsafe { (&mut *state, &mut *scratch) };
        let f = framing(state, scratch.call.direction);
        http1::response_line(f, &mut scratch.cursor, &scratch.window, method as u8)
    }
}

global! {
    /// A chunk-size line.
    pub fn chunk_line(state: *mut SockState, scratch: *mut Scratch) else { code::OPAQUE_FRAMING } {
        // SAFETY: as above.
        let (state, scratch) = unsafe { (&mut *state, &mut *scratch) };
        let f = framing(state, scratch.call.direction);
        http1::chunk_line(f, &mut scratch.cursor, &scratch.window)
    }
}
