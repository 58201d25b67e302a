//! What every source file must keep: its length, and no test that is switched off.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Result};

use crate::{process, workspace};

/// Beyond this a file is two files.
const MAX_LINES: usize = 700;

pub(super) fn check() -> Result<()> {
    let root = workspace::root();
    let mut faults = Vec::new();
    for file in rust_files(&root)? {
        // A file that is deleted but not yet committed is still listed.
        let Ok(text) = std::fs::read_to_string(root.join(&file)) else {
            continue;
        };
        faults.extend(
            faults_of(&text)
                .into_iter()
                .map(|fault| format!("{}: {fault}", file.display())),
        );
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("\n  {}", faults.join("\n  "))
}

/// The repository's .rs files, those included that are new and not ignored.
pub(super) fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    // A checkout that belongs to somebody else (a container's mount) is read all the same.
    git.arg("-c").arg("safe.directory=*").arg("-C").arg(root);
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        "*.rs",
    ]);
    Ok(process::output(&mut git)?
        .split_terminator('\0')
        .map(PathBuf::from)
        .collect())
}

fn faults_of(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{lines} lines, {MAX_LINES} at most"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.starts_with("#[ignore") || (line.starts_with("#[cfg_attr(") && line.contains(", ignore")) {
            faults.push(format!("line {number}: ignored test; let xtask choose what runs"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_file_allowed_is_allowed() {
        assert!(faults_of(&"//\n".repeat(MAX_LINES)).is_empty());
        assert_eq!(faults_of(&"//\n".repeat(MAX_LINES + 1)), ["701 lines, 700 at most"]);
    }

    #[test]
    fn ignored_tests_are_found_in_every_spelling() {
        for spelling in ["#[ignore]", "    #[ignore = \"slow\"]", "#[cfg_attr(miri, ignore)]"] {
            assert_eq!(faults_of(spelling).len(), 1, "{spelling}");
        }
        assert!(faults_of("// #[ignore] is not used here").is_empty());
    }
}
