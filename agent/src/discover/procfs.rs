//! Bounded reads under /proc. Nothing here keeps what it reads: buffers are overwritten when they are dropped.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use zeroize::{Zeroize, Zeroizing};

use crate::sys::memory;

/// Where /proc is: the system's, or a fabricated tree in tests.
#[derive(Clone, Debug)]
pub struct ProcRoot {
    path: PathBuf,
}

/// Most processes looked at when the agent starts.
const PIDS: usize = 65_536;

/// What is read of /proc/PID/stat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) comm: Box<str>,
    pub(super) parent_pid: u32,
    pub(super) threads: u32,
    /// Start time in clock ticks since boot: with the pid, the identity of a process.
    pub(super) start_ticks: u64,
}

const CHUNK_BYTES: usize = 8 * 1024;
const STAT_BYTES: usize = 4 * 1024;
const STATUS_BYTES: usize = 8 * 1024;

impl Default for ProcRoot {
    fn default() -> Self {
        Self::at("/proc")
    }
}

impl ProcRoot {
    /// A tree that looks like /proc.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The path of `name` of process `pid`.
    pub fn of(&self, pid: u32, name: &str) -> PathBuf {
        self.path.join(pid.to_string()).join(name)
    }

    /// The system's own: what it says of a process is true of the process of that id here.
    pub(super) fn is_of_system(&self) -> bool {
        self.path == Path::new("/proc")
    }

    /// The path of `name` of the reading process.
    pub(super) fn own(&self, name: &str) -> PathBuf {
        self.path.join("self").join(name)
    }

    /// The path of a name of the kernel's, below `sys/kernel`.
    pub(super) fn kernel(&self, name: &str) -> PathBuf {
        self.path.join("sys/kernel").join(name)
    }

    /// Pids of the processes that run now, at most `limit`. A directory listing: nothing of any process is read.
    pub fn pids(&self, limit: usize) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(&self.path) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .take(limit)
            .collect()
    }

    pub(super) fn stat(&self, pid: u32) -> io::Result<Stat> {
        let bytes = read_at_most(&self.of(pid, "stat"), STAT_BYTES)?;
        parse_stat(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat: not as proc(5) says"))
    }

    /// False once the process has given its memory up: it ends, or is a zombie.
    pub fn is_alive(&self, pid: u32) -> bool {
        match std::fs::read_link(self.of(pid, "exe")) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Effective user id.
    pub(super) fn uid(&self, pid: u32) -> Option<u32> {
        let bytes = read_at_most(&self.of(pid, "status"), STATUS_BYTES).ok()?;
        let line = bytes
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(b"Uid:"))?;
        std::str::from_utf8(line)
            .ok()?
            .split_ascii_whitespace()
            .nth(1)?
            .parse()
            .ok()
    }

    /// Processes whose executable's name begins with one of `names`: one link is read for each process there is.
    pub fn pids_of(&self, names: &[&str]) -> Vec<u32> {
        let runs = |pid: &u32| {
            let exe = self.exe(*pid).unwrap_or_default();
            let name = exe.rsplit('/').next().unwrap_or_default();
            names.iter().any(|start| name.starts_with(start))
        };
        self.pids(PIDS).into_iter().filter(runs).collect()
    }

    /// The resolved executable: path inside the process's own mount namespace, without the kernel's mark for a file
    /// that was replaced since.
    pub(super) fn exe(&self, pid: u32) -> Option<Box<str>> {
        let target = std::fs::read_link(self.of(pid, "exe")).ok()?;
        let text = target.to_string_lossy();
        Some(text.strip_suffix(" (deleted)").unwrap_or(&text).into())
    }
}

