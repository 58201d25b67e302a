//! Reading another process's memory.
#![allow(unsafe_code, reason = "process_vm_readv")]

use std::io;

/// Fills `buffer` from `address` of the process on, as far as is mapped there; at least one byte, or an error.
///
/// CAP_SYS_PTRACE allows this for processes of any user; a file below /proc that is its owner's alone takes
/// CAP_DAC_READ_SEARCH, too.
pub fn read(pid: u32, address: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let remote = libc::iovec {
        iov_base: address as usize as *mut libc::c_void,
        iov_len: buffer.len(),
    };
    // SAFETY: `local` is the buffer, borrowed for the call; the kernel checks `remote` in the other process.
    let read = unsafe { libc::process_vm_readv(pid as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(read) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(read) => Ok(read),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn reads_what_lies_there() {
        let text = *b"some bytes of this process";
        let mut seen = [0u8; 26];
        let read = read(std::process::id(), text.as_ptr() as u64, &mut seen).unwrap();
        assert_eq!((read, seen), (text.len(), text));
    }

    #[test]
    fn nothing_mapped_is_an_error() {
        assert!(read(std::process::id(), 0, &mut [0u8; 8]).is_err());
        assert!(read(std::process::id(), 0, &mut []).is_err());
    }
}
