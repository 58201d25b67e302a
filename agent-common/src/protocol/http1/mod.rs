//! HTTP/1.0 and 1.1, one direction of a connection at a time, in any number of pieces.
//!
//! The kernel side and the host drive the same functions over a [`Window`](super::window::Window):
//!
//! ```text
//! c = Cursor::begin(f, bytes of the call, bytes copied behind the carry)
//! repeat
//!     if may_skim(f, c) { skim_request or skim_response }                   lines nobody asks for
//!     ctl  = if needs_scan(f, c) { scan(f, c, window) } else { c.end }      loops over bytes: a BPF function of its own
//!     step = advance(f, c, ctl)                                             no loops, no bytes
//!     step = match step {
//!         LINE       => request_line_or_header(f, request, c, window, settings), or
//!                       response_line(f, c, window, method of the request)  one line: a BPF function of its own
//!         CHUNK_LINE => chunk_line(f, c, window)
//!         other      => other
//!     }
//!     act on step; stop at END and OPAQUE_*
//! ```
//!
//! What comes out depends on the bytes alone, not on how they were cut into calls and fills. Strict where two readers
//! could disagree about where a message ends; such a head gives the stream up ([`step::OPAQUE_FRAMING`]):
//! Content-Length beside Transfer-Encoding, Content-Lengths that differ or are not digits, codings that do not end in
//! one `chunked`, folded lines, blanks in front of a colon, bare CR or LF, NUL and other control bytes, heads over 16 KiB.
//! Names of header fields nobody asked for are not checked further, and the query of a request line longer than
//! [`framing::LINE_BYTES`] is passed over unread.

pub mod fields;
pub mod framing;
mod header;
pub mod request;
pub mod response;
pub mod skim;
#[cfg(any(test, feature = "host"))]
pub mod stream;

pub use fields::{
    delimited_value, field_value, foreign_value, framing_value, header_line, locate_value, value, xray_value,
};
pub use framing::{advance, chunk_line, cut, flag, needs_scan, phase, scan, step, Cursor, Framing};
pub use request::{request_line_or_header, Method, Request};
pub use response::response_line;
pub use skim::{may_skim, skim_request, skim_response};

/// A window that begins with `bytes`.
#[cfg(test)]
pub(crate) fn test_window(bytes: &[u8]) -> super::window::Window {
    let mut window = super::window::Window::default();
    stream::copy_in(&mut window, 0, bytes);
    window
}
