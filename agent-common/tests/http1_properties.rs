//! For any bytes: no panic, and no difference by how they are cut. For any valid message: what went in comes out.
#![cfg(feature = "host")]

mod support;

use proptest::prelude::*;
use spanwire_common::protocol::http1::Method;
use support::*;

const METHODS: [(&str, Method); 6] = [
    ("GET", Method::Get),
    ("POST", Method::Post),
    ("HEAD", Method::Head),
    ("OPTIONS", Method::Options),
    ("QUERY", Method::Query),
    ("BREW", Method::Other),
];

/// One way to frame a body.
#[derive(Clone, Debug)]
enum Body {
    None,
    Length(Vec<u8>),
    Chunked(Vec<Vec<u8>>, bool),
}

impl Body {
    fn header(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Length(bytes) => format!("Content-Length: {}\r\n", bytes.len()),
            Self::Chunked(..) => "Transfer-Encoding: chunked\r\n".to_owned(),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Length(bytes) => bytes.len() as u64,
            Self::Chunked(chunks, _) => chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Length(bytes) => out.extend(bytes),
            Self::Chunked(chunks, trailers) => {
                for chunk in chunks {
                    out.extend(format!("{:x};ext=1\r\n", chunk.len()).bytes());
                    out.extend(chunk);
                    out.extend(b"\r\n");
                }
                out.extend(b"0\r\n");
                if *trailers {
                    out.extend(b"Checksum: 1\r\nOther: 2\r\n");
                }
                out.extend(b"\r\n");
            }
        }
    }
}

fn body() -> impl Strategy<Value = Body> {
    let bytes = || prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b'0')], 1..300);
    prop_oneof![
        Just(Body::None),
        bytes().prop_map(Body::Length),
        (prop::collection::vec(bytes(), 0..5), any::<bool>())
            .prop_map(|(chunks, trailers)| Body::Chunked(chunks, trailers)),
    ]
}

/// A header line of no interest to the parser, possibly long.
fn filler() -> impl Strategy<Value = String> {
    (
        "[A-Wa-w][A-Za-z0-9_-]{0,30}",
        "[ -~\t\u{80}-\u{ff}]{0,60}",
        prop_oneof![9 => Just(1_usize), 1 => 1..40_usize],
    )
        .prop_filter("of no interest", |(name, ..)| {
            let name = name.to_ascii_lowercase();
            ![
                "host",
                "b3",
                "content-length",
                "transfer-encoding",
                "traceparent",
                "tracestate",
                "user-agent",
                "uber-trace-id",
            ]
            .contains(&name.as_str())
        })
        .prop_map(|(name, value, times)| format!("{name}:{}\r\n", value.repeat(times)))
}

#[derive(Clone, Debug)]
struct Message {
    method: usize,
    path: String,
    query: String,
    lines: Vec<String>,
    context: Option<([u8; 16], [u8; 8], u8)>,
    body: Body,
}

impl Message {
    fn write(&self, out: &mut Vec<u8>) {
        let (method, _) = METHODS[self.method];
        out.extend(format!("{method} {}{} HTTP/1.1\r\n", self.path, self.query).bytes());
        let (before, after) = self.lines.split_at(self.lines.len() / 2);
        out.extend(before.concat().bytes());
        if let Some((trace, parent, flags)) = self.context {
            let hex = |bytes: &[u8]| {
                bytes
                    .iter()
                    .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
            };
            out.extend(format!("Traceparent: 00-{}-{}-{flags:02x}\r\n", hex(&trace), hex(&parent)).bytes());
        }
        out.extend(self.body.header().bytes());
        out.extend(after.concat().bytes());
        out.extend(b"\r\n");
        self.body.write(out);
    }
}

fn message() -> impl Strategy<Value = Message> {
    let id = (any::<[u8; 16]>(), any::<[u8; 8]>(), any::<u8>()).prop_map(|(mut trace, mut parent, flags)| {
        trace[3] |= 1;
        parent[7] |= 1;
        (trace, parent, flags)
    });
    (
        0..METHODS.len(),
        prop_oneof![9 => "/[!-~&&[^?#]]{0,40}", 1 => "/[a-z/]{200,1400}"],
        prop_oneof![
            Just(String::new()),
            Just("?".to_owned()),
            "[?#][!-~]{0,40}",
            "[?#][!-~]{900,1200}"
        ],
        prop::collection::vec(filler(), 0..6),
        prop::option::of(id),
        body(),
    )
        .prop_map(|(method, path, query, lines, context, body)| Message {
            method,
            path,
            query,
            lines,
            context,
            body,
        })
}

/// Bytes of which some look like HTTP.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..20),
        prop::sample::select(vec![
            "GET / HTTP/1.1\r\n",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 100 Continue\r\n",
            "\r\n",
            "\r",
            "\n",
            "\t",
            ":",
            " ",
            "0",
            "5;x\r\n",
            "Content-Length: 7\r\n",
            "Transfer-Encoding: chunked\r\n",
            "x-tenant-id: acme\r\n",
            "tracestate: a=b\r\n",
            "b3: 0\r\n",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
            "Cookie: ",
            "PRI * HTTP/2.0",
            "\x16\x03",
            "POST ",
            "x-amzn-trace-id: Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1\r\n",
            "uber-trace-id: 1:2:0:1\r\n",
            "x-datadog-trace-id: 17\r\n",
            "User-Agent: kube-probe/1\r\n",
            "CONNECT h:1 HTTP/1.1\r\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        (any::<u8>(), 900..1100_usize).prop_map(|(byte, times)| vec![byte; times]),
    ];
    prop::collection::vec(piece, 0..25).prop_map(|pieces| pieces.concat())
}

