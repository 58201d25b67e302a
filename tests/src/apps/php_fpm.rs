//! PHP-FPM: a pool of processes that speak FastCGI.

use anyhow::{Context, Result};

use super::{App, Calls};
use crate::place::{free_port, program, workload, Place};
use crate::service::{Launch, Target};

/// The script that answers everything, for the web server in front.
pub fn script(place: &Place, name: &str) -> Result<std::path::PathBuf> {
    place.write(
        &format!("{name}/app.php"),
        &std::fs::read_to_string(workload("app.php"))?,
    )
}

/// A pool of four on a TCP port.
pub fn tcp(name: &str, place: &Place, calls: &Calls) -> Result<App> {
    start(name, place, calls, Target::loopback(free_port()?))
}

/// A pool of four on a unix socket.
pub fn unix(name: &str, place: &Place, calls: &Calls) -> Result<App> {
    let target = Target::Unix(place.join(&format!("{name}.sock")));
    start(name, place, calls, target)
}

fn start(name: &str, place: &Place, calls: &Calls, target: Target) -> Result<App> {
    let listen = match &target {
        Target::Tcp(addr) => addr.to_string(),
        Target::Unix(path) => path.display().to_string(),
    };
    let home = place.join(name);
    std::fs::create_dir_all(&home)?;
    let home_text = home.display();
    let config = place.write(
        &format!("{name}/fpm.conf"),
        &format!(
            "[global]\npid = {home_text}/pid\nerror_log = {home_text}/error.log\ndaemonize = no\n\
             [www]\nuser = www-data\ngroup = www-data\nlisten = {listen}\nlisten.mode = 0666\n\
             pm = static\npm.max_children = 4\nclear_env = no\n"
        ),
    )?;
    // Debian names the binary by its version only.
    let binary = [
        "php-fpm",
        "php-fpm8.4",
        "php-fpm8.3",
        "php-fpm8.2",
        "php-fpm8.1",
        "php-fpm7.4",
    ]
    .iter()
    .find_map(|name| program(name).ok())
    .context("PHP-FPM is not installed: install php-fpm")?;
    let service = Launch::new(name, binary, place)
        .args(["--nodaemonize", "--fpm-config"])
        .arg(config)
        .env("CALLS", calls.as_env())
        .start(std::slice::from_ref(&target))?;
    Ok(App { service, target })
}
