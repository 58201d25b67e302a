//! What to look for: one filter for the API's query strings and the command line's flags.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;
use time::format_description::well_known::Rfc3339;
use time::OffsetDateTime;

use super::encode::STATUS_ERROR;
use super::query::matches_text;

/// Traces of one answer unless asked otherwise.
const LIMIT: usize = 20;
/// Traces of one answer at most.
const LIMIT_MAX: usize = 1_000;

/// A question about traces. A trace is an answer when one of its spans meets all of service, operation, status,
/// tenant and attributes, and the whole trace meets durations and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceFilter {
    /// `service.name`.
    pub service: Option<String>,
    /// The span's name.
    pub operation: Option<String>,
    /// Only spans of status error.
    pub is_error: bool,
    /// `spanwire.tenant`.
    pub tenant: Option<String>,
    /// Attributes of the span or its resource, as text.
    pub attributes: Vec<(String, String)>,
    /// The trace takes at least this long.
    pub min_duration_ns: Option<u64>,
    /// The trace takes at most this long.
    pub max_duration_ns: Option<u64>,
    /// The trace starts at or after.
    pub since_unix_ns: Option<u64>,
    /// The trace starts at or before.
    pub until_unix_ns: Option<u64>,
    /// How many, newest first.
    pub limit: usize,
}

impl Default for TraceFilter {
    fn default() -> Self {
        Self {
            service: None,
            operation: None,
            is_error: false,
            tenant: None,
            attributes: Vec::new(),
            min_duration_ns: None,
            max_duration_ns: None,
            since_unix_ns: None,
            until_unix_ns: None,
            limit: LIMIT,
        }
    }
}

/// A parameter that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{parameter}: {problem}")]
pub struct FilterError {
    /// Its name, as the API spells it.
    pub parameter: String,
    /// What was expected.
    pub problem: String,
}

impl FilterError {
    /// Names the parameter and what was expected.
    pub fn new(parameter: &str, problem: impl Into<String>) -> Self {
        Self {
            parameter: parameter.to_owned(),
            problem: problem.into(),
        }
    }
}

impl TraceFilter {
    /// Reads parameters by the API's names. An empty value counts as absent; an unknown name is refused.
    pub fn from_pairs<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
        now_unix_ns: u64,
    ) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            let named = |problem: String| FilterError::new(name, problem);
            match name {
                "service" => filter.service = Some(value.to_owned()),
                "operation" => filter.operation = Some(value.to_owned()),
                "tenant" => filter.tenant = Some(value.to_owned()),
                "status" => filter.is_error = parse_status(value).map_err(named)?,
                "attribute" => filter.attributes.push(parse_attribute(value).map_err(named)?),
                "minDuration" => {
                    filter.min_duration_ns = Some(parse_duration(value).map_err(named)?);
                }
                "maxDuration" => {
                    filter.max_duration_ns = Some(parse_duration(value).map_err(named)?);
                }
                "since" => {
                    filter.since_unix_ns = Some(parse_instant(value, now_unix_ns).map_err(named)?);
                }
                "until" => {
                    filter.until_unix_ns = Some(parse_instant(value, now_unix_ns).map_err(named)?);
                }
                "limit" => filter.limit = parse_limit(value).map_err(named)?,
                _ => return Err(named("no such parameter".to_owned())),
            }
        }
        Ok(filter)
    }

    /// True when single spans are looked at.
    pub(super) fn looks_at_spans(&self) -> bool {
        self.service.is_some()
            || self.operation.is_some()
            || self.is_error
            || self.tenant.is_some()
            || !self.attributes.is_empty()
    }

    /// True when the trace's own start and length fit.
    pub(super) fn fits_trace(&self, start_ns: u64, end_ns: u64) -> bool {
        let length_ns = end_ns.saturating_sub(start_ns);
        self.min_duration_ns.is_none_or(|least| length_ns >= least)
            && self.max_duration_ns.is_none_or(|most| length_ns <= most)
            && self.since_unix_ns.is_none_or(|since| start_ns >= since)
            && self.until_unix_ns.is_none_or(|until| start_ns <= until)
    }

    /// True when this span, of this resource, is one that is looked for.
    pub(super) fn fits_span(&self, span: &ProtoSpan, resource: &[KeyValue]) -> bool {
        let is_error = span.status.as_ref().is_some_and(|status| status.code == STATUS_ERROR);
        let has = |key: &str, text: &str| {
            let mut both = span.attributes.iter().chain(resource);
            both.any(|pair| pair.key == key && pair.value.as_ref().is_some_and(|value| matches_text(value, text)))
        };
        (!self.is_error || is_error)
            && self.operation.as_ref().is_none_or(|name| *name == span.name)
            && self.tenant.as_ref().is_none_or(|tenant| has("spanwire.tenant", tenant))
            && self.attributes.iter().all(|(key, text)| has(key, text))
    }
}

