//! Spans for the tests of the store, the API and the command line.

use std::sync::Arc;

use crate::span::{ParentSource, Resource, Span, SpanId, SpanKind, SpanStatus, TraceId, Value};

/// A fixed instant for tests: 2026-01-01T00:00:00Z.
pub(crate) const BASE_NS: u64 = 1_767_225_600_000_000_000;

/// Builds one span; every field has a plausible default.
pub(crate) struct SpanBuilder(Span);

/// The trace id whose last bytes are `number`.
pub(crate) fn trace_id(number: u64) -> TraceId {
    let mut bytes = [0xabu8; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    TraceId(bytes)
}

/// The span id of `number`.
pub(crate) fn span_id(number: u64) -> SpanId {
    SpanId(number.to_be_bytes())
}

/// A resource that has only a name.
pub(crate) fn service(name: &str) -> Arc<Resource> {
    Arc::new(Resource {
        service_name: name.into(),
        attributes: vec![
            ("service.name".into(), Value::Str(name.into())),
            ("host.name".into(), Value::Static("node-1")),
        ],
    })
}

impl SpanBuilder {
    /// A root server span of service `shop` that takes 10 ms.
    pub(crate) fn server(trace: u64, span: u64) -> Self {
        Self(Span {
            trace_id: trace_id(trace),
            span_id: span_id(span),
            parent_span_id: None,
            parent_source: ParentSource::Root,
            trace_flags: 3,
            trace_state: None,
            kind: SpanKind::Server,
            name: "GET /cart/{id}".into(),
            start_unix_ns: BASE_NS,
            end_unix_ns: BASE_NS + 10_000_000,
            status: SpanStatus::Unset,
            attributes: vec![
                ("http.request.method".into(), Value::Static("GET")),
                ("http.response.status_code".into(), Value::Int(200)),
                ("server.address".into(), Value::Static("10.0.0.7")),
                ("server.port".into(), Value::Int(8080)),
            ],
            resource: service("shop"),
            tenant: None,
        })
    }

    /// A client span, otherwise as [`Self::server`].
    pub(crate) fn client(trace: u64, span: u64) -> Self {
        let mut builder = Self::server(trace, span);
        builder.0.kind = SpanKind::Client;
        builder
    }

    pub(crate) fn parent(mut self, span: u64) -> Self {
        self.0.parent_span_id = Some(span_id(span));
        self.0.parent_source = ParentSource::Wire;
        self
    }

    pub(crate) fn error(mut self) -> Self {
        self.0.status = SpanStatus::Error;
        self
    }

    pub(crate) fn name(mut self, name: &str) -> Self {
        self.0.name = name.into();
        self
    }

    pub(crate) fn resource(mut self, resource: &Arc<Resource>) -> Self {
        self.0.resource = Arc::clone(resource);
        self
    }

    /// Start and length, in milliseconds after [`BASE_NS`].
    pub(crate) fn at_ms(mut self, start_ms: u64, length_ms: u64) -> Self {
        self.0.start_unix_ns = BASE_NS + start_ms * 1_000_000;
        self.0.end_unix_ns = self.0.start_unix_ns + length_ms * 1_000_000;
        self
    }

    pub(crate) fn attribute(mut self, key: &'static str, value: Value) -> Self {
        self.0.attributes.push((key.into(), value));
        self
    }

    pub(crate) fn unknown(mut self, reason: &'static str) -> Self {
        self.0.parent_source = ParentSource::Unknown;
        self.attribute("spanwire.parent.reason", Value::Static(reason))
    }

    pub(crate) fn tenant(mut self, tenant: &str) -> Self {
        self.0.tenant = Some(tenant.into());
        self
    }

    /// The span, with the attribute that `enrich` makes of the parent's source.
    pub(crate) fn build(self) -> Span {
        let source = self.0.parent_source.as_str();
        self.attribute("spanwire.parent.source", Value::Static(source)).0
    }
}
