//! Exported spans against ground truth.
//!
//! A [`Topology`] names the exchanges one request causes, one [`Hop`] each, and which exchange causes which. A span's
//! path says which request and which hop it belongs to ([`crate::load`]), so each parent edge is right, wrong or
//! unknown. A root that is claimed where a captured request was the cause is wrong: a known root and an unknown
//! parent are two things.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::spans::{Kind, Span};

/// How well the client side of a hop must be placed under its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Every parent right.
    Exact,
    /// Right or unknown, never wrong.
    NeverWrong,
    /// As `NeverWrong`; a root is honest as well, since the caller serves a protocol that is not understood.
    Opaque,
}

/// One exchange that each request causes.
#[derive(Clone, Debug)]
pub struct Hop {
    /// `r` for `/r/<id>`, else the last segment of `/o/<id>/<hop>`.
    pub name: &'static str,
    /// The caller is captured, and its parent must keep this promise; `None`: the caller is not captured.
    pub client: Option<Promise>,
    /// The callee is captured.
    pub server: bool,
    /// The hop whose server makes this call; `None`: the caller serves nothing.
    pub cause: Option<&'static str>,
}

impl Hop {
    /// A request from a client that is not captured.
    pub fn ingress(name: &'static str) -> Self {
        Self {
            name,
            client: None,
            server: true,
            cause: None,
        }
    }

    /// A call between captured services, made for `cause`.
    pub fn call(name: &'static str, cause: &'static str, promise: Promise) -> Self {
        Self {
            name,
            client: Some(promise),
            server: true,
            cause: Some(cause),
        }
    }
}

/// All exchanges of one request.
#[derive(Clone, Debug)]
pub struct Topology(pub Vec<Hop>);

/// Parent edges of one service and rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub right: usize,
    pub wrong: usize,
    pub unknown: usize,
}

/// What the judge found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// By (service, kind, hop, `spanwire.parent.source`).
    pub rows: BTreeMap<(String, Kind, String, String), Counts>,
    /// Requests whose spans form one tree with one root.
    pub whole: usize,
    pub requests: usize,
    /// Everything that breaks a promise, in words; empty when all is well.
    pub faults: Vec<String>,
}

impl Verdict {
    pub fn total(&self) -> Counts {
        self.rows.values().fold(Counts::default(), |sum, row| Counts {
            right: sum.right + row.right,
            wrong: sum.wrong + row.wrong,
            unknown: sum.unknown + row.unknown,
        })
    }

    /// The table's totals in one line, or the first faults.
    pub fn check(&self) -> anyhow::Result<String> {
        let total = self.total();
        let line = format!(
            "{} requests, {} whole trees, edges right {} wrong {} unknown {}",
            self.requests, self.whole, total.right, total.wrong, total.unknown
        );
        if self.faults.is_empty() {
            return Ok(line);
        }
        let shown: Vec<_> = self.faults.iter().take(12).cloned().collect();
        anyhow::bail!(
            "{line}; {} faults:\n  {}\n{self}",
            self.faults.len(),
            shown.join("\n  ")
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {:<16} {:<7} {:<6} {:<9} {:>6} {:>6} {:>8}",
            "service", "kind", "hop", "source", "right", "wrong", "unknown"
        )?;
        for ((service, kind, hop, source), row) in &self.rows {
            let kind = format!("{kind:?}");
            writeln!(
                f,
                "  {service:<16} {kind:<7} {hop:<6} {source:<9} {:>6} {:>6} {:>8}",
                row.right, row.wrong, row.unknown
            )?;
        }
        Ok(())
    }
}

/// The request id and hop a path stands for.
pub fn exchange_of(path: &str) -> Option<(&str, &str)> {
    if let Some(id) = path.strip_prefix("/r/") {
        return (!id.contains('/')).then_some((id, "r"));
    }
    path.strip_prefix("/o/")?.split_once('/')
}

type Index<'a> = BTreeMap<(&'a str, &'a str, Kind), Vec<&'a Span>>;

