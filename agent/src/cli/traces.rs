//! `spanwire traces`: a list, newest first; with `--follow`, new ones as they come.

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use crate::store::{TraceList, TraceSummary};

use super::client::{unix_now_ns, QueryError, Source};
use super::text::{duration, escape, instant, Cell, Colour, Output};

/// Time between two looks.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// A trace is shown when its last span is this old: the settle window and the store's batch are over by then, so it is whole.
const SETTLED_NS: u64 = 2_000_000_000;
/// How far back each look goes: a trace that took longer than this is not followed.
const FOLLOW_WINDOW: &str = "10m";
/// Traces of one look at most.
const FOLLOW_LIMIT: usize = 1_000;

/// The command's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracesOptions {
    /// `--service`.
    pub service: Option<String>,
    /// `--operation`.
    pub operation: Option<String>,
    /// `--status error`.
    pub is_error: bool,
    /// `--tenant`.
    pub tenant: Option<String>,
    /// `--attribute K=V`, each.
    pub attributes: Vec<(String, String)>,
    /// `--min-duration`.
    pub min_duration: Option<Duration>,
    /// `--max-duration`.
    pub max_duration: Option<Duration>,
    /// `--since`: a duration before now, or a time.
    pub since: Option<String>,
    /// `--until`.
    pub until: Option<String>,
    /// `--limit`.
    pub limit: Option<u32>,
    /// `--follow`.
    pub is_follow: bool,
}

impl TracesOptions {
    /// The API's parameters.
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let length = |length: Option<Duration>| length.map(|length| format!("{}ns", length.as_nanos()));
        let single = [
            ("service", self.service.clone()),
            ("operation", self.operation.clone()),
            ("status", self.is_error.then(|| "error".to_owned())),
            ("tenant", self.tenant.clone()),
            ("minDuration", length(self.min_duration)),
            ("maxDuration", length(self.max_duration)),
            ("since", self.since.clone()),
            ("until", self.until.clone()),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        let attributes = self
            .attributes
            .iter()
            .map(|(key, value)| ("attribute", format!("{key}={value}")));
        single
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .chain(attributes)
            .collect()
    }
}

/// Runs the command. With `is_follow` it ends only by an error, such as a closed pipe.
pub fn run(options: &TracesOptions, source: &Source, output: &mut Output<'_>) -> Result<(), QueryError> {
    let list = source.traces(&options.pairs())?;
    if !options.is_follow {
        return print(&list, output);
    }
    let mut followed = Followed::default();
    followed.print_new(list, unix_now_ns(), output)?;
    let mut pairs = options.pairs();
    pairs.retain(|(name, _)| !matches!(*name, "since" | "limit"));
    pairs.push(("since", FOLLOW_WINDOW.to_owned()));
    pairs.push(("limit", FOLLOW_LIMIT.to_string()));
    loop {
        thread::sleep(FOLLOW_EVERY);
        followed.print_new(source.traces(&pairs)?, unix_now_ns(), output)?;
    }
}

fn print(list: &TraceList, output: &mut Output<'_>) -> Result<(), QueryError> {
    if output.is_json {
        return output.json(list);
    }
    if list.traces.is_empty() {
        // Data goes to stdout: an empty list is empty there.
        eprintln!("no trace matches");
    } else {
        let rows: Vec<_> = list.traces.iter().map(row).collect();
        output.table(&TITLES, &rows)?;
    }
    if list.partial {
        eprintln!("the search took too long to be complete; narrow it with --since");
    }
    Ok(())
}

const TITLES: [&str; 7] = [
    "START",
    "TRACE ID",
    ">DURATION",
    ">SPANS",
    ">ERRORS",
    "ROOT",
    "SERVICES",
];

