#![allow(clippy::unwrap_used, clippy::panic, reason = "test")]
use super::*;
use crate::sys::bpf::one_line;
use crate::sys::selftest::Verdict;

/// A node by what it lacks.
struct Fake {
    capabilities: u64,
    lacks: Vec<Feature>,
    programs: Result<String, String>,
}

impl Node for Fake {
    fn capabilities(&self) -> u64 {
        self.capabilities
    }

    fn probe(&self, feature: Feature) -> Result<(), Refusal> {
        if self.lacks.contains(&feature) {
            return Err(Refusal {
                what: "program load".into(),
                errno: libc::EPERM,
                complaint: String::new(),
            });
        }
        Ok(())
    }

    fn lockdown(&self) -> Lockdown {
        Lockdown::Integrity
    }

    fn self_test(&self) -> SelfTest {
        let mut test = SelfTest::without_answers("as it should be");
        for outcome in &mut test.outcomes {
            outcome.verdict = Verdict::Clean;
        }
        test
    }

    fn load_programs(&self) -> Result<String, String> {
        self.programs.clone()
    }
}

fn node(lacks: &[Feature]) -> Fake {
    Fake {
        capabilities: u64::MAX,
        lacks: lacks.to_vec(),
        programs: Ok("tp_btf".into()),
    }
}

fn row(report: &Report, feature: &str) -> Row {
    report
        .rows
        .iter()
        .find(|row| row.feature == feature)
        .unwrap_or_else(|| panic!("{feature}"))
        .clone()
}

