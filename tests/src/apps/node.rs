//! A Node service on the plain http module.

use anyhow::Result;

use super::{App, Calls};
use crate::place::{free_port, program, workload, Place};
use crate::service::{Launch, Target};

/// One process, one thread that runs JavaScript.
pub fn node(name: &str, place: &Place, calls: &Calls) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let service = Launch::new(name, program("node")?, place)
        .arg(workload("node_app.js"))
        .arg(port.to_string())
        .env("CALLS", calls.as_env())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}
