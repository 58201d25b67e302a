//! `spanwire run`: brings the agent up in an order in which every refusal is one line, and takes it down again.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use serde_json::json;
use spanwire_common::abi::ExchangeRecord;
use tokio::runtime::Runtime;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::watch;

use crate::assemble::{self, Assembler, LocalAddrs};
use crate::budget::{Bounds, Budget};
use crate::config::{self, Config, RequestFacts, RunFacts, SelectorRules};
use crate::counters::{Counters, LimitDrop};
use crate::discover::addresses::NodeAddresses;
use crate::discover::{self, Discoverer, ProcRoot};
use crate::doctor;
use crate::enrich::{self, Enricher};
use crate::export::{self, ExporterSettings, Exporters, Protocol, Tuning};
use crate::pipeline::{self, Control, DataPath, Masks, Running, Sinks, Snapshot};
use crate::rewrite::{self, Modes};
use crate::sample::Sampler;
use crate::store::{QueueBounds, Retention, Store};
use crate::sys::kernel::{self, Kernel};
use crate::sys::probe::effective_capabilities;
use crate::sys::ring::Rings;
use crate::sys::selftest;
use crate::sys::types::KernelTypes;
use crate::sys::usage;
use crate::web::{ApiState, Readiness, Server};

/// How long exporters and store may take once the hooks are detached.
const FLUSH: Duration = Duration::from_secs(4);
/// Bytes of each CPU's ring: 0.1 s at 50,000 exchanges a second.
const RING_BYTES: u32 = 4 << 20;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub fn run(config: &Config, reload: impl Fn() -> Result<Config, config::ConfigError>) -> Result<()> {
    if let Some(missing) = doctor::missing_to_trace(effective_capabilities()) {
        bail!("{missing}");
    }
    usage::keep_little_memory();
    let _lock = Lock::take()?;
    let types = KernelTypes::begin();
    let bounds = Bounds::of(&config.limits);
    let store = open_store(config, &bounds)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let counters = Arc::new(Counters::new());
    let snapshot = Arc::new(Mutex::new(Snapshot::default()));
    let rules = Arc::new(SelectorRules::compile(&config.capture));
    let (stop, stopped) = watch::channel(());
    let state = api_state(config, &counters, &snapshot, store.as_ref())?;
    let servers = runtime.block_on(serve(config, state, &stopped))?;
    let exporters = {
        let _inside = runtime.enter();
        Exporters::start(&exporter_settings(config), tuning(&bounds), &counters)?
    };
    let options = kernel::Options {
        ring_bytes: ring_bytes()?,
        connections: config.limits.connections,
        port_selectors: !rules.ports().is_empty(),
        deadline_ns: deadline_ns()?,
        count_costs: std::env::var_os("SPANWIRE_COUNT_COSTS").is_some(),
        rewrite_fault: rewrite_fault()?,
    };
    let mut rewrite = rewrite::Policy::new(config);
    let loaded = types.wait().and_then(|types| {
        std::thread::scope(|scope| {
            // Each waits for the kernel more than it works.
            let test = rewrite.is_on().then(|| scope.spawn(|| selftest::run(&types)));
            let loaded = Kernel::load(&types, options);
            if let Some(test) = test {
                rewrite.allow(match test.join() {
                    Ok(test) => Modes::of(&test),
                    Err(_) => Modes::none("the self-test has failed"),
                });
            }
            loaded
        })
    });
    let (mut kernel, rings) =
        loaded.context("the kernel side does not load; `spanwire doctor` says what this node lacks")?;
    let facts = RunFacts {
        generation: 1,
        own_pid: std::process::id(),
        api_port: servers.api,
        health_port: servers.health,
    };
    for (port, value) in rules.ports() {
        kernel.set_port(port, value)?;
    }
    kernel.set_settings(config.settings(&rules, facts))?;
    let masks = Masks::default();
    let addresses = NodeAddresses::new(ProcRoot::default());
    let sinks = Sinks {
        exporters: exporters.handles(),
        store: store.clone(),
    };
    let data_path = pipeline::start(DataPath {
        kernel,
        rings: Rings::new(rings),
        rules: Arc::clone(&rules),
        sdk: config.capture.sdk,
        rewrite,
        assembler: Assembler::new(assemble_options(config, &rules, &masks, &addresses)),
        addresses,
        discoverer: Discoverer::new(ProcRoot::default(), discover::Limits::default()),
        enricher: Enricher::new(enrich_options(config)),
        sampler: Sampler::default(),
        budget: Budget::new(config.limits),
        sinks,
        counters: Arc::clone(&counters),
        masks,
        snapshot,
    })?;
    tracing::info!(api = %servers.address, "tracing");
    runtime.block_on(until_told(&data_path, reload))?;
    tracing::info!("detaching");
    data_path.stop();
    flush(&runtime, exporters, store);
    drop(stop);
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(())
}

