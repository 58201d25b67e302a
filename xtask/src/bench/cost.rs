//! What the agent itself spends on a request, by where its spans go.

use anyhow::Result;
use serde_json::json;

use super::measure::{cpu_ms, cpu_since_start_ms, hey, Samples};
use super::page::{Row, Section};
use super::stage::{sink, Agent, Nginx, Sinks};
use super::Bench;

const ROUNDS: usize = 3;
const REQUESTS: u32 = 8_000;
const PER_SECOND: u32 = 2_000;

/// Four agents in turn, on the same load.
pub(super) fn measure(bench: &Bench) -> Result<Section> {
    let nginx = Nginx::start(&bench.place, "cost", "location / { return 200 \"ok\\n\"; }", "")?;
    let url = format!("http://127.0.0.1:{}/", nginx.port);
    let port = sink()?;
    let kinds = [
        ("neither store nor export", Sinks::Nothing),
        ("store", Sinks::Store),
        ("OTLP export", Sinks::Otlp { port, gzip: false }),
        ("OTLP export with gzip", Sinks::Otlp { port, gzip: true }),
    ];
    let mut costs: Vec<Samples> = vec![Samples::default(); kinds.len()];
    let mut ready = Samples::default();
    let mut started = Samples::default();
    for _ in 0..ROUNDS {
        for ((_, sinks), cost) in kinds.iter().zip(&mut costs) {
            let agent = Agent::start(&bench.agent, &bench.place, &json!([nginx.selector()]), *sinks, false)?;
            ready.push(agent.ready.as_secs_f64());
            started.push(cpu_since_start_ms(agent.pid())?);
            let before = cpu_ms(agent.pid())?;
            let answered = hey(&url, REQUESTS, PER_SECOND)?;
            // What reads the metrics costs too, and is not part of it: two seconds cover the settle window and the batch.
            std::thread::sleep(std::time::Duration::from_secs(2));
            cost.push((cpu_ms(agent.pid())? - before) / answered * 1_000.0);
            agent.drained()?;
            let spans = agent.metric("spanwire_spans_total", "")?;
            anyhow::ensure!(spans >= answered, "{answered} requests, {spans} spans");
        }
    }
    let mut rows: Vec<Row> = kinds
        .iter()
        .zip(&costs)
        .map(|((name, _), cost)| {
            Row::new(
                format!("{name}: at most 8 ms of the agent's CPU per 1,000 requests"),
                format!("{cost} ms"),
                cost.median() <= 8.0,
            )
        })
        .collect();
    rows.push(Row::new(
        "start to ready in under 2 s",
        format!("{ready} s"),
        ready.median() < 2.0,
    ));
    rows.push(Row::shown(
        "CPU spent from start to ready, the kernel's verifier included",
        format!("{started} ms"),
    ));
    Ok(Section {
        method: format!(
            "nginx `return 200`, server side captured; {ROUNDS} rounds of each agent in turn; {REQUESTS} requests of hey at {PER_SECOND} a \
             second. CPU: what the scheduler says all the agent's threads ran, over the load and 2 s after it. \
             The OTLP endpoint is a thread of the benchmark that reads and forgets. What the programs in the kernel spend is \
             the traced process's, and in the other sections."
        ),
        rows,
        notes: vec![
            "Instructions per span (marks: 15 k with OTLP export, 40 k with the store as well) were not counted in this section; \
             docs/export.md has those of the stages and of the sinks, by callgrind. Instructions spent at start: CPU time stands \
             in, ticks of 10 ms; how many of the programs' instructions the verifier walks is in docs/kernels.md."
                .to_owned(),
            "Why the store misses: at 2,000 spans a second a transaction holds 500 of them (250 ms), and their random trace ids touch \
             every page of the index's slice, which is then written twice, to the log and to the file. With more spans a transaction \
             it is less: 3.7 to 4.2 ms at 24,000 requests a second (seen once by hand, with Node)."
                .to_owned(),
        ],
    })
}
