//! What was seen of a row: the heads that arrived where its calls went, and the spans.

use std::collections::BTreeMap;

use anyhow::{bail, ensure, Context, Result};
use spanwire_tests::http::Connection;
use spanwire_tests::receiver::Receiver;
use spanwire_tests::service::Target;
use spanwire_tests::spans::{Kind, Span};

use crate::rows::{shortened, Row, Trace};

/// Ids of a row that nothing else bears.
pub(crate) struct Ids {
    pub(crate) trace: String,
    pub(crate) parent: String,
}

impl Ids {
    pub(crate) fn of(number: usize) -> Self {
        Self {
            trace: format!(
                "{:032x}",
                0x0af7_6519_16cd_43dd_8448_eb21_1c80_0000_u128 + number as u128
            ),
            parent: format!("{:016x}", 0xb7ad_6b71_6920_0000_u64 + number as u64),
        }
    }

    /// A line with these ids in their places.
    pub(crate) fn put_into(&self, line: &str) -> String {
        line.replace("$ids", "$trace-$parent")
            .replace("$trace", &self.trace)
            .replace("$parent", &self.parent)
    }
}

/// Lines of a head behind its first.
pub(crate) type Lines = Vec<String>;

/// Sends a request of a row, and fails unless it is answered with 200.
pub(crate) fn post(target: &Target, path: &str, lines: &[String], body: &str) -> Result<()> {
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: test.invalid\r\nContent-Type: application/json\r\n");
    for line in lines {
        head.extend([line, "\r\n"]);
    }
    head.extend(["Content-Length: ", &body.len().to_string(), "\r\n\r\n", body]);
    let mut connection = Connection::open(target)?;
    connection.send(head.as_bytes())?;
    let response = connection.receive(false)?;
    ensure!(
        response.status == 200,
        "status {}: {}",
        response.status,
        response.text()
    );
    Ok(())
}

/// The heads that have arrived since `from`, by path.
pub(crate) fn arrived(receiver: &Receiver, from: usize) -> BTreeMap<String, Vec<Lines>> {
    let mut heads: BTreeMap<String, Vec<Lines>> = BTreeMap::new();
    for request in receiver.received().into_iter().skip(from) {
        let lines = request.head.lines().skip(1).map(str::to_owned).collect();
        heads.entry(request.path).or_default().push(lines);
    }
    heads
}

/// The value of a header line of this name, whatever its case.
fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (found, value) = line.split_once(':')?;
    found.eq_ignore_ascii_case(name).then_some(value)
}

/// A head without trace context.
pub(crate) fn without_context(lines: &[String]) -> Lines {
    let is_context = |line: &String| value(line, "traceparent").or(value(line, "tracestate")).is_some();
    lines.iter().filter(|line| !is_context(line)).cloned().collect()
}

/// A traceparent of version 00.
#[derive(Clone, Debug)]
pub(crate) struct Traceparent {
    pub(crate) trace: String,
    pub(crate) parent: String,
    pub(crate) flags: u8,
}

/// The one traceparent of a head, which is to be a valid one of version 00, its name in lower case.
pub(crate) fn traceparent(lines: &[String]) -> Result<Traceparent> {
    let found: Vec<_> = lines
        .iter()
        .filter(|line| value(line, "traceparent").is_some())
        .collect();
    let [line] = found.as_slice() else {
        bail!("{} traceparents: {found:?}", found.len());
    };
    let text = line
        .strip_prefix("traceparent: ")
        .with_context(|| format!("not in lower case: {line:?}"))?;
    let parts: Vec<_> = text.split('-').collect();
    let ["00", trace, parent, flags] = parts.as_slice() else {
        bail!("not of version 00: {text:?}");
    };
    let id = |part: &str, digits| {
        part.len() == digits
            && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            && part.bytes().any(|b| b != b'0')
    };
    ensure!(
        id(trace, 32) && id(parent, 16) && flags.len() == 2,
        "malformed: {text:?}"
    );
    Ok(Traceparent {
        trace: (*trace).to_owned(),
        parent: (*parent).to_owned(),
        flags: u8::from_str_radix(flags, 16).with_context(|| format!("flags of {text:?}"))?,
    })
}

/// The list that the tracestate lines of a head make; empty without any.
fn tracestate(lines: &[String]) -> Result<String> {
    let mut members = Vec::new();
    for line in lines.iter().filter(|line| value(line, "tracestate").is_some()) {
        let list = line
            .strip_prefix("tracestate:")
            .with_context(|| format!("not in lower case: {line:?}"))?;
        members.extend(list.split(',').map(|member| member.trim_matches([' ', '\t'])));
    }
    Ok(members.join(","))
}

/// The heads of a row's calls say what the row asks for. Returns their traceparents.
pub(crate) fn check_heads(row: &Row, ids: &Ids, heads: &[Lines]) -> Result<Vec<Traceparent>> {
    ensure!(
        heads.len() == row.calls,
        "{} of {} calls arrived",
        heads.len(),
        row.calls
    );
    let contexts: Vec<_> = heads.iter().map(|head| traceparent(head)).collect::<Result<_>>()?;
    for (at, (context, head)) in contexts.iter().zip(heads).enumerate() {
        match row.trace {
            Trace::Same => ensure!(
                context.trace == ids.trace,
                "trace id {} is not the one that came",
                context.trace
            ),
            Trace::New => ensure!(context.trace != ids.trace, "the trace id that came goes on"),
        }
        ensure!(context.trace == contexts[0].trace, "calls of one request in two traces");
        ensure!(context.parent != ids.parent, "the parent id that came goes on");
        let before = &contexts[..at];
        ensure!(
            before.iter().all(|other| other.parent != context.parent),
            "two calls bear one parent id"
        );
        ensure!(
            context.flags == row.flags,
            "flags {:02x}, not {:02x}",
            context.flags,
            row.flags
        );
        let state = tracestate(head)?;
        let none = row.state.is_empty() && state.is_empty();
        ensure!(
            none || row.state.contains(&state),
            "tracestate {:?}, not {:?}",
            shortened(&state),
            row.state.iter().map(|list| shortened(list)).collect::<Vec<_>>()
        );
    }
    Ok(contexts)
}

/// The spans of a row are those that its calls' heads name, below the server's, whose parent is what came in.
pub(crate) fn check_spans(row: &Row, ids: &Ids, path: &str, contexts: &[Traceparent], spans: &[Span]) -> Result<()> {
    let of = |kind, path: &str| -> Result<&Span> {
        let found: Vec<_> = spans
            .iter()
            .filter(|span| span.kind == kind && span.path().as_deref() == Some(path))
            .collect();
        match found.as_slice() {
            [span] => Ok(*span),
            _ => bail!("{} {kind:?} spans of {path}", found.len()),
        }
    };
    let server = of(Kind::Server, path)?;
    let above = (row.trace == Trace::Same).then_some(&ids.parent);
    ensure!(
        server.parent_span_id.as_ref() == above,
        "the server span's parent is {:?}",
        server.parent_span_id
    );
    for (call, context) in contexts.iter().enumerate() {
        let client = of(Kind::Client, &format!("{path}/{call}"))?;
        ensure!(
            (&client.trace_id, &client.span_id) == (&context.trace, &context.parent),
            "call {call}: its span is {}-{}, on the wire there was {context:?}",
            client.trace_id,
            client.span_id
        );
        ensure!(
            (client.parent_span_id.as_ref(), &client.trace_id) == (Some(&server.span_id), &server.trace_id),
            "call {call}: its span's parent is {:?} in {}, not the server span",
            client.parent_span_id,
            client.trace_id
        );
    }
    Ok(())
}
