//! The query commands, asking an API and a file: what they print, and how they end.
#![allow(clippy::unwrap_used, reason = "test")]

use std::time::Duration;

use serde_json::{json, Value as Json};

use super::client::{QueryError, Source};
use super::text::Output;
use super::traces::TracesOptions;
use super::{services, status, trace, traces};
use crate::span::{Span, TraceAlias, Value};
use crate::store::sample::{service, trace_id, SpanBuilder};
use crate::web::tests::Running;

fn spans() -> Vec<Span> {
    let (shop, cart) = (service("shop"), service("cart"));
    vec![
        SpanBuilder::server(1, 1)
            .resource(&shop)
            .name("GET /")
            .at_ms(0, 100)
            .build(),
        SpanBuilder::client(1, 2)
            .resource(&shop)
            .parent(1)
            .name("GET /cart/{id}")
            .at_ms(10, 60)
            .build(),
        SpanBuilder::server(1, 3)
            .resource(&cart)
            .parent(2)
            .name("GET /cart/{id}")
            .at_ms(20, 40)
            .error()
            .build(),
        SpanBuilder::client(1, 4)
            .resource(&cart)
            .unknown("runtime")
            .name("GET /stock")
            .at_ms(25, 0)
            .build(),
        SpanBuilder::client(1, 5)
            .resource(&shop)
            .parent(1)
            .name("GET /ads")
            .at_ms(75, 20)
            .build(),
        SpanBuilder::server(2, 6)
            .resource(&shop)
            .name("GET /\u{1b}[31m\nevil")
            .at_ms(2_000, 5)
            .build(),
    ]
}

fn running() -> Running {
    let alias = TraceAlias {
        alias: trace_id(9),
        canonical: trace_id(1),
    };
    Running::start(spans(), &[alias], |state| {
        state.status = std::sync::Arc::new(|| {
            json!({
                "version": "0.1.0", "captured": 3, "degraded": false, "rules": [], "store": {"queued": 0},
                "hooks": [{"hook": "sock_send_length", "attached": true}, {"hook": "exec\u{1b}", "attached": false}],
            })
        });
    })
}