fn row(trace: &TraceSummary) -> Vec<Cell> {
    let errors = trace.error_count.to_string();
    vec![
        Cell::plain(instant(trace.start_time_unix_nano)),
        Cell::painted(Colour::Cyan, escape(&trace.trace_id)),
        Cell::plain(duration(trace.duration_nano)),
        Cell::plain(trace.span_count.to_string()),
        if trace.error_count > 0 {
            Cell::painted(Colour::Red, errors)
        } else {
            Cell::plain(errors)
        },
        Cell::plain(format!("{}: {}", escape(&trace.root_service), escape(&trace.root_name))),
        Cell::plain(escape(&trace.services.join(", "))),
    ]
}

/// What has been shown.
#[derive(Default)]
struct Followed {
    shown: HashSet<String>,
    has_title: bool,
}

impl Followed {
    /// Prints what is new and whole, oldest first.
    fn print_new(&mut self, list: TraceList, now_ns: u64, output: &mut Output<'_>) -> Result<(), QueryError> {
        let listed: HashSet<String> = list.traces.iter().map(|trace| trace.trace_id.clone()).collect();
        let is_whole = |trace: &TraceSummary| {
            trace
                .start_time_unix_nano
                .saturating_add(trace.duration_nano)
                .saturating_add(SETTLED_NS)
                <= now_ns
        };
        let new: Vec<_> = list
            .traces
            .into_iter()
            .rev()
            .filter(|trace| is_whole(trace) && self.shown.insert(trace.trace_id.clone()))
            .collect();
        // What has left the window cannot come again.
        self.shown.retain(|id| listed.contains(id));
        if output.is_json {
            new.iter().try_for_each(|trace| output.json(trace))?;
        } else {
            for trace in &new {
                self.print_line(trace, output)?;
            }
        }
        Ok(output.out.flush()?)
    }

    /// Columns of fixed width: the next line's cells are not known yet.
    fn print_line(&mut self, trace: &TraceSummary, output: &mut Output<'_>) -> Result<(), QueryError> {
        if !std::mem::replace(&mut self.has_title, true) {
            let title = format!(
                "{:24}  {:32}  {:>8}  {:>5}  {:>6}  ROOT",
                "START", "TRACE ID", "DURATION", "SPANS", "ERRORS"
            );
            let title = output.paint(Colour::Faint, &title);
            writeln!(output.out, "{title}")?;
        }
        let errors = format!("{:>6}", trace.error_count);
        let errors = if trace.error_count > 0 {
            output.paint(Colour::Red, &errors)
        } else {
            errors
        };
        let line = format!(
            "{:24}  {}  {:>8}  {:>5}  {errors}  {}: {}",
            instant(trace.start_time_unix_nano),
            output.paint(Colour::Cyan, &escape(&trace.trace_id)),
            duration(trace.duration_nano),
            trace.span_count,
            escape(&trace.root_service),
            escape(&trace.root_name),
        );
        Ok(writeln!(output.out, "{line}")?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn summary(id: &str, start_s: u64) -> TraceSummary {
        TraceSummary {
            trace_id: id.to_owned(),
            root_service: "shop".to_owned(),
            root_name: "GET /".to_owned(),
            start_time_unix_nano: start_s * 1_000_000_000,
            duration_nano: 1_000_000,
            span_count: 1,
            error_count: 0,
            services: vec!["shop".to_owned()],
        }
    }

    #[test]
    fn following_shows_each_whole_trace_once_and_oldest_first() {
        let list = |ids: &[(&str, u64)]| TraceList {
            traces: ids.iter().map(|(id, start_s)| summary(id, *start_s)).collect(),
            partial: false,
        };
        let mut bytes = Vec::new();
        let mut output = Output::plain(&mut bytes, true);
        let mut followed = Followed::default();
        let now = |seconds: u64| seconds * 1_000_000_000;
        followed
            .print_new(list(&[("b", 20), ("a", 10)]), now(21), &mut output)
            .unwrap();
        followed
            .print_new(list(&[("c", 23), ("b", 20), ("a", 10)]), now(24), &mut output)
            .unwrap();
        followed
            .print_new(list(&[("c", 23), ("b", 20)]), now(26), &mut output)
            .unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let ids: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<TraceSummary>(line).unwrap().trace_id)
            .collect();
        assert_eq!(ids, ["a", "b", "c"]);
    }
}
