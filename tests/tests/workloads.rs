//! The workloads by themselves, without an agent: every application answers every request of its ground truth, so
//! that a failure in the other tests is the agent's.
#![allow(clippy::unwrap_used, reason = "test")]

use anyhow::{ensure, Result};
use spanwire_tests::apps::nginx::Site;
use spanwire_tests::apps::python::{self, Workers};
use spanwire_tests::apps::{apache, haproxy, node, php_fpm, ruby, App, Calls};
use spanwire_tests::cases::Cases;
use spanwire_tests::http;
use spanwire_tests::load::Load;
use spanwire_tests::place::{free_port, Place};
use spanwire_tests::service::Target;

fn load(target: &Target, prefix: &str) -> Result<String> {
    let outcome = Load {
        target,
        prefix,
        requests: 64,
        concurrency: 16,
        keep_alive: true,
    }
    .run();
    let elapsed = outcome.elapsed;
    Ok(format!("{} answered in {elapsed:?}", outcome.all()?.len()))
}

#[test]
fn every_application_answers_under_load() {
    let place = Place::new("workloads").unwrap();
    let leaf = python::flask("leaf", &place, &Calls::none()).unwrap();
    let js = node::node("js", &place, &Calls::none()).unwrap();
    let calls = Calls::none().to("b", &leaf).unwrap().to("c", &js).unwrap();
    let script = php_fpm::script(&place, "script").unwrap();
    let mut cases = Cases::new("workloads");
    let mut app = |name: &'static str, start: &dyn Fn() -> Result<App>| {
        cases.run(name, || load(&start()?.target, name));
    };
    app("sync", &|| python::gunicorn("sync", &place, Workers::Sync(4), &calls));
    app("gthread", &|| {
        python::gunicorn("gthread", &place, Workers::Threads(16), &calls)
    });
    app("flask", &|| python::flask("flask", &place, &calls));
    app("aiohttp", &|| python::aiohttp("aiohttp", &place, &calls));
    app("node", &|| node::node("node", &place, &calls));
    app("webrick", &|| ruby::webrick("webrick", &place, &calls));
    app("puma", &|| ruby::puma("puma", &place, &calls));
    app("mod_php", &|| apache::mod_php("mod_php", &place, &calls));
    app("cgi", &|| apache::cgi("cgi", &place, &calls, "cgi.py"));
    app("cgi_shell", &|| apache::cgi("cgi_shell", &place, &calls, "cgi.sh"));
    app("haproxy", &|| haproxy::haproxy("haproxy", &place, "h", &leaf.target));
    app("return", &|| Site::new().returning().start("return", &place));
    app("proxy", &|| {
        Site::new().proxying("a", &[&leaf.target]).start("proxy", &place)
    });
    cases.run("unix_upstream", || {
        let upstream = python::gunicorn_unix("unix", &place, Workers::Sync(4), &calls)?;
        load(
            &Site::new()
                .proxying("a", &[&upstream.target])
                .start("unix_front", &place)?
                .target,
            "unix",
        )
    });
    cases.run("fpm_tcp", || {
        let upstream = php_fpm::tcp("fpm_tcp", &place, &calls)?;
        load(
            &Site::new()
                .fastcgi(&script, &upstream.target)
                .start("fpm_tcp_front", &place)?
                .target,
            "fpmtcp",
        )
    });
    cases.run("fpm_unix", || {
        let upstream = php_fpm::unix("fpm_unix", &place, &calls)?;
        load(
            &Site::new()
                .fastcgi(&script, &upstream.target)
                .start("fpm_unix_front", &place)?
                .target,
            "fpmunix",
        )
    });
    cases.run("faults", || faults(&place));
    cases.finish();
}

/// The failures that `retries` judges: each front answers as its configuration says.
fn faults(place: &Place) -> Result<String> {
    let flaky = python::faulty("flaky", place, "flaky")?;
    let busy = python::faulty("busy", place, "always")?;
    let reset = python::faulty("reset", place, "reset")?;
    let closing = python::faulty("closing", place, "close")?;
    let good = python::flask("good", place, &Calls::none())?;
    let dead = Target::loopback(free_port()?);
    let mut evidence = Vec::new();
    for (name, calls, expected) in [
        ("retried", Calls::none().to("b", &flaky)?, 200),
        ("exhausted", Calls::none().to("b", &busy)?, 502),
        ("resetting", Calls::none().to("b", &reset)?, 502),
        ("closed", Calls::none().to("b", &closing)?, 502),
        ("refused", Calls::none().to_url("b", dead.url()?), 502),
    ] {
        let front = python::gunicorn(name, place, Workers::Threads(4), &calls)?;
        let response = http::get(&front.target, &format!("/r/{name}"))?;
        ensure!(
            response.status == expected,
            "{name}: status {}: {}",
            response.status,
            response.text()
        );
        evidence.push(format!("{name} {expected}"));
    }
    for (name, first) in [("next_busy", &busy.target), ("next_dead", &dead)] {
        let front = Site::new().proxying("a", &[first, &good.target]).start(name, place)?;
        evidence.push(format!("{name}: {}", load(&front.target, name)?));
    }
    Ok(evidence.join(", "))
}