/// Exporters and store write what they hold, beside each other.
fn flush(runtime: &Runtime, exporters: Exporters, store: Option<Arc<Store>>) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Some(store) = store.and_then(|store| Arc::try_unwrap(store).ok()) {
                if !store.close(FLUSH) {
                    tracing::warn!("the store did not take everything within {} s", FLUSH.as_secs());
                }
            }
        });
        let dropped = runtime.block_on(exporters.shutdown(FLUSH));
        if dropped > 0 {
            tracing::warn!(dropped, "spans were not exported within {} s", FLUSH.as_secs());
        }
    });
}

/// Listens for signals until one says that it is over. SIGUSR1: rewriting ends at once; SIGUSR2: the self-test runs again, and what
/// it allows begins; SIGHUP: the configuration's `propagate` and `ingress` are read again.
async fn until_told(data_path: &Running, reload: impl Fn() -> Result<Config, config::ConfigError>) -> Result<()> {
    let listen =
        |kind: SignalKind, name: &'static str| signal(kind).with_context(|| format!("cannot listen for {name}"));
    let mut terminate = listen(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = listen(SignalKind::interrupt(), "SIGINT")?;
    let mut end = listen(SignalKind::user_defined1(), "SIGUSR1")?;
    let mut begin = listen(SignalKind::user_defined2(), "SIGUSR2")?;
    let mut again = listen(SignalKind::hangup(), "SIGHUP")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = end.recv() => data_path.tell(Control::EndRewriting),
            _ = begin.recv() => data_path.tell(Control::BeginRewriting),
            _ = again.recv() => match reload() {
                Ok(config) => data_path.tell(Control::Rewrite(Box::new(rewrite::Policy::new(&config)))),
                Err(error) => tracing::error!("the configuration is not taken over, and the old one stays:\n{error}"),
            },
        }
    }
}

/// An exchange without a byte for this long is told as one that timed out.
const DEADLINE_NS: u64 = 60_000_000_000;

/// Ring size: `SPANWIRE_RING_BYTES` makes it small for tests of what an overflow does.
fn ring_bytes() -> Result<u32> {
    let Ok(text) = std::env::var("SPANWIRE_RING_BYTES") else {
        return Ok(RING_BYTES);
    };
    match text.parse::<u32>() {
        Ok(bytes) if bytes.is_power_of_two() && bytes >= 4096 => Ok(bytes),
        _ => bail!("SPANWIRE_RING_BYTES: expected a power of two of at least 4096, got {text:?}"),
    }
}

/// How long an exchange may go without a byte: `SPANWIRE_DEADLINE_S` makes it short for tests.
fn deadline_ns() -> Result<u64> {
    let Ok(text) = std::env::var("SPANWIRE_DEADLINE_S") else {
        return Ok(DEADLINE_NS);
    };
    match text.parse::<u64>() {
        Ok(seconds @ 1..=1000) => Ok(seconds * 1_000_000_000),
        _ => bail!("SPANWIRE_DEADLINE_S: expected whole seconds from 1 to 1000, got {text:?}"),
    }
}

/// A step of rewriting that is to fail: `SPANWIRE_REWRITE_FAULT` names it, for tests.
fn rewrite_fault() -> Result<kernel::RewriteFault> {
    let name = std::env::var("SPANWIRE_REWRITE_FAULT").unwrap_or_default();
    kernel::RewriteFault::named(&name).with_context(|| format!("SPANWIRE_REWRITE_FAULT: no step is called {name:?}"))
}

