//! Who may ask. A page of another site that runs in a browser on this machine can send requests to loopback: by a name of
//! its own that it points here (caught by `Host`), or directly (caught by `Origin` and `Sec-Fetch-Site`).

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use super::answer::{refusal, Shared};
use hyper::body::Body;

/// Nothing but our own files, and questions only to ourselves.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Headers of every answer.
pub(super) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let fixed: [(HeaderName, &'static str); 6] = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests that come by a foreign name or from a foreign page, and bodies.
pub(super) async fn origin(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if !request.body().is_end_stream() {
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, "requests have no body here");
    }
    let named = request.uri().host().is_none_or(|host| shared.is_ours(host));
    if !named || !host_of(request.headers()).is_some_and(|host| shared.is_ours(host)) {
        let problem = "the Host header names neither this machine's address nor localhost; ask by address";
        return refusal(StatusCode::FORBIDDEN, problem);
    }
    if is_foreign(request.headers(), request.method()) {
        return refusal(
            StatusCode::FORBIDDEN,
            "requests from pages of other origins are refused",
        );
    }
    next.run(request).await
}

/// Wants the bearer token, if there is one.
pub(super) async fn token(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let Some(expected) = &shared.api.token else {
        return next.run(request).await;
    };
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let given = match given.split_at_checked(7) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => given,
        _ => b"",
    };
    if is_same(given, expected.as_bytes()) {
        return next.run(request).await;
    }
    let mut response = refusal(StatusCode::UNAUTHORIZED, "a bearer token is required");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// Compares in a time that tells nothing but the length.
fn is_same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given
        .iter()
        .zip(expected)
        .fold(0u8, |all, (one, other)| all | (one ^ other));
    given.len() == expected.len() && std::hint::black_box(differences) == 0
}

/// The only `Host` header's value.
fn host_of(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::HOST).iter();
    let host = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(host)
}

/// True when a browser says that another site's page asks.
fn is_foreign(headers: &HeaderMap, method: &Method) -> bool {
    if let Some(origin) = headers.get(header::ORIGIN) {
        let host = host_of(headers).unwrap_or_default();
        let own = [format!("http://{host}"), format!("https://{host}")];
        if !own
            .iter()
            .any(|own| own.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
        {
            return true;
        }
    }
    let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    // A link that is followed is no danger: whoever made it cannot read the answer.
    let is_link = said("sec-fetch-mode") == Some("navigate") && method == Method::GET;
    matches!(said("sec-fetch-site"), Some("cross-site" | "same-site")) && !is_link
}

/// True when `host`, with or without a port, is this machine as seen from a listener at `listening`.
pub(super) fn is_ours(host: &str, listening: SocketAddr, names: &[String]) -> bool {
    let name = without_port(host);
    let bare = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(name);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.is_loopback() || listening.ip().is_unspecified() || address == listening.ip();
    }
    name.eq_ignore_ascii_case("localhost") || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => {
            // `::1` without brackets is an address, not a name with a port.
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_ours() {
        let loopback: SocketAddr = "127.0.0.1:4319".parse().unwrap();
        let named = ["node-1".to_owned()];
        for host in [
            "127.0.0.1:4319",
            "localhost",
            "LOCALHOST:8080",
            "[::1]:4319",
            "127.0.0.2",
            "node-1:4319",
        ] {
            assert!(is_ours(host, loopback, &named), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:4319",
            "10.0.0.1",
            "",
            ":4319",
            "node-2",
            "127.0.0.1:x",
        ] {
            assert!(!is_ours(host, loopback, &named), "{host}");
        }
        let everywhere: SocketAddr = "0.0.0.0:4319".parse().unwrap();
        assert!(is_ours("10.0.0.1:4319", everywhere, &[]));
        assert!(!is_ours("evil.example", everywhere, &[]));
        let one: SocketAddr = "10.0.0.1:4319".parse().unwrap();
        assert!(is_ours("10.0.0.1", one, &[]) && !is_ours("10.0.0.2", one, &[]));
    }

    #[test]
    fn tokens_are_the_same_or_not() {
        assert!(is_same(b"abc", b"abc"));
        for other in [&b""[..], b"ab", b"abcd", b"abd", b"ABC"] {
            assert!(!is_same(other, b"abc"));
        }
    }
}