/// Reads at most `limit` bytes of a file into a buffer that is overwritten when dropped.
pub(super) fn read_at_most(path: &Path, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut file = File::open(path)?;
    // Filled in place and never grown, so that no copy is left behind by a reallocation.
    let mut bytes = Zeroizing::new(vec![0u8; limit]);
    let mut filled = 0;
    while filled < limit {
        let Some(room) = bytes.get_mut(filled..) else {
            break;
        };
        match file.read(room) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Hands a file to `each` in pieces, at most `limit` bytes of it; true if its end was reached (or `each` had enough).
/// The one buffer used is overwritten at the end.
pub(super) fn read_chunks(
    path: &Path,
    limit: usize,
    mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut buffer = Zeroizing::new([0u8; CHUNK_BYTES]);
    let mut total = 0;
    while total < limit {
        let read = match file.read(&mut buffer[..]) {
            Ok(0) => return Ok(true),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        total += read;
        if each(buffer.get(..read).unwrap_or_default()).is_break() {
            return Ok(true);
        }
        buffer.zeroize();
    }
    Ok(false)
}

/// As [`read_chunks`] of a process's environment, taken from its memory: its file is its user's alone, which not even
/// root may read without a capability for that; its memory may be read with CAP_SYS_PTRACE.
pub(super) fn read_environment_chunks(
    root: &ProcRoot,
    pid: u32,
    limit: usize,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let bytes = read_at_most(&root.of(pid, "stat"), STAT_BYTES)?;
    let Some((mut address, end)) = parse_environment_range(&bytes) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let end = end.min(address.saturating_add(limit as u64));
    let mut buffer = Zeroizing::new([0u8; CHUNK_BYTES]);
    while address < end {
        let wanted = usize::try_from(end - address).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        let read = memory::read(pid, address, buffer.get_mut(..wanted).unwrap_or_default())?;
        each(buffer.get(..read).unwrap_or_default());
        buffer.zeroize();
        address += read as u64;
    }
    Ok(())
}

/// Fields 50 and 51 of stat, which are 0 for whom they are not meant.
fn parse_environment_range(bytes: &[u8]) -> Option<(u64, u64)> {
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(50 - 3);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (start != 0 && start <= end).then_some((start, end))
}

/// The command's name may hold anything, parentheses and spaces included: fields are counted after the last ')'.
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|byte| *byte == b'(')?;
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into();
    let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
    // Field 3 (state) is the first after the name.
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(20).collect();
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        comm,
        parent_pid: field(4)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        start_ticks: field(22)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn stat_of_a_name_with_parentheses() {
        let line = b"42 (a) R 1 (b)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 98765 1 2\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!(&*stat.comm, "a) R 1 (b)");
        assert_eq!((stat.parent_pid, stat.threads, stat.start_ticks), (7, 3, 98765));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let root = ProcRoot::default();
        assert!(root.is_alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = |stat: &[u8]| {
            stat.split(|byte| *byte == b')')
                .next_back()
                .is_some_and(|rest| rest.starts_with(b" Z"))
        };
        let stat = root.of(child.id(), "stat");
        while !ended(&std::fs::read(&stat).unwrap()) {
            std::thread::yield_now();
        }
        assert!(!root.is_alive(child.id()));
        child.wait().unwrap();
        assert!(!root.is_alive(child.id()));
    }

    #[test]
    fn stat_cut_short_is_refused() {
        assert_eq!(parse_stat(b"42 (sh) S 7 42"), None);
        assert_eq!(parse_stat(b"42 sh S 7 42"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn reads_stop_at_their_ceiling() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7u8; 3 * CHUNK_BYTES]).unwrap();
        assert_eq!(read_at_most(file.path(), 100).unwrap().len(), 100);
        let mut seen = 0;
        let whole = read_chunks(file.path(), CHUNK_BYTES, |chunk| {
            seen += chunk.len();
            ControlFlow::Continue(())
        });
        assert!(!whole.unwrap());
        assert_eq!(seen, CHUNK_BYTES);
        assert!(read_chunks(file.path(), 1 << 20, |_| ControlFlow::Continue(())).unwrap());
    }

    #[test]
    fn an_environment_is_the_same_by_file_and_by_memory() {
        let root = ProcRoot::default();
        let pid = std::process::id();
        let mut by_memory = Vec::new();
        read_environment_chunks(&root, pid, 1 << 20, |chunk| by_memory.extend_from_slice(chunk)).unwrap();
        assert!(!by_memory.is_empty());
        assert_eq!(*by_memory, **read_at_most(&root.of(pid, "environ"), 1 << 20).unwrap());
        let mut cut = 0;
        read_environment_chunks(&root, pid, 10, |chunk| cut += chunk.len()).unwrap();
        assert_eq!(cut, 10);
    }

    #[test]
    fn an_environment_that_is_not_told_is_refused() {
        let stat = |start: &str, end: &str| format!("42 (a) b) {} {start} {end} 0", "S ".repeat(47));
        assert_eq!(parse_environment_range(stat("16", "32").as_bytes()), Some((16, 32)));
        assert_eq!(parse_environment_range(stat("0", "0").as_bytes()), None);
        assert_eq!(parse_environment_range(stat("32", "16").as_bytes()), None);
        assert_eq!(parse_environment_range(b"42 (a) S 1"), None);
    }

    #[test]
    fn own_process() {
        let root = ProcRoot::default();
        let pid = std::process::id();
        let stat = root.stat(pid).unwrap();
        assert!(stat.start_ticks > 0);
        assert!(root.uid(pid).is_some());
        assert!(root.exe(pid).unwrap().starts_with('/'));
        assert!(root.pids(1 << 22).contains(&pid));
    }
}
