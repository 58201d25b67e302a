#![allow(clippy::unwrap_used, reason = "test")]
use proptest::prelude::{any, prop_assert_eq, proptest, Strategy};

use super::*;

fn capture(include: &[&str], exclude: &[&str]) -> Capture {
    let parse = |texts: &[&str], exclude| {
        texts
            .iter()
            .map(|text| Selector::parse(text, exclude).unwrap())
            .collect()
    };
    Capture {
        include: parse(include, false),
        exclude: parse(exclude, true),
        ..Capture::default()
    }
}

fn config(include: &[&str], exclude: &[&str]) -> Config {
    Config {
        capture: capture(include, exclude),
        ..Config::default()
    }
}

fn process(exe: &str) -> ProcessFacts {
    ProcessFacts {
        pid: 7,
        exe: exe.into(),
        ..ProcessFacts::default()
    }
}

/// What the kernel side computes for a socket (agent-common, `ProcessValue`).
fn admitted(rules: &SelectorRules, facts: &ProcessFacts, port: u16) -> bool {
    let masks = rules.process_masks(facts);
    let ports = rules.ports();
    let named = ports
        .iter()
        .find(|(named, _)| *named == port)
        .map_or(PortValue::default(), |(_, value)| *value);
    let include = masks.include & (named.include | rules.include_any_port());
    let exclude = masks.exclude & (named.exclude | rules.exclude_any_port());
    include != 0 && exclude == 0
}

#[test]
fn without_includes_everything_is_included() {
    let rules = SelectorRules::compile(&capture(&[], &["port=22"]));
    assert!(admitted(&rules, &process("/x"), 80));
    assert!(!admitted(&rules, &process("/x"), 22));
}

#[test]
fn both_parts_of_one_item_must_hold() {
    let rules = SelectorRules::compile(&capture(&["exe=*/a,port=80", "exe=*/b"], &["exe=*/b,port=99"]));
    assert!(admitted(&rules, &process("/a"), 80));
    assert!(!admitted(&rules, &process("/a"), 81));
    assert!(!admitted(&rules, &process("/c"), 80));
    assert!(admitted(&rules, &process("/b"), 81));
    assert!(!admitted(&rules, &process("/b"), 99));
    assert_eq!(
        rules.ports(),
        [
            (
                80,
                PortValue {
                    include: 1,
                    ..PortValue::default()
                }
            ),
            (
                99,
                PortValue {
                    exclude: 1,
                    ..PortValue::default()
                }
            )
        ]
    );
    assert_eq!((rules.include_any_port(), rules.exclude_any_port()), (2, 0));
}

#[test]
fn whole_processes_are_known_to_be_out() {
    let rules = SelectorRules::compile(&capture(&["exe=*/a,port=80"], &["exe=*/b"]));
    assert!(rules.may_capture(rules.process_masks(&process("/a"))));
    assert!(!rules.may_capture(rules.process_masks(&process("/b"))));
    assert!(!rules.may_capture(rules.process_masks(&process("/c"))));
    let rules = SelectorRules::compile(&capture(&[], &["exe=*/a,port=80"]));
    assert!(
        rules.may_capture(rules.process_masks(&process("/a"))),
        "other ports remain"
    );
}

#[test]
fn the_item_that_decided_is_named() {
    let rules = SelectorRules::compile(&capture(
        &["exe=*/a", "uid=0", "port=5"],
        &["exe=*/a,port=1", "exe=*/x"],
    ));
    let named = |exe, by_port| rules.deciding(rules.process_masks(&process(exe)), by_port).to_string();
    assert_eq!(named("/a", 0), "exe=*/a", "an exclusion on one port does not decide");
    assert_eq!(named("/a", rules.including_port([5, 51_000])), "exe=*/a");
    assert_eq!(named("/x", 0), "exe=*/x");
    assert_eq!((rules.including_port([5, 1]), rules.including_port([1, 6])), (4, 0));
}

#[test]
fn requests_are_excluded_by_path_user_agent_and_the_rest_of_the_item() {
    let rules = SelectorRules::compile(&capture(&[], &["exe=*/a,path=/health*", "port=81,user_agent=*BOT*"]));
    let of = |exe, server_port, path, user_agent| {
        let masks = rules.process_masks(&process(exe));
        let request = RequestFacts {
            server_port,
            path,
            user_agent,
        };
        rules.excludes_request(masks, &request).map(ToString::to_string)
    };
    assert_eq!(of("/a", 80, "/healthz", None).as_deref(), Some("exe=*/a,path=/health*"));
    assert_eq!(of("/a", 80, "/shop", None), None);
    assert_eq!(of("/b", 80, "/healthz", None), None);
    assert_eq!(
        of("/b", 81, "/", Some("robot/1")).as_deref(),
        Some("port=81,user_agent=*BOT*")
    );
    assert_eq!(of("/b", 80, "/", Some("robot/1")), None);
    assert_eq!(of("/b", 81, "/", None), None);
    assert!(
        admitted(&rules, &process("/a"), 80),
        "the socket itself is not excluded"
    );
}

