#![allow(clippy::unwrap_used, reason = "test")]

use super::*;
use crate::discover::cache::Hint;
use crate::discover::procfs::ProcRoot;

/// A process as /proc would show it: executable and mapped files; no maps at all with `None`.
fn judged(exe: &str, mapped: Option<&[&str]>) -> Verdict {
    let folder = tempfile::tempdir().unwrap();
    let process = folder.path().join("5");
    std::fs::create_dir(&process).unwrap();
    std::fs::write(
        process.join("stat"),
        "5 (x) S 1 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 77 0\n",
    )
    .unwrap();
    std::os::unix::fs::symlink(exe, process.join("exe")).unwrap();
    if let Some(mapped) = mapped {
        let line = |path: &&str| format!("1-2 r-xp 0 0:0 1 {path}\n");
        let lines: Vec<String> = std::iter::once(&exe).chain(mapped).map(line).collect();
        std::fs::write(process.join("maps"), lines.concat()).unwrap();
    }
    classify(&ProcessInfo::read(&ProcRoot::at(folder.path()), None, &Hint::pid(5)))
}

#[test]
fn classes_by_executable_and_libraries() {
    use ProcessClass::{EventLoop, Jvm, Nginx, Other, ProcessPerRequest, Proxy, ThreadPerRequest, ThreadReadsWhole};
    const MPM: &str = "/usr/lib/apache2/modules/mod_mpm_";
    let table: &[(&str, &[&str], ProcessClass, Option<&str>)] = &[
        ("/usr/sbin/nginx", &[], Nginx, None),
        (
            "/usr/sbin/nginx",
            &["/usr/lib/nginx/modules/ngx_http_lua_module.so"],
            Proxy,
            None,
        ),
        ("/usr/sbin/nginx", &["/usr/lib/libluajit-5.1.so.2"], Proxy, None),
        ("/usr/local/openresty/nginx/sbin/nginx", &[], Proxy, None),
        ("/usr/sbin/nginx-ingress", &[], Other, None),
        (
            "/usr/sbin/apache2",
            &[&format!("{MPM}prefork.so")],
            ProcessPerRequest,
            None,
        ),
        (
            "/usr/sbin/httpd",
            &[&format!("{MPM}prefork.so"), "/usr/lib/apache2/modules/libphp8.2.so"],
            ProcessPerRequest,
            None,
        ),
        ("/usr/sbin/apache2", &[&format!("{MPM}event.so")], Proxy, None),
        ("/usr/sbin/apache2", &[&format!("{MPM}worker.so")], Proxy, None),
        ("/usr/sbin/apache2", &[], Proxy, None),
        (
            "/usr/sbin/apache2",
            &[&format!("{MPM}prefork.so"), "/x/mod_http2.so"],
            Proxy,
            None,
        ),
        ("/usr/sbin/haproxy", &[], Proxy, None),
        ("/usr/local/bin/envoy", &[], Proxy, None),
        (
            "/usr/bin/python3.11",
            &["/usr/lib/libpython3.11.so.1.0"],
            ThreadPerRequest,
            Some("cpython"),
        ),
        ("/usr/bin/python3", &[], ThreadPerRequest, Some("cpython")),
        ("/opt/python3.13t", &[], ThreadPerRequest, Some("cpython")),
        (
            "/usr/bin/python3.11",
            &["/v/site-packages/uvloop/loop.cpython-311-x86_64-linux-gnu.so"],
            EventLoop,
            Some("cpython"),
        ),
        (
            "/usr/bin/python3.11",
            &["/v/site-packages/gevent/libev/corecext.cpython-311.so"],
            EventLoop,
            Some("cpython"),
        ),
        (
            "/usr/bin/python3.11",
            &["/v/site-packages/greenlet/_greenlet.cpython-311.so"],
            EventLoop,
            Some("cpython"),
        ),
        (
            "/usr/bin/python2.7",
            &["/usr/lib/python2.7/dist-packages/greenlet.so", "/x/_greenlet.so"],
            EventLoop,
            Some("cpython"),
        ),
        (
            "/usr/bin/uwsgi",
            &["/usr/lib/libpython3.11.so.1.0"],
            Other,
            Some("cpython"),
        ),
        ("/usr/bin/pypy3", &[], Other, Some("pypy")),
        ("/usr/bin/pythonista", &[], Other, None),
        (
            "/usr/bin/ruby3.1",
            &["/usr/lib/libruby-3.1.so.3.1"],
            ThreadReadsWhole,
            Some("ruby"),
        ),
        (
            "/usr/bin/ruby",
            &["/g/io-event-1.6/ext/IO_Event.so"],
            EventLoop,
            Some("ruby"),
        ),
        (
            "/usr/bin/ruby",
            &["/g/eventmachine-1.2.7/lib/rubyeventmachine.so"],
            EventLoop,
            Some("ruby"),
        ),
        ("/usr/bin/vim", &["/usr/lib/libruby-3.1.so.3.1"], Other, Some("ruby")),
        ("/usr/bin/node", &[], EventLoop, Some("nodejs")),
        (
            "/opt/app/server",
            &["/usr/lib/libnode.so.108"],
            EventLoop,
            Some("nodejs"),
        ),
        ("/usr/bin/bun", &[], EventLoop, Some("bun")),
        ("/usr/sbin/php-fpm8.2", &[], ProcessPerRequest, Some("php")),
        ("/usr/lib/cgi-bin/php-cgi8.2", &[], ProcessPerRequest, Some("php")),
        ("/usr/bin/php8.2", &[], Other, Some("php")),
        (
            "/usr/bin/php8.2",
            &["/usr/lib/php/20220829/swoole.so"],
            EventLoop,
            Some("php"),
        ),
        (
            "/usr/lib/jvm/java-17/bin/java",
            &["/usr/lib/jvm/java-17/lib/server/libjvm.so"],
            Jvm,
            Some("OpenJDK Runtime Environment"),
        ),
        (
            "/usr/lib/jvm/java-17/bin/java",
            &[],
            Jvm,
            Some("OpenJDK Runtime Environment"),
        ),
        (
            "/usr/bin/jsvc",
            &["/usr/lib/jvm/lib/server/libjvm.so"],
            Jvm,
            Some("OpenJDK Runtime Environment"),
        ),
        ("/usr/bin/dotnet", &[], EventLoop, Some(".NET")),
        ("/app/shop", &["/app/libcoreclr.so"], EventLoop, Some(".NET")),
        ("/usr/lib/erlang/erts-13/bin/beam.smp", &[], EventLoop, Some("BEAM")),
        ("/usr/bin/curl", &["/usr/lib/libcurl.so.4"], Other, None),
        ("/usr/bin/dash", &[], Other, None),
        ("/usr/bin/perl", &[], Other, Some("perl")),
        ("/usr/bin/anything", &[], Other, None),
    ];
    for (exe, mapped, class, name) in table {
        let verdict = judged(exe, Some(mapped));
        assert_eq!(
            (verdict.class, verdict.runtime_name),
            (*class, *name),
            "{exe} {mapped:?}: {}",
            verdict.why
        );
        let absence = matches!(class, ThreadPerRequest | ThreadReadsWhole);
        assert_eq!(verdict.provisional, absence, "{exe}: rests on absence, or not");
    }
}

