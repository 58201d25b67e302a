//! What an executable's own tables say: whether the Go linker made it.
//!
//! A traced process chooses its executable, so every read is bounded before it is made: section and program headers
//! by their count, notes by their size. Names of sections are read a few bytes at a time.

use std::fs::File;
use std::path::Path;

use object::elf::{FileHeader32, FileHeader64, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::read::{FileKind, ReadCache};
use object::Endianness;

const SECTIONS: usize = 4096;
const SEGMENTS: usize = 256;
const NOTE_BYTES: u64 = 64 * 1024;
/// Sections only the Go linker writes; both survive `strip`.
const GO_SECTIONS: [&[u8]; 3] = [b".go.buildinfo", b".gopclntab", b".note.go.buildid"];

/// Was this file written by the Go linker? `false` where it cannot be read or is no ELF file.
pub(super) fn is_go(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let data = ReadCache::new(file);
    match FileKind::parse(&data) {
        Ok(FileKind::Elf64) => says_go::<FileHeader64<Endianness>>(&data).unwrap_or(false),
        Ok(FileKind::Elf32) => says_go::<FileHeader32<Endianness>>(&data).unwrap_or(false),
        _ => false,
    }
}

fn says_go<Elf: FileHeader<Endian = Endianness>>(data: &ReadCache<File>) -> object::Result<bool> {
    let header = Elf::parse(data)?;
    let endian = header.endian()?;
    // Zero sections may mean "more than fit": such a file is told by its notes alone.
    let sections = usize::from(header.e_shnum(endian));
    if (1..=SECTIONS).contains(&sections) {
        let table = header.sections(endian, data)?;
        for section in table.iter() {
            if GO_SECTIONS.contains(&table.section_name(endian, section).unwrap_or_default())
                && section.sh_size(endian).into() > 0
            {
                return Ok(true);
            }
        }
    }
    if usize::from(header.e_phnum(endian)) > SEGMENTS {
        return Ok(false);
    }
    for segment in header.program_headers(endian, data)? {
        if segment.p_type(endian) != PT_NOTE || segment.p_filesz(endian).into() > NOTE_BYTES {
            continue;
        }
        let Ok(Some(mut notes)) = segment.notes(endian, data) else {
            continue;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"Go" {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    /// An ELF64 file with one section of that name, or one note of that owner.
    fn fabricated(section: Option<&[u8]>, note: Option<&[u8; 4]>) -> Vec<u8> {
        let mut file = vec![0u8; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16] = 2;
        file[18] = 62;
        file[20] = 1;
        file[52] = 64;
        file[54] = 56;
        file[58] = 64;
        if let Some(owner) = note {
            file[32] = 64;
            file[56] = 1;
            let mut segment = [0u8; 56];
            segment[0] = 4;
            segment[8] = 120;
            segment[32] = 20;
            segment[48] = 4;
            file.extend_from_slice(&segment);
            file.extend_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]);
            file.extend_from_slice(owner);
            file.extend_from_slice(b"abcd");
        }
        if let Some(name) = section {
            let names = file.len();
            file.push(0);
            file.extend_from_slice(name);
            file.push(0);
            let size = file.len() - names;
            let table = file.len() as u64;
            file[40..48].copy_from_slice(&table.to_le_bytes());
            file[60] = 3;
            file[62] = 2;
            let mut headers = [0u8; 3 * 64];
            headers[64] = 1;
            headers[68] = 1;
            headers[64 + 24] = 64;
            headers[64 + 32] = 8;
            headers[128 + 4] = 3;
            headers[128 + 24..128 + 32].copy_from_slice(&(names as u64).to_le_bytes());
            headers[128 + 32] = size as u8;
            file.extend_from_slice(&headers);
        }
        file
    }

    fn judged(bytes: &[u8]) -> bool {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        is_go(file.path())
    }

    #[test]
    fn go_is_known_by_section_or_note() {
        assert!(judged(&fabricated(Some(b".go.buildinfo"), None)));
        assert!(judged(&fabricated(None, Some(b"Go\0\0"))));
        assert!(!judged(&fabricated(Some(b".text"), Some(b"GNU\0"))));
    }

    #[test]
    fn every_cut_and_flip_is_survived() {
        let whole = fabricated(Some(b".go.buildinfo"), Some(b"Go\0\0"));
        for len in 0..whole.len() {
            judged(&whole[..len]);
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            judged(&broken);
        }
        assert!(judged(&whole), "the untouched file is still Go");
    }

    #[test]
    fn this_test_is_not_go_and_a_missing_file_is_nothing() {
        assert!(!is_go(&std::env::current_exe().unwrap()));
        assert!(!is_go(Path::new("/nonexistent")));
    }

    #[test]
    fn a_real_go_binary_if_the_machine_has_the_toolchain() {
        for path in ["/usr/local/go/bin/go", "/usr/lib/go/bin/go"].map(Path::new) {
            if path.exists() {
                assert!(is_go(path), "{}", path.display());
            }
        }
    }
}