#[test]
fn plain_user_agent_prefixes_are_the_kernels() {
    let settings = |exclude: &[&str]| {
        let config = config(&[], exclude);
        config.settings(&SelectorRules::compile(&config.capture), RunFacts::default())
    };
    let probes = settings(&["user_agent=Kube-Probe/*"]);
    assert_eq!(probes.user_agent_count, 1);
    assert_eq!(
        probes.user_agents[0],
        [u64::from_le_bytes(*b"kube-pro"), u64::from_le_bytes(*b"be/\0\0\0\0\0")]
    );
    assert_eq!(probes.flags & setting::USER_AGENT_TEXT, 0);
    for text in [
        "user_agent=*bot*",
        "user_agent=exact",
        "user_agent=seventeen-bytes-x*",
        "uid=0,user_agent=a*",
    ] {
        let settings = settings(&[text]);
        assert_eq!(settings.user_agent_count, 0, "{text}");
        assert_ne!(settings.flags & setting::USER_AGENT_TEXT, 0, "{text}");
    }
    let many = settings(&[
        "user_agent=a*",
        "user_agent=b*",
        "user_agent=c*",
        "user_agent=d*",
        "user_agent=e*",
    ]);
    assert_eq!(many.user_agent_count, 4);
    assert_ne!(many.flags & setting::USER_AGENT_TEXT, 0);
}

#[test]
fn settings_carry_what_the_kernel_side_needs() {
    let mut config = config(&["port=80", "uid=1"], &["uid=2", "port=3"]);
    let name = |text| HeaderName::parse_kept(text).unwrap();
    config.capture.headers = vec![name("X-Request-Id"), name("x-team")];
    config.tenant = Some(Tenant::Header(name("x-tenant-id")));
    let rules = SelectorRules::compile(&config.capture);
    let run = RunFacts {
        generation: 9,
        own_pid: 77,
        api_port: 4319,
        health_port: 4320,
    };
    let settings = config.settings(&rules, run);
    assert_eq!(settings.flags, setting::CAPTURE | setting::OPAQUE | setting::PATHS);
    assert_eq!(
        (
            settings.generation,
            settings.own_pid,
            settings.api_port,
            settings.health_port
        ),
        (9, 77, 4319, 4320)
    );
    assert_eq!((settings.include_any_port, settings.exclude_any_port), (2, 1));
    assert_eq!(settings.name_count, 3);
    let first = settings.names[0];
    assert_eq!(
        first.words,
        [
            u64::from_le_bytes(*b"x-reques"),
            u64::from_le_bytes(*b"t-id\0\0\0\0"),
            0,
            0
        ]
    );
    assert_eq!((first.len, first.keep, first.tenant), (12, 1, 0));
    assert_eq!(
        (settings.names[2].len, settings.names[2].keep, settings.names[2].tenant),
        (11, 0, 1)
    );

    config.tenant = Some(Tenant::Header(name("x-team")));
    let settings = config.settings(&rules, run);
    assert_eq!(
        (settings.name_count, settings.names[1].keep, settings.names[1].tenant),
        (2, 1, 1)
    );

    config.capture.enabled = false;
    config.capture.opaque = false;
    config.capture.paths = PathDetail::Off;
    assert_eq!(config.settings(&rules, run).flags, 0);
    config.capture.exclude = vec![Selector::parse("path=/x", true).unwrap()];
    let rules = SelectorRules::compile(&config.capture);
    assert_eq!(
        config.settings(&rules, run).flags,
        setting::PATHS,
        "an exclusion by path needs the path"
    );
}

fn selector() -> impl Strategy<Value = Selector> {
    (proptest::option::of(0u32..3), proptest::option::of(1u16..4)).prop_filter_map("empty", |(uid, port)| {
        let selector = Selector {
            port,
            uid,
            ..Selector::default()
        };
        (selector != Selector::default()).then_some(selector)
    })
}

proptest! {
    /// The masks say the same as the items read one by one.
    #[test]
    fn masks_agree_with_the_items(
        include in proptest::collection::vec(selector(), 0..33),
        exclude in proptest::collection::vec(selector(), 0..33),
        uid in 0u32..3,
        port in 1u16..4,
        pid in any::<u32>(),
    ) {
        let facts = ProcessFacts { pid, uid, ..ProcessFacts::default() };
        let holds = |item: &Selector| {
            item.matches_process(&facts) && item.port.is_none_or(|named| named == port)
        };
        let expected = (include.is_empty() || include.iter().any(holds)) && !exclude.iter().any(holds);
        let rules = SelectorRules::compile(&Capture { include, exclude, ..Capture::default() });
        prop_assert_eq!(admitted(&rules, &facts, port), expected);
    }
}
