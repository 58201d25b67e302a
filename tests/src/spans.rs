//! Spans as a user of the API or a backend gets them: OTLP/JSON, read without the agent's own types.

use std::collections::BTreeMap;

use anyhow::{bail, Context, Result};
use serde_json::Value;

/// Sources that claim an exact parent (contract.md, Spans).
pub const EXACT_SOURCES: [&str; 8] = [
    "header",
    "wire",
    "thread",
    "process",
    "goroutine",
    "task",
    "context",
    "io",
];
/// Reasons an unknown parent may give (contract.md, Spans).
pub const UNKNOWN_REASONS: [&str; 7] = [
    "runtime",
    "overlap",
    "handoff",
    "lost_event",
    "attached_late",
    "remote",
    "contradiction",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Server,
    Client,
    Other,
}

/// One span with its resource's attributes beside its own.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace_id: String,
    pub span_id: String,
    /// `None` when absent or empty.
    pub parent_span_id: Option<String>,
    pub name: String,
    pub kind: Kind,
    pub start_ns: u64,
    pub end_ns: u64,
    pub error: bool,
    /// W3C trace flags.
    pub flags: u8,
    pub attributes: BTreeMap<String, Value>,
    pub resource: BTreeMap<String, Value>,
}

impl Span {
    /// An attribute as text, whatever its type.
    pub fn attribute(&self, key: &str) -> Option<String> {
        self.attributes.get(key).map(plain)
    }

    pub fn number(&self, key: &str) -> Option<i64> {
        self.attribute(key)?.parse().ok()
    }

    pub fn path(&self) -> Option<String> {
        self.attribute("url.path")
    }

    pub fn status(&self) -> Option<i64> {
        self.number("http.response.status_code")
    }

    pub fn parent_source(&self) -> String {
        self.attribute("spanwire.parent.source").unwrap_or_default()
    }

    /// `service.name`, empty when absent.
    pub fn service(&self) -> String {
        self.resource.get("service.name").map(plain).unwrap_or_default()
    }

    /// What is missing or malformed of what every HTTP span carries (AC-003; contract.md, Spans).
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut want = |good: bool, what: &str| {
            if !good {
                faults.push(format!("{} {:?} {:?}: {what}", self.service(), self.kind, self.path()));
            }
        };
        let id = |text: &str, digits| {
            text.len() == digits
                && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                && text.bytes().any(|b| b != b'0')
        };
        want(id(&self.trace_id, 32), "no valid trace id");
        want(id(&self.span_id, 16), "no valid span id");
        want(
            self.parent_span_id.as_ref().is_none_or(|parent| id(parent, 16)),
            "parent span id is malformed",
        );
        want(!self.service().is_empty(), "no service.name");
        want(!self.name.is_empty(), "no operation name");
        want(
            self.start_ns > 0 && self.end_ns >= self.start_ns,
            "no start, or an end before the start",
        );
        want(self.kind != Kind::Other, "kind is neither server nor client");
        want(
            self.attributes.contains_key("http.request.method"),
            "no http.request.method",
        );
        let failed = self.attributes.contains_key("error.type");
        want(
            self.status().is_some() || failed,
            "neither http.response.status_code nor error.type",
        );
        let source = self.parent_source();
        let exact = EXACT_SOURCES.contains(&source.as_str());
        want(
            exact || source == "root" || source == "unknown",
            "spanwire.parent.source has no value of the contract",
        );
        want(
            exact == self.parent_span_id.is_some(),
            "a parent without an exact source, or the reverse",
        );
        let reason = self.attribute("spanwire.parent.reason");
        let known = reason
            .as_ref()
            .is_some_and(|reason| UNKNOWN_REASONS.contains(&reason.as_str()));
        want(
            (source == "unknown") == reason.is_some(),
            "a reason without an unknown parent, or the reverse",
        );
        want(
            reason.is_none() || known,
            "spanwire.parent.reason has no value of the contract",
        );
        faults
    }
}

/// An OTLP/JSON value as text: 64-bit integers are strings there, and may be numbers.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Reads `{"resourceSpans": [...]}`.
pub fn read_otlp_json(document: &Value) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    let resources = document.get("resourceSpans").and_then(Value::as_array);
    for resource_spans in resources.context("no resourceSpans in the document")? {
        let resource = read_attributes(resource_spans.pointer("/resource/attributes"))?;
        for scope in list(resource_spans.get("scopeSpans")) {
            for span in list(scope.get("spans")) {
                spans.push(read_span(span, &resource).with_context(|| format!("in span {span}"))?);
            }
        }
    }
    Ok(spans)
}

fn read_span(span: &Value, resource: &BTreeMap<String, Value>) -> Result<Span> {
    let text = |key: &str| span.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let nanos = |key: &str| -> Result<u64> {
        let value = span.get(key).map(plain).with_context(|| format!("no {key}"))?;
        value.parse().with_context(|| format!("{key} is {value:?}"))
    };
    let kind = match span.get("kind").map(plain).unwrap_or_default().as_str() {
        "2" | "SPAN_KIND_SERVER" => Kind::Server,
        "3" | "SPAN_KIND_CLIENT" => Kind::Client,
        _ => Kind::Other,
    };
    let status = span.pointer("/status/code").map(plain).unwrap_or_default();
    Ok(Span {
        trace_id: text("traceId"),
        span_id: text("spanId"),
        parent_span_id: Some(text("parentSpanId")).filter(|parent| !parent.is_empty()),
        name: text("name"),
        kind,
        start_ns: nanos("startTimeUnixNano")?,
        end_ns: nanos("endTimeUnixNano")?,
        error: status == "2" || status == "STATUS_CODE_ERROR",
        flags: span.get("flags").and_then(Value::as_u64).unwrap_or_default() as u8,
        attributes: read_attributes(span.get("attributes"))?,
        resource: resource.clone(),
    })
}

fn read_attributes(attributes: Option<&Value>) -> Result<BTreeMap<String, Value>> {
    let mut read = BTreeMap::new();
    for attribute in list(attributes) {
        let key = attribute
            .get("key")
            .and_then(Value::as_str)
            .context("an attribute without a key")?;
        let value = attribute
            .get("value")
            .and_then(Value::as_object)
            .context("an attribute without a value")?;
        let Some((kind, value)) = value.iter().next() else {
            bail!("{key}: an empty value")
        };
        let value = match kind.as_str() {
            "arrayValue" => Value::Array(
                list(value.get("values"))
                    .iter()
                    .map(|item| {
                        item.as_object()
                            .and_then(|item| item.values().next())
                            .cloned()
                            .unwrap_or_default()
                    })
                    .collect(),
            ),
            _ => value.clone(),
        };
        if read.insert(key.to_owned(), value).is_some() {
            bail!("attribute {key} is there twice");
        }
    }
    Ok(read)
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
