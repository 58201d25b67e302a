//! The section `export`: where spans are sent to.

use std::time::Duration;

use super::endpoint::Endpoint;
use super::later::Later;
use super::model::{Compression, ExportProtocol, Exporter};
use super::parse::{at_least, choice};
use super::reader::{Field, Reader};
use super::value::{parse_duration, HeaderName, Secret, A_DURATION};

pub(super) fn exporters(reader: &mut Reader, field: &Field<'_>, exporters: &mut Vec<Exporter>) {
    for item in field.items(reader).unwrap_or_default() {
        let Some(exporter) = exporter(reader, &item) else {
            continue;
        };
        if exporters.iter().any(|other| other.name == exporter.name) {
            item.refuse(
                reader,
                format!("expected a name of its own: \"{}\" is taken", exporter.name),
            );
        } else {
            exporters.push(exporter);
        }
    }
}

fn exporter(reader: &mut Reader, item: &Field<'_>) -> Option<Exporter> {
    let mut section = item.section(reader)?;
    let mut name = "main".to_owned();
    section.set(reader, "name", &mut name, "a name", exporter_name);
    let mut protocol = ExportProtocol::OtlpGrpc;
    section.set(
        reader,
        "protocol",
        &mut protocol,
        "otlp_grpc or otlp_http",
        export_protocol,
    );
    let url = section.take(reader, "endpoint");
    let endpoint = match &url {
        Some(url) => url.private_value(reader, "a URL", |text| endpoint(text, protocol)),
        None => default_endpoint(protocol),
    };
    let mut compression = Compression::None;
    section.set(reader, "compression", &mut compression, "none or gzip", |text| {
        choice(text, &[("none", Compression::None), ("gzip", Compression::Gzip)])
    });
    let mut timeout = Duration::from_secs(10);
    section.set(reader, "timeout", &mut timeout, A_DURATION, |text| {
        at_least(parse_duration(text)?, Duration::from_millis(1), "1ms")
    });
    let mut headers = Vec::new();
    if let Some(mut below) = section.section(reader, "headers") {
        for field in below.rest() {
            if let Some(header) = export_header(reader, &field) {
                headers.push(header);
            }
        }
    }
    section.finish(reader);
    Some(Exporter {
        name,
        protocol,
        endpoint: endpoint?,
        compression,
        timeout,
        headers,
    })
}

fn exporter_name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > 63 || !text.bytes().all(fits) {
        return Err("expected a name of 1 to 63 letters, digits, dots, dashes or underscores".to_owned());
    }
    if text == "store" {
        return Err("expected another name: \"store\" is the embedded store's in the metrics".to_owned());
    }
    Ok(text.to_owned())
}

fn export_protocol(text: &str) -> Result<ExportProtocol, String> {
    match text {
        "otlp_http_json" | "zipkin" | "kafka" | "file" | "stdout" => {
            let message = Later::Control.refuses(&format!("exporting by {text}"));
            Err(format!("{message}; expected otlp_grpc or otlp_http"))
        }
        _ => choice(
            text,
            &[
                ("otlp_grpc", ExportProtocol::OtlpGrpc),
                ("otlp_http", ExportProtocol::OtlpHttp),
            ],
        ),
    }
}

/// Reads an exporter's URL. For OTLP over HTTP it is a base that `/v1/traces` is appended to.
pub(super) fn endpoint(text: &str, protocol: ExportProtocol) -> Result<Endpoint, String> {
    let endpoint = Endpoint::parse(text, protocol.default_port())?;
    match protocol {
        ExportProtocol::OtlpHttp => Ok(endpoint.with_traces_path()),
        ExportProtocol::OtlpGrpc if endpoint.path == "/" => Ok(endpoint),
        ExportProtocol::OtlpGrpc => {
            Err("expected a URL without a path: otlp_grpc takes none, otlp_http does".to_owned())
        }
    }
}

/// A collector on this machine.
fn default_endpoint(protocol: ExportProtocol) -> Option<Endpoint> {
    endpoint("http://127.0.0.1", protocol).ok()
}

fn export_header(reader: &mut Reader, field: &Field<'_>) -> Option<(HeaderName, Secret)> {
    let key = field.path.rsplit('.').next().unwrap_or_default();
    let name = match HeaderName::parse(key) {
        Ok(name) => name,
        Err(message) => {
            reader.refuse(field.key_at, &field.path, message);
            return None;
        }
    };
    let value = field.private_value(reader, "the header's value", header_value)?;
    Some((name, value))
}

/// Reads a header's value: visible ASCII and spaces. The message never repeats it.
pub(super) fn header_value(text: &str) -> Result<Secret, String> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(Secret::new(text.trim()));
    }
    Err("expected a value of visible ASCII characters".to_owned())
}
