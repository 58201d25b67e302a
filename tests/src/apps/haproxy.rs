//! HAProxy in front of one server.

use anyhow::Result;

use super::App;
use crate::cases::say;
use crate::place::{free_port, program, Place};
use crate::service::{Launch, Target};

/// Whether HAProxy runs on this processor; says so where it does not. It is built with cmpxchg16b, which `x vm` has to leave out for
/// kernels before 7.x.
pub fn runs_here() -> Result<bool> {
    let processor = std::fs::read_to_string("/proc/cpuinfo")?;
    let runs = processor.split_ascii_whitespace().any(|flag| flag == "cx16");
    if !runs {
        say("this processor has no cmpxchg16b, without which HAProxy does not run: it is left out");
    }
    Ok(runs)
}

/// `/r/<id>` goes on as `/o/<id>/<hop>` to the server.
pub fn haproxy(name: &str, place: &Place, hop: &str, server: &Target) -> Result<App> {
    let port = free_port()?;
    let target = Target::loopback(port);
    let Target::Tcp(server) = server else {
        anyhow::bail!("haproxy's server must be on TCP")
    };
    let config = place.write(
        &format!("{name}.cfg"),
        &format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend in\n  bind 127.0.0.1:{port}\n  http-request replace-path /r/(.*) /o/\\1/{hop}\n  default_backend out\n\
             backend out\n  http-reuse safe\n  server one {server}\n"
        ),
    )?;
    let service = Launch::new(name, program("haproxy")?, place)
        .args(["-db", "-f"])
        .arg(config)
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}
