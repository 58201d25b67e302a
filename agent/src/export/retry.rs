//! What to do after an attempt, by the OTLP specification ("Failures", "OTLP/gRPC throttling", "OTLP/HTTP response"). Pure: no
//! clock, no I/O; chance comes in as a number.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What an attempt to deliver came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The backend took the spans, except for `rejected` of them.
    Accepted { rejected: u64, message: String },
    /// Trying again may help; the backend may have said when.
    Retry { reason: String, after: Option<Duration> },
    /// Trying again cannot help.
    Refused { reason: String },
}

/// Waiting between attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Before the second attempt, give or take the jitter.
    pub first: Duration,
    /// Each wait is the one before times this.
    pub factor: f64,
    /// No wait is longer, jitter aside.
    pub longest: Duration,
    /// A batch is given up when its next attempt would begin later than this after its first.
    pub give_up: Duration,
    /// A backend that asks for a longer pause is asked again after this one all the same.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5),
            factor: 1.5,
            longest: Duration::from_secs(30),
            give_up: Duration::from_mins(5),
            longest_pause: Duration::from_mins(1),
        }
    }
}

impl RetryPolicy {
    /// The wait before attempt `failed + 1`, after `failed` attempts (at least 1). `chance` in `[0, 1)` spreads it over half to
    /// one and a half times its nominal length, so that agents cut off together do not come back together.
    pub fn wait(&self, failed: u32, chance: f64) -> Duration {
        let doublings = i32::try_from(failed.saturating_sub(1)).unwrap_or(i32::MAX);
        let nominal = (self.first.as_secs_f64() * self.factor.powi(doublings)).min(self.longest.as_secs_f64());
        Duration::try_from_secs_f64(nominal * (0.5 + chance)).unwrap_or(self.longest)
    }

    /// The pause that a backend asked for, bounded.
    pub fn pause(&self, asked: Duration) -> Duration {
        asked.min(self.longest_pause)
    }
}

/// A gRPC status that is not OK.
pub(super) fn from_grpc_status(status: &Status) -> Outcome {
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let reason = format!("{:?}: {}", status.code(), printable(status.message()));
    // An error of our own side of the connection (refused, reset, not HTTP/2, too long an answer) comes as a status too; it
    // is told apart by the error it carries. Too long an answer has none.
    let connection_failed = std::error::Error::source(status).is_some();
    let again = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => after.is_some() || connection_failed,
        _ => connection_failed,
    };
    if again {
        Outcome::Retry { reason, after }
    } else {
        Outcome::Refused { reason }
    }
}

/// An HTTP answer that is not 2xx. `message` is the start of its body.
pub(super) fn from_http_status(status: StatusCode, after: Option<Duration>, message: &str) -> Outcome {
    let reason = format!("HTTP {}: {}", status.as_u16(), printable(message));
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Outcome::Retry { reason, after },
        _ => Outcome::Refused { reason },
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, 10.2.3). A date in the past is no wait; anything else is no header.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Longest text of a backend that gets into a log line.
const MESSAGE_CHARS: usize = 256;

/// What a backend says, fit for one log line: no control characters, not long.
pub(super) fn printable(text: &str) -> String {
    let mut line: String = text
        .chars()
        .take(MESSAGE_CHARS)
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect();
    if text.chars().nth(MESSAGE_CHARS).is_some() {
        line.push_str("...");
    }
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "test")]

    use tonic_types::ErrorDetails;

    use super::*;

    fn grpc(code: Code) -> Outcome {
        from_grpc_status(&Status::new(code, "busy"))
    }

    #[test]
    fn grpc_codes_by_the_specification() {
        use Code::*;
        for code in [Cancelled, DeadlineExceeded, Aborted, OutOfRange, Unavailable, DataLoss] {
            assert!(matches!(grpc(code), Outcome::Retry { after: None, .. }), "{code:?}");
        }
        let permanent = [
            Unknown,
            InvalidArgument,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Unimplemented,
            Internal,
            Unauthenticated,
        ];
        for code in permanent {
            assert!(matches!(grpc(code), Outcome::Refused { .. }), "{code:?}");
        }
    }

    #[test]
    fn resource_exhausted_is_tried_again_only_with_retry_info() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1_500)));
        let status = Status::with_error_details(Code::ResourceExhausted, "slow down", details);
        let Outcome::Retry { reason, after } = from_grpc_status(&status) else {
            panic!("not retried")
        };
        assert_eq!(after, Some(Duration::from_millis(1_500)));
        assert_eq!(reason, "ResourceExhausted: slow down");
    }

    #[test]
    fn broken_connections_are_tried_again_whatever_their_code() {
        let mut status = Status::new(Code::Unknown, "transport error");
        status.set_source(std::sync::Arc::new(std::io::Error::other("broken")));
        assert!(matches!(from_grpc_status(&status), Outcome::Retry { .. }));
    }

    #[test]
    fn http_statuses_by_the_specification() {
        for code in [429, 502, 503, 504] {
            let outcome = from_http_status(StatusCode::from_u16(code).unwrap(), Some(Duration::from_secs(1)), "");
            assert!(matches!(outcome, Outcome::Retry { after: Some(_), .. }), "{code}");
        }
        for code in [301, 307, 400, 401, 403, 404, 405, 408, 413, 415, 500, 501, 505] {
            let outcome = from_http_status(StatusCode::from_u16(code).unwrap(), None, "");
            assert!(matches!(outcome, Outcome::Refused { .. }), "{code}");
        }
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(parse_retry_after("120", now), Some(Duration::from_mins(2)));
        assert_eq!(parse_retry_after(" 0 ", now), Some(Duration::ZERO));
        assert_eq!(
            parse_retry_after("Sun, 06 Nov 1994 08:50:07 GMT", now),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now),
            Some(Duration::ZERO)
        );
        for wrong in ["", "-1", "soon", "1.5", "99999999999999999999999"] {
            assert_eq!(parse_retry_after(wrong, now), None, "{wrong}");
        }
    }

    #[test]
    fn waits_grow_to_their_longest_within_the_jitter() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.wait(1, 0.5), Duration::from_secs(5));
        assert_eq!(policy.wait(2, 0.5), Duration::from_millis(7_500));
        assert_eq!(policy.wait(3, 0.5), Duration::from_millis(11_250));
        assert_eq!(policy.wait(6, 0.5), Duration::from_secs(30));
        assert_eq!(policy.wait(u32::MAX, 0.5), Duration::from_secs(30));
        assert_eq!(policy.wait(1, 0.0), Duration::from_millis(2_500));
        assert!(policy.wait(u32::MAX, 0.999_999) < Duration::from_secs(45));
    }

    #[test]
    fn a_pause_asked_for_is_bounded() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.pause(Duration::from_secs(7)), Duration::from_secs(7));
        assert_eq!(policy.pause(Duration::from_secs(1_000_000_000)), Duration::from_mins(1));
    }

    #[test]
    fn a_backends_words_fit_one_line() {
        assert_eq!(printable("a\r\n\x1b[31mb\n"), "a   [31mb");
        let long = printable(&"\u{e4}".repeat(10_000));
        assert_eq!(long.chars().count(), MESSAGE_CHARS + 3);
    }
}