/// One agent per node: the file is locked as long as it runs.
struct Lock {
    _file: File,
}

/// In a folder of its own, which a container can share with its node and systemd can make for a user.
const LOCK: &str = "/run/spanwire/lock";

impl Lock {
    fn take() -> Result<Self> {
        // Tests that run agents of their own beside one another name locks of their own.
        let named = std::env::var_os("SPANWIRE_LOCK").map(PathBuf::from);
        let path = named.as_deref().unwrap_or(Path::new(LOCK));
        // Where it cannot be made, opening the file says why.
        let _ = path.parent().map(std::fs::create_dir_all);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .or_else(|_| fallback_lock())
            .with_context(|| format!("cannot open the lock {LOCK}; run as root, or make /run writable"))?;
        if file.try_lock().is_err() {
            let mut owner = String::new();
            // Unreadable means unnamed, not unlocked.
            let _ = file.read_to_string(&mut owner);
            bail!("another agent runs on this node (pid {}): stop it first", owner.trim());
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))?;
        Ok(Self { _file: file })
    }
}

/// Where /run is read-only (a container with a read-only root), the lock is in the temporary directory.
fn fallback_lock() -> std::io::Result<File> {
    let path = std::env::temp_dir().join("spanwire.lock");
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn tuning(bounds: &Bounds) -> Tuning {
    Tuning {
        queue: export::queue::Limits {
            spans: bounds.queue_spans,
            bytes: bounds.queue_bytes,
        },
        ..Tuning::default()
    }
}

fn open_store(config: &Config, bounds: &Bounds) -> Result<Option<Arc<Store>>> {
    if !config.store.enabled {
        return Ok(None);
    }
    let retention = Retention {
        age: config.store.retention.age,
        errors: config.store.retention.errors,
        size_bytes: config.store.retention.size_bytes,
    };
    let queue = QueueBounds {
        spans: bounds.queue_spans,
        bytes: bounds.queue_bytes,
    };
    let store = Store::open_bounded(&config.store.path, retention, queue)?;
    Ok(Some(Arc::new(store)))
}

fn exporter_settings(config: &Config) -> Vec<ExporterSettings> {
    let one = |exporter: &config::Exporter| ExporterSettings {
        name: exporter.name.clone(),
        protocol: match exporter.protocol {
            config::ExportProtocol::OtlpGrpc => Protocol::Grpc,
            config::ExportProtocol::OtlpHttp => Protocol::Http,
        },
        endpoint: exporter.endpoint.to_string(),
        headers: exporter
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.expose().to_owned()))
            .collect(),
        gzip: exporter.compression == config::Compression::Gzip,
        timeout: exporter.timeout,
    };
    config.exporters.iter().map(one).collect()
}

fn assemble_options(
    config: &Config,
    rules: &Arc<SelectorRules>,
    masks: &Masks,
    addresses: &NodeAddresses,
) -> assemble::Options {
    let (admitting, of_process) = (Arc::clone(rules), Arc::clone(masks));
    let (rules, masks) = (Arc::clone(rules), Arc::clone(masks));
    let exclusion = move |record: &ExchangeRecord, user_agent: Option<&str>| {
        let masks = masks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&record.pid)
            .copied()
            .unwrap_or_default();
        if masks.exclude_requests == 0 {
            return false;
        }
        let path = record.path.get(..usize::from(record.path_len)).unwrap_or_default();
        let is_server = record.side == spanwire_common::abi::side::SERVER;
        let facts = RequestFacts {
            server_port: if is_server {
                record.local_port
            } else {
                record.remote_port
            },
            path: std::str::from_utf8(path).unwrap_or_default(),
            user_agent,
        };
        rules.excludes_request(masks, &facts).is_some()
    };
    let admission = move |record: &ExchangeRecord| {
        let masks = of_process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&record.pid)
            .copied();
        masks.is_none_or(|masks| admitting.admits(masks, [record.local_port, record.remote_port]))
    };
    assemble::Options {
        keep_unclassified: config.capture.include.is_empty(),
        local: local_addrs(config, addresses),
        exclusion: Some(Box::new(exclusion)),
        max_held: Bounds::of(&config.limits).held,
        max_connections: config.limits.connections as usize,
        admission: Some(Box::new(admission)),
        ..assemble::Options::default()
    }
}

