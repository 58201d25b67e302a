//! `spanwire trace ID`: one trace as a tree with a waterfall.

use crate::span::TraceId;

use super::client::{QueryError, Source};
use super::text::{cut, duration, escape, instant, Colour, Output};
use super::tree::{self, Node};

/// Columns of the waterfall at least and at most.
const BAR_MIN: usize = 16;
const BAR_MAX: usize = 60;
/// Columns of a span's name at most, its place in the tree included.
const NAME_MAX: usize = 64;

/// Runs the command. `id` is a trace id, a whole traceparent, or a server-timing value.
pub fn run(id: &str, source: &Source, output: &mut Output<'_>) -> Result<(), QueryError> {
    let id = parse_id(id).ok_or_else(|| {
        let forms = "a trace id (32 hex digits), a traceparent, or a server-timing value with one";
        QueryError::Usage(format!("expected {forms}, got {id:?}"))
    })?;
    let trace = source.trace(id)?;
    if output.is_json {
        return output.json(&trace);
    }
    let nodes = tree::preorder(trace);
    Ok(print(&nodes, output)?)
}

/// Finds the trace id in whatever form it was copied.
pub(super) fn parse_id(text: &str) -> Option<TraceId> {
    let text = text.trim();
    if let Some(id) = TraceId::parse(text) {
        return Some(id).filter(|id| id.is_valid());
    }
    // A traceparent stands alone, or quoted in `traceparent;desc="00-..-..-01"`.
    let words = text.split(|letter: char| !letter.is_ascii_hexdigit() && letter != '-');
    words.into_iter().find_map(traceparent)
}

fn traceparent(word: &str) -> Option<TraceId> {
    let fields: Vec<&str> = word.split('-').collect();
    let [version, id, span, flags, ..] = fields[..] else {
        return None;
    };
    // Version 00 has exactly four fields; later ones may have more (W3C Trace Context 4.2).
    let is_whole = version != "ff" && (version != "00" || fields.len() == 4);
    let has_lengths = [version.len(), span.len(), flags.len()] == [2, 16, 2];
    TraceId::parse(id).filter(|id| is_whole && has_lengths && id.is_valid())
}

fn print(nodes: &[Node], output: &mut Output<'_>) -> std::io::Result<()> {
    let Some(top) = nodes.first() else {
        return Ok(());
    };
    let start_ns = nodes.iter().map(|node| node.start_ns).min().unwrap_or(0);
    let end_ns = nodes.iter().map(|node| node.end_ns).max().unwrap_or(0);
    let errors = nodes.iter().filter(|node| node.is_error).count();
    let facts = format!(
        "{}  {}  {}  {}",
        instant(start_ns),
        duration(end_ns.saturating_sub(start_ns)),
        count(nodes.len(), "span"),
        count(errors, "error"),
    );
    writeln!(output.out, "{}  {facts}", output.paint(Colour::Bold, &top.trace_id))?;
    writeln!(output.out)?;

    let rows: Vec<Row> = nodes.iter().map(Row::of).collect();
    let widest = |text: fn(&Row) -> &str| rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0);
    let (kind, status) = (widest(|row| &row.kind).max(4), widest(|row| &row.status).max(6));
    let (source, length) = (widest(|row| &row.source).max(6), widest(|row| &row.length).max(8));
    let fixed = kind + status + source + length + 2 * 5 + 2;
    let name = widest(|row| &row.name).clamp(4, NAME_MAX.min(output.width.saturating_sub(fixed + BAR_MIN).max(20)));
    let bar = output.width.saturating_sub(fixed + name).clamp(BAR_MIN, BAR_MAX);

    let titles = format!(
        "{:name$}  {:kind$}  {:status$}  {:source$}  {:>length$}",
        "SPAN", "KIND", "STATUS", "PARENT", "DURATION"
    );
    writeln!(output.out, "{}", output.paint(Colour::Faint, &titles))?;
    for (node, row) in nodes.iter().zip(&rows) {
        let text = format!("{:name$}", cut(&row.name, name));
        let status_text = format!("{:status$}", row.status);
        let status_text = if node.is_error {
            output.paint(Colour::Red, &status_text)
        } else {
            status_text
        };
        let bar_colour = if node.is_error { Colour::Red } else { Colour::Cyan };
        let drawn = waterfall(
            node.start_ns - start_ns,
            node.end_ns.max(node.start_ns) - start_ns,
            end_ns - start_ns,
            bar,
        );
        let line = format!(
            "{text}  {:kind$}  {status_text}  {:source$}  {:>length$}  |{}|",
            row.kind,
            row.source,
            row.length,
            output.paint(bar_colour, &drawn)
        );
        writeln!(output.out, "{line}")?;
    }
    Ok(())
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A span's cells, escaped.
struct Row {
    name: String,
    kind: String,
    status: String,
    source: String,
    length: String,
}

