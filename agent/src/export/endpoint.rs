//! An exporter's settings, checked once: address and headers.

use std::fmt;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use thiserror::Error;

/// What OTLP/HTTP appends to a base URL.
const TRACES_PATH: &str = "/v1/traces";

/// How an exporter speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP/1.1, binary protobuf.
    Http,
}

/// One configured exporter.
#[derive(Clone, PartialEq, Eq)]
pub struct ExporterSettings {
    /// Label in metrics and logs.
    pub name: String,
    pub protocol: Protocol,
    /// `http://HOST:PORT` or `https://HOST:PORT`; for HTTP also with a path.
    pub endpoint: String,
    /// Sent with every request. Values are secrets: they are never logged.
    pub headers: Vec<(String, String)>,
    pub gzip: bool,
    /// For one attempt, from connecting to the end of the answer.
    pub timeout: Duration,
}

impl fmt::Debug for ExporterSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header_names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("ExporterSettings")
            .field("name", &self.name)
            .field("protocol", &self.protocol)
            .field(
                "endpoint",
                &self
                    .endpoint
                    .parse::<Uri>()
                    .map_or_else(|_| String::new(), |uri| shown(&uri)),
            )
            .field("header_names", &header_names)
            .field("gzip", &self.gzip)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Why an exporter cannot be started. Messages name the exporter and no value of a header or query.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ExportError {
    #[error("exporter {name}: endpoint is not a URL ({problem}): write http://HOST:PORT or https://HOST:PORT")]
    NotAUrl { name: String, problem: String },
    #[error("exporter {name}: endpoint has a user or password before the @: put credentials into headers")]
    Credentials { name: String },
    #[error("exporter {name}: a gRPC endpoint has no path: write {expected}, or use otlp_http for a base URL")]
    GrpcPath { name: String, expected: String },
    #[error("exporter {name}: header {header} {problem}")]
    Header {
        name: String,
        header: String,
        problem: &'static str,
    },
    #[error("exporter {name}: timeout must be longer than 0s")]
    Timeout { name: String },
    #[error("exporter {name}: two exporters have this name: give each its own")]
    NameTwice { name: String },
    #[error("exporter {name}: no trusted certificates for https ({problem}): install ca-certificates, or point SSL_CERT_FILE at a PEM bundle")]
    NoCertificates { name: String, problem: String },
}

/// Where requests go and what each carries. No `Debug`: a query may hold a key.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) uri: Uri,
    /// Marked sensitive.
    pub(super) headers: HeaderMap,
}

impl Endpoint {
    pub(super) fn parse(settings: &ExporterSettings) -> Result<Self, ExportError> {
        if settings.timeout.is_zero() {
            return Err(ExportError::Timeout {
                name: settings.name.clone(),
            });
        }
        let uri = parse_url(&settings.name, settings.endpoint.trim())?;
        let uri = match settings.protocol {
            Protocol::Grpc => check_grpc(&settings.name, uri)?,
            Protocol::Http => with_traces_path(&settings.name, uri)?,
        };
        Ok(Self {
            uri,
            headers: parse_headers(settings)?,
        })
    }

    pub(super) fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// For logs: without query, which may hold a key.
    pub(super) fn shown(&self) -> String {
        shown(&self.uri)
    }
}

fn shown(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", uri.scheme_str().unwrap_or_default(), uri.path())
}

fn parse_url(name: &str, endpoint: &str) -> Result<Uri, ExportError> {
    let not_a_url = |problem: &str| ExportError::NotAUrl {
        name: name.to_owned(),
        problem: problem.to_owned(),
    };
    let uri: Uri = endpoint
        .parse()
        .map_err(|error: http::uri::InvalidUri| not_a_url(&error.to_string()))?;
    match uri.scheme_str() {
        Some("http" | "https") => {}
        Some(_) => return Err(not_a_url("its scheme is neither http nor https")),
        None => return Err(not_a_url("it has no scheme")),
    }
    let Some(authority) = uri.authority() else {
        return Err(not_a_url("it has no host"));
    };
    if authority.as_str().contains('@') {
        return Err(ExportError::Credentials { name: name.to_owned() });
    }
    if authority.host().is_empty() {
        return Err(not_a_url("it has no host"));
    }
    let port_given = authority.as_str().len() > authority.host().len();
    if port_given && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(not_a_url("its port is not one of 1 to 65535"));
    }
    Ok(uri)
}

