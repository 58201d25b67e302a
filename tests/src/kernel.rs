//! What is in the kernel: eBPF programs, maps and links by id, and pins. An agent that ended must leave none of it.

use std::collections::BTreeSet;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use serde_json::Value;

use crate::place::program;

/// Ids of everything eBPF that lives in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    pub programs: BTreeSet<(u64, String)>,
    pub maps: BTreeSet<(u64, String)>,
    pub links: BTreeSet<(u64, String)>,
    pub pins: BTreeSet<String>,
}

impl Inventory {
    pub fn now() -> Result<Self> {
        Ok(Self {
            programs: ids("prog")?,
            maps: ids("map")?,
            links: ids("link")?,
            pins: pins(),
        })
    }

    /// Without what a living process holds: once the agent has ended, that is somebody else's.
    fn held_by_nobody() -> Result<Self> {
        let mut left = Self::now()?;
        for (kind, id) in held() {
            let ids = match kind.as_str() {
                "prog_id" => &mut left.programs,
                "map_id" => &mut left.maps,
                _ => &mut left.links,
            };
            ids.retain(|(own, _)| *own != id);
        }
        Ok(left)
    }

    /// What is here and was not there before, in words. Ids are never used again, so others' comings and goings on
    /// the machine do not hide anything.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        let mut added = Vec::new();
        let kinds = [
            ("program", &self.programs, &before.programs),
            ("map", &self.maps, &before.maps),
            ("link", &self.links, &before.links),
        ];
        for (kind, now, then) in kinds {
            added.extend(now.difference(then).map(|(id, name)| format!("{kind} {id} {name}")));
        }
        added.extend(self.pins.difference(&before.pins).map(|pin| format!("pin {pin}")));
        added
    }

    /// Fails unless the kernel is as it was before within the limit; programs are freed after a grace period.
    pub fn wait_gone_since(before: &Self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let added = Self::held_by_nobody()?.added_since(before);
            if added.is_empty() {
                return Ok(start.elapsed());
            }
            if start.elapsed() > limit {
                bail!(
                    "left in the kernel {limit:?} after the agent's end: {}",
                    added.join(", ")
                );
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// Every program, map and link that some process has a descriptor of: the field's name in its fdinfo, and the id.
fn held() -> BTreeSet<(String, u64)> {
    let entries = |path: std::path::PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    entries("/proc".into())
        .flat_map(|process| entries(process.path().join("fdinfo")))
        .filter_map(|descriptor| std::fs::read_to_string(descriptor.path()).ok())
        .flat_map(|text| text.lines().filter_map(id_in).collect::<Vec<_>>())
        .collect()
}

fn id_in(line: &str) -> Option<(String, u64)> {
    let (name, value) = line.split_once(':')?;
    matches!(name, "prog_id" | "map_id" | "link_id").then_some(())?;
    Some((name.to_owned(), value.trim().parse().ok()?))
}

fn ids(kind: &str) -> Result<BTreeSet<(u64, String)>> {
    let output = Command::new(program("bpftool")?)
        .args(["--json", kind, "list"])
        .output()?;
    let list: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("bpftool {kind} list: {}", String::from_utf8_lossy(&output.stderr)))?;
    let rows = list
        .as_array()
        .with_context(|| format!("bpftool {kind} list: no list"))?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let name = row
                .get("name")
                .or_else(|| row.get("type"))
                .and_then(Value::as_str)
                .unwrap_or_default();
            Some((row.get("id")?.as_u64()?, name.to_owned()))
        })
        .collect())
}

/// Everything below every mounted bpffs.
fn pins() -> BTreeSet<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let roots = mounts
        .lines()
        .filter(|line| line.split(' ').nth(2) == Some("bpf"))
        .filter_map(|line| line.split(' ').nth(1));
    let mut found = BTreeSet::new();
    let mut folders: Vec<_> = roots.map(std::path::PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            found.insert(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    found
}
