//! Where heads lie in bytes that a real program sent: the places where the agent may have added something.

use super::align::Head;

/// Finds the heads in a stream of requests or responses, message by message, by the lengths they declare. `to_head[n]`
/// says that the nth response answers a HEAD request. Stops where it does not understand.
pub fn heads_of(bytes: &[u8], to_head: &[bool]) -> Vec<Head> {
    let mut heads = Vec::new();
    let mut at = 0;
    let mut responses = 0;
    while let Some(length) = memchr::memmem::find(bytes.get(at..).unwrap_or_default(), b"\r\n\r\n") {
        let end = at + length + 4;
        let text = String::from_utf8_lossy(bytes.get(at..end).unwrap_or_default()).into_owned();
        let first = text.lines().next().unwrap_or_default();
        let status: Option<u16> = first
            .strip_prefix("HTTP/1.")
            .and_then(|line| line.split(' ').nth(1)?.parse().ok());
        if status.is_none() && !first.contains(" HTTP/1.") {
            break;
        }
        let interim = status.is_some_and(|status| status < 200);
        heads.push(Head {
            blank: end - 2,
            may_insert: !interim && !text.to_ascii_lowercase().contains("\r\ntraceparent:"),
            parent_id: None,
        });
        at = end;
        let bodiless = match status {
            Some(status) if interim => status != 101,
            Some(status) => {
                responses += 1;
                matches!(status, 204 | 304) || to_head.get(responses - 1).copied().unwrap_or(false)
            }
            None => false,
        };
        if bodiless {
            continue;
        }
        match body_end(bytes, at, &text, status.is_some()) {
            Some(end) => at = end,
            None => break,
        }
    }
    heads
}

fn body_end(bytes: &[u8], at: usize, head: &str, response: bool) -> Option<usize> {
    let field = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_ascii_lowercase())
    };
    if field("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
        return chunks_end(bytes, at);
    }
    match field("content-length") {
        Some(length) => Some(at + length.parse::<usize>().ok()?),
        None if response => None,
        None => Some(at),
    }
}

fn chunks_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let line = at + memchr::memchr(b'\n', bytes.get(at..)?)?;
        let size = std::str::from_utf8(bytes.get(at..line)?).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at = line + 1;
        if size == 0 {
            // Trailers, then a blank line.
            loop {
                let line = at + memchr::memchr(b'\n', bytes.get(at..)?)?;
                let blank = bytes.get(at..line)? == b"\r";
                at = line + 1;
                if blank {
                    return Some(at);
                }
            }
        }
        at += size + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blanks(bytes: &[u8]) -> Vec<usize> {
        heads_of(bytes, &[]).iter().map(|head| head.blank).collect()
    }

    #[test]
    fn bodies_are_passed_over() {
        let post = b"POST / HTTP/1.1\r\nContent-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        assert_eq!(blanks(post), [37, post.len() - 2]);
        let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        assert_eq!(blanks(chunked), [45, chunked.len() - 2]);
    }

    #[test]
    fn responses_without_a_length_end_with_the_connection() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(blanks(bytes), [23, 42]);
        assert!(heads_of(bytes, &[]).iter().map(|head| head.may_insert).eq([false, true]));
        assert_eq!(heads_of(b"\x16\x03\x01\x02\x00\r\n\r\n", &[]), []);
    }
}
