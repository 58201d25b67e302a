//! The section `propagate`: whose requests bear trace context, and where to.

use spanwire_common::abi::RANGES_MOST;

use super::model::{LocalRanges, Propagate, Switch};
use super::parse::{selectors, RequestKeys};
use super::reader::{Field, Reader, Section};
use super::value::AddressRange;

/// `auto`, `true` or `false`.
pub(super) fn switch(reader: &mut Reader, field: &Field<'_>) -> Switch {
    let value = field.value(reader, "auto, true or false", |text| match text {
        "auto" => Ok(Switch::Auto),
        "true" => Ok(Switch::On),
        "false" => Ok(Switch::Off),
        _ => Err("expected auto, true or false".to_owned()),
    });
    value.unwrap_or_default()
}

/// Reads the section.
pub(super) fn propagate(
    reader: &mut Reader,
    mut section: Section<'_>,
    propagate: &mut Propagate,
    local: &mut LocalRanges,
) {
    if let Some(field) = section.take(reader, "enabled") {
        propagate.enabled = switch(reader, &field);
    }
    if let Some(field) = section.take(reader, "include") {
        propagate.include = selectors(reader, &field, RequestKeys::Never);
    }
    if let Some(field) = section.take(reader, "exclude") {
        propagate.exclude = selectors(reader, &field, RequestKeys::Never);
    }
    if let Some(field) = section.take(reader, "destinations") {
        let items = field.items(reader).unwrap_or_default();
        if items.len() > RANGES_MOST {
            field.refuse(
                reader,
                format!("expected at most {RANGES_MOST} ranges, found {}", items.len()),
            );
        }
        let range = |item: &Field<'_>| item.value(reader, "an address range", AddressRange::parse);
        local.0 = items.iter().filter_map(range).collect();
    }
    section.finish(reader);
}
