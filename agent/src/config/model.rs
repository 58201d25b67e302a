//! The configuration as valid types. `Default` is what holds with no file at all.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::glob::Glob;
use super::selectors::Selector;
use super::value::{AddressRange, HeaderName, Secret};

/// A whole, valid configuration.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Config {
    pub capture: Capture,
    pub propagate: Propagate,
    pub ingress: Ingress,
    /// `propagate.destinations`: what counts as inside; also decides `root` against `unknown (remote)`.
    pub local_ranges: LocalRanges,
    pub exporters: Vec<Exporter>,
    pub tenant: Option<Tenant>,
    pub store: Store,
    pub api: Api,
    /// `/healthz`, `/readyz` and `/metrics` only.
    pub health: Option<SocketAddr>,
    pub limits: Limits,
}

/// What is captured, and what of it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    pub enabled: bool,
    /// None: everything.
    pub include: Vec<Selector>,
    /// Wins over `include`.
    pub exclude: Vec<Selector>,
    /// Request headers kept by name, without doubles. Their order is what `TextRecord::index` counts.
    pub headers: Vec<HeaderName>,
    pub paths: PathDetail,
    pub client_address: ClientAddress,
    /// Calls on protocols not understood, made while serving a traced request, are spans.
    pub opaque: bool,
    /// Calls of which the application's own SDK makes a span, too.
    pub sdk: Sdk,
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            enabled: true,
            include: Vec::new(),
            exclude: vec![Selector::kube_probes()],
            headers: Vec::new(),
            paths: PathDetail::Templated,
            client_address: ClientAddress::Prefix,
            opaque: true,
            sdk: Sdk::default(),
        }
    }
}

/// What becomes of the spans of calls that an application's own SDK tells of as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sdk {
    /// They are left out where the SDK has the trace sampled and the process is seen to export spans, else kept.
    #[default]
    Auto,
    Keep,
    Skip,
}

/// Whether something is done, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Switch {
    /// Wherever this node's self-test found it to be without harm.
    #[default]
    Auto,
    /// Also where `auto` leaves it out.
    On,
    Off,
}

/// Trace context in the headers of requests that leave.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Propagate {
    pub enabled: Switch,
    /// Processes; none: every captured one.
    pub include: Vec<Selector>,
    /// Wins over `include`.
    pub exclude: Vec<Selector>,
}

/// Trace ids in responses to clients that nobody traces.
#[derive(Clone, Debug, PartialEq)]
pub struct Ingress {
    pub enabled: Switch,
    /// Names of the header lines that bear the trace id, without doubles.
    pub headers: Vec<HeaderName>,
    /// Peers whose inbound context is adopted; none: every peer's.
    pub trust: Vec<AddressRange>,
    /// Services (by name) whose responses bear the trace id whoever asks.
    pub services: Vec<Glob>,
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            enabled: Switch::Auto,
            headers: vec![HeaderName::server_timing()],
            trust: Vec::new(),
            services: Vec::new(),
        }
    }
}

/// How much of a request's path a span carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PathDetail {
    /// Ids, addresses and the like replaced by placeholders.
    #[default]
    Templated,
    /// As it came, without the query: a named exception to AC-007.
    Raw,
    Off,
}

/// How much of a client's address a span carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClientAddress {
    Full,
    /// Private ranges whole, others cut to /24 or /48.
    #[default]
    Prefix,
    Off,
}

/// Address ranges that count as inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRanges(pub Vec<AddressRange>);

impl LocalRanges {
    /// True if the address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }
}

impl Default for LocalRanges {
    fn default() -> Self {
        Self(AddressRange::private())
    }
}

/// One destination for spans, with its own bounded queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exporter {
    /// Unique; the `exporter` label of the self-metrics.
    pub name: String,
    pub protocol: ExportProtocol,
    /// For `OtlpHttp` the full URL of the traces endpoint; for `OtlpGrpc` without a path.
    pub endpoint: Endpoint,
    pub compression: Compression,
    pub timeout: Duration,
    /// Sent with every request: names in lower case.
    pub headers: Vec<(HeaderName, Secret)>,
}

/// How spans are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportProtocol {
    OtlpGrpc,
    /// Protobuf over HTTP/1.1.
    OtlpHttp,
}

impl ExportProtocol {
    /// OTLP's port for it.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::OtlpGrpc => 4317,
            Self::OtlpHttp => 4318,
        }
    }

    /// As the configuration writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OtlpGrpc => "otlp_grpc",
            Self::OtlpHttp => "otlp_http",
        }
    }
}

/// Compression of export requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    Gzip,
}

/// Where a trace's tenant comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// The value of this request header.
    Header(HeaderName),
}

/// The embedded store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    pub enabled: bool,
    /// A directory.
    pub path: PathBuf,
    pub retention: Retention,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            enabled: true,
            path: PathBuf::from("/var/lib/spanwire"),
            retention: Retention::default(),
        }
    }
}

/// What the store forgets, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Traces older than this go.
    pub age: Duration,
    /// Traces with an error stay this long; never less than `age`.
    pub errors: Duration,
    /// Above this size the oldest traces go, errors or not.
    pub size_bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age: Duration::from_hours(24),
            errors: Duration::from_hours(14 * 24),
            size_bytes: 1 << 30,
        }
    }
}

/// The HTTP API and the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    pub listen: SocketAddr,
    /// Holds the bearer token every request must carry; present whenever `listen` is not loopback.
    pub token_file: Option<PathBuf>,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4319)),
            token_file: None,
        }
    }
}

/// What the agent may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub memory_bytes: u64,
    /// Processors, 0.5 is half of one.
    pub cpu: f64,
    /// Connections followed at once: sizes the kernel side's tables.
    pub connections: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            cpu: 0.5,
            connections: 65_536,
        }
    }
}