/// Judges all spans of the given requests; spans of other requests are not looked at.
pub fn judge(topology: &Topology, ids: &[String], spans: &[Span]) -> Verdict {
    let paths: Vec<Option<String>> = spans.iter().map(Span::path).collect();
    let mut index: Index<'_> = BTreeMap::new();
    for (span, path) in spans.iter().zip(&paths) {
        if let Some((id, hop)) = path.as_deref().and_then(exchange_of) {
            index.entry((id, hop, span.kind)).or_default().push(span);
        }
    }
    let mut verdict = Verdict {
        requests: ids.len(),
        ..Verdict::default()
    };
    let mut traces: BTreeMap<&str, &str> = BTreeMap::new();
    let mut span_ids = BTreeSet::new();
    for id in ids {
        let own: Vec<&Span> = index
            .iter()
            .filter(|((owner, _, _), _)| owner == id)
            .flat_map(|(_, spans)| spans.iter().copied())
            .collect();
        for span in &own {
            verdict.faults.extend(span.faults());
            if !span_ids.insert(&span.span_id) {
                verdict
                    .faults
                    .push(format!("{id}: span id {} is there twice", span.span_id));
            }
            if let Some(other) = traces.insert(&span.trace_id, id).filter(|other| other != id) {
                verdict
                    .faults
                    .push(format!("trace {} holds requests {other} and {id}", span.trace_id));
            }
        }
        for hop in &topology.0 {
            judge_hop(topology, hop, id, &index, &mut verdict);
        }
        let distinct: BTreeSet<_> = own.iter().map(|span| &span.trace_id).collect();
        let roots = own.iter().filter(|span| span.parent_span_id.is_none()).count();
        let expected: usize = topology
            .0
            .iter()
            .map(|hop| usize::from(hop.client.is_some()) + usize::from(hop.server))
            .sum();
        let whole = distinct.len() == 1 && roots == 1 && own.len() == expected;
        verdict.whole += usize::from(whole);
        if !whole
            && topology
                .0
                .iter()
                .all(|hop| matches!(hop.client, None | Some(Promise::Exact)))
        {
            let sizes = format!(
                "{} spans of {expected}, {} traces, {roots} roots",
                own.len(),
                distinct.len()
            );
            verdict.faults.push(format!("{id}: not one whole tree: {sizes}"));
        }
    }
    verdict
}

fn judge_hop(topology: &Topology, hop: &Hop, id: &str, index: &Index<'_>, verdict: &mut Verdict) {
    let client = one(index, id, hop.name, Kind::Client, hop.client.is_some(), verdict);
    let server = one(index, id, hop.name, Kind::Server, hop.server, verdict);
    if let Some(server) = server {
        // Both ends of one exchange on this node meet by the wire: always exact where both are captured.
        let parent = if hop.client.is_some() {
            Truth::Parent(client)
        } else {
            Truth::Root
        };
        edge(hop, id, server, parent, Promise::Exact, verdict);
    }
    if let (Some(client), Some(promise)) = (client, hop.client) {
        let cause = hop
            .cause
            .and_then(|cause| topology.0.iter().find(|hop| hop.name == cause))
            .filter(|cause| cause.server);
        let parent = match cause {
            Some(cause) => Truth::Parent(
                index
                    .get(&(id, cause.name, Kind::Server))
                    .and_then(|spans| spans.first().copied()),
            ),
            None => Truth::Root,
        };
        edge(hop, id, client, parent, promise, verdict);
    }
}

/// The one span that must be there; a missing or a second one is a fault.
fn one<'a>(
    index: &Index<'a>,
    id: &str,
    hop: &str,
    kind: Kind,
    expected: bool,
    verdict: &mut Verdict,
) -> Option<&'a Span> {
    let found = index.get(&(id, hop, kind)).map_or(&[][..], Vec::as_slice);
    if found.len() != usize::from(expected) {
        verdict.faults.push(format!(
            "{id}: {} {kind:?} spans of hop {hop}, expected {}",
            found.len(),
            usize::from(expected)
        ));
    }
    found.first().copied()
}

enum Truth<'a> {
    /// No captured request caused it.
    Root,
    /// This span did; `None` when it was caused by a span that is missing.
    Parent(Option<&'a Span>),
}