fn parse_status(value: &str) -> Result<bool, String> {
    match value {
        "error" => Ok(true),
        _ => Err(format!("expected error, got {value:?}")),
    }
}

fn parse_attribute(value: &str) -> Result<(String, String), String> {
    match value.split_once('=') {
        Some((key, text)) if !key.is_empty() => Ok((key.to_owned(), text.to_owned())),
        _ => Err(format!("expected key=value, got {value:?}")),
    }
}

fn parse_limit(value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(limit @ 1..=LIMIT_MAX) => Ok(limit),
        _ => Err(format!("expected a number from 1 to {LIMIT_MAX}, got {value:?}")),
    }
}

/// `5ms`, `1.5s`, `15m`: nanoseconds.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let expected = || format!("expected a duration such as 5ms, 1.5s or 15m, got {text:?}");
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(expected)?;
    let (number, unit) = text.split_at(unit_at);
    let unit_ns = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3_600e9,
        "d" => 86_400e9,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    let length_ns = (number * unit_ns).round();
    // Centuries are more than anybody means, and would not fit.
    if length_ns > 1e19 {
        return Err(expected());
    }
    Ok(length_ns as u64)
}

/// A point in time, in Unix nanoseconds: a duration before now, RFC 3339, or Unix time in seconds, milli-, micro- or
/// nanoseconds (told apart by size).
pub fn parse_instant(text: &str, now_unix_ns: u64) -> Result<u64, String> {
    if let Ok(before_ns) = parse_duration(text) {
        return Ok(now_unix_ns.saturating_sub(before_ns));
    }
    if let Ok(number) = text.parse::<u64>() {
        let scale = match number {
            0..100_000_000_000 => 1_000_000_000,
            100_000_000_000..100_000_000_000_000 => 1_000_000,
            100_000_000_000_000..100_000_000_000_000_000 => 1_000,
            _ => 1,
        };
        return Ok(number.saturating_mul(scale));
    }
    // A plus sign in a query string arrives as a space.
    let instant = OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339);
    instant
        .ok()
        .and_then(|instant| u64::try_from(instant.unix_timestamp_nanos()).ok())
        .ok_or_else(|| format!("expected a time such as 15m (ago), 2026-01-31T12:00:00Z or Unix seconds, got {text:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    const NOW: u64 = 1_767_225_600_000_000_000;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(parse_duration("5ms"), Ok(5_000_000));
        assert_eq!(parse_duration("1.5s"), Ok(1_500_000_000));
        assert_eq!(parse_duration("15m"), Ok(900_000_000_000));
        assert_eq!(parse_duration("2d"), Ok(172_800_000_000_000));
        assert_eq!(parse_duration("7µs"), Ok(7_000));
        for bad in [
            "",
            "5",
            "ms",
            "5 ms",
            "-5ms",
            "5weeks",
            "1.2.3s",
            "9999999999999d",
            ".s",
            "é",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn instants_are_relative_or_absolute() {
        assert_eq!(parse_instant("15m", NOW), Ok(NOW - 900_000_000_000));
        assert_eq!(parse_instant("2026-01-01T00:00:00Z", 0), Ok(NOW));
        assert_eq!(parse_instant("2026-01-01T02:00:00+02:00", 0), Ok(NOW));
        assert_eq!(parse_instant("2026-01-01T02:00:00 02:00", 0), Ok(NOW));
        for unix in ["1767225600", "1767225600000", "1767225600000000", "1767225600000000000"] {
            assert_eq!(parse_instant(unix, 0), Ok(NOW), "{unix}");
        }
        assert_eq!(parse_instant("300d", 1), Ok(0), "never before the epoch");
        for bad in ["yesterday", "2026-13-01T00:00:00Z", "1960-01-01T00:00:00Z", ""] {
            assert!(parse_instant(bad, NOW).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parameters_are_read_or_refused_by_name() {
        let filter = TraceFilter::from_pairs(
            [
                ("service", "cart"),
                ("operation", ""),
                ("status", "error"),
                ("attribute", "a=b=c"),
                ("limit", "5"),
            ],
            NOW,
        )
        .unwrap();
        assert_eq!(filter.service.as_deref(), Some("cart"));
        assert_eq!(filter.operation, None);
        assert!(filter.is_error);
        assert_eq!(filter.attributes, [("a".to_owned(), "b=c".to_owned())]);
        assert_eq!(filter.limit, 5);
        for (name, value) in [
            ("status", "ok"),
            ("limit", "0"),
            ("limit", "1001"),
            ("limit", "many"),
            ("attribute", "=x"),
            ("attribute", "x"),
            ("minDuration", "5"),
            ("since", "soon"),
            ("sort", "up"),
        ] {
            let error = TraceFilter::from_pairs([(name, value)], NOW).unwrap_err();
            assert_eq!(error.parameter, name);
        }
    }
}
