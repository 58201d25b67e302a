//! `spanwire services`: who was seen, with rate, errors, latency and coverage.

use crate::store::ServiceView;

use super::client::{QueryError, Source};
use super::text::{duration, escape, instant, Cell, Colour, Output};

const TITLES: [&str; 9] = [
    "SERVICE",
    ">REQ/S",
    ">REQUESTS",
    ">ERRORS",
    ">P50",
    ">P95",
    ">P99",
    ">COVERAGE",
    "LAST SEEN",
];

/// Runs the command.
pub fn run(source: &Source, output: &mut Output<'_>) -> Result<(), QueryError> {
    let view = source.services()?;
    if output.is_json {
        return output.json(&view);
    }
    if view.services.is_empty() {
        eprintln!("no service seen yet");
        return Ok(());
    }
    let rows: Vec<_> = view.services.iter().map(row).collect();
    output.table(&TITLES, &rows)?;
    Ok(())
}

fn row(service: &ServiceView) -> Vec<Cell> {
    let is_idle = service.requests == 0;
    let latency = |length_ns: u64| Cell::plain(if is_idle { "-".to_owned() } else { duration(length_ns) });
    let errors = match service.errors {
        0 => Cell::plain("0"),
        count => {
            let share = count as f64 / service.requests.max(1) as f64 * 100.0;
            Cell::painted(Colour::Red, format!("{count} ({share:.1} %)"))
        }
    };
    vec![
        Cell::plain(escape(&service.name)),
        Cell::plain(format!("{:.2}", service.rate)),
        Cell::plain(service.requests.to_string()),
        errors,
        latency(service.latency_nano.p50),
        latency(service.latency_nano.p95),
        latency(service.latency_nano.p99),
        Cell::plain(
            service
                .coverage
                .share
                .map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
        ),
        Cell::plain(instant(service.last_seen_unix_nano)),
    ]
}
