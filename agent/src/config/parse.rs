//! The file's keys, one function per section.

use std::time::Duration;

use spanwire_common::abi::KEPT_HEADERS;

use super::export::exporters;
use super::ingress::ingress;
use super::later::{refuse_unless_empty, sampling, Later};
use super::model::{Api, Capture, ClientAddress, Config, Limits, PathDetail, Sdk, Store, Tenant};
use super::propagate::propagate;
use super::reader::{one_of, Field, Reader, Section};
use super::rules::SELECTORS_MAX;
use super::selectors::{not_of_a_connection, only_excludes, Selector, SelectorKey};
use super::value::{parse_bool, parse_duration, parse_listen, parse_size, HeaderName, AN_ADDRESS, A_DURATION, A_SIZE};
use super::yaml::{Kind, Node};

/// A file's configuration, and whether it says anything about exporters: only without do `OTEL_*` variables count.
pub(super) struct FromFile {
    pub(super) config: Config,
    pub(super) export_given: bool,
}

/// Reads the document. Problems are left in the reader.
pub(super) fn document(reader: &mut Reader, root: &Node) -> FromFile {
    let mut config = Config::default();
    let mut export_given = false;
    if root.is_null() {
        return FromFile { config, export_given };
    }
    let Kind::Map(entries) = &root.kind else {
        reader.refuse(root.at, "", "expected a mapping of keys to values");
        return FromFile { config, export_given };
    };
    let mut section = Section::new(reader, String::new(), entries);
    if let Some(below) = section.section(reader, "capture") {
        capture(reader, below, &mut config.capture);
    }
    if let Some(below) = section.section(reader, "propagate") {
        propagate(reader, below, &mut config.propagate, &mut config.local_ranges);
    }
    if let Some(below) = section.section(reader, "ingress") {
        ingress(reader, below, &mut config.ingress);
    }
    if let Some(field) = section.take(reader, "export") {
        export_given = true;
        exporters(reader, &field, &mut config.exporters);
    }
    if let Some(below) = section.section(reader, "tenant") {
        config.tenant = tenant(reader, below, &config.capture);
    }
    if let Some(field) = section.take(reader, "route") {
        refuse_unless_empty(reader, &field, Later::Control, "routing");
    }
    if let Some(below) = section.section(reader, "sampling") {
        sampling(reader, below);
    }
    if let Some(below) = section.section(reader, "store") {
        store(reader, below, &mut config.store);
    }
    if let Some(below) = section.section(reader, "api") {
        api(reader, below, &mut config.api);
    }
    if let Some(field) = section.take(reader, "health") {
        config.health = field.value(reader, AN_ADDRESS, parse_listen);
    }
    if let Some(below) = section.section(reader, "limits") {
        limits(reader, below, &mut config.limits);
    }
    if let Some(field) = section.take(reader, "overrides") {
        refuse_unless_empty(
            reader,
            &field,
            Later::Kubernetes,
            "overriding by node, namespace, workload or pod",
        );
    }
    section.finish(reader);
    FromFile { config, export_given }
}