fn check_grpc(name: &str, uri: Uri) -> Result<Uri, ExportError> {
    if uri.path() == "/" && uri.query().is_none() {
        return Ok(uri);
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let expected = format!("{}://{authority}", uri.scheme_str().unwrap_or("http"));
    Err(ExportError::GrpcPath {
        name: name.to_owned(),
        expected,
    })
}

/// Appends `/v1/traces` to the path, before the query, unless the path already ends so.
fn with_traces_path(name: &str, uri: Uri) -> Result<Uri, ExportError> {
    let base = uri.path().trim_end_matches('/');
    let path = if base.ends_with(TRACES_PATH) {
        base.to_owned()
    } else {
        format!("{base}{TRACES_PATH}")
    };
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let not_a_url = |problem: String| ExportError::NotAUrl {
        name: name.to_owned(),
        problem,
    };
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(
        path_and_query
            .parse::<PathAndQuery>()
            .map_err(|error| not_a_url(error.to_string()))?,
    );
    Uri::from_parts(parts).map_err(|error| not_a_url(error.to_string()))
}

fn parse_headers(settings: &ExporterSettings) -> Result<HeaderMap, ExportError> {
    let mut headers = HeaderMap::new();
    for (key, value) in &settings.headers {
        let wrong = |problem| ExportError::Header {
            name: settings.name.clone(),
            header: super::retry::printable(key),
            problem,
        };
        let key: HeaderName = key.trim().parse().map_err(|_| wrong("is not a header name"))?;
        if is_ours(&key) {
            return Err(wrong("is set by the exporter itself: remove it"));
        }
        let mut value = HeaderValue::from_str(value.trim())
            .map_err(|_| wrong("has a value with characters that a header cannot have"))?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    Ok(headers)
}

/// Headers that frame a request: a second one would make it invalid, or another request.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    let framing = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    framing.contains(&name) || name.starts_with("grpc-")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]

    use super::*;

    fn settings(protocol: Protocol, endpoint: &str) -> ExporterSettings {
        ExporterSettings {
            name: "main".to_owned(),
            protocol,
            endpoint: endpoint.to_owned(),
            headers: Vec::new(),
            gzip: false,
            timeout: Duration::from_secs(10),
        }
    }

    fn refusal(settings: &ExporterSettings) -> ExportError {
        Endpoint::parse(settings).err().unwrap()
    }

    fn parse(protocol: Protocol, endpoint: &str) -> Result<String, ExportError> {
        Endpoint::parse(&settings(protocol, endpoint)).map(|endpoint| endpoint.uri.to_string())
    }

    #[test]
    fn http_endpoints_get_the_traces_path_once() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/v1/traces/", "http://127.0.0.1:4318/v1/traces"),
            (
                "https://otlp.example.com/otlp",
                "https://otlp.example.com/otlp/v1/traces",
            ),
            (
                "https://otlp.example.com/otlp/v1/traces?key=k",
                "https://otlp.example.com/otlp/v1/traces?key=k",
            ),
            (
                "https://otlp.example.com?key=k",
                "https://otlp.example.com/v1/traces?key=k",
            ),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(parse(Protocol::Http, endpoint).as_deref(), Ok(expected), "{endpoint}");
        }
    }

    #[test]
    fn grpc_endpoints_are_a_host_and_a_port() {
        for endpoint in [
            "http://127.0.0.1:4317",
            "http://127.0.0.1:4317/",
            "https://otlp.example.com",
        ] {
            assert!(parse(Protocol::Grpc, endpoint).is_ok(), "{endpoint}");
        }
        let error = parse(Protocol::Grpc, "http://127.0.0.1:4318/v1/traces").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("write http://127.0.0.1:4318, or use otlp_http"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_a_url_is_refused_with_the_remedy() {
        for endpoint in [
            "",
            "localhost:4317",
            "ftp://a:1",
            "unix:///run/a",
            "http://",
            "http://a b",
            "http://:4317",
            "http://a:99999",
            "http://a:0",
            "/v1/traces",
        ] {
            for protocol in [Protocol::Grpc, Protocol::Http] {
                let error = parse(protocol, endpoint).unwrap_err();
                assert!(
                    error.to_string().contains("write http://HOST:PORT"),
                    "{endpoint}: {error}"
                );
            }
        }
    }

    #[test]
    fn secrets_are_in_no_message() {
        let mut settings = settings(Protocol::Http, "https://a.example/x?key=hunter2");
        settings
            .headers
            .push(("authorization".to_owned(), "Bearer hunter2".to_owned()));
        let endpoint = Endpoint::parse(&settings).unwrap();
        let shown = format!("{settings:?} {} {:?}", endpoint.shown(), endpoint.headers);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(endpoint.shown(), "https://a.example/x/v1/traces");
        settings.headers[0].1 = "hunter2\n".repeat(2);
        assert!(!refusal(&settings).to_string().contains("hunter2"));
        settings.endpoint = "https://user:hunter2@a.example".to_owned();
        let error = refusal(&settings);
        assert_eq!(
            error,
            ExportError::Credentials {
                name: "main".to_owned()
            }
        );
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn headers_that_cannot_be_sent_are_refused() {
        for (key, value) in [
            ("", "a"),
            ("a b", "a"),
            ("content-length", "1"),
            ("Host", "a"),
            ("grpc-timeout", "1S"),
            ("x", "a\0"),
        ] {
            let mut settings = settings(Protocol::Grpc, "http://a:4317");
            settings.headers.push((key.to_owned(), value.to_owned()));
            assert!(
                matches!(Endpoint::parse(&settings), Err(ExportError::Header { .. })),
                "{key}"
            );
        }
        let mut settings = settings(Protocol::Grpc, "http://a:4317");
        settings.headers.push(("X-Scope-OrgID".to_owned(), " acme ".to_owned()));
        assert_eq!(Endpoint::parse(&settings).unwrap().headers["x-scope-orgid"], "acme");
    }

    #[test]
    fn a_timeout_of_nothing_is_refused() {
        let mut settings = settings(Protocol::Grpc, "http://a:4317");
        settings.timeout = Duration::ZERO;
        assert_eq!(
            refusal(&settings),
            ExportError::Timeout {
                name: "main".to_owned()
            }
        );
    }
}
