//! Which of the libraries that tell runtimes apart are mapped into a process.

use std::ops::ControlFlow;

use super::procfs::{read_chunks, ProcRoot};

/// How a library is known by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The file's name begins so (`libjvm.so`, `libpython3`).
    File(&'static str),
    /// A folder of this name is on the path (`gevent`).
    Folder(&'static str),
}

/// A library that a runtime's rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Library {
    /// What the rule calls it.
    pub name: &'static str,
    /// How it is known.
    pub pattern: Pattern,
}

/// The asked-for libraries that are mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MappedLibraries {
    found: Vec<&'static str>,
    /// Every mapping was read: only then does an absent library mean anything.
    pub complete: bool,
}

/// The kernel's default ceiling is 65,530 mappings of about 100 bytes.
const MAPS_BYTES: usize = 8 << 20;
/// A longer line is cut: its path is longer than any the kernel prints.
const LINE_BYTES: usize = 8 * 1024;

impl MappedLibraries {
    /// Is a library mapped, by the name its rule gave it?
    pub fn has(&self, name: &str) -> bool {
        self.found.contains(&name)
    }

    /// The first of `names` that is mapped.
    pub fn first_of(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.has(name))
    }

    pub(super) fn read(root: &ProcRoot, pid: u32, wanted: &[Library]) -> Self {
        let mut scan = Scan {
            libraries: Self::default(),
            wanted,
            line: Vec::new(),
            last: Vec::new(),
        };
        let whole = read_chunks(&root.of(pid, "maps"), MAPS_BYTES, |chunk| {
            scan.feed(chunk);
            ControlFlow::Continue(())
        });
        scan.end_of_line();
        // An empty table is what a process that is just ending shows: absence proves nothing there.
        scan.libraries.complete = matches!(whole, Ok(true)) && !scan.last.is_empty();
        scan.libraries
    }
}

struct Scan<'a> {
    libraries: MappedLibraries,
    wanted: &'a [Library],
    line: Vec<u8>,
    /// The last path seen: a library has several mappings in a row.
    last: Vec<u8>,
}

impl Scan<'_> {
    fn feed(&mut self, chunk: &[u8]) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + piece.len() <= LINE_BYTES {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                self.end_of_line();
            }
        }
    }

    fn end_of_line(&mut self) {
        // `address perms offset dev inode path`: no field before the path has a slash.
        let path = match self.line.iter().position(|byte| *byte == b'/') {
            Some(start) => self.line.get(start..).unwrap_or_default().trim_ascii_end(),
            None => &[],
        };
        if !path.is_empty() && path != self.last {
            for library in self.wanted {
                if !self.libraries.has(library.name) && matches(library.pattern, path) {
                    self.libraries.found.push(library.name);
                }
            }
            self.last.clear();
            self.last.extend_from_slice(path);
        }
        self.line.clear();
    }
}

fn matches(pattern: Pattern, path: &[u8]) -> bool {
    let mut parts = path.rsplit(|byte| *byte == b'/');
    match pattern {
        Pattern::File(prefix) => parts.next().is_some_and(|file| file.starts_with(prefix.as_bytes())),
        Pattern::Folder(name) => parts.skip(1).any(|folder| folder == name.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    const WANTED: &[Library] = &[
        Library {
            name: "jvm",
            pattern: Pattern::File("libjvm.so"),
        },
        Library {
            name: "gevent",
            pattern: Pattern::Folder("gevent"),
        },
    ];

    fn scan(text: &[u8]) -> MappedLibraries {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("5")).unwrap();
        std::fs::write(folder.path().join("5/maps"), text).unwrap();
        MappedLibraries::read(&ProcRoot::at(folder.path()), 5, WANTED)
    }

    #[test]
    fn paths_are_told_by_file_and_by_folder() {
        let found = scan(
            b"55d0-55d1 r--p 00000000 fe:00 1 /usr/bin/python3\n\
              7f00-7f01 r-xp 00000000 fe:00 2 /srv/lib/gevent/_gevent_c_hub.cpython-311-x86_64-linux-gnu.so\n\
              7f02-7f03 rw-p 00000000 00:00 0 \n7f04-7f05 rw-p 00000000 00:00 0 [heap]",
        );
        assert!(found.complete);
        assert!(found.has("gevent") && !found.has("jvm"));
        assert_eq!(found.first_of(&["jvm", "gevent"]), Some("gevent"));
        assert!(
            !scan(b"1-2 r--p 0 fe:00 2 /srv/gevent\n").has("gevent"),
            "a file is not a folder"
        );
        assert!(
            !scan(b"1-2 r--p 0 fe:00 2 /srv/mylibjvm.so\n").has("jvm"),
            "the name begins so"
        );
        assert!(scan(b"1-2 r--p 0 fe:00 2 /srv/libjvm.so (deleted)\n").has("jvm"));
    }

    #[test]
    fn a_line_across_chunks_is_whole() {
        let mut text = Vec::new();
        while text.len() < 40_000 {
            text.extend_from_slice(b"7f00-7f01 r-xp 00000000 fe:00 2 /usr/lib/x86_64-linux-gnu/libc.so.6\n");
        }
        text.extend_from_slice(b"7f00-7f01 r-xp 00000000 fe:00 2 /opt/java/lib/server/libjvm.so\n");
        assert!(scan(&text).has("jvm"));
    }

    #[test]
    fn an_unreadable_or_empty_table_proves_nothing() {
        assert!(!scan(b"").complete);
        let nowhere = MappedLibraries::read(&ProcRoot::at("/nonexistent"), 5, WANTED);
        assert!(!nowhere.complete);
    }
}