fn calls() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        prop::collection::vec(1..50_usize, 0..200),
        prop::collection::vec(0..3000_usize, 0..10),
        Just(vec![1; 5000]),
    ]
}

fn kept() -> Settings {
    settings(&[("x-tenant-id", true, true), ("cookie", false, true)])
}

fn after_first_line(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    &bytes[end.map_or(bytes.len(), |end| end + 1)..]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_cut_changes_what_comes_out(bytes in soup(), calls in calls(), method in 0_u8..11) {
        for direction in [Direction::Requests, Direction::Responses(vec![method; 3])] {
            let expected = events(direction.clone(), kept(), &bytes, &[]);
            prop_assert_eq!(events(direction, kept(), &bytes, &calls), expected);
        }
    }

    #[test]
    fn skimming_changes_nothing_but_the_steps(
        messages in prop::collection::vec(message(), 1..4),
        spoilt in prop::option::of((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(b'\r'), Just(b' '), Just(b':')])),
        method in 0_u8..11,
    ) {
        let mut bytes = Vec::new();
        for message in &messages {
            message.write(&mut bytes);
        }
        if let Some((place, byte)) = spoilt {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        for direction in [Direction::Requests, Direction::Responses(vec![method; 3])] {
            // Responses have the same header lines behind another start line.
            let answers = matches!(direction, Direction::Responses(_));
            let bytes = if answers { [b"HTTP/1.1 200 OK\r\n", after_first_line(&bytes)].concat() } else { bytes.clone() };
            let run = |skims| {
                let mut stream = Stream::new(direction.clone(), kept());
                stream.skims = skims;
                let mut seen = Vec::new();
                stream.feed(&bytes, &mut seen);
                (seen, stream.framing)
            };
            prop_assert_eq!(run(true), run(false));
        }
    }

    #[test]
    fn nothing_comes_after_the_end(bytes in soup(), more in soup()) {
        let mut stream = Stream::new(Direction::Requests, kept());
        let mut seen = Vec::new();
        stream.feed(&bytes, &mut seen);
        if is_opaque(&seen) {
            let before = seen.len();
            stream.feed(&more, &mut seen);
            prop_assert_eq!(seen.len(), before);
        }
    }

    #[test]
    fn requests_come_out_as_they_went_in(messages in prop::collection::vec(message(), 1..5), calls in calls()) {
        let mut bytes = Vec::new();
        for message in &messages {
            message.write(&mut bytes);
        }
        let all = events(Direction::Requests, Settings::default(), &bytes, &calls);
        let mut events = all.iter();
        for message in &messages {
            prop_assert_eq!(events.next(), Some(&Event::HeadBegin));
            let Some(Event::Request(r)) = events.next() else { return Err(TestCaseError::fail(shape(&all))) };
            prop_assert_eq!(r.method, METHODS[message.method].1 as u8);
            let cut = message.path.len().min(256);
            prop_assert_eq!(path_of(r), &message.path[..cut]);
            prop_assert_eq!(r.path_cut, u8::from(message.path.len() > 256));
            let (trace, parent, flags) = message.context.unwrap_or_default();
            prop_assert_eq!((r.trace_id, r.parent_id), (trace, parent));
            prop_assert_eq!(r.context_flags & 3, flags & 3);
            prop_assert_eq!(events.next(), Some(&Event::MessageEnd { body_bytes: message.body.bytes() }));
        }
        prop_assert_eq!(events.next(), None);
    }

    #[test]
    fn responses_come_out_as_they_went_in(
        answers in prop::collection::vec((200_u16..600, body(), prop::collection::vec(filler(), 0..6), any::<bool>()), 1..5),
        calls in calls(),
    ) {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (status, body, lines, interim) in &answers {
            if *interim {
                bytes.extend(b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n");
                expected.extend([Event::HeadBegin, Event::Response { status: 102, step: step::INTERIM }]);
            }
            // Without a length a response would go on until the connection closes.
            let body = if matches!(body, Body::None) { Body::Length(b"none".to_vec()) } else { body.clone() };
            let bodyless = *status == 204 || *status == 304;
            bytes.extend(format!("HTTP/1.1 {status} Reason\r\n{}{}\r\n", body.header(), lines.concat()).bytes());
            if !bodyless {
                body.write(&mut bytes);
            }
            expected.extend([
                Event::HeadBegin,
                Event::Response { status: *status, step: step::HEAD_END },
                Event::MessageEnd { body_bytes: if bodyless { 0 } else { body.bytes() } },
            ]);
        }
        prop_assert_eq!(events(Direction::Responses(Vec::new()), Settings::default(), &bytes, &calls), expected);
    }
}
