//! Tracepoints by name: the files of tracefs, where it is mounted or not.
#![allow(unsafe_code, reason = "fsopen, fsconfig and fsmount have no safe wrapper here")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use super::bpf::Refusal;

/// A tracefs to read. One that had to be mounted is attached nowhere and goes with this.
pub(super) struct Tracefs {
    root: PathBuf,
    _mount: Option<OwnedFd>,
}

impl Tracefs {
    /// Finds where it is mounted, else mounts one that only this process sees.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) fn open() -> Result<Self, Refusal> {
        let mounted = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
            .into_iter()
            .map(PathBuf::from)
            .find(|root| root.join("events").is_dir());
        if let Some(root) = mounted {
            return Ok(Self { root, _mount: None });
        }
        let mount = mount().map_err(|error| {
            Refusal::absent(format!(
                "tracefs is not mounted at /sys/kernel/tracing, and mounting it fails: {error}"
            ))
        })?;
        Ok(Self {
            root: PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())),
            _mount: Some(mount),
        })
    }

    /// The number by which the kernel knows a tracepoint.
    ///
    /// # Errors
    /// [`Refusal`]: there is no such tracepoint.
    pub(super) fn id(&self, category: &str, name: &str) -> Result<u64, Refusal> {
        let path = self.root.join(format!("events/{category}/{name}/id"));
        let text = fs::read_to_string(&path)
            .map_err(|error| Refusal::absent(format!("no tracepoint {category}/{name}: {error}")))?;
        text.trim()
            .parse()
            .map_err(|_| Refusal::absent(format!("the id of tracepoint {category}/{name} is no number")))
    }
}

/// A mount of tracefs that is attached to no directory (fsopen(2), fsmount(2); Linux 5.2).
fn mount() -> io::Result<OwnedFd> {
    const CLOSE_ON_EXEC: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    // SAFETY: a string that ends with NUL; the kernel copies it.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tracefs".as_ptr(), CLOSE_ON_EXEC) })?;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: this command takes neither key nor value.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), CREATE, none, none, 0) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes no memory of ours.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOSE_ON_EXEC, 0) })
}

fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(returned as i32) })
}
