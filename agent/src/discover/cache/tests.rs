#![allow(clippy::unwrap_used, reason = "test")]

use spanwire_common::abi::ProcessClass;

use super::*;

/// A fabricated /proc in a temporary folder.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, pid: u32, name: &str, text: &str) {
        let path = self.0.path().join(pid.to_string()).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// A process that runs `exe` with those files mapped.
    fn process(&self, pid: u32, start_ticks: u64, exe: &str, mapped: &[&str]) {
        self.write(
            pid,
            "stat",
            &format!("{pid} (x) S 1 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start_ticks} 0\n"),
        );
        self.write(pid, "status", "Name:\tx\nUid:\t7\t8\t7\t7\n");
        self.write(pid, "cgroup", "0::/a\n");
        self.maps(pid, exe, mapped);
        let link = self.0.path().join(pid.to_string()).join("exe");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(exe, link).unwrap();
    }

    fn maps(&self, pid: u32, exe: &str, mapped: &[&str]) {
        let line = |path: &&str| format!("1-2 r-xp 0 0:0 1 {path}\n");
        let lines: Vec<String> = std::iter::once(&exe).chain(mapped).map(line).collect();
        self.write(pid, "maps", &lines.concat());
    }

    fn remove(&self, pid: u32) {
        std::fs::remove_dir_all(self.0.path().join(pid.to_string())).unwrap();
    }

    fn discoverer(&self, limits: Limits) -> Discoverer {
        Discoverer::new(ProcRoot::at(self.0.path()), limits)
    }
}

const PYTHON: &str = "/usr/bin/python3.11";
const GEVENT: &str = "/usr/lib/python3/gevent/_gevent_c_hub.so";
const S: u64 = SECOND_NS;

#[test]
fn a_process_is_read_once_and_shared() {
    let tree = Tree::new();
    tree.process(5, 100, PYTHON, &[]);
    let mut discoverer = tree.discoverer(Limits::default());
    let first = discoverer.lookup(5, S, S);
    assert_eq!(
        (first.class(), first.info.uid, first.info.exe_name()),
        (ProcessClass::ThreadPerRequest, Some(8), "python3.11")
    );
    tree.write(5, "status", "Uid:\t9\t9\t9\t9\n");
    assert!(Arc::ptr_eq(&first, &discoverer.lookup(5, 2 * S, 2 * S)));
}

#[test]
fn a_process_that_ended_is_kept_for_its_last_spans() {
    let tree = Tree::new();
    tree.process(5, 100, PYTHON, &[]);
    let mut discoverer = tree.discoverer(Limits::default());
    let first = discoverer.lookup(5, S, S);
    tree.remove(5);
    discoverer.on_exit(5, 2 * S);
    discoverer.sweep(11 * S);
    assert!(Arc::ptr_eq(&first, &discoverer.lookup(5, S, 11 * S)));
    discoverer.sweep(13 * S);
    assert!(discoverer.is_empty());
}

#[test]
fn a_pid_used_again_is_another_process_and_the_old_one_answers_for_its_time() {
    let tree = Tree::new();
    tree.process(5, 100, PYTHON, &[]);
    let mut discoverer = tree.discoverer(Limits::default());
    let first = discoverer.lookup(5, S, S);
    discoverer.on_exit(5, 2 * S);
    tree.process(5, 250, "/usr/bin/node", &[]);
    let second = discoverer.lookup_with(&Hint::pid(5), 3 * S, 3 * S);
    assert_eq!(second.class(), ProcessClass::EventLoop);
    assert!(Arc::ptr_eq(&first, &discoverer.lookup(5, S + 1, 3 * S)));
    assert!(Arc::ptr_eq(&second, &discoverer.lookup(5, 3 * S, 3 * S)));
}

#[test]
fn a_lost_exit_is_noticed_by_the_start_time_and_a_lost_exec_by_the_executable() {
    let tree = Tree::new();
    tree.process(5, 100, PYTHON, &[]);
    let mut discoverer = tree.discoverer(Limits::default());
    discoverer.lookup(5, S, S);
    tree.process(5, 300, PYTHON, &[]);
    assert_eq!(discoverer.lookup(5, 7 * S, 7 * S).info.start_ticks, 300);
    assert_eq!(
        discoverer.lookup(5, 2 * S, 7 * S).info.start_ticks,
        100,
        "before 3 s it was the first"
    );
    tree.process(5, 300, "/usr/sbin/nginx", &[]);
    assert_eq!(discoverer.lookup(5, 13 * S, 13 * S).class(), ProcessClass::Nginx);
}

#[test]
fn exec_changes_the_program_from_then_on() {
    let tree = Tree::new();
    tree.process(
        5,
        100,
        "/usr/sbin/apache2",
        &["/usr/lib/apache2/modules/mod_mpm_prefork.so"],
    );
    let mut discoverer = tree.discoverer(Limits::default());
    assert!(
        discoverer.on_exec(&Hint::pid(5), S, S).is_none(),
        "nobody asked for it yet"
    );
    assert_eq!(discoverer.lookup(5, S, S).class(), ProcessClass::ProcessPerRequest);
    tree.process(5, 100, "/usr/bin/curl", &[]);
    assert_eq!(
        discoverer.on_exec(&Hint::pid(5), 2 * S, 2 * S).unwrap().class(),
        ProcessClass::Other
    );
    assert_eq!(discoverer.lookup(5, S, 3 * S).class(), ProcessClass::ProcessPerRequest);
    assert_eq!(discoverer.lookup(5, 3 * S, 3 * S).class(), ProcessClass::Other);
}

