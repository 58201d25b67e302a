//! A trace's spans in the order of their tree.

use std::collections::HashMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;

use crate::span::TraceId;
use crate::store::{attribute_text, StoredTrace};

/// Depth beyond which the drawing stops moving right.
const DEPTH_MAX: usize = 24;

/// One span and its place.
pub(super) struct Node {
    pub(super) trace_id: String,
    /// The lines that lead to it, ready to print.
    pub(super) branch: String,
    pub(super) service: String,
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) is_error: bool,
    pub(super) http_status: Option<String>,
    pub(super) error_type: Option<String>,
    pub(super) source: String,
    pub(super) reason: Option<String>,
}

/// All spans, each after its parent; one whose parent is missing stands at the top.
pub(super) fn preorder(trace: StoredTrace) -> Vec<Node> {
    let mut spans: Vec<(String, ProtoSpan)> = Vec::new();
    for group in trace.resource_spans {
        let resource = group.resource.unwrap_or_default();
        let service = attribute(&resource.attributes, "service.name").unwrap_or_default();
        let of_group = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(of_group.map(|span| (service.clone(), span)));
    }
    spans.sort_by_key(|(_, span)| (span.start_time_unix_nano, std::cmp::Reverse(span.end_time_unix_nano)));
    let places: HashMap<&[u8], usize> = spans
        .iter()
        .enumerate()
        .map(|(place, (_, span))| (&span.span_id[..], place))
        .collect();
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
    let mut tops = Vec::new();
    for (place, (_, span)) in spans.iter().enumerate() {
        match places.get(&span.parent_span_id[..]) {
            Some(&parent) if parent != place => children[parent].push(place),
            _ => tops.push(place),
        }
    }
    let mut nodes = Vec::with_capacity(spans.len());
    let mut is_seen = vec![false; spans.len()];
    walk(&tops, &spans, &children, &mut is_seen, &mut nodes);
    // Parents that point at each other hang from no top; they are shown all the same.
    for place in 0..spans.len() {
        if !is_seen[place] {
            walk(&[place], &spans, &children, &mut is_seen, &mut nodes);
        }
    }
    nodes
}

/// With a stack instead of recursion: a chain of calls can be long.
fn walk(
    tops: &[usize],
    spans: &[(String, ProtoSpan)],
    children: &[Vec<usize>],
    is_seen: &mut [bool],
    nodes: &mut Vec<Node>,
) {
    // Place, the lines of its ancestors, depth, and whether it is the last of its siblings.
    let mut stack: Vec<(usize, String, usize, bool)> = tops
        .iter()
        .rev()
        .map(|place| (*place, String::new(), 0, true))
        .collect();
    while let Some((place, lines, depth, is_last)) = stack.pop() {
        if std::mem::replace(&mut is_seen[place], true) {
            continue;
        }
        let elbow = match (depth, is_last) {
            (0, _) => "",
            (_, true) => "└─ ",
            (_, false) => "├─ ",
        };
        let (service, span) = &spans[place];
        nodes.push(node(service, span, format!("{lines}{elbow}")));
        let below = match (depth, is_last) {
            (0 | DEPTH_MAX.., _) => "",
            (_, true) => "   ",
            (_, false) => "│  ",
        };
        let lines = format!("{lines}{below}");
        for (index, child) in children[place].iter().enumerate().rev() {
            stack.push((*child, lines.clone(), depth + 1, index + 1 == children[place].len()));
        }
    }
}

fn node(service: &str, span: &ProtoSpan, branch: String) -> Node {
    let own = |key: &str| attribute(&span.attributes, key);
    Node {
        trace_id: <[u8; 16]>::try_from(&span.trace_id[..]).map_or_else(|_| String::new(), |id| TraceId(id).hex()),
        branch,
        service: service.to_owned(),
        name: span.name.clone(),
        kind: match span.kind {
            2 => "server",
            3 => "client",
            4 => "producer",
            5 => "consumer",
            _ => "internal",
        },
        start_ns: span.start_time_unix_nano,
        end_ns: span.end_time_unix_nano,
        is_error: span.status.as_ref().is_some_and(|status| status.code == 2),
        http_status: own("http.response.status_code"),
        error_type: own("error.type"),
        source: own("spanwire.parent.source").unwrap_or_default(),
        reason: own("spanwire.parent.reason"),
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let pair = attributes.iter().find(|pair| pair.key == key)?;
    pair.value.as_ref().map(attribute_text)
}
