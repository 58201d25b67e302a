//! Where an exporter sends to.

use std::fmt;

use http::Uri;

/// An `http` or `https` URL in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https`.
    pub tls: bool,
    /// Name or address; IPv6 addresses in brackets, as a Host header writes them.
    pub host: String,
    pub port: u16,
    /// Begins with `/`.
    pub path: String,
}

impl Endpoint {
    /// Reads a URL. The port defaults to `default_port`, whatever the scheme: OTLP has ports of its own.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let expected = || "expected a URL such as http://127.0.0.1:4317".to_owned();
        if text.contains('#') {
            return Err("expected a URL without a fragment".to_owned());
        }
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err("expected a URL that begins with http:// or https://".to_owned()),
        };
        let authority = uri.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err("expected a URL without user and password: credentials belong into headers".to_owned());
        }
        if uri.query().is_some() {
            return Err("expected a URL without a query".to_owned());
        }
        let written_port = authority
            .as_str()
            .rsplit_once(':')
            .filter(|(_, port)| !port.ends_with(']'));
        let port = match (written_port, authority.port_u16()) {
            (None, _) => default_port,
            (Some(_), Some(port)) if port > 0 => port,
            (Some(_), _) => return Err("expected a port from 1 to 65535 in the URL".to_owned()),
        };
        if authority.host().is_empty() {
            return Err(expected());
        }
        Ok(Self {
            tls,
            host: authority.host().to_owned(),
            port,
            path: uri.path().to_owned(),
        })
    }

    /// The same server with OTLP's path for traces appended, unless the path already ends so.
    #[must_use]
    pub fn with_traces_path(mut self) -> Self {
        const TRACES: &str = "/v1/traces";
        let base = self.path.trim_end_matches('/');
        self.path = if base.ends_with(TRACES) {
            base.to_owned()
        } else {
            format!("{base}{TRACES}")
        };
        self
    }

    /// `http://host:port`, without the path.
    pub fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn reads_urls() {
        let shown = |text| Endpoint::parse(text, 4317).unwrap().to_string();
        assert_eq!(shown("http://127.0.0.1:4317"), "http://127.0.0.1:4317/");
        assert_eq!(shown("https://otel.example"), "https://otel.example:4317/");
        assert_eq!(shown("http://[::1]:9/x"), "http://[::1]:9/x");
        assert_eq!(shown("http://[::1]"), "http://[::1]:4317/");
    }

    #[test]
    fn appends_the_path_for_traces_once() {
        let path = |text| Endpoint::parse(text, 4318).unwrap().with_traces_path().path;
        assert_eq!(path("http://h"), "/v1/traces");
        assert_eq!(path("http://h/"), "/v1/traces");
        assert_eq!(path("http://h/otlp/"), "/otlp/v1/traces");
        assert_eq!(path("http://h/otlp/v1/traces"), "/otlp/v1/traces");
        assert_eq!(path("http://h/v1/traces/"), "/v1/traces");
    }

    #[test]
    fn refuses_what_is_no_endpoint() {
        for bad in [
            "",
            "localhost:4317",
            "ftp://h",
            "http://",
            "http://h:0",
            "http://h:99999",
            "http://h:x",
            "http://h:",
            "http://h/?a=b",
            "http://h/#a",
            "/v1/traces",
            "http://a b",
            "http://u:p@h",
        ] {
            assert!(Endpoint::parse(bad, 4317).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(http://)?\\PC{0,30}") {
            let _ = Endpoint::parse(&text, 1).map(Endpoint::with_traces_path);
        }
    }
}