#[test]
fn a_library_that_comes_late_demotes_for_good() {
    let tree = Tree::new();
    tree.process(5, 100, PYTHON, &[]);
    let mut discoverer = tree.discoverer(Limits::default());
    let process = discoverer.lookup(5, S, S);
    assert!(discoverer.recheck(S + S / 2).is_empty(), "not due");
    tree.maps(5, PYTHON, &[GEVENT]);
    let changed = discoverer.recheck(2 * S);
    assert_eq!(changed.len(), 1);
    assert!(Arc::ptr_eq(&process, &changed[0]));
    assert_eq!(process.class(), ProcessClass::EventLoop);
    tree.maps(5, PYTHON, &[]);
    discoverer.lookup(5, 20 * S, 20 * S);
    assert!(discoverer.recheck(30 * S).is_empty());
    assert_eq!(process.class(), ProcessClass::EventLoop, "for good");
}

#[test]
fn checks_follow_traffic_and_their_steps() {
    let tree = Tree::new();
    tree.process(5, 100, PYTHON, &[]);
    let mut discoverer = tree.discoverer(Limits::default());
    let process = discoverer.lookup(5, S, S);
    assert!(discoverer.recheck(2 * S).is_empty());
    tree.maps(5, PYTHON, &[GEVENT]);
    assert!(discoverer.recheck(100 * S).is_empty(), "due, but no traffic since");
    discoverer.lookup(5, 100 * S, 100 * S);
    assert_eq!(discoverer.recheck(101 * S).len(), 1);
    assert_eq!(process.class(), ProcessClass::EventLoop);
    assert_eq!(
        [0, 1, 2, 3, 4, 9].map(recheck_after),
        [S, 10 * S, 60 * S, 300 * S, 300 * S, 300 * S]
    );
}

#[test]
fn a_process_gone_before_it_was_read_is_told_from_the_hint() {
    let tree = Tree::new();
    let mut discoverer = tree.discoverer(Limits::default());
    let hint = Hint {
        ancestors: vec![3, 2],
        comm: Some("curl".into()),
        filename: Some("/usr/bin/curl".into()),
        cgroup_id: Some(9),
        ..Hint::pid(5)
    };
    let process = discoverer.lookup_with(&hint, S, S);
    assert_eq!(
        (process.info.exe_name(), &*process.info.comm, process.info.place.id),
        ("curl", "curl", Some(9))
    );
    assert_eq!(process.info.ancestors, [3, 2]);
    // The exchange's record, and even that of the process's end, overtook this one on another CPU.
    assert_eq!(discoverer.lookup_with(&Hint::pid(8), S, S).info.exe_name(), "");
    discoverer.on_exit(8, S);
    let late = Hint { pid: 8, ..hint };
    assert_eq!(discoverer.lookup_with(&late, S, S).info.exe_name(), "curl");
    assert_eq!(discoverer.lookup(8, S, S).info.ancestors, [3, 2]);
    assert_eq!(discoverer.lookup(77, S, S).info.exe_name(), "");
    let python = Hint {
        filename: Some(PYTHON.into()),
        ..Hint::pid(6)
    };
    assert_eq!(
        discoverer.lookup_with(&python, S, S).class(),
        ProcessClass::Other,
        "nothing was read: nothing is allowed"
    );
}

#[test]
fn records_of_the_kernel_side_become_hints() {
    use zerocopy::FromZeros;
    let mut record = ProcessRecord::new_zeroed();
    record.pid = 5;
    (record.parent_pid, record.grandparents) = (4, [3, 1, 0, 0]);
    record.comm[..4].copy_from_slice(b"curl");
    record.filename[..8].copy_from_slice(b"/bin/cur");
    let hint = Hint::from_record(&record);
    assert_eq!(
        (hint.comm.as_deref(), hint.filename.as_deref()),
        (Some("curl"), Some("/bin/cur"))
    );
    assert_eq!(hint.ancestors, [4, 3, 1]);
    assert_eq!((hint.uid, hint.cgroup_id), (Some(0), None));
}

#[test]
fn the_cache_is_bounded_and_drops_what_was_not_asked_for_the_longest() {
    let tree = Tree::new();
    let mut discoverer = tree.discoverer(Limits {
        processes: 16,
        ..Limits::default()
    });
    for pid in 1..=16 {
        discoverer.lookup(pid, S, S + u64::from(pid));
    }
    discoverer.lookup(1, S, 2 * S);
    discoverer.lookup(17, S, 2 * S);
    assert!(discoverer.len() <= 16);
    assert!(discoverer.entries.contains_key(&1) && discoverer.entries.contains_key(&17));
    assert!(!discoverer.entries.contains_key(&2) && !discoverer.entries.contains_key(&3));
    for pid in 100..1000 {
        discoverer.lookup(pid, S, 3 * S);
        assert!(discoverer.len() <= 16);
    }
}
