//! What the command line says over the file.

use std::path::PathBuf;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::export::endpoint;
use super::model::{Compression, Config, ExportProtocol, Exporter};
use super::parse::OFF_LOOPBACK;
use super::problem::Problem;
use super::rules::SELECTORS_MAX;
use super::selectors::Selector;
use super::value::parse_listen;

/// The flags of `spanwire run` that stand for keys of the file, as they were typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Replaces `capture.include`.
    pub include: Vec<String>,
    /// Is added to `capture.exclude`.
    pub exclude: Vec<String>,
    /// Replaces `export`.
    pub otlp: Option<String>,
    /// Sets `store.path` and enables the store.
    pub store: Option<PathBuf>,
    /// Disables the store.
    pub no_store: bool,
    /// Sets `api.listen`.
    pub listen: Option<String>,
}

/// Applies the flags. Problems are appended, the settings they are about stay as they were.
pub(super) fn apply(flags: &Flags, config: &mut Config, problems: &mut Vec<Problem>) {
    let mut refuse = |flag: &str, message: String| problems.push(Problem::named(flag, message));
    let mut selectors = |flag: &str, texts: &[String], exclude: bool| {
        let parsed = texts.iter().filter_map(|text| match Selector::parse(text, exclude) {
            Ok(selector) => Some(selector),
            Err(message) => {
                refuse(flag, message);
                None
            }
        });
        parsed.collect::<Vec<_>>()
    };
    let include = selectors("--include", &flags.include, false);
    let exclude = selectors("--exclude", &flags.exclude, true);
    if !include.is_empty() {
        config.capture.include = include;
    }
    config.capture.exclude.extend(exclude);
    for (flag, count) in [
        ("--include", config.capture.include.len()),
        ("--exclude", config.capture.exclude.len()),
    ] {
        if count > SELECTORS_MAX {
            refuse(
                flag,
                format!("expected at most {SELECTORS_MAX} items with those of the file, found {count}"),
            );
        }
    }
    if let Some(url) = &flags.otlp {
        match exporter(url) {
            Ok(exporter) => config.exporters = vec![exporter],
            Err(message) => refuse("--otlp", message),
        }
    }
    if let Some(path) = &flags.store {
        config.store.enabled = true;
        config.store.path.clone_from(path);
    }
    if flags.no_store {
        config.store.enabled = false;
    }
    match flags.listen.as_deref().map(parse_listen) {
        None => {}
        Some(Ok(address)) if !address.ip().is_loopback() && config.api.token_file.is_none() => {
            refuse("--listen", OFF_LOOPBACK.to_owned());
        }
        Some(Ok(address)) => config.api.listen = address,
        Some(Err(message)) => refuse("--listen", message),
    }
}

/// gRPC, unless port 4318 or a path for traces says HTTP.
fn exporter(url: &str) -> Result<Exporter, String> {
    let written = Endpoint::parse(url, ExportProtocol::OtlpGrpc.default_port())?;
    let http = written.port == ExportProtocol::OtlpHttp.default_port()
        || written.path.trim_end_matches('/').ends_with("/v1/traces");
    let protocol = if http {
        ExportProtocol::OtlpHttp
    } else {
        ExportProtocol::OtlpGrpc
    };
    Ok(Exporter {
        name: "otlp".to_owned(),
        protocol,
        endpoint: endpoint(url, protocol)?,
        compression: Compression::None,
        timeout: Duration::from_secs(10),
        headers: Vec::new(),
    })
}
