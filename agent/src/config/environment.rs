//! `OTEL_EXPORTER_OTLP_*`: honoured when neither the file nor a flag names an exporter, as SDK users expect
//! (OpenTelemetry specification, "OTLP exporter configuration"). A `..._TRACES_...` variable wins over the general one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::export::{endpoint, header_value};
use super::model::{Compression, ExportProtocol, Exporter};
use super::problem::Problem;
use super::value::{HeaderName, Secret};

/// The variables a configuration may depend on; tests make their own.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// This process's own `OTEL_EXPORTER_OTLP_*` variables.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("OTEL_EXPORTER_OTLP_"))
            .collect()
    }

    /// The variable that counts for traces: its name and value. Empty means unset.
    fn variable(&self, suffix: &str) -> Option<(String, &str)> {
        let names = [
            format!("OTEL_EXPORTER_OTLP_TRACES_{suffix}"),
            format!("OTEL_EXPORTER_OTLP_{suffix}"),
        ];
        names.into_iter().find_map(|name| {
            let value = self.0.get(&name)?.trim();
            (!value.is_empty()).then_some((name, value))
        })
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// The exporter the environment asks for, if it names an endpoint. Problems are appended.
pub(super) fn exporter(environment: &Environment, problems: &mut Vec<Problem>) -> Option<Exporter> {
    let (endpoint_name, url) = environment.variable("ENDPOINT")?;
    let protocol = read(environment, "PROTOCOL", problems, protocol).unwrap_or_else(|| protocol_of(url));
    let endpoint = match traces_endpoint(&endpoint_name, url, protocol) {
        Ok(endpoint) => Some(endpoint),
        Err(message) => {
            problems.push(Problem::named(endpoint_name, message));
            None
        }
    };
    let compression = read(environment, "COMPRESSION", problems, |text| match text {
        "none" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        _ => Err("expected none or gzip".to_owned()),
    });
    let timeout = read(environment, "TIMEOUT", problems, |text| match text.parse() {
        Ok(millis) if millis > 0 => Ok(Duration::from_millis(millis)),
        _ => Err("expected milliseconds".to_owned()),
    });
    let headers = read(environment, "HEADERS", problems, headers);
    Some(Exporter {
        name: "environment".to_owned(),
        protocol,
        endpoint: endpoint?,
        compression: compression.unwrap_or_default(),
        timeout: timeout.unwrap_or(Duration::from_secs(10)),
        headers: headers.unwrap_or_default(),
    })
}

fn read<T>(
    environment: &Environment,
    suffix: &str,
    problems: &mut Vec<Problem>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    let (name, text) = environment.variable(suffix)?;
    match parse(text) {
        Ok(value) => Some(value),
        Err(message) => {
            problems.push(Problem::named(name, message));
            None
        }
    }
}

fn protocol(text: &str) -> Result<ExportProtocol, String> {
    match text {
        "grpc" => Ok(ExportProtocol::OtlpGrpc),
        "http/protobuf" => Ok(ExportProtocol::OtlpHttp),
        "http/json" => Err(
            "http/json is not built yet: it comes with the control capability; expected grpc or http/protobuf"
                .to_owned(),
        ),
        _ => Err("expected grpc or http/protobuf".to_owned()),
    }
}

/// Without a protocol the specification says http/protobuf; port 4317 can only mean gRPC.
fn protocol_of(url: &str) -> ExportProtocol {
    match Endpoint::parse(url, ExportProtocol::OtlpHttp.default_port()) {
        Ok(endpoint) if endpoint.port == ExportProtocol::OtlpGrpc.default_port() => ExportProtocol::OtlpGrpc,
        _ => ExportProtocol::OtlpHttp,
    }
}

/// The general variable is a base URL, the one for traces is taken as it is.
fn traces_endpoint(name: &str, url: &str, protocol: ExportProtocol) -> Result<Endpoint, String> {
    let as_it_is = name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" && protocol == ExportProtocol::OtlpHttp;
    if as_it_is {
        return Endpoint::parse(url, protocol.default_port());
    }
    endpoint(url, protocol)
}

/// `key=value,key=value`, values percent-encoded (W3C Baggage).
fn headers(text: &str) -> Result<Vec<(HeaderName, Secret)>, String> {
    let pair = |part: &str| {
        let (name, value) = part
            .split_once('=')
            .ok_or("expected key=value pairs, separated by commas")?;
        let name = HeaderName::parse(name.trim())?;
        let value = percent_decoded(value.trim()).ok_or("expected percent-encoded values")?;
        Ok((name, header_value(&value)?))
    };
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(pair)
        .collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    fn exporter_of(variables: &[(&str, &str)]) -> (Option<Exporter>, Vec<String>) {
        let mut problems = Vec::new();
        let environment = variables
            .iter()
            .map(|(name, value)| (format!("OTEL_EXPORTER_OTLP_{name}"), (*value).to_owned()))
            .collect();
        let exporter = exporter(&environment, &mut problems);
        (exporter, problems.iter().map(ToString::to_string).collect())
    }

    fn url_of(variables: &[(&str, &str)]) -> (ExportProtocol, String) {
        let (exporter, problems) = exporter_of(variables);
        assert_eq!(problems, Vec::<String>::new());
        let exporter = exporter.unwrap();
        (exporter.protocol, exporter.endpoint.to_string())
    }

    #[test]
    fn nothing_asked_for() {
        assert_eq!(
            exporter_of(&[("HEADERS", "a=b"), ("PROTOCOL", "nonsense")]),
            (None, vec![])
        );
        assert_eq!(exporter_of(&[("ENDPOINT", " ")]), (None, vec![]));
    }

    #[test]
    fn the_general_endpoint_is_a_base() {
        use ExportProtocol::{OtlpGrpc, OtlpHttp};
        for (variables, protocol, url) in [
            (vec![("ENDPOINT", "http://c:4318")], OtlpHttp, "http://c:4318/v1/traces"),
            (vec![("ENDPOINT", "http://c:4317")], OtlpGrpc, "http://c:4317/"),
            (
                vec![("ENDPOINT", "http://c:4317"), ("PROTOCOL", "http/protobuf")],
                OtlpHttp,
                "http://c:4317/v1/traces",
            ),
            (
                vec![("ENDPOINT", "http://c"), ("PROTOCOL", "grpc")],
                OtlpGrpc,
                "http://c:4317/",
            ),
            (
                vec![("ENDPOINT", "http://c/otlp")],
                OtlpHttp,
                "http://c:4318/otlp/v1/traces",
            ),
        ] {
            assert_eq!(url_of(&variables), (protocol, url.to_owned()), "{variables:?}");
        }
    }

    #[test]
    fn the_endpoint_for_traces_is_taken_as_it_is() {
        let both = [("ENDPOINT", "http://a:1"), ("TRACES_ENDPOINT", "http://b:2/in")];
        assert_eq!(url_of(&both), (ExportProtocol::OtlpHttp, "http://b:2/in".to_owned()));
        assert_eq!(url_of(&[("TRACES_ENDPOINT", "http://b:2")]).1, "http://b:2/");
    }

    #[test]
    fn the_rest_is_read() {
        let (exporter, problems) = exporter_of(&[
            ("ENDPOINT", "http://c:4318"),
            ("HEADERS", "x-a=1"),
            ("TRACES_HEADERS", "Authorization=Basic%20abc%3D, x-team = shop"),
            ("COMPRESSION", "gzip"),
            ("TIMEOUT", "2500"),
        ]);
        let exporter = exporter.unwrap();
        assert!(problems.is_empty());
        let shown: Vec<_> = exporter
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()))
            .collect();
        assert_eq!(shown, [("authorization", "Basic abc="), ("x-team", "shop")]);
        assert_eq!(exporter.compression, Compression::Gzip);
        assert_eq!(exporter.timeout, Duration::from_millis(2500));
    }

    #[test]
    fn bad_values_name_their_variable_and_no_secret() {
        let (exporter, problems) = exporter_of(&[
            ("ENDPOINT", "c:4318"),
            ("PROTOCOL", "http/json"),
            ("HEADERS", "hunter2"),
            ("TRACES_TIMEOUT", "10s"),
            ("COMPRESSION", "zstd"),
        ]);
        assert_eq!(exporter, None);
        assert_eq!(
            problems,
            [
                "OTEL_EXPORTER_OTLP_PROTOCOL: http/json is not built yet: it comes with the control capability; \
                 expected grpc or http/protobuf",
                "OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL that begins with http:// or https://",
                "OTEL_EXPORTER_OTLP_COMPRESSION: expected none or gzip",
                "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: expected milliseconds",
                "OTEL_EXPORTER_OTLP_HEADERS: expected key=value pairs, separated by commas",
            ]
        );
    }
}