fn enrich_options(config: &Config) -> enrich::Options {
    enrich::Options {
        paths: match config.capture.paths {
            config::PathDetail::Templated => enrich::Paths::Templated,
            config::PathDetail::Raw => enrich::Paths::Raw,
            config::PathDetail::Off => enrich::Paths::Off,
        },
        client_address: match config.capture.client_address {
            config::ClientAddress::Full => enrich::ClientAddress::Full,
            config::ClientAddress::Prefix => enrich::ClientAddress::Prefix,
            config::ClientAddress::Off => enrich::ClientAddress::Off,
        },
        header_names: config
            .capture
            .headers
            .iter()
            .map(|name| name.as_str().to_owned())
            .collect(),
        node: enrich::Node {
            host_name: host_name().into(),
            distro_version: env!("CARGO_PKG_VERSION"),
        },
    }
}

fn host_name() -> String {
    let declared = std::env::var(discover::node::NODE_NAME).ok();
    discover::node::host_name(&ProcRoot::default(), declared.as_deref())
}

/// What counts as this node's and as near, by the addresses known now.
fn local_addrs(config: &Config, addresses: &NodeAddresses) -> LocalAddrs {
    LocalAddrs {
        addresses: addresses.all(),
        ranges: config.local_ranges.0.iter().map(config::AddressRange::parts).collect(),
    }
}

/// Where the API and the health listener ended up.
struct Ports {
    api: u16,
    health: u16,
    address: std::net::SocketAddr,
}

async fn serve(config: &Config, state: ApiState, stopped: &watch::Receiver<()>) -> Result<Ports> {
    let api = Server::api(config.api.listen, state.clone()).await?;
    let address = api.address()?;
    let mut ports = Ports {
        api: address.port(),
        health: 0,
        address,
    };
    let gone = |mut stopped: watch::Receiver<()>| async move { while stopped.changed().await.is_ok() {} };
    if let Some(listen) = config.health {
        let health = Server::health(listen, state).await?;
        ports.health = health.address()?.port();
        tokio::spawn(health.run(gone(stopped.clone())));
    }
    tokio::spawn(api.run(gone(stopped.clone())));
    Ok(ports)
}

fn api_state(
    config: &Config,
    counters: &Arc<Counters>,
    snapshot: &Arc<Mutex<Snapshot>>,
    store: Option<&Arc<Store>>,
) -> Result<ApiState> {
    let token = match &config.api.token_file {
        Some(path) => Some(read_token(path)?),
        None => None,
    };
    let store_stats = store.map(|store| store.stats());
    let metrics = {
        let (counters, stats) = (Arc::clone(counters), store_stats.clone());
        move || {
            if let Some(stats) = &stats {
                use std::sync::atomic::Ordering::Relaxed;
                let kept = counters.exporter("store");
                kept.sent.set(stats.sent.load(Relaxed));
                kept.failed.set(stats.failed.load(Relaxed));
                kept.dropped.set(stats.dropped.load(Relaxed));
                counters.queue("store").set(stats.queued.load(Relaxed));
            }
            counters.render()
        }
    };
    let status = {
        let (counters, snapshot, stats) = (Arc::clone(counters), Arc::clone(snapshot), store_stats.clone());
        let started_ns = kernel::monotonic_ns();
        move || {
            status(
                &counters,
                &snapshot,
                stats.as_ref().and_then(|stats| stats.problem()).as_deref(),
                started_ns,
            )
        }
    };
    let ready = {
        let snapshot = Arc::clone(snapshot);
        move || {
            let snapshot = snapshot.lock().unwrap_or_else(PoisonError::into_inner);
            let problem = store_stats.as_ref().and_then(|stats| stats.problem());
            let degradations: Vec<_> = problem
                .iter()
                .chain(&snapshot.degradations)
                .chain(&snapshot.limit_problems)
                .collect();
            Readiness {
                is_ready: snapshot.is_ready,
                body: json!({"ready": snapshot.is_ready, "family": snapshot.family, "hooks": snapshot.hooks, "degradations": degradations}),
            }
        }
    };
    Ok(ApiState {
        store: store.map(|store| store.reader()),
        metrics: Arc::new(metrics),
        status: Arc::new(status),
        ready: Arc::new(ready),
        token: token.map(Into::into),
        names: vec![host_name()],
    })
}

