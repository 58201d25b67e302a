//! Reading: a trace by any of its ids, and lists of traces. Every question opens the file anew, so a reader works in any
//! process and survives the file's replacement.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::common::v1::{any_value, AnyValue, InstrumentationScope};
use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as ProtoSpan};
use prost::Message;
use rusqlite::{params, Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};

use super::encode::{self, STATUS_ERROR};
use super::filter::TraceFilter;
use super::{schema, StoreError};
use crate::span::TraceId;

/// Aliases of aliases that are followed.
const CHAIN_MAX: usize = 16;
/// A list that is not complete by then is answered as it is, and says so.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Parts looked at between two looks at the clock.
const CLOCK_EVERY: usize = 1_024;

/// Answers questions about a store's file.
#[derive(Clone, Debug)]
pub struct StoreReader {
    path: PathBuf,
}

/// One line of a list of traces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceSummary {
    /// 32 hex digits.
    pub trace_id: String,
    /// Service of the root span; of the earliest one when the root was not seen.
    pub root_service: String,
    /// Name of that span.
    pub root_name: String,
    /// Start of the earliest span.
    #[serde(with = "decimal")]
    pub start_time_unix_nano: u64,
    /// From there to the end of the last span.
    #[serde(with = "decimal")]
    pub duration_nano: u64,
    /// Spans stored.
    pub span_count: u64,
    /// Spans of status error.
    pub error_count: u64,
    /// Names of all services, sorted.
    pub services: Vec<String>,
}

/// A list of traces, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceList {
    /// The lines.
    pub traces: Vec<TraceSummary>,
    /// True when the search was ended by its time limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// A whole trace: OTLP/JSON when serialised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredTrace {
    /// Grouped by resource, spans by start.
    pub resource_spans: Vec<ResourceSpans>,
}

/// 64-bit integers travel as decimal strings in JSON, as in OTLP.
pub(super) mod decimal {
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
    pub(in crate::store) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(in crate::store) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// An attribute's value as text: strings bare, lists in brackets.
pub fn attribute_text(value: &AnyValue) -> String {
    match &value.value {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(flag)) => flag.to_string(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        Some(any_value::Value::ArrayValue(list)) => {
            let items: Vec<_> = list.values.iter().map(attribute_text).collect();
            format!("[{}]", items.join(", "))
        }
        _ => String::new(),
    }
}

/// True when the value reads as `text`; of a list, one item is enough.
pub(super) fn matches_text(value: &AnyValue, text: &str) -> bool {
    match &value.value {
        Some(any_value::Value::StringValue(own)) => own == text,
        Some(any_value::Value::ArrayValue(list)) => list.values.iter().any(|item| matches_text(item, text)),
        _ => attribute_text(value) == text,
    }
}

impl StoreReader {
    /// Reads the store in `dir`, whether or not an agent is writing to it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let reader = Self::at(dir.join(schema::FILE_NAME));
        reader.connect()?;
        Ok(reader)
    }

    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn connect(&self) -> Result<Connection, StoreError> {
        schema::open_reader(&self.path)
    }

    pub(super) fn failed(&self) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |source| StoreError::Sqlite {
            path: path.clone(),
            source,
        }
    }

    /// The whole trace, by its id or by any id that once stood for it.
    pub fn trace(&self, id: TraceId) -> Result<Option<StoredTrace>, StoreError> {
        let connection = self.connect()?;
        Snapshot::new(&connection)
            .and_then(|mut snapshot| snapshot.trace(id))
            .map_err(self.failed())
    }

    /// Traces that `filter` asks for, newest first by their start.
    pub fn traces(&self, filter: &TraceFilter) -> Result<TraceList, StoreError> {
        let connection = self.connect()?;
        Snapshot::new(&connection)
            .and_then(|mut snapshot| snapshot.list(filter))
            .map_err(self.failed())
    }
}

/// One consistent view of the file, and what was read of it.
struct Snapshot<'a> {
    connection: &'a Connection,
    resources: HashMap<i64, Arc<StoredResource>>,
}

struct StoredResource {
    service: String,
    resource: ProtoResource,
}

/// A trace's spans with their resources.
struct Gathered {
    spans: Vec<(i64, ProtoSpan)>,
    start_ns: u64,
    end_ns: u64,
}

/// A part's row without its body.
struct Part {
    bucket: i64,
    trace_id: TraceId,
    start: i64,
    end: i64,
    newest: i64,
    errors: i64,
}

impl<'a> Snapshot<'a> {
    fn new(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.execute_batch("BEGIN")?;
        Ok(Self {
            connection,
            resources: HashMap::new(),
        })
    }

