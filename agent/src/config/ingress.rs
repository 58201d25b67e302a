//! The section `ingress`: whose responses bear the trace id, in which headers, and whose context is believed.

use spanwire_common::abi::{RANGES_MOST, RETURN_BYTES, RETURN_LINES};

use super::glob::Glob;
use super::model::Ingress;
use super::propagate::switch;
use super::reader::{Field, Reader, Section};
use super::value::{AddressRange, HeaderName};

/// Names that a response must not get twice, or from us.
const REFUSED: [&str; 8] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "location",
    "set-cookie",
    "trailer",
    "transfer-encoding",
];

/// Reads the section.
pub(super) fn ingress(reader: &mut Reader, mut section: Section<'_>, ingress: &mut Ingress) {
    if let Some(field) = section.take(reader, "enabled") {
        ingress.enabled = switch(reader, &field);
    }
    if let Some(field) = section.take(reader, "headers") {
        ingress.headers = headers(reader, &field);
    }
    if let Some(field) = section.take(reader, "trust") {
        let items = field.items(reader).unwrap_or_default();
        if items.len() > RANGES_MOST {
            field.refuse(
                reader,
                format!("expected at most {RANGES_MOST} ranges, found {}", items.len()),
            );
        }
        let range = |item: &Field<'_>| item.value(reader, "an address range", AddressRange::parse);
        ingress.trust = items.iter().filter_map(range).collect();
    }
    if let Some(field) = section.take(reader, "services") {
        let items = field.items(reader).unwrap_or_default();
        let name = |item: &Field<'_>| item.value(reader, "a service's name", Glob::parse);
        ingress.services = items.iter().filter_map(name).collect();
    }
    section.finish(reader);
}

fn headers(reader: &mut Reader, field: &Field<'_>) -> Vec<HeaderName> {
    let mut names: Vec<HeaderName> = Vec::new();
    for item in field.items(reader).unwrap_or_default() {
        let Some(name) = item.value(reader, "a header name", HeaderName::parse) else {
            continue;
        };
        if REFUSED.contains(&name.as_str()) {
            item.refuse(
                reader,
                "expected a header that says nothing else, server-timing for instance".to_owned(),
            );
        } else if !names.contains(&name) {
            names.push(name);
        }
    }
    // What each line takes besides its name: `: `, a traceparent, and `traceparent;desc="..."` round one of them.
    let bytes: usize = names.iter().map(|name| name.as_str().len() + 80).sum();
    if names.len() > RETURN_LINES || bytes > RETURN_BYTES {
        let message =
            format!("expected at most {RETURN_LINES} headers with names of less than {RETURN_BYTES} bytes in all");
        field.refuse(reader, message);
        names.clear();
    }
    names
}
