//! The page as a scraper reads it.
#![allow(clippy::unwrap_used, reason = "test")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Reads a page strictly: every sample belongs to the family announced before it, none comes twice.
fn parse(page: &str) -> BTreeMap<String, u64> {
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let mut family = String::new();
    let mut helped = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split_once(' ').unwrap().0.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped);
            assert_eq!(kind, if name.ends_with("_total") { "counter" } else { "gauge" });
            assert!(families.insert(name.to_owned()), "family twice: {name}");
            name.clone_into(&mut family);
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(key.split('{').next().unwrap(), family);
            let before = samples.insert(key.to_owned(), value.parse().unwrap());
            assert_eq!(before, None, "sample twice: {key}");
        }
    }
    assert!(page.ends_with('\n'));
    samples
}

#[test]
fn every_known_label_value_is_there_from_the_start_with_zero() {
    let samples = parse(&Counters::new().render());
    for key in [
        r#"spanwire_exchanges_total{side="server"}"#,
        r#"spanwire_exchanges_total{side="client"}"#,
        r#"spanwire_dropped_total{stage="kernel",reason="ring_full"}"#,
        r#"spanwire_dropped_total{stage="decode",reason="malformed"}"#,
        r#"spanwire_dropped_total{stage="pipeline",reason="queue_full"}"#,
        r#"spanwire_kernel_notes_total{reason="ring_full_other"}"#,
        r#"spanwire_kernel_cost_total{what="user_reads"}"#,
        r#"spanwire_injections_total{result="ok"}"#,
        r#"spanwire_injections_total{result="skipped"}"#,
        r#"spanwire_injections_total{result="failed"}"#,
        r#"spanwire_config_reloads_total{result="ok"}"#,
        r#"spanwire_config_reloads_total{result="failed"}"#,
        r#"spanwire_dropped_total{stage="assemble",reason="memory_limit"}"#,
        r#"spanwire_dropped_total{stage="assemble",reason="cpu_limit"}"#,
        r#"spanwire_dropped_total{stage="sample",reason="cpu_limit"}"#,
        "spanwire_joined_sockets_total",
        "spanwire_union_traces",
        "spanwire_union_evictions_total",
    ] {
        assert_eq!(samples.get(key), Some(&0), "{key}");
    }
    for reason in [
        "tls",
        "http2",
        "framing",
        "late_join",
        "io_uring",
        "upgrade",
        "protocol",
    ] {
        let key = format!("spanwire_opaque_sockets_total{{reason=\"{reason}\"}}");
        assert_eq!(samples.get(&key), Some(&0), "{key}");
    }
    for kind in ["server", "client", "producer", "consumer"] {
        for source in ParentSource::ALL {
            let source = source.as_str();
            let key = format!("spanwire_spans_total{{kind=\"{kind}\",parent_source=\"{source}\"}}");
            assert_eq!(samples.get(&key), Some(&0), "{key}");
        }
    }
    let build = samples
        .iter()
        .find(|(key, _)| key.starts_with("spanwire_build_info{version=\""))
        .unwrap();
    assert_eq!(*build.1, 1);
}

#[test]
fn every_kernel_counter_and_user_drop_is_exported_exactly_once() {
    let counters = Counters::new();
    let totals: Vec<u64> = (0..KERNEL_COUNTERS as u64).map(|index| 1_000 + index).collect();
    counters.set_kernel(&totals);
    for (index, drop) in UserDrop::ALL.iter().enumerate() {
        counters.dropped(*drop, 2_000 + index as u64);
    }
    let samples = parse(&counters.render());
    let shown: Vec<u64> = samples.values().copied().filter(|value| *value >= 1_000).collect();
    assert_eq!(shown.len(), KernelCounter::ALL.len() + UserDrop::ALL.len());
    for counter in KernelCounter::ALL {
        let value = 1_000 + *counter as u64;
        assert_eq!(counters.kernel(*counter), value);
        let (_, label) = counter.label();
        let holders: Vec<&String> = samples
            .iter()
            .filter(|(_, shown)| **shown == value)
            .map(|(key, _)| key)
            .collect();
        assert_eq!(holders.len(), 1, "{counter:?}");
        assert!(
            holders[0].contains(&format!("=\"{label}\"")),
            "{counter:?} as {}",
            holders[0]
        );
    }
}

#[test]
fn totals_of_another_length_are_taken_as_far_as_they_go() {
    let counters = Counters::new();
    counters.set_kernel(&[7]);
    counters.set_kernel(&[]);
    assert_eq!(counters.kernel(KernelCounter::ExchangesServer), 7);
    counters.set_kernel(&[9; KERNEL_COUNTERS + 8]);
    assert_eq!(counters.kernel(KernelCounter::ProgramRuns), 9);
}

#[test]
fn spans_count_under_their_own_kind_and_source() {
    let counters = Counters::new();
    for (round, kind) in KINDS.iter().enumerate() {
        for (index, source) in ParentSource::ALL.iter().enumerate() {
            for _ in 0..=(round * SOURCES + index) {
                counters.span(*kind, *source);
            }
        }
    }
    let samples = parse(&counters.render());
    assert_eq!(
        samples[r#"spanwire_spans_total{kind="server",parent_source="header"}"#],
        1
    );
    assert_eq!(
        samples[r#"spanwire_spans_total{kind="client",parent_source="unknown"}"#],
        20
    );
    assert_eq!(
        samples[r#"spanwire_spans_total{kind="consumer",parent_source="unknown"}"#],
        40
    );
    assert_eq!(counters.span_total(), (1..=40).sum::<u64>());
}

#[test]
fn names_from_the_configuration_are_escaped_and_shared() {
    let counters = Counters::new();
    counters.exporter("a\"b\\c\nd").sent.add(1);
    counters.exporter("a\"b\\c\nd").sent.add(2);
    counters.exporter("main").dropped.add(4);
    counters.queue("export/main").set(5);
    counters.queue("export/main").set(3);
    counters.set_hook("sock_send_length", true);
    counters.set_hook("sched_process_exec", false);
    counters.config_reload(ReloadResult::Failed);
    counters.set_union(UnionStats {
        members: 10,
        aliases: 3,
        evictions: 2,
        misses: 1,
    });
    let samples = parse(&counters.render());
    for (key, value) in [
        (r#"spanwire_export_spans_total{exporter="a\"b\\c\nd",result="sent"}"#, 3),
        (r#"spanwire_export_spans_total{exporter="main",result="sent"}"#, 0),
        (r#"spanwire_export_spans_total{exporter="main",result="failed"}"#, 0),
        (r#"spanwire_export_spans_total{exporter="main",result="dropped"}"#, 4),
        (r#"spanwire_queue_length{queue="export/main"}"#, 3),
        (r#"spanwire_hook_attached{hook="sock_send_length"}"#, 1),
        (r#"spanwire_hook_attached{hook="sched_process_exec"}"#, 0),
        (r#"spanwire_config_reloads_total{result="failed"}"#, 1),
        ("spanwire_union_traces", 10),
        ("spanwire_union_aliases", 3),
        ("spanwire_union_evictions_total", 2),
        ("spanwire_union_misses_total", 1),
    ] {
        assert_eq!(samples.get(key), Some(&value), "{key}");
    }
}
