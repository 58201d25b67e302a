//! Where a secret is found: files, bytes, and the memory image of a process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use memchr::memmem;

/// Bytes of memory read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// A text that is searched for, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Needle {
    pub what: &'static str,
    pub text: String,
}

impl Needle {
    pub fn new(what: &'static str, text: impl Into<String>) -> Self {
        Self {
            what,
            text: text.into(),
        }
    }
}

/// Names of the needles that the bytes hold, each once.
pub fn in_bytes(bytes: &[u8], needles: &[Needle]) -> Vec<&'static str> {
    let held = needles
        .iter()
        .filter(|needle| memmem::find(bytes, needle.text.as_bytes()).is_some());
    held.map(|needle| needle.what).collect()
}

/// (file, needle) pairs of every file below a folder.
pub fn in_folder(folder: &Path, needles: &[Needle]) -> Result<Vec<(String, &'static str)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| format!("could not list {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
                found.extend(
                    in_bytes(&bytes, needles)
                        .into_iter()
                        .map(|what| (path.display().to_string(), what)),
                );
            }
        }
    }
    Ok(found)
}

/// What a search of a process's memory covered and found.
#[derive(Debug, Default)]
pub struct MemoryImage {
    pub bytes: u64,
    /// (region, needle) pairs, one for each region.
    pub found: Vec<(String, &'static str)>,
}

/// Searches every mapping of a process that holds data: writable ones, and shared ones the kernel writes (ring
/// buffers). Program text and libraries are read-only files and are left out.
pub fn in_memory(pid: u32, needles: &[Needle]) -> Result<MemoryImage> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).context("could not open the process's memory")?;
    let longest = needles.iter().map(|needle| needle.text.len()).max().unwrap_or(0);
    let mut image = MemoryImage::default();
    for line in maps.lines() {
        let Some((start, end, name)) = region(line) else {
            continue;
        };
        let mut hits: Vec<&'static str> = Vec::new();
        let mut buffer = vec![0u8; WINDOW_BYTES + longest];
        let mut at = start;
        while at < end {
            let want = (end - at).min(buffer.len() as u64) as usize;
            // A page that was unmapped meanwhile, or one of a device, cannot be read: its bytes are not the agent's.
            let Ok(got) = memory.read_at(&mut buffer[..want], at) else {
                break;
            };
            if got == 0 {
                break;
            }
            hits.extend(in_bytes(&buffer[..got], needles));
            image.bytes += got.min(WINDOW_BYTES) as u64;
            // Windows overlap, so that a needle across their border is found.
            at += got.min(WINDOW_BYTES) as u64;
        }
        hits.sort_unstable();
        hits.dedup();
        image.found.extend(hits.into_iter().map(|what| (name.clone(), what)));
    }
    Ok(image)
}

/// Start, end and name of a mapping that holds data.
fn region(line: &str) -> Option<(u64, u64, String)> {
    let mut words = line.split_whitespace();
    let (range, permissions) = (words.next()?, words.next()?);
    let name = words.nth(3).unwrap_or("anonymous").to_owned();
    let (start, end) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let special = matches!(name.as_str(), "[vvar]" | "[vdso]" | "[vsyscall]" | "[vvar_vclock]");
    let holds_data = permissions.contains('w') || name.contains("bpf");
    (permissions.starts_with('r') && holds_data && !special).then_some((start, end, name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::{in_bytes, in_folder, in_memory, Needle};

    #[test]
    fn a_secret_in_memory_is_found_across_windows() {
        // Written at run time, so that the text is in no read-only data.
        let text: String = ["tai", "nt", &std::process::id().to_string()].concat();
        let mut held = vec![0u8; 3 << 20];
        let at = (1 << 20) + 4096 - 3;
        held[at..at + text.len()].copy_from_slice(text.as_bytes());
        let needles = [Needle::new("held", text), Needle::new("absent", "never written")];
        let image = in_memory(std::process::id(), &needles[..1]).unwrap();
        assert!(image.bytes > 3 << 20);
        assert!(image.found.iter().any(|(_, what)| *what == "held"));
        assert_eq!(in_bytes(&held, &needles), ["held"]);
    }

    #[test]
    fn a_secret_in_a_file_is_named_with_it() {
        let place = crate::place::Place::new("search").unwrap();
        place.write("a/b.txt", "x secret y").unwrap();
        place.write("a/c.txt", "nothing").unwrap();
        let found = in_folder(place.path(), &[Needle::new("it", "secret")]).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].0.ends_with("b.txt"));
    }
}