fn capture(reader: &mut Reader, mut section: Section<'_>, capture: &mut Capture) {
    section.set(reader, "enabled", &mut capture.enabled, "true or false", parse_bool);
    if let Some(field) = section.take(reader, "include") {
        capture.include = selectors(reader, &field, RequestKeys::OnlyExclude);
    }
    if let Some(field) = section.take(reader, "exclude") {
        capture.exclude = selectors(reader, &field, RequestKeys::Allowed);
        // Probes stay excluded unless the list is empty or speaks of user agents itself.
        let says = field.is_empty() || capture.exclude.iter().any(|item| item.user_agent.is_some());
        if !says && capture.exclude.len() < SELECTORS_MAX {
            capture.exclude.push(Selector::kube_probes());
        }
    }
    if let Some(field) = section.take(reader, "headers") {
        capture.headers = kept_headers(reader, &field);
    }
    section.set(reader, "sdk", &mut capture.sdk, "auto, keep or skip", |text| {
        choice(text, &[("auto", Sdk::Auto), ("keep", Sdk::Keep), ("skip", Sdk::Skip)])
    });
    section.set(reader, "paths", &mut capture.paths, "templated, raw or off", |text| {
        choice(
            text,
            &[
                ("templated", PathDetail::Templated),
                ("raw", PathDetail::Raw),
                ("off", PathDetail::Off),
            ],
        )
    });
    section.set(
        reader,
        "client_address",
        &mut capture.client_address,
        "full, prefix or off",
        |text| {
            choice(
                text,
                &[
                    ("full", ClientAddress::Full),
                    ("prefix", ClientAddress::Prefix),
                    ("off", ClientAddress::Off),
                ],
            )
        },
    );
    section.set(reader, "opaque", &mut capture.opaque, "true or false", parse_bool);
    section.finish(reader);
}

/// Whether a list's items may name what only a request tells (`SelectorKey::is_of_request`).
#[derive(Clone, Copy)]
pub(super) enum RequestKeys {
    Allowed,
    /// In the list beside this one they may.
    OnlyExclude,
    Never,
}

pub(super) fn selectors(reader: &mut Reader, field: &Field<'_>, requests: RequestKeys) -> Vec<Selector> {
    let items = field.items(reader).unwrap_or_default();
    if items.len() > SELECTORS_MAX {
        field.refuse(
            reader,
            format!("expected at most {SELECTORS_MAX} items, found {}", items.len()),
        );
    }
    items
        .iter()
        .filter_map(|item| selector(reader, item, requests))
        .collect()
}

fn selector(reader: &mut Reader, item: &Field<'_>, requests: RequestKeys) -> Option<Selector> {
    let mut section = item.section(reader)?;
    if item.is_empty() {
        item.refuse(
            reader,
            "expected at least one key: an empty item would match everything",
        );
        return None;
    }
    let mut selector = Selector::default();
    for key in SelectorKey::ALL {
        let refusal = match requests {
            _ if !key.is_of_request() => None,
            RequestKeys::Allowed => None,
            RequestKeys::OnlyExclude => Some(only_excludes(key)),
            RequestKeys::Never => Some(not_of_a_connection(key)),
        };
        if let Some(refusal) = refusal {
            if let Some(field) = section.take_unlisted(key.as_str()) {
                reader.refuse(field.key_at, &field.path, refusal);
            }
        } else if let Some(field) = section.take(reader, key.as_str()) {
            field.value(reader, "a value", |text| selector.set(key, text));
        }
    }
    section.finish(reader);
    // Keys without a value leave nothing to select by; bad ones have been reported.
    (selector != Selector::default()).then_some(selector)
}

fn kept_headers(reader: &mut Reader, field: &Field<'_>) -> Vec<HeaderName> {
    let mut names: Vec<HeaderName> = Vec::new();
    for item in field.items(reader).unwrap_or_default() {
        let Some(name) = item.value(reader, "a header name", HeaderName::parse_kept) else {
            continue;
        };
        if names.contains(&name) {
            item.refuse(reader, "the name stands here twice");
        } else {
            names.push(name);
        }
    }
    if names.len() > KEPT_HEADERS {
        field.refuse(
            reader,
            format!("expected at most {KEPT_HEADERS} names, found {}", names.len()),
        );
    }
    names
}

fn tenant(reader: &mut Reader, mut section: Section<'_>, capture: &Capture) -> Option<Tenant> {
    let mut name = None;
    if let Some(field) = section.take(reader, "header") {
        name = field.value(reader, "a header name", HeaderName::parse_kept);
        let full = name.as_ref().is_some_and(|name| !capture.headers.contains(name));
        if full && capture.headers.len() == KEPT_HEADERS {
            let message = format!("expected at most {KEPT_HEADERS} names together with those of capture.headers");
            field.refuse(reader, message);
        }
    }
    for (key, what) in [
        ("namespace", "taking the tenant from the namespace"),
        ("label", "taking the tenant from a label"),
        ("host", "taking the tenant from the host"),
        ("path_prefix", "taking the tenant from the path"),
    ] {
        if let Some(field) = section.take(reader, key) {
            let message = Later::Control.refuses(what);
            reader.refuse(field.key_at, &field.path, format!("{message}; expected header"));
        }
    }
    section.finish(reader);
    name.map(Tenant::Header)
}