/// The same question to the API and to the file; both must answer alike.
fn both(running: &Running, ask: impl Fn(&Source, &mut Output<'_>) -> Result<(), QueryError>, is_json: bool) -> String {
    let api = Source::Api {
        url: format!("http://{}", running.address),
        token: None,
    };
    let sources = [api, Source::Store(running.dir.path().to_owned())];
    let [one, other] = sources.map(|source| {
        let mut bytes = Vec::new();
        ask(&source, &mut Output::plain(&mut bytes, is_json)).unwrap();
        String::from_utf8(bytes).unwrap()
    });
    assert_eq!(one, other);
    one
}

#[test]
fn traces_print_a_table_newest_first() {
    let running = running();
    let printed = both(
        &running,
        |source, output| traces::run(&TracesOptions::default(), source, output),
        false,
    );
    let expected = "\
START                     TRACE ID                          DURATION  SPANS  ERRORS  ROOT                            SERVICES
2026-01-01T00:00:02.000Z  abababababababab0000000000000002   5.00 ms      1       0  shop: GET /\\u{1b}[31m\\u{a}evil  shop
2026-01-01T00:00:00.000Z  abababababababab0000000000000001    100 ms      5       1  shop: GET /                     cart, shop
";
    assert_eq!(printed, expected);
}

#[test]
fn every_flag_of_traces_reaches_the_filter() {
    let running = running();
    let found = |change: &dyn Fn(&mut TracesOptions)| -> usize {
        let mut options = TracesOptions::default();
        change(&mut options);
        let printed = both(&running, |source, output| traces::run(&options, source, output), true);
        serde_json::from_str::<Json>(&printed).unwrap()["traces"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(found(&|_| {}), 2);
    assert_eq!(found(&|o| o.limit = Some(1)), 1);
    assert_eq!(found(&|o| o.service = Some("cart".into())), 1);
    assert_eq!(found(&|o| o.operation = Some("GET /ads".into())), 1);
    assert_eq!(found(&|o| o.is_error = true), 1);
    assert_eq!(found(&|o| o.tenant = Some("x".into())), 0);
    assert_eq!(
        found(&|o| o.attributes = vec![("http.response.status_code".into(), "200".into())]),
        2
    );
    assert_eq!(found(&|o| o.attributes = vec![("a&b=c".into(), "d e".into())]), 0);
    assert_eq!(found(&|o| o.min_duration = Some(Duration::from_millis(50))), 1);
    assert_eq!(found(&|o| o.max_duration = Some(Duration::from_millis(50))), 1);
    assert_eq!(found(&|o| o.since = Some("2026-01-01T00:00:01Z".into())), 1);
    assert_eq!(found(&|o| o.until = Some("2026-01-01T01:00:01+01:00".into())), 1);
}

#[test]
fn a_trace_prints_its_tree_and_waterfall() {
    let running = running();
    let ids = [
        trace_id(1).hex(),
        trace_id(9).hex(),
        format!("traceparent;desc=\"00-{}-00f067aa0ba902b7-01\"", trace_id(9).hex()),
    ];
    let expected = "\
abababababababab0000000000000001  2026-01-01T00:00:00.000Z  100 ms  5 spans  1 error

SPAN                        KIND    STATUS     PARENT            DURATION
shop  GET /                 server  200        root                100 ms  |███████████████████████████████████████████|
├─ shop  GET /cart/{id}     client  200        wire               60.0 ms  |    ██████████████████████████             |
│  └─ cart  GET /cart/{id}  server  200 error  wire               40.0 ms  |         █████████████████                 |
└─ shop  GET /ads           client  200        wire               20.0 ms  |                                █████████  |
cart  GET /stock            client  200        unknown: runtime      0 ns  |           █                               |
";
    for id in ids {
        let printed = both(&running, |source, output| trace::run(&id, source, output), false);
        assert_eq!(printed, expected);
    }
}

#[test]
fn a_trace_as_json_is_otlp() {
    let running = running();
    let printed = both(
        &running,
        |source, output| trace::run(&trace_id(1).hex(), source, output),
        true,
    );
    let json: Json = serde_json::from_str(&printed).unwrap();
    assert_eq!(json["resourceSpans"].as_array().unwrap().len(), 2);
    assert_eq!(
        json["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"],
        trace_id(1).hex()
    );
    assert_eq!(printed.lines().count(), 1);
}

#[test]
fn colours_come_only_when_asked_for_and_names_never_bring_their_own() {
    let running = running();
    let source = Source::Store(running.dir.path().to_owned());
    let mut bytes = Vec::new();
    let mut output = Output {
        is_coloured: true,
        ..Output::plain(&mut bytes, false)
    };
    traces::run(&TracesOptions::default(), &source, &mut output).unwrap();
    trace::run(&trace_id(1).hex(), &source, &mut output).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.contains("\x1b[31m200 error\x1b[0m"), "{text}");
    assert!(text.contains("GET /\\u{1b}[31m"), "{text}");
}

#[test]
fn services_print_a_table() {
    let running = running();
    let printed = both(&running, services::run, false);
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..4], ["SERVICE", "REQ/S", "REQUESTS", "ERRORS"]);
    assert_eq!(
        lines[1],
        ["cart", "0.00", "0", "0", "-", "-", "-", "-", "2026-01-01T00:00:00.060Z"]
    );
    assert_eq!(lines[2][0], "shop");
}

#[test]
fn status_prints_whatever_the_agent_says() {
    let running = running();
    let source = Source::Api {
        url: format!("http://{}", running.address),
        token: None,
    };
    let mut bytes = Vec::new();
    status::run(&source, &mut Output::plain(&mut bytes, false)).unwrap();
    let expected = "\
captured  3
degraded  no
rules     none
version   0.1.0

hooks
ATTACHED  HOOK
yes       sock_send_length
no        exec\\u{1b}

store
queued  0
";
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

#[test]
fn failures_have_their_exit_status_and_name_a_remedy() {
    let running = running();
    let api = Source::Api {
        url: format!("http://{}", running.address),
        token: None,
    };
    let file = Source::Store(running.dir.path().to_owned());
    let ask =
        |id: &str, source: &Source| trace::run(id, source, &mut Output::plain(&mut Vec::new(), true)).unwrap_err();
    for source in [&api, &file] {
        let unknown = ask(&trace_id(8).hex(), source);
        assert_eq!(
            (unknown.exit_code(), unknown.to_string().contains("no trace")),
            (1, true),
            "{unknown}"
        );
        assert_eq!(ask("nonsense", source).exit_code(), 2);
        let options = TracesOptions {
            since: Some("soon".into()),
            ..TracesOptions::default()
        };
        let usage = traces::run(&options, source, &mut Output::plain(&mut Vec::new(), true)).unwrap_err();
        assert_eq!(
            (usage.exit_code(), usage.to_string().starts_with("--since: expected")),
            (2, true),
            "{usage}"
        );
        let options = TracesOptions {
            min_duration: Some(Duration::MAX),
            ..TracesOptions::default()
        };
        let usage = traces::run(&options, source, &mut Output::plain(&mut Vec::new(), true)).unwrap_err();
        assert!(usage.to_string().starts_with("--min-duration: "), "{usage}");
    }
    let nobody = Source::Api {
        url: "http://127.0.0.1:9".to_owned(),
        token: None,
    };
    let error = ask(&trace_id(1).hex(), &nobody);
    assert_eq!(error.exit_code(), 1);
    assert!(
        error.to_string().contains("no agent answers at http://127.0.0.1:9"),
        "{error}"
    );
    assert!(error.to_string().contains("--store DIR"), "{error}");
    let secure = Source::Api {
        url: "https://127.0.0.1:9".to_owned(),
        token: None,
    };
    assert_eq!(ask(&trace_id(1).hex(), &secure).exit_code(), 2);
    let absent = Source::Store("/nonexistent".into());
    assert!(ask(&trace_id(1).hex(), &absent)
        .to_string()
        .contains("there is no store at /nonexistent/spans.db"));
    assert_eq!(
        status::run(&file, &mut Output::plain(&mut Vec::new(), true))
            .unwrap_err()
            .exit_code(),
        2
    );
}

#[test]
fn a_token_is_sent_and_a_refusal_is_passed_on() {
    let running = Running::start(spans(), &[], |state| state.token = Some("s3cret".into()));
    let source = |token: Option<&str>| Source::Api {
        url: format!("http://{}/", running.address),
        token: token.map(str::to_owned),
    };
    let ask = |token| services::run(&source(token), &mut Output::plain(&mut Vec::new(), true));
    assert!(ask(Some("s3cret")).is_ok());
    let error = ask(None).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(
        error.to_string().contains("answered 401: a bearer token is required"),
        "{error}"
    );
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let running = running();
    let source = Source::Store(running.dir.path().to_owned());
    for is_json in [true, false] {
        let answered = traces::run(
            &TracesOptions::default(),
            &source,
            &mut Output::plain(&mut Closed, is_json),
        );
        assert!(answered.unwrap_err().is_broken_pipe());
    }
}

/// Values of an attribute as the API gives them, for a span that has all kinds.
#[test]
fn every_kind_of_value_survives_the_way_through_the_api() {
    let list = Value::StrArray(vec!["a".into(), "b".into()]);
    let span = SpanBuilder::server(1, 1)
        .attribute("int", Value::Int(i64::MIN))
        .attribute("bool", Value::Bool(false))
        .attribute("list", list)
        .attribute("empty", Value::Static(""));
    let running = Running::start(vec![span.build()], &[], |_| {});
    let printed = both(
        &running,
        |source, output| trace::run(&trace_id(1).hex(), source, output),
        true,
    );
    for part in [
        r#"{"key":"int","value":{"intValue":"-9223372036854775808"}}"#,
        r#"{"key":"bool","value":{"boolValue":false}}"#,
        r#"{"key":"list","value":{"arrayValue":{"values":[{"stringValue":"a"},{"stringValue":"b"}]}}}"#,
        r#"{"key":"empty","value":{"stringValue":""}}"#,
    ] {
        assert!(printed.contains(part), "{part} in {printed}");
    }
}
