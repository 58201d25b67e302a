//! Which test programs there are: what cargo says it built.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{bail, Context, Result};
use serde_json::Value;

use crate::workspace;

/// One test program, built.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Program {
    /// Place in the order of running: what others build on comes first.
    order: usize,
    pub(super) package: String,
    /// The file of tests/ it was built from, or the library's or binary's name.
    pub(super) target: String,
    /// For people: package and target.
    pub(super) name: String,
    pub(super) executable: PathBuf,
    /// The package's directory, where cargo would run it.
    pub(super) directory: PathBuf,
}

/// Packages in the order their tests run; one that is not listed runs after these, the privileged one last.
const ORDER: [&str; 3] = ["spanwire-common", "xtask", "spanwire"];

/// Builds the tests of the workspace's default members.
pub(super) fn build() -> Result<Vec<Program>> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the tests did not build");
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not text")?;
    let mut programs: Vec<Program> = messages.lines().filter_map(program).collect();
    programs.sort();
    if programs.is_empty() {
        bail!("cargo built no test program");
    }
    Ok(programs)
}

/// The test program that a message of cargo tells of, if it does.
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let executable = PathBuf::from(message["executable"].as_str()?);
    let directory = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
    let package = package_name(message["package_id"].as_str()?)?.to_owned();
    let target = message["target"]["name"].as_str()?.to_owned();
    let kind = message["target"]["kind"][0].as_str()?;
    let order = ORDER.iter().position(|name| *name == package).unwrap_or(ORDER.len());
    let name = if kind == "lib" {
        format!("{package} ({kind})")
    } else {
        format!("{package} ({kind} {target})")
    };
    Some(Program {
        order,
        package,
        target,
        name,
        executable,
        directory,
    })
}

/// `spanwire-common` of `path+file:///src/agent-common#spanwire-common@0.1.0`, `xtask` of `path+file:///src/xtask#0.1.0`.
fn package_name(id: &str) -> Option<&str> {
    let (path, fragment) = id.split_once('#')?;
    match fragment.split_once('@') {
        Some((name, _)) => Some(name),
        None => path.rsplit('/').next(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn a_package_is_named_by_its_id() {
        assert_eq!(
            package_name("path+file:///src/agent-common#spanwire-common@0.1.0"),
            Some("spanwire-common")
        );
        assert_eq!(package_name("path+file:///src/xtask#0.1.0"), Some("xtask"));
        assert_eq!(package_name("nonsense"), None);
    }

    #[test]
    fn only_test_programs_are_taken_from_cargos_messages() {
        let artifact = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///s/agent#spanwire@0.1.0",
                "manifest_path":"/s/agent/Cargo.toml","target":{{"kind":["test"],"name":"replay"}},
                "profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let found = program(&artifact(true, "\"/t/debug/deps/replay-1\"")).unwrap();
        assert_eq!(found.name, "spanwire (test replay)");
        assert_eq!(found.directory, PathBuf::from("/s/agent"));
        assert_eq!(program(&artifact(false, "\"/t/debug/spanwire\"")), None);
        assert_eq!(program(&artifact(true, "null")), None);
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
