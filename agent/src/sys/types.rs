//! The running kernel's types, read twice: for offsets and parameters by [`Btf`], and for the loader by aya. Each takes
//! a tenth of a second, so they are read beside each other, and beside what else the agent does at its start.

use std::path::Path;
use std::thread::{self, JoinHandle};

use aya::Btf as AyaBtf;

use super::btf::{self, Btf};
use super::kernel::KernelError;

/// The structures whose fields the programs are told the offsets of, or which tell of the kernel by being there.
const STRUCTS: [&str; 15] = [
    "sock",
    "socket",
    "file",
    "net",
    "ns_common",
    "tcp_sock",
    "unix_sock",
    "task_struct",
    "linux_binprm",
    "tracepoint",
    "bpf_tramp_image",
    "files_struct",
    "fdtable",
    "inode",
    "socket_alloc",
];

/// See the module.
pub struct KernelTypes {
    pub(super) btf: Btf,
    pub(super) aya: AyaBtf,
}

/// They are being read.
pub struct Reading(JoinHandle<Result<KernelTypes, KernelError>>);

impl KernelTypes {
    /// Begins to read them.
    pub fn begin() -> Reading {
        Reading(thread::spawn(Self::read))
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`KernelError::Btf`], [`KernelError::AyaBtf`].
    pub fn read() -> Result<Self, KernelError> {
        thread::scope(|scope| {
            let aya = scope.spawn(AyaBtf::from_sys_fs);
            let btf = Btf::load(Path::new(btf::VMLINUX), &STRUCTS, &[])?;
            let aya = aya.join().map_err(|_| KernelError::Missing("reader of types"))??;
            Ok(Self { btf, aya })
        })
    }
}

impl Reading {
    /// Waits until they have been read.
    ///
    /// # Errors
    /// As [`KernelTypes::read`].
    pub fn wait(self) -> Result<KernelTypes, KernelError> {
        self.0.join().map_err(|_| KernelError::Missing("reader of types"))?
    }
}