    fn trace(&mut self, id: TraceId) -> rusqlite::Result<Option<StoredTrace>> {
        let chain = self.chain(id)?;
        let mut spans = Vec::new();
        for id in &chain {
            spans.extend(self.gather(*id)?.spans);
        }
        if spans.is_empty() {
            return Ok(None);
        }
        let canonical = chain.last().copied().unwrap_or(id);
        spans.sort_by_key(|(_, span)| (span.start_time_unix_nano, std::cmp::Reverse(span.end_time_unix_nano)));
        let mut groups: Vec<(i64, Vec<ProtoSpan>)> = Vec::new();
        for (resource, mut span) in spans {
            span.trace_id = canonical.0.to_vec();
            match groups.iter_mut().find(|(known, _)| *known == resource) {
                Some((_, group)) => group.push(span),
                None => groups.push((resource, vec![span])),
            }
        }
        let mut resource_spans = Vec::with_capacity(groups.len());
        for (resource, spans) in groups {
            resource_spans.push(ResourceSpans {
                resource: Some(self.resource(resource)?.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope()),
                    spans,
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            });
        }
        Ok(Some(StoredTrace { resource_spans }))
    }

    /// The id, what it stands for, what that stands for, and so on: the last is the canonical one.
    fn chain(&self, id: TraceId) -> rusqlite::Result<Vec<TraceId>> {
        let mut chain = vec![id];
        let mut next = self.connection.prepare_cached(
            "SELECT canonical FROM bucket CROSS JOIN alias ON alias.bucket = bucket.id
             WHERE alias.alias = ?1 ORDER BY bucket.id DESC LIMIT 1",
        )?;
        while chain.len() < CHAIN_MAX {
            let Some(&last) = chain.last() else { break };
            let found: Option<[u8; 16]> = next.query_row([&last.0[..]], |row| row.get(0)).optional()?;
            match found.map(TraceId) {
                Some(canonical) if !chain.contains(&canonical) => chain.push(canonical),
                _ => break,
            }
        }
        Ok(chain)
    }

    /// Everything stored under exactly this id.
    fn gather(&self, id: TraceId) -> rusqlite::Result<Gathered> {
        let mut parts = self.connection.prepare_cached(
            "SELECT start, end, body FROM bucket CROSS JOIN part INDEXED BY part_trace ON part.bucket = bucket.id
             WHERE part.trace_id = ?1 ORDER BY bucket.id",
        )?;
        let mut rows = parts.query([&id.0[..]])?;
        let mut gathered = Gathered {
            spans: Vec::new(),
            start_ns: u64::MAX,
            end_ns: 0,
        };
        while let Some(row) = rows.next()? {
            gathered.start_ns = gathered.start_ns.min(row.get::<_, i64>(0)? as u64);
            gathered.end_ns = gathered.end_ns.max(row.get::<_, i64>(1)? as u64);
            gathered.spans.extend(encode::spans(row.get_ref(2)?.as_blob()?));
        }
        Ok(gathered)
    }

    fn resource(&mut self, id: i64) -> rusqlite::Result<Arc<StoredResource>> {
        if let Some(known) = self.resources.get(&id) {
            return Ok(Arc::clone(known));
        }
        let stored = self
            .connection
            .prepare_cached("SELECT service, body FROM resource WHERE id = ?1")?
            .query_row([id], |row| {
                let resource = ProtoResource::decode(row.get_ref(1)?.as_blob()?).unwrap_or_default();
                Ok(StoredResource {
                    service: row.get(0)?,
                    resource,
                })
            })
            .optional()?
            .unwrap_or_else(|| StoredResource {
                service: String::new(),
                resource: ProtoResource::default(),
            });
        let stored = Arc::new(stored);
        self.resources.insert(id, Arc::clone(&stored));
        Ok(stored)
    }

    fn list(&mut self, filter: &TraceFilter) -> rusqlite::Result<TraceList> {
        let deadline = Instant::now() + LIST_LIMIT;
        let Some(from) = self.last_part_before(filter.until_unix_ns)? else {
            return Ok(TraceList::default());
        };
        let connection = self.connection;
        let mut parts = connection.prepare_cached(
            "SELECT bucket, trace_id, start, end, newest, errors, body FROM part WHERE id <= ?1 ORDER BY id DESC",
        )?;
        let mut rows = parts.query([from])?;
        let mut found = Newest {
            limit: filter.limit,
            traces: Vec::new(),
        };
        let mut seen = HashSet::new();
        let mut partial = false;
        for count in 1usize.. {
            let Some(row) = rows.next()? else { break };
            let part = Part::read(row)?;
            if found.is_settled_at(part.newest) || filter.since_unix_ns.is_some_and(|since| part.newest < since as i64)
            {
                break;
            }
            if count % CLOCK_EVERY == 0 && Instant::now() > deadline {
                partial = true;
                break;
            }
            let is_candidate = !found.is_settled_at(part.start)
                && (!filter.is_error || part.errors > 0)
                && !seen.contains(&part.trace_id)
                && self.has_span(filter, row.get_ref(6)?.as_blob()?)?;
            if is_candidate && seen.insert(part.trace_id) && self.may_fit(filter, &part)? {
                let gathered = self.gather(part.trace_id)?;
                if filter.fits_trace(gathered.start_ns, gathered.end_ns) {
                    found.insert(self.summary(part.trace_id, &gathered)?);
                }
            }
        }
        Ok(TraceList {
            traces: found.traces,
            partial,
        })
    }