fn read_token(path: &PathBuf) -> Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("api.token_file: cannot read {}", path.display()))?;
    let token = text.trim();
    if token.is_empty() {
        bail!("api.token_file: {} is empty; write a token into it", path.display());
    }
    Ok(token.to_owned())
}

fn status(
    counters: &Counters,
    snapshot: &Mutex<Snapshot>,
    store_problem: Option<&str>,
    started_ns: u64,
) -> serde_json::Value {
    let snapshot = snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let processes: Vec<_> = snapshot
        .processes
        .iter()
        .map(|line| {
            json!({
                "pid": line.pid, "name": line.name, "runtime": line.runtime, "class": line.class, "why": line.why,
                "captured": line.captured, "rule": line.rule, "propagate": line.propagate, "ingress": line.ingress,
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptimeSeconds": (kernel::monotonic_ns().saturating_sub(started_ns)) / 1_000_000_000,
        "ready": snapshot.is_ready,
        "hooks": snapshot.hooks,
        "family": snapshot.family,
        "processes": processes,
        "rewriting": {
            "on": snapshot.rewriting.is_on, "reasons": snapshot.rewriting.reasons, "injections": injections(counters),
        },
        "drops": drops(counters),
        "assemble": {
            "held": snapshot.assemble.held, "settled": snapshot.assemble.settled,
            "settledEarly": snapshot.assemble.settled_early, "wireLate": snapshot.assemble.wire_late,
            "wireMissed": snapshot.assemble.wire_missed, "contradictions": snapshot.assemble.contradictions,
        },
        "limits": limits_of(&snapshot),
        "lagMilliseconds": snapshot.lag_ns / 1_000_000,
        "storeProblem": store_problem,
    })
}

/// What is used of the limits, and what is given up for them.
fn limits_of(snapshot: &Snapshot) -> serde_json::Value {
    let figures = snapshot.limits;
    let hundredths = |value: f64| (value * 100.0).round() / 100.0;
    json!({
        "memoryBytes": figures.memory_limit_bytes, "residentBytes": figures.resident_bytes,
        "cpu": figures.cpu_limit, "cpuUsed": hundredths(figures.cpu_used),
        "tracesKeptPercent": hundredths(figures.kept_share * 100.0),
        "givenUp": snapshot.limit_problems,
    })
}

/// Messages of enrolled sockets, by what became of them.
fn injections(counters: &Counters) -> serde_json::Value {
    use spanwire_common::drop::KernelCounter;
    let of = |counter| counters.kernel(counter);
    json!({
        "enrolled": of(KernelCounter::Enrolled), "requests": of(KernelCounter::Injected),
        "requestsLeftAlone": of(KernelCounter::InjectionSkipped), "requestsFailed": of(KernelCounter::InjectionFailed),
        "responses": of(KernelCounter::Returned), "responsesFailed": of(KernelCounter::ReturnFailed),
    })
}

/// Every drop reason with its count, those that happened.
fn drops(counters: &Counters) -> serde_json::Map<String, serde_json::Value> {
    use spanwire_common::drop::{KernelCounter, UserDrop};
    let kernel = KernelCounter::ALL.iter().filter_map(|counter| match counter.label() {
        _ if matches!(counter, KernelCounter::WireMatched) => None,
        ("kernel" | "opaque" | "note", reason) => Some((reason, counters.kernel(*counter))),
        _ => None,
    });
    let user = UserDrop::ALL
        .iter()
        .map(|reason| (reason.label().1, counters.dropped_total(*reason)));
    let limited = LimitDrop::ALL
        .iter()
        .map(|reason| (reason.label().1, counters.limited_total(*reason)));
    let mut drops = std::collections::BTreeMap::<_, u64>::new();
    for (reason, count) in kernel.chain(user).chain(limited).filter(|(_, count)| *count > 0) {
        // Two stages may have the same reason.
        *drops.entry(reason).or_default() += count;
    }
    drops
        .into_iter()
        .map(|(reason, count)| (reason.to_owned(), count.into()))
        .collect()
}
