//! The load: who asks, who answers, a proxy between some of them, and what both ends say while an agent comes and goes.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use spanwire_tests::agent::Setup;
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::App;
use spanwire_tests::place::{free_port, Place};
use spanwire_tests::service::{Launch, Service, Target};
use spanwire_tests::steady::count::{last, now_ms, Called, Served};
use spanwire_tests::steady::wire::Lane;

/// Connections of each lane, and how many of all are to be live at any instant that counts.
const CONNECTIONS: [(Lane, usize); 4] = [
    (Lane::Polling, 500),
    (Lane::Blocking, 350),
    (Lane::Proxied, 300),
    (Lane::Upload, 12),
];
const LIVE: u64 = 1_000;
/// From the agent's start until something has come of it, beside the load.
const EFFECT_LIMIT: Duration = Duration::from_secs(15);

/// What an agent is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As it decides by itself: here the first request of each connection.
    First,
    /// Every request of sockets that do not block: they stay enrolled. nginx asks FIONREAD, and is left out.
    All,
    /// Responses to callers that it does not see: the server's sockets stay enrolled.
    Responses,
}

/// The load and its two ends.
pub(crate) struct Load {
    caller: Service,
    server: Service,
    nginx: App,
    stop: PathBuf,
}

/// Both ends at one time.
#[derive(Clone, Debug)]
pub(crate) struct Now {
    pub(crate) called: Called,
    pub(crate) served: Served,
}

impl Load {
    pub(crate) fn start(place: &Place) -> Result<Self> {
        let port = free_port()?;
        let server = steady("server", place).args(["serve", &port.to_string()]);
        let server = server.start(&[Target::loopback(port)])?;
        // Connections behind the proxy are made anew often, so that every agent meets new ones.
        let nginx = Site::new()
            .http(&format!(
                "upstream server {{ server 127.0.0.1:{port}; keepalive 64; keepalive_requests 20; }}"
            ))
            .location(
                "location / { proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Host $host; \
                 proxy_set_header Connection \"\"; proxy_pass_header Server; proxy_pass_header Date; }",
            )
            .start("proxy", place)?;
        let stop = place.join("stop");
        let lanes = CONNECTIONS.map(|(lane, count)| format!("{}={count}", lane.name()));
        let caller = steady("caller", place)
            .args(["call", &port.to_string(), &nginx.target.port()?.to_string()])
            .arg(&stop)
            .args(lanes)
            .spawn()?;
        let mut load = Self {
            caller,
            server,
            nginx,
            stop,
        };
        load.until("connections", |now| {
            now.called.open >= LIVE && now.called.answered > 2 * LIVE
        })?;
        Ok(load)
    }

    pub(crate) fn setup(&self, mode: Mode) -> Setup {
        let pid = |service: &Service| json!({"pid": service.pid()});
        let both = Setup::capturing(&[pid(&self.caller), pid(&self.nginx.service)]);
        match mode {
            Mode::First => both.with("propagate", "enabled", json!("auto")),
            Mode::All => both.with("propagate", "enabled", json!(true)).with(
                "propagate",
                "exclude",
                json!([pid(&self.nginx.service)]),
            ),
            Mode::Responses => Setup::capturing(&[pid(&self.server)])
                .with("propagate", "enabled", json!(false))
                .with("ingress", "enabled", json!(true)),
        }
    }

    /// What both ends say after this instant.
    pub(crate) fn now(&mut self) -> Result<Now> {
        let asked = now_ms();
        let start = Instant::now();
        loop {
            if let Some(now) = self.read()? {
                if now.called.at_ms > asked && now.served.at_ms > asked {
                    return now.faultless();
                }
            }
            if start.elapsed() > Duration::from_secs(5) {
                bail!(
                    "the load says nothing any more:\n{}\n{}",
                    tail(&self.caller.log()),
                    tail(&self.server.log())
                );
            }
            sleep(Duration::from_millis(2));
        }
    }

    fn read(&mut self) -> Result<Option<Now>> {
        let called = last(self.caller.log_path())?;
        let served = last(self.server.log_path())?;
        Ok(called.zip(served).map(|(called, served)| Now { called, served }))
    }

    /// Waits until both ends say so.
    pub(crate) fn until(&mut self, what: &str, is_so: impl Fn(&Now) -> bool) -> Result<Now> {
        let start = Instant::now();
        loop {
            let now = self.now()?;
            if is_so(&now) {
                return Ok(now);
            }
            if start.elapsed() > EFFECT_LIMIT {
                bail!("waited {EFFECT_LIMIT:?} for {what}: {now:?}");
            }
        }
    }

    /// No new request; every one that was made is answered.
    pub(crate) fn end(mut self) -> Result<Now> {
        std::fs::write(&self.stop, "")?;
        let status = self.caller.wait_end(Duration::from_secs(20))?;
        ensure!(
            status.success(),
            "the caller ended with {status}: {}",
            tail(&self.caller.log())
        );
        let now = self.read()?.context("no count")?.faultless()?;
        ensure!(now.called.done, "the caller has not said that it is done");
        ensure!(
            now.called.asked == now.called.answered,
            "{} requests, {} answers",
            now.called.asked,
            now.called.answered
        );
        Ok(now)
    }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// One side. It takes a fraction of a processor, and leaves the rest to the agent.
fn steady(name: &str, place: &Place) -> Launch {
    Launch::new(name, env!("CARGO_BIN_EXE_spanwire-steady").into(), place)
}

impl Now {
    /// Nothing has gone wrong at either end, at any time.
    fn faultless(self) -> Result<Self> {
        let (at_caller, at_server) = (&self.called.faults, &self.served.faults);
        ensure!(
            at_caller.count == 0 && at_server.count == 0,
            "{} of {} requests failed, {} faults at the server; first: {:#?} {:#?}",
            at_caller.count,
            self.called.asked,
            at_server.count,
            at_caller.first,
            at_server.first
        );
        Ok(self)
    }

    pub(crate) fn heads(&self) -> u64 {
        self.served.heads.iter().sum()
    }

    pub(crate) fn requests_rewritten(&self) -> u64 {
        self.served.rewritten.iter().sum()
    }

    /// Messages that the agent of this mode has added something to.
    pub(crate) fn rewritten(&self, mode: Mode) -> u64 {
        match mode {
            Mode::First | Mode::All => self.requests_rewritten(),
            Mode::Responses => self.called.returned,
        }
    }

    /// Connections on which a message came untouched behind one that was rewritten.
    pub(crate) fn went_on(&self, mode: Mode) -> u64 {
        match mode {
            Mode::First | Mode::All => self.served.went_on.iter().sum(),
            Mode::Responses => self.called.went_on,
        }
    }

    pub(crate) fn lane(&self, lane: Lane) -> u64 {
        self.served.rewritten[lane as usize]
    }

    pub(crate) fn is_live(&self) -> Result<()> {
        ensure!(
            self.called.open >= LIVE && self.called.sending > 0,
            "only {} connections were live, {} of them in the middle of a send",
            self.called.open,
            self.called.sending
        );
        Ok(())
    }
}