    /// Where a scan backwards begins: later buckets hold only what started after `until`.
    fn last_part_before(&self, until_ns: Option<u64>) -> rusqlite::Result<Option<i64>> {
        let until = until_ns.map_or(i64::MAX, |until| i64::try_from(until).unwrap_or(i64::MAX));
        self.connection.query_row(
            "SELECT max(last_part) FROM bucket WHERE min_start <= ?1",
            [until],
            |row| row.get(0),
        )
    }

    /// True when a span in this body is one that is looked for.
    fn has_span(&mut self, filter: &TraceFilter, body: &[u8]) -> rusqlite::Result<bool> {
        if !filter.looks_at_spans() {
            return Ok(true);
        }
        let mut spans = encode::spans(body);
        while let Some((id, message)) = spans.next_raw() {
            let resource = self.resource(id)?;
            if filter
                .service
                .as_ref()
                .is_some_and(|service| *service != resource.service)
            {
                continue;
            }
            if encode::decode(message).is_some_and(|span| filter.fits_span(&span, &resource.resource.attributes)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A cheaper look at the trace's length before all of it is read: parts of a trace are moments apart, so they lie in
    /// this bucket or a neighbour.
    fn may_fit(&self, filter: &TraceFilter, part: &Part) -> rusqlite::Result<bool> {
        if filter.min_duration_ns.is_none() && filter.max_duration_ns.is_none() {
            return Ok(true);
        }
        let mut extent = self.connection.prepare_cached(
            "SELECT min(start), max(end) FROM part WHERE bucket IN (?1 - 1, ?1, ?1 + 1) AND trace_id = ?2",
        )?;
        let (start, end): (i64, i64) = extent.query_row(params![part.bucket, &part.trace_id.0[..]], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        let (start, end) = (start.min(part.start), end.max(part.end));
        Ok(filter.fits_trace(start as u64, end as u64))
    }

    fn summary(&mut self, trace_id: TraceId, gathered: &Gathered) -> rusqlite::Result<TraceSummary> {
        let mut services = BTreeSet::new();
        for (resource, _) in &gathered.spans {
            services.insert(self.resource(*resource)?.service.clone());
        }
        let (root_service, root_name) = match root(&gathered.spans) {
            Some((resource, span)) => (self.resource(*resource)?.service.clone(), span.name.clone()),
            None => (String::new(), String::new()),
        };
        let is_error = |span: &ProtoSpan| span.status.as_ref().is_some_and(|status| status.code == STATUS_ERROR);
        Ok(TraceSummary {
            trace_id: trace_id.hex(),
            root_service,
            root_name,
            start_time_unix_nano: gathered.start_ns,
            duration_nano: gathered.end_ns.saturating_sub(gathered.start_ns),
            span_count: gathered.spans.len() as u64,
            error_count: gathered.spans.iter().filter(|(_, span)| is_error(span)).count() as u64,
            services: services.into_iter().collect(),
        })
    }
}

impl Part {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            bucket: row.get(0)?,
            trace_id: TraceId(row.get(1)?),
            start: row.get(2)?,
            end: row.get(3)?,
            newest: row.get(4)?,
            errors: row.get(5)?,
        })
    }
}

/// The newest traces so far, sorted.
struct Newest {
    limit: usize,
    traces: Vec<TraceSummary>,
}

impl Newest {
    fn insert(&mut self, trace: TraceSummary) {
        let place = self
            .traces
            .partition_point(|other| other.start_time_unix_nano >= trace.start_time_unix_nano);
        self.traces.insert(place, trace);
        self.traces.truncate(self.limit);
    }

    /// True when nothing that starts at `start` or before can enter.
    fn is_settled_at(&self, start: i64) -> bool {
        self.traces.len() >= self.limit
            && self
                .traces
                .last()
                .is_some_and(|last| last.start_time_unix_nano as i64 >= start)
    }
}

/// The span at the top: without a parent, else with a parent that is not among them, else any; the earliest of those.
fn root(spans: &[(i64, ProtoSpan)]) -> Option<&(i64, ProtoSpan)> {
    let ids: HashSet<&[u8]> = spans.iter().map(|(_, span)| &span.span_id[..]).collect();
    spans.iter().min_by_key(|(_, span)| {
        let rank = match &span.parent_span_id[..] {
            [] => 0,
            parent if !ids.contains(parent) => 1,
            _ => 2,
        };
        (rank, span.start_time_unix_nano)
    })
}

/// The scope of every span (contract.md).
fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "spanwire".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}
