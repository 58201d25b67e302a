//! Debian packages: looked for first, installed when missing, announced in one line.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{bail, Context, Result};

use crate::{process, setup};

/// Fetched once in a run.
static LISTS_ARE_FRESH: AtomicBool = AtomicBool::new(false);

/// Makes sure that these Debian packages are installed.
pub(crate) fn ensure(names: &[&str]) -> Result<()> {
    let missing = missing(names)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if process::find("apt-get").is_none() {
        bail!("missing: {list}; this system has no apt-get: install what these Debian packages hold, then try again");
    }
    if !process::is_root() && process::find("sudo").is_none() {
        bail!("missing: {list}; not root and no sudo: have an administrator run `apt-get install {list}`");
    }
    setup::need_space(Path::new("/usr"), 2_000, "Debian packages")?;
    eprintln!("x: installing Debian packages: {list}");
    // Lists that are a little old bring old compilers; without a network what they name may still be cached.
    if !LISTS_ARE_FRESH.swap(true, Ordering::Relaxed) {
        if let Err(problem) = apt_get("update", &[]) {
            eprintln!("x: {problem}; trying with the package lists as they are");
        }
    }
    apt_get("install", &missing)
}

fn missing<'a>(names: &[&'a str]) -> Result<Vec<&'a str>> {
    if process::find("dpkg-query").is_none() {
        return Ok(names.to_vec());
    }
    // dpkg-query fails when it knows nothing of one of the names; what it says of the others still counts.
    let known = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Package}\n"])
        .args(names)
        .stderr(Stdio::null())
        .output()
        .context("cannot run dpkg-query")?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    Ok(names
        .iter()
        .copied()
        .filter(|name| !is_installed(&known, name))
        .collect())
}

fn is_installed(listing: &str, package: &str) -> bool {
    listing
        .lines()
        .any(|line| line.strip_prefix("installed ") == Some(package))
}

/// Runs apt-get as root while no package may start its daemon: nobody asked for a web server on port 80.
const APT_GET: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi
DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"
"#;

fn apt_get(action: &str, names: &[&str]) -> Result<()> {
    let output = process::as_root("sh".as_ref(), &[])?
        .args(["-c", APT_GET, "apt-get", action])
        .args(names)
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-get")?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let cause = errors
        .lines()
        .find(|line| line.starts_with("E: "))
        .unwrap_or("it gave no reason");
    bail!("apt-get {action} {}: {cause}", names.join(" "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn a_removed_package_is_not_installed() {
        let listing = "installed gcc\nconfig-files puma\nnot-installed wrk\ninstalled gcc-12-base\n";
        assert!(is_installed(listing, "gcc"));
        assert!(!is_installed(listing, "puma"));
        assert!(!is_installed(listing, "wrk"));
        assert!(!is_installed(listing, "gcc-12"));
    }

    #[test]
    fn a_name_nobody_knows_is_missing() {
        assert_eq!(
            missing(&["spanwire-no-such-package"]).unwrap(),
            ["spanwire-no-such-package"]
        );
    }
}
