//! The archive the kernel starts from: busybox, the few modules that reach this machine's files, and `init`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{bail, Context, Result};

use super::kernel::Kernel;
use crate::process;

/// What the guest cannot mount its root without. `qemu_fw_cfg` and the like are not needed.
const MODULES: [&str; 3] = ["virtio_pci", "virtiofs", "overlay"];

/// Builds the archive; `command` is a shell script that the guest runs on this machine's files.
pub(super) fn build(kernel: &Kernel, command: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "new", "proc", "ro", "rw", "sys"] {
        archive.folder(folder);
    }
    let busybox = fs::read("/bin/busybox").context("cannot read /bin/busybox")?;
    archive.file("bin/busybox", 0o755, &busybox);
    let mut order = String::new();
    for path in modules_in_order(&kernel.modules)? {
        let name = path
            .rsplit('/')
            .next()
            .unwrap_or(&path)
            .trim_end_matches(".xz")
            .to_owned();
        archive.file(&format!("modules/{name}"), 0o644, &module(&kernel.modules.join(&path))?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.file("command", 0o755, command.as_bytes());
    archive.file("init", 0o755, init(kernel).as_bytes());
    Ok(archive.finish())
}

fn init(kernel: &Kernel) -> String {
    include_str!("init.sh")
        .replace("@RELEASE@", &kernel.release)
        .replace("@MODULES@", &kernel.modules.to_string_lossy())
}

/// Paths below the modules' directory, each after those it needs.
fn modules_in_order(directory: &Path) -> Result<Vec<String>> {
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (dependencies, builtin) = (read("modules.dep")?, read("modules.builtin")?);
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for module in MODULES {
        if builtin.lines().any(|path| is_module(path, module)) {
            continue;
        }
        let Some((path, needed)) = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| is_module(path, module))
        else {
            bail!("this kernel has no {module}, without which the machine's files cannot be reached");
        };
        // modules.dep lists all of them, the deepest last.
        for path in needed.split_whitespace().rev().chain([path]) {
            if seen.insert(path.to_owned()) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn is_module(path: &str, name: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko")
        .next()
        .is_some_and(|stem| stem.replace('-', "_") == name)
}

fn module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(path)
        .output()
        .context("cannot run xz")?;
    if !output.status.success() {
        bail!(
            "cannot unpack {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// A cpio archive in the format the kernel reads ("newc").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// Headers and contents start at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// busybox, for the archive.
pub(super) fn ensure_busybox() -> Result<()> {
    if process::find("busybox").is_some_and(|path| path == Path::new("/bin/busybox") || path.starts_with("/usr/bin")) {
        return Ok(());
    }
    crate::packages::ensure(&["busybox-static"])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let directory = std::env::temp_dir().join(format!("spanwire-modules-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let dependencies = "kernel/fs/fuse/fuse.ko:\n\
            kernel/fs/fuse/virtiofs.ko.xz: kernel/fs/fuse/fuse.ko kernel/drivers/virtio/virtio.ko\n\
            kernel/fs/overlayfs/overlay.ko: kernel/fs/fuse/fuse.ko\n";
        fs::write(directory.join("modules.dep"), dependencies).unwrap();
        fs::write(
            directory.join("modules.builtin"),
            "kernel/drivers/virtio/virtio-pci.ko\n",
        )
        .unwrap();
        let order = modules_in_order(&directory);
        fs::remove_dir_all(&directory).unwrap();
        let expected = [
            "kernel/drivers/virtio/virtio.ko",
            "kernel/fs/fuse/fuse.ko",
            "kernel/fs/fuse/virtiofs.ko.xz",
            "kernel/fs/overlayfs/overlay.ko",
        ];
        assert_eq!(order.unwrap(), expected);
    }

    #[test]
    fn the_archive_is_byte_for_byte_what_the_kernels_documentation_asks_for() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"hello");
        let header = |fields: &str| format!("070701{}", fields.replace(' ', ""));
        let file = header("00000001 000081ED 00000000 00000000 00000001 00000000 00000005 00000000 00000000 00000000 00000000 00000005 00000000");
        let end = header("00000002 00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000000 00000000 0000000B 00000000");
        // A header is 110 bytes long; with its name, and then its content, it is filled up to a multiple of four.
        let expected = format!("{file}init\0\0hello\0\0\0{end}TRAILER!!!\0\0\0\0");
        assert_eq!(String::from_utf8(archive.finish()).unwrap(), expected);
    }
}