fn edge(hop: &Hop, id: &str, span: &Span, truth: Truth<'_>, promise: Promise, verdict: &mut Verdict) {
    let source = span.parent_source();
    let claimed = span.parent_span_id.as_deref();
    let mut counts = Counts::default();
    match (claimed, truth) {
        (None, _) if source == "unknown" => counts.unknown = 1,
        (None, Truth::Root) => counts.right = 1,
        (None, Truth::Parent(_)) if promise == Promise::Opaque => counts.unknown = 1,
        (Some(claimed), Truth::Parent(Some(parent)))
            if claimed == parent.span_id && span.trace_id == parent.trace_id =>
        {
            counts.right = 1;
        }
        _ => counts.wrong = 1,
    }
    if counts.wrong > 0 {
        let claim = claimed.map_or_else(|| "no parent".to_owned(), |parent| format!("parent {parent}"));
        verdict.faults.push(format!(
            "{id}: wrong parent at {} {:?} of hop {}: {claim}, source {source}",
            span.service(),
            span.kind,
            hop.name
        ));
    }
    if counts.unknown > 0 && promise == Promise::Exact {
        let reason = span.attribute("spanwire.parent.reason").unwrap_or_default();
        verdict.faults.push(format!(
            "{id}: unknown parent ({reason}) at {} {:?} of hop {}",
            span.service(),
            span.kind,
            hop.name
        ));
    }
    let row = verdict
        .rows
        .entry((span.service(), span.kind, hop.name.to_owned(), source))
        .or_default();
    row.right += counts.right;
    row.wrong += counts.wrong;
    row.unknown += counts.unknown;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use serde_json::{json, Value};

    use super::{exchange_of, judge, Counts, Hop, Promise, Topology, Verdict};
    use crate::spans::{read_otlp_json, Span};

    fn topology(promise: Promise) -> Topology {
        Topology(vec![
            Hop::ingress("r"),
            Hop::call("a", "r", Promise::Exact),
            Hop::call("b", "a", promise),
        ])
    }

    /// A span as the API returns it. Ids are written as short numbers here.
    fn span(trace: u32, id: u32, parent: u32, kind: u32, path: &str, source: &str) -> Value {
        let mut attributes = vec![
            json!({"key": "http.request.method", "value": {"stringValue": "GET"}}),
            json!({"key": "http.response.status_code", "value": {"intValue": "200"}}),
            json!({"key": "url.path", "value": {"stringValue": path}}),
            json!({"key": "spanwire.parent.source", "value": {"stringValue": source}}),
        ];
        if source == "unknown" {
            attributes.push(json!({"key": "spanwire.parent.reason", "value": {"stringValue": "runtime"}}));
        }
        let parent = if parent == 0 {
            String::new()
        } else {
            format!("{parent:016x}")
        };
        json!({
            "traceId": format!("{trace:032x}"), "spanId": format!("{id:016x}"), "parentSpanId": parent,
            "name": "GET /r/{id}", "kind": kind, "startTimeUnixNano": "5", "endTimeUnixNano": "9",
            "attributes": attributes, "status": {},
        })
    }

    /// One request's five spans, all right.
    fn tree(trace: u32, id: &str) -> Vec<Value> {
        let base = trace * 10;
        vec![
            span(trace, base + 1, 0, 2, &format!("/r/{id}"), "root"),
            span(trace, base + 2, base + 1, 3, &format!("/o/{id}/a"), "io"),
            span(trace, base + 3, base + 2, 2, &format!("/o/{id}/a"), "wire"),
            span(trace, base + 4, base + 3, 3, &format!("/o/{id}/b"), "thread"),
            span(trace, base + 5, base + 4, 2, &format!("/o/{id}/b"), "wire"),
        ]
    }

    fn read(spans: &[Value]) -> Vec<Span> {
        let service = json!([{"key": "service.name", "value": {"stringValue": "shop"}}]);
        read_otlp_json(
            &json!({"resourceSpans": [{"resource": {"attributes": service}, "scopeSpans": [{"spans": spans}]}]}),
        )
        .unwrap()
    }

    fn judged(spans: &[Value], promise: Promise) -> Verdict {
        judge(&topology(promise), &["x1".to_owned(), "x2".to_owned()], &read(spans))
    }

    fn two_trees() -> Vec<Value> {
        [tree(1, "x1"), tree(2, "x2")].concat()
    }

    #[test]
    fn right_trees_have_no_fault() {
        let verdict = judged(&two_trees(), Promise::Exact);
        assert_eq!(verdict.faults, Vec::<String>::new());
        assert_eq!(
            verdict.total(),
            Counts {
                right: 10,
                wrong: 0,
                unknown: 0
            }
        );
        assert_eq!(verdict.whole, 2);
        assert!(verdict.check().is_ok());
    }

    #[test]
    fn a_parent_in_another_request_is_wrong() {
        let mut spans = two_trees();
        spans[3] = span(1, 14, 23, 3, "/o/x1/b", "thread");
        let verdict = judged(&spans, Promise::NeverWrong);
        assert_eq!(verdict.total().wrong, 1);
        assert!(verdict.check().is_err());
    }

    #[test]
    fn the_right_parent_in_another_trace_is_wrong() {
        let mut spans = two_trees();
        spans[3] = span(3, 14, 13, 3, "/o/x1/b", "thread");
        assert_eq!(
            judged(&spans, Promise::NeverWrong).total().wrong,
            2,
            "the call, and the callee whose parent it is"
        );
    }

    #[test]
    fn an_unknown_parent_is_a_fault_only_where_exactness_is_promised() {
        let mut spans = two_trees();
        spans[3] = span(3, 14, 0, 3, "/o/x1/b", "unknown");
        spans[4] = span(3, 15, 14, 2, "/o/x1/b", "wire");
        let verdict = judged(&spans, Promise::NeverWrong);
        assert_eq!(
            verdict.total(),
            Counts {
                right: 9,
                wrong: 0,
                unknown: 1
            }
        );
        assert!(verdict.check().is_ok(), "{:?}", verdict.faults);
        assert!(judged(&spans, Promise::Exact).check().is_err());
    }

    #[test]
    fn a_root_claimed_where_a_request_was_the_cause_is_wrong() {
        let mut spans = two_trees();
        spans[3] = span(3, 14, 0, 3, "/o/x1/b", "root");
        spans[4] = span(3, 15, 14, 2, "/o/x1/b", "wire");
        assert_eq!(judged(&spans, Promise::NeverWrong).total().wrong, 1);
        let opaque = judged(&spans, Promise::Opaque);
        assert_eq!((opaque.total().wrong, opaque.total().unknown), (0, 1));
    }

    #[test]
    fn an_ingress_with_a_parent_is_wrong() {
        let mut spans = two_trees();
        spans[0] = span(1, 11, 21, 2, "/r/x1", "wire");
        assert_eq!(judged(&spans, Promise::Exact).total().wrong, 1);
    }

    #[test]
    fn missing_doubled_and_mixed_spans_are_faults() {
        let mut missing = two_trees();
        missing.remove(9);
        assert!(judged(&missing, Promise::NeverWrong).check().is_err());

        let mut doubled = two_trees();
        doubled.push(span(1, 99, 0, 2, "/r/x1", "root"));
        assert!(judged(&doubled, Promise::NeverWrong).check().is_err());

        let mixed = [tree(1, "x1"), tree(2, "x2")].concat().into_iter().map(|mut span| {
            span["traceId"] = json!(format!("{:032x}", 7));
            span
        });
        assert!(judged(&mixed.collect::<Vec<_>>(), Promise::NeverWrong).check().is_err());
    }

    #[test]
    fn nothing_exported_is_no_success() {
        assert!(judged(&[], Promise::NeverWrong).check().is_err());
        assert!(judged(&[], Promise::Opaque).check().is_err());
    }

    #[test]
    fn what_a_span_lacks_is_a_fault() {
        let whole = || span(1, 11, 0, 2, "/r/x1", "root");
        assert_eq!(read(&[whole()])[0].faults(), Vec::<String>::new());
        for key in ["traceId", "spanId", "name", "kind"] {
            let mut bare = whole();
            bare[key] = json!("");
            assert!(!read(&[bare])[0].faults().is_empty(), "{key} is missed");
        }
        for at in [0, 1, 3] {
            let mut bare = whole();
            bare["attributes"].as_array_mut().unwrap().remove(at);
            assert!(!read(&[bare])[0].faults().is_empty(), "attribute {at} is missed");
        }
        assert!(
            !read(&[span(1, 11, 5, 2, "/r/x1", "root")])[0].faults().is_empty(),
            "a root with a parent"
        );
        assert!(
            !read(&[span(1, 11, 0, 2, "/r/x1", "wire")])[0].faults().is_empty(),
            "a wire parent that is none"
        );
        assert!(
            !read(&[span(1, 11, 0, 2, "/r/x1", "guess")])[0].faults().is_empty(),
            "a source of no contract"
        );
    }

    #[test]
    fn a_path_names_request_and_hop() {
        assert_eq!(exchange_of("/r/x1"), Some(("x1", "r")));
        assert_eq!(exchange_of("/o/x1/b"), Some(("x1", "b")));
        assert_eq!(exchange_of("/r/x1/b"), None);
        assert_eq!(exchange_of("/healthz"), None);
    }
}