#[test]
fn without_mappings_no_class_that_allows_a_thread_rule() {
    for exe in [
        "/usr/bin/python3.11",
        "/usr/bin/ruby3.1",
        "/usr/sbin/apache2",
        "/usr/sbin/nginx",
    ] {
        let class = judged(exe, None).class;
        assert!(
            matches!(class, ProcessClass::Other | ProcessClass::Proxy),
            "{exe}: {class:?}"
        );
    }
}

/// A child that waits on its standard input, so that it ends with the test whatever happens to the test.
struct Child(std::process::Child);

impl Child {
    fn start(program: &str, arguments: &[&str]) -> Option<Self> {
        let child = std::process::Command::new(program)
            .args(arguments)
            .env("OTEL_SERVICE_NAME", "from-environment")
            .env("UNRELATED", "tr0ub4dor")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .ok()?;
        Some(Self(child))
    }

    fn wait_for_output(&mut self) {
        let mut ready = [0u8; 1];
        std::io::Read::read_exact(self.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
    }

    /// Reads the child once it has said that its program runs.
    fn read(&mut self) -> ProcessInfo {
        self.wait_for_output();
        let root = ProcRoot::default();
        let mount = crate::discover::CgroupMount::find(&root);
        ProcessInfo::read(&root, mount.as_ref(), &Hint::pid(self.0.id()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Each interpreter this machine has, running a script of its own that takes a secret as an argument.
#[test]
fn real_processes() {
    use ProcessClass::{EventLoop, Other, ThreadPerRequest, ThreadReadsWhole};
    let folder = tempfile::tempdir().unwrap();
    let scripts: &[(&str, &str, &str, ProcessClass)] = &[
        (
            "python3",
            "shop.py",
            "import sys; print('r', flush=True); sys.stdin.read()",
            ThreadPerRequest,
        ),
        (
            "node",
            "shop.js",
            "process.stdout.write('r'); process.stdin.resume()",
            EventLoop,
        ),
        (
            "ruby",
            "shop.rb",
            "STDOUT.write('r'); STDOUT.flush; STDIN.read",
            ThreadReadsWhole,
        ),
        ("perl", "shop.pl", "$|=1; print 'r'; <STDIN>", Other),
        ("sh", "shop.sh", "printf r; read x", Other),
    ];
    let mut seen = 0;
    for (program, file, text, class) in scripts {
        let path = folder.path().join(file);
        std::fs::write(&path, text).unwrap();
        let Some(mut child) = Child::start(program, &[path.to_str().unwrap(), "--password=tr0ub4dor"]) else {
            continue;
        };
        let info = child.read();
        seen += 1;
        let verdict = classify(&info);
        assert_eq!(verdict.class, *class, "{program}: {}", verdict.why);
        assert_eq!(info.script.as_deref(), Some("shop"), "{program}");
        assert_eq!(
            info.declared.service_name.as_deref(),
            Some("from-environment"),
            "{program}"
        );
        assert!(info.mapped.complete && info.start_ticks > 0 && info.threads > 0 && info.uid.is_some());
        assert_eq!(info.ancestors.first(), Some(&std::process::id()));
        assert!(
            !format!("{info:?}").contains("tr0ub4dor"),
            "{program}: nothing but the script's name is kept"
        );
    }
    assert!(seen >= 1, "sh is on every machine");
}

/// A real interpreter that maps a file in a folder `gevent` after it was judged.
#[test]
fn a_real_process_is_demoted_by_what_it_maps_later() {
    use crate::discover::{Discoverer, Limits};
    const SECOND_NS: u64 = 1_000_000_000;
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("gevent/_hub.so");
    std::fs::create_dir(folder.path().join("gevent")).unwrap();
    std::fs::write(&library, [0u8; 4096]).unwrap();
    let script = folder.path().join("late.py");
    let text = "import mmap, sys\nprint('r', end='', flush=True)\nsys.stdin.readline()\n\
                file = open(sys.argv[1])\nkept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n\
                print('r', end='', flush=True)\nsys.stdin.read()\n";
    std::fs::write(&script, text).unwrap();
    let Some(mut child) = Child::start("python3", &[script.to_str().unwrap(), library.to_str().unwrap()]) else {
        return;
    };
    child.wait_for_output();
    let mut discoverer = Discoverer::new(ProcRoot::default(), Limits::default());
    let process = discoverer.lookup(child.0.id(), 0, SECOND_NS);
    assert_eq!(process.class(), ProcessClass::ThreadPerRequest);
    assert!(discoverer.recheck(2 * SECOND_NS).is_empty());
    std::io::Write::write_all(child.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    child.wait_for_output();
    discoverer.lookup(child.0.id(), 0, 3 * SECOND_NS);
    assert_eq!(discoverer.recheck(20 * SECOND_NS).len(), 1);
    assert_eq!(process.class(), ProcessClass::EventLoop);
}
