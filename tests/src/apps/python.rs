//! gunicorn (sync and gthread workers, with OpenTelemetry's SDK or without) and Flask's own server, and aiohttp.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use super::{App, Calls};
use crate::place::{free_port, venv_program, workload, Place};
use crate::service::{Launch, Target};

/// How long [`Workers::Brief`] keeps a connection on which nothing is asked.
pub const BRIEF: Duration = Duration::from_secs(2);

/// How gunicorn's workers serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// Processes, one request each at a time.
    Sync(u8),
    /// One process with this many threads.
    Threads(u8),
    /// The same, whose connections end soon when nothing is asked on them.
    Brief(u8),
}

/// gunicorn with the Flask application, on a TCP port.
pub fn gunicorn(name: &str, place: &Place, workers: Workers, calls: &Calls) -> Result<App> {
    let target = Target::loopback(free_port()?);
    gunicorn_on(name, place, workers, calls, target)
}

/// gunicorn with the Flask application, on a unix socket.
pub fn gunicorn_unix(name: &str, place: &Place, workers: Workers, calls: &Calls) -> Result<App> {
    gunicorn_on(
        name,
        place,
        workers,
        calls,
        Target::Unix(place.join(&format!("{name}.sock"))),
    )
}

/// gunicorn whose processes carry secrets in their environment and in their arguments.
pub fn gunicorn_tainted(
    name: &str,
    place: &Place,
    calls: &Calls,
    environment: &(&str, &str),
    argument: &str,
) -> Result<App> {
    let target = Target::loopback(free_port()?);
    let service = gunicorn_launch(name, place, Workers::Threads(4), calls, &target)?
        .env(environment.0, environment.1)
        .args(["--env", &format!("TAINT={argument}"), "flask_app:app"])
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

fn gunicorn_on(name: &str, place: &Place, workers: Workers, calls: &Calls, target: Target) -> Result<App> {
    let service = gunicorn_launch(name, place, workers, calls, &target)?
        .arg("flask_app:app")
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// gunicorn with the Flask application under OpenTelemetry's own SDK, which reads `settings` from its environment, and the
/// calls that it does not know of.
pub fn gunicorn_sdk(
    name: &str,
    place: &Place,
    workers: Workers,
    calls: &Calls,
    plain_calls: &Calls,
    settings: &[(&str, &str)],
) -> Result<App> {
    let target = Target::loopback(free_port()?);
    let mut launch = gunicorn_launch(name, place, workers, calls, &target)?.env("PLAIN_CALLS", plain_calls.as_env());
    for (key, value) in settings {
        launch = launch.env(key, value);
    }
    let service = launch.arg("sdk_app:app").start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// gunicorn's command line up to the application's name.
fn gunicorn_launch(name: &str, place: &Place, workers: Workers, calls: &Calls, target: &Target) -> Result<Launch> {
    let bind = match target {
        Target::Tcp(addr) => addr.to_string(),
        Target::Unix(path) => format!("unix:{}", path.display()),
    };
    let kind = match workers {
        Workers::Sync(count) => vec!["--worker-class=sync".to_owned(), format!("--workers={count}")],
        // Kept long enough for a proxy's upstream connections to be used again.
        Workers::Threads(count) => vec![
            "--worker-class=gthread".to_owned(),
            format!("--threads={count}"),
            "--keep-alive=30".to_owned(),
        ],
        Workers::Brief(count) => vec![
            "--worker-class=gthread".to_owned(),
            format!("--threads={count}"),
            format!("--keep-alive={}", BRIEF.as_secs()),
        ],
    };
    Ok(python(name, place, "gunicorn", calls)?
        // Its quick end: SIGTERM waits for connections that nobody closes.
        .stop_with(Signal::QUIT)
        // umask 0: nginx's workers connect to the socket as another user.
        .args([
            "--bind",
            &bind,
            "--umask",
            "0",
            "--no-control-socket",
            "--worker-tmp-dir",
            "/dev/shm",
        ])
        .args(kind)
        .arg("--chdir")
        .arg(workload("")))
}

/// Flask's development server: a thread per connection.
pub fn flask(name: &str, place: &Place, calls: &Calls) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let service = python(name, place, "flask", calls)?
        .args([
            "--app",
            "flask_app:app",
            "run",
            "--with-threads",
            "--no-debugger",
            "--no-reload",
            "--port",
        ])
        .arg(port.to_string())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// aiohttp's server and client: asyncio.
pub fn aiohttp(name: &str, place: &Place, calls: &Calls) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let service = python(name, place, "python", calls)?
        .arg(workload("aiohttp_app.py"))
        .arg(port.to_string())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// A program of the Python environment that finds the workloads' modules.
fn python(name: &str, place: &Place, program: &str, calls: &Calls) -> Result<Launch> {
    let modules: OsString = workload("").into();
    Ok(Launch::new(name, venv_program(program)?, place)
        .env("PYTHONPATH", modules)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("CALLS", calls.as_env()))
}

/// A server that fails as told (`tests/workloads/faulty.py`).
pub fn faulty(name: &str, place: &Place, mode: &str) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let service = python(name, place, "python", &Calls::none())?
        .arg(workload("faulty.py"))
        .arg(mode)
        .arg(port.to_string())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}
