//! Was it an error, and which? `error.type` and the span's status.
//!
//! The conventions name the status code as `error.type` where one says "error" (5xx on the server, 4xx and 5xx on the
//! client) and leave other values to the instrumentation, low in cardinality; `timeout` is their example. Ours are
//! in [`error_type`].

use spanwire_common::abi::{outcome, protocol_id, side, ExchangeRecord};

/// Digits of 100..=999.
const CODES: [[u8; 3]; 900] = {
    let mut codes = [[0; 3]; 900];
    let mut n = 0;
    while n < 900 {
        let code = n + 100;
        codes[n] = [
            b'0' + (code / 100) as u8,
            b'0' + (code / 10 % 10) as u8,
            b'0' + (code % 10) as u8,
        ];
        n += 1;
    }
    codes
};
static CODE_TEXT: [[u8; 3]; 900] = CODES;

/// `error.type`, present exactly when the span's status is an error.
pub(super) fn error_type(record: &ExchangeRecord) -> Option<&'static str> {
    let opaque = matches!(record.protocol, protocol_id::OPAQUE | protocol_id::TLS);
    let limit = if record.side == side::SERVER { 500 } else { 400 };
    if !opaque && record.status >= limit {
        return Some(code_text(record.status));
    }
    match record.outcome {
        // Where nothing is understood, a connection that was closed in order was just closed.
        outcome::CLOSED if opaque => None,
        outcome::CLOSED => Some("connection_closed"),
        outcome::RESET => Some("connection_reset"),
        outcome::TIMEOUT => Some("timeout"),
        outcome::CONNECT_REFUSED => Some("connection_refused"),
        outcome::CONNECT_TIMEOUT => Some("connect_timeout"),
        outcome::CONNECT_RESET => Some(match i32::from(record.errno) {
            libc::EHOSTUNREACH => "host_unreachable",
            libc::ENETUNREACH => "network_unreachable",
            _ => "connection_reset",
        }),
        outcome::EXIT => Some("process_exit"),
        // Complete, upgraded; and out of step, where the agent lost the thread and the application did nothing wrong.
        _ => None,
    }
}

/// `spanwire.outcome`: how the exchange ended, if not with a whole response.
pub(super) fn outcome_text(record: &ExchangeRecord) -> Option<&'static str> {
    Some(match record.outcome {
        outcome::CLOSED => "closed",
        outcome::RESET => "reset",
        outcome::TIMEOUT => "timeout",
        outcome::CONNECT_REFUSED => "connect_refused",
        outcome::CONNECT_TIMEOUT => "connect_timeout",
        outcome::CONNECT_RESET => "connect_reset",
        outcome::UPGRADED => "upgraded",
        outcome::OUT_OF_STEP => "out_of_step",
        outcome::EXIT => "exit",
        _ => return None,
    })
}

fn code_text(status: u16) -> &'static str {
    let digits = usize::from(status)
        .checked_sub(100)
        .and_then(|place| CODE_TEXT.get(place));
    digits
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        assert_eq!(
            (code_text(100), code_text(404), code_text(503), code_text(999)),
            ("100", "404", "503", "999")
        );
        assert_eq!(
            (code_text(0), code_text(99), code_text(1000), code_text(u16::MAX)),
            ("_OTHER", "_OTHER", "_OTHER", "_OTHER")
        );
    }
}