fn store(reader: &mut Reader, mut section: Section<'_>, store: &mut Store) {
    section.set(reader, "enabled", &mut store.enabled, "true or false", parse_bool);
    section.set(reader, "path", &mut store.path, "a directory", |text| match text {
        "" => Err("expected a directory".to_owned()),
        _ => Ok(text.into()),
    });
    if let Some(mut below) = section.section(reader, "retention") {
        let retention = &mut store.retention;
        let positive = |text: &str| at_least(parse_duration(text)?, Duration::from_secs(1), "1s");
        below.set(reader, "age", &mut retention.age, A_DURATION, positive);
        match below.take(reader, "errors") {
            None => retention.errors = retention.errors.max(retention.age),
            Some(field) => {
                let age = retention.age;
                let errors = field.value(reader, A_DURATION, |text| {
                    at_least(positive(text)?, age, "retention.age")
                });
                retention.errors = errors.unwrap_or(retention.errors);
            }
        }
        below.set(reader, "size", &mut retention.size_bytes, A_SIZE, |text| {
            at_least(parse_size(text)?, 16 << 20, "16MiB")
        });
        below.finish(reader);
    }
    section.finish(reader);
}

fn api(reader: &mut Reader, mut section: Section<'_>, api: &mut Api) {
    let listen = section.take(reader, "listen");
    if let Some(field) = &listen {
        api.listen = field.value(reader, AN_ADDRESS, parse_listen).unwrap_or(api.listen);
    }
    if let Some(field) = section.take(reader, "token_file") {
        api.token_file = field.value(reader, "a file", |text| match text {
            "" => Err("expected a file".to_owned()),
            _ => Ok(text.into()),
        });
    }
    if let Some(field) = listen.filter(|_| !api.listen.ip().is_loopback() && api.token_file.is_none()) {
        field.refuse(reader, OFF_LOOPBACK);
    }
    section.finish(reader);
}

/// Why an address is refused; also said of `--listen`.
pub(super) const OFF_LOOPBACK: &str =
    "expected a loopback address: off loopback a bearer token file is required (api.token_file)";

fn limits(reader: &mut Reader, mut section: Section<'_>, limits: &mut Limits) {
    section.set(reader, "memory", &mut limits.memory_bytes, A_SIZE, |text| {
        at_least(parse_size(text)?, 64 << 20, "64MiB")
    });
    section.set(
        reader,
        "cpu",
        &mut limits.cpu,
        "a number of processors such as 0.5",
        |text| match text.parse::<f64>() {
            Ok(cpu) if (0.05..=1024.0).contains(&cpu) => Ok(cpu),
            _ => Err("expected a number of processors such as 0.5, at least 0.05".to_owned()),
        },
    );
    section.set(
        reader,
        "connections",
        &mut limits.connections,
        "a number of connections",
        |text| match text.parse() {
            Ok(connections) if (1024..=4_194_304).contains(&connections) => Ok(connections),
            _ => Err("expected a number of connections from 1024 to 4194304".to_owned()),
        },
    );
    section.finish(reader);
}

pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let chosen = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    chosen.ok_or_else(|| {
        format!(
            "expected {}",
            one_of(&choices.iter().map(|(name, _)| *name).collect::<Vec<_>>())
        )
    })
}

pub(super) fn at_least<T: PartialOrd + Copy>(value: T, least: T, shown: &str) -> Result<T, String> {
    if value >= least {
        Ok(value)
    } else {
        Err(format!("expected at least {shown}"))
    }
}