fn printed(report: &Report, json: bool) -> String {
    let mut out = Vec::new();
    print(report, json, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_node_that_can_do_everything() {
    let report = examine(&node(&[]));
    assert!(report.tracing_possible);
    for row in &report.rows {
        let expected = match row.feature.as_str() {
            "lockdown" => "integrity",
            "sockmap self-test" => "yes",
            name if name.starts_with("sockmap ") => "clean",
            _ => "yes",
        };
        assert_eq!((row.state, row.remedy), (expected, ""), "{}", row.feature);
    }
}

#[test]
fn one_family_of_hooks_is_enough() {
    let families = [
        Feature::SocketTracepoints,
        Feature::Fentry,
        Feature::Kprobe,
        Feature::SyscallTracepoints,
    ];
    for kept in families {
        let lacks: Vec<Feature> = families.into_iter().filter(|family| *family != kept).collect();
        assert!(examine(&node(&lacks)).tracing_possible, "{kept:?}");
    }
    assert!(!examine(&node(&families)).tracing_possible);
}

#[test]
fn what_every_family_needs() {
    for feature in [
        Feature::Btf,
        Feature::LifeTracepoints,
        Feature::RingBuffer,
        Feature::MapInMap,
        Feature::UserMemory,
        Feature::KernelMemory,
    ] {
        let report = examine(&node(&[feature]));
        assert!(!report.tracing_possible, "{feature:?}");
        assert_eq!(row(&report, "the agent's programs").state, "not probed");
    }
    for feature in [
        Feature::Cgroup2,
        Feature::SockOps,
        Feature::SkMsg,
        Feature::Uprobe,
        Feature::HostPids,
    ] {
        assert!(examine(&node(&[feature])).tracing_possible, "{feature:?}");
    }
}

#[test]
fn programs_without_types_need_neither_socket_storage_nor_task_registers() {
    let newer = [Feature::SocketStorage, Feature::SocketCookie, Feature::TaskRegisters];
    assert!(examine(&node(&newer)).tracing_possible);
    for feature in newer {
        let typed_only = [feature, Feature::Kprobe, Feature::SyscallTracepoints];
        assert!(!examine(&node(&typed_only)).tracing_possible, "{feature:?}");
    }
}

#[test]
fn what_the_programs_do_not_see_is_told_with_their_family() {
    let report = examine(&Fake {
        programs: Ok("syscalls: io_uring is not seen".into()),
        ..node(&[])
    });
    assert_eq!(
        row(&report, "the agent's programs").consequence,
        "the kernel accepts them; sends and receives are seen by syscalls: io_uring is not seen"
    );
}

#[test]
fn without_sk_msg_the_sockmap_is_not_tried() {
    let report = examine(&node(&[Feature::SkMsg]));
    let tried: Vec<&Row> = report
        .rows
        .iter()
        .filter(|row| row.feature.starts_with("sockmap "))
        .collect();
    assert_eq!(tried.len(), 1);
    assert_eq!(
        (tried[0].feature.as_str(), tried[0].state),
        ("sockmap self-test", "not probed")
    );
    assert!(report.tracing_possible);
}

#[test]
fn a_refusal_is_told_with_its_reason_and_remedy() {
    let report = examine(&node(&[Feature::Fentry]));
    let fentry = row(&report, "fentry, fexit");
    assert_eq!(fentry.state, "no");
    assert_eq!(
        fentry.consequence,
        "this fallback is left out [program load: Operation not permitted (os error 1)]"
    );
    assert!(!fentry.remedy.is_empty());
}

#[test]
fn programs_that_are_refused_make_tracing_impossible() {
    let report = examine(&Fake {
        programs: Err("program x: refused".into()),
        ..node(&[])
    });
    assert!(!report.tracing_possible);
    assert_eq!(
        row(&report, "the agent's programs").consequence,
        "nothing is traced [program x: refused]"
    );
}

#[test]
fn without_capabilities_each_missing_one_is_a_line() {
    let report = examine(&Fake {
        capabilities: 0,
        ..node(&[])
    });
    assert!(!report.tracing_possible);
    for name in [
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_NET_ADMIN",
        "CAP_SYS_PTRACE",
        "CAP_SYS_ADMIN",
    ] {
        let lines = report
            .rows
            .iter()
            .filter(|row| row.feature == name && row.state == "no")
            .count();
        assert_eq!(lines, 1, "{name}");
    }
    assert_eq!(row(&report, "kprobe, kretprobe").state, "not probed");
    assert_eq!(
        row(&report, "kernel BTF").state,
        "yes",
        "what needs no capability is still looked at"
    );
    assert!(printed(&report, false).ends_with("tracing is impossible on this node\n"));
}

#[test]
fn cap_sys_admin_stands_for_bpf_and_perfmon() {
    let report = examine(&Fake {
        capabilities: 1 << CAP_SYS_ADMIN,
        ..node(&[])
    });
    assert!(report.tracing_possible);
    assert_eq!(row(&report, "CAP_BPF").state, "yes");
    assert_eq!(row(&report, "CAP_NET_ADMIN").state, "no");
}

#[test]
fn what_is_missing_to_trace_is_named_with_its_remedy() {
    let both = missing_to_trace(1 << CAP_NET_ADMIN | 1 << CAP_SYS_PTRACE).unwrap();
    assert!(
        both.starts_with("CAP_BPF and CAP_PERFMON are missing: run as root"),
        "{both}"
    );
    assert_eq!(both.lines().count(), 1);
    let one = missing_to_trace(1 << CAP_BPF).unwrap();
    assert!(
        one.starts_with("CAP_PERFMON is missing: run as root, or grant it"),
        "{one}"
    );
    assert_eq!(missing_to_trace(1 << CAP_BPF | 1 << CAP_PERFMON), None);
    assert_eq!(missing_to_trace(1 << CAP_SYS_ADMIN), None);
}

#[test]
fn a_verifier_log_becomes_one_line() {
    let error = "program x: refused (os error 13). Verifier output: 1: (b7) r4 = 0\nR6 unbounded memory access\n\
        processed 9 insns\n: Permission denied";
    assert_eq!(
        one_line(error),
        "program x: refused (os error 13): R6 unbounded memory access"
    );
    assert_eq!(one_line("no BTF\nmore"), "no BTF");
}

#[test]
fn json_is_one_array_of_rows() {
    let report = examine(&node(&[Feature::Kprobe]));
    let json: serde_json::Value = serde_json::from_str(&printed(&report, true)).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!(rows.len(), report.rows.len());
    for row in rows {
        let keys: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 4);
        for key in ["feature", "state", "consequence", "remedy"] {
            assert!(row[key].is_string(), "{key}");
        }
    }
}

#[test]
fn the_table_has_a_line_for_each_row() {
    let report = examine(&node(&[Feature::Kprobe]));
    let text = printed(&report, false);
    assert_eq!(text.lines().count(), 1 + report.rows.len() + 2);
    assert!(text.starts_with("FEATURE "));
}

/// Whatever this machine can do, asking ends in an answer; and what it shows must agree with itself.
#[test]
fn this_machine_answers() {
    let this = ThisNode::new();
    let report = examine(&this);
    let may_load = this.capabilities() & (1 << CAP_BPF | 1 << CAP_SYS_ADMIN) != 0;
    let ring = row(&report, "ring buffer");
    assert_eq!(ring.state == "not probed", !may_load);
    assert_eq!(
        row(&report, "the agent's programs").state == "yes",
        report.tracing_possible
    );
}
