//! WEBrick (a thread per connection) and puma (a reactor and a pool of threads).

use anyhow::Result;

use super::{App, Calls};
use crate::place::{free_port, program, workload, Place};
use crate::service::{Launch, Target};

/// WEBrick, from Debian's ruby-webrick.
pub fn webrick(name: &str, place: &Place, calls: &Calls) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let service = Launch::new(name, program("ruby")?, place)
        .arg(workload("webrick_app.rb"))
        .arg(port.to_string())
        .env("CALLS", calls.as_env())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}

/// puma with five threads.
pub fn puma(name: &str, place: &Place, calls: &Calls) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let service = Launch::new(name, program("puma")?, place)
        .args(["--quiet", "--environment", "production", "--threads", "5:5", "--bind"])
        .arg(format!("tcp://127.0.0.1:{port}"))
        .arg(workload("puma_app.ru"))
        .env("CALLS", calls.as_env())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}
