//! Request methods as the semantic conventions know them: RFC 9110's and PATCH; every other one is `_OTHER`.

/// `http.request.method`; the last stands for all others.
pub(super) const METHODS: [&str; 10] = [
    "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "_OTHER",
];

/// A method's place in [`METHODS`]; methods are case-sensitive (RFC 9110, 9.1).
pub(super) fn method_index(token: &[u8]) -> usize {
    METHODS
        .iter()
        .position(|known| known.as_bytes() == token)
        .unwrap_or(METHODS.len() - 1)
}

/// What a span's name begins with: `HTTP` for `_OTHER` (semantic conventions, HTTP spans, "Name").
pub(super) fn span_method(index: usize) -> &'static str {
    if index < METHODS.len() - 1 {
        attribute_method(index)
    } else {
        "HTTP"
    }
}

/// `http.request.method`.
pub(super) fn attribute_method(index: usize) -> &'static str {
    METHODS.get(index).copied().unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_other() {
        assert_eq!(attribute_method(method_index(b"GET")), "GET");
        for token in [&b"get"[..], b"PROPFIND", b"_OTHER", b"", b"GETX", &[0xff, 0]] {
            let index = method_index(token);
            assert_eq!(
                (attribute_method(index), span_method(index)),
                ("_OTHER", "HTTP"),
                "{token:?}"
            );
        }
    }
}