impl Row {
    fn of(node: &Node) -> Self {
        let source = match &node.reason {
            Some(reason) => format!("{}: {reason}", node.source),
            None => node.source.clone(),
        };
        let status = match (&node.http_status, &node.error_type, node.is_error) {
            (Some(code), _, false) => code.clone(),
            (Some(code), _, true) => format!("{code} error"),
            (None, Some(kind), _) => format!("error: {kind}"),
            (None, None, true) => "error".to_owned(),
            (None, None, false) => "-".to_owned(),
        };
        Self {
            name: format!("{}{}  {}", node.branch, escape(&node.service), escape(&node.name)),
            kind: node.kind.to_owned(),
            status: escape(&status),
            source: escape(&source),
            length: duration(node.end_ns.saturating_sub(node.start_ns)),
        }
    }
}

/// A bar of `width` columns; the shortest span is one column.
fn waterfall(from_ns: u64, to_ns: u64, whole_ns: u64, width: usize) -> String {
    let whole = whole_ns.max(1) as f64;
    let column = |at_ns: u64| (at_ns as f64 / whole * width as f64).round() as usize;
    let from = column(from_ns).min(width - 1);
    let to = column(to_ns).clamp(from + 1, width);
    format!(
        "{}{}{}",
        " ".repeat(from),
        "█".repeat(to - from),
        " ".repeat(width - to)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn an_id_is_found_in_every_form_it_is_copied_in() {
        let parent = format!("00-{ID}-00f067aa0ba902b7-01");
        for text in [
            ID.to_owned(),
            ID.to_uppercase(),
            format!(" {ID}\n"),
            parent.clone(),
            format!("traceparent;desc=\"{parent}\""),
            format!("server-timing: db;dur=53, traceparent;desc=\"{parent}\", cache;desc=\"HIT\""),
            format!("traceparent: {parent}"),
            format!("01-{ID}-00f067aa0ba902b7-01-later"),
        ] {
            assert_eq!(parse_id(&text).map(TraceId::hex).as_deref(), Some(ID), "{text}");
        }
    }

    #[test]
    fn other_text_is_malformed() {
        for text in [
            "",
            "abc",
            "00000000000000000000000000000000",
            &ID[1..],
            &format!("{ID}0"),
            &format!("00-{ID}-01"),
            &format!("ff-{ID}-00f067aa0ba902b7-01"),
            &format!("00-{ID}-00f067aa0ba902b7-01-more"),
            &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            "--",
            "é",
        ] {
            assert_eq!(parse_id(text), None, "{text}");
        }
    }

    #[test]
    fn a_bar_is_never_empty_and_never_too_long() {
        assert_eq!(waterfall(0, 100, 100, 10), "██████████");
        assert_eq!(waterfall(50, 50, 100, 10), "     █    ");
        assert_eq!(waterfall(100, 100, 100, 10), "         █");
        assert_eq!(waterfall(0, 0, 0, 10), "█         ");
    }
}
