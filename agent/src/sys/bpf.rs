//! The few raw bpf(2) and perf_event_open(2) calls that probing needs, over tiny hand-assembled programs.
//!
//! Everything made here is held by file descriptors: closing them undoes it, and so does the end of the process.
#![allow(unsafe_code, reason = "system calls that aya offers no probe for")]

use std::borrow::Cow;
use std::ffi::CStr;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use zerocopy::{Immutable, IntoBytes};

/// Bytes of verifier log asked for after a refusal.
const LOG_BYTES: usize = 64 << 10;

/// bpf_cmd (include/uapi/linux/bpf.h).
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    ProgLoad = 5,
    ProgAttach = 8,
    RawTracepointOpen = 17,
    BtfLoad = 18,
    LinkCreate = 28,
    IterCreate = 33,
}

/// What the kernel refused, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The call, or what was looked for.
    pub what: String,
    /// `errno`, 0 if no call was made.
    pub errno: i32,
    /// The verifier's complaint, one line; empty if it said nothing.
    pub complaint: String,
}

impl Refusal {
    /// Nothing was refused, but what is needed is not there.
    pub fn absent(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            errno: 0,
            complaint: String::new(),
        }
    }

    fn last(what: &str) -> Self {
        Self {
            what: what.to_owned(),
            errno: io::Error::last_os_error().raw_os_error().unwrap_or_default(),
            complaint: String::new(),
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.errno {
            0 => {}
            // Not in errno.h: the kernel's own ENOTSUPP.
            524 => f.write_str(": not supported (ENOTSUPP)")?,
            errno => write!(f, ": {}", io::Error::from_raw_os_error(errno))?,
        }
        if !self.complaint.is_empty() {
            write!(f, " ({})", self.complaint)?;
        }
        Ok(())
    }
}

#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct MapAttr {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}

#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct ProgAttr {
    prog_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_bytes: u32,
    func_info: u64,
    func_info_count: u32,
    line_info_bytes: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
}

#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct AttachAttr {
    target_fd: u32,
    prog_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct IterLinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_bytes: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct IterAttr {
    link_fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct BtfAttr {
    btf: u64,
    log: u64,
    btf_bytes: u32,
    log_bytes: u32,
}

#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct RawTracepointAttr {
    name: u64,
    prog_fd: u32,
    padding: u32,
}

/// perf_event_attr up to PERF_ATTR_SIZE_VER1.
#[repr(C)]
#[derive(Default, IntoBytes, Immutable)]
struct PerfAttr {
    kind: u32,
    bytes: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
}

/// A map to make.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapShape {
    pub map_type: u32,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// A program to load.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    pub prog_type: u32,
    pub expected_attach_type: u32,
    /// Id of the function or tracepoint in the kernel's BTF, 0 if it takes none.
    pub attach_btf_id: u32,
    pub insns: &'a [u64],
}

/// Makes one call. `attr` must outlive it, and so must whatever it points to: callers here keep both on their stack.
fn bpf(command: Command, attr: &[u8]) -> libc::c_long {
    // SAFETY: the kernel reads `attr.len()` bytes, which are there; the pointers inside are into slices and strings
    // that the caller borrows until this returns, with their lengths beside them.
    unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            attr.as_ptr(),
            attr.len() as libc::c_uint,
        )
    }
}

fn owned(returned: libc::c_long, what: &str) -> Result<OwnedFd, Refusal> {
    if returned < 0 {
        return Err(Refusal::last(what));
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(returned as i32) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// Makes a map; `inner` is the shape of a map in a map.
pub fn create_map(shape: MapShape, inner: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Refusal> {
    let attr = MapAttr {
        inner_map_fd: inner.map_or(0, number),
        ..map_attr(shape)
    };
    owned(bpf(Command::MapCreate, attr.as_bytes()), "map creation")
}

/// Makes a socket storage map with values of 4 bytes: it wants types of its own for them.
pub fn create_socket_storage() -> Result<OwnedFd, Refusal> {
    const SK_STORAGE: u32 = 24;
    const NO_PREALLOC: u32 = 1;
    let types = int_btf();
    let btf_attr = BtfAttr {
        btf: types.as_ptr() as u64,
        btf_bytes: types.len() as u32,
        ..BtfAttr::default()
    };
    let btf = owned(bpf(Command::BtfLoad, btf_attr.as_bytes()), "type information")?;
    let shape = MapShape {
        map_type: SK_STORAGE,
        key_bytes: 4,
        value_bytes: 4,
        max_entries: 0,
        flags: NO_PREALLOC,
    };
    let attr = MapAttr {
        btf_fd: btf.as_raw_fd() as u32,
        btf_key_type_id: 1,
        btf_value_type_id: 1,
        ..map_attr(shape)
    };
    owned(bpf(Command::MapCreate, attr.as_bytes()), "map creation")
}

fn map_attr(shape: MapShape) -> MapAttr {
    MapAttr {
        map_type: shape.map_type,
        key_bytes: shape.key_bytes,
        value_bytes: shape.value_bytes,
        max_entries: shape.max_entries,
        flags: shape.flags,
        ..MapAttr::default()
    }
}

/// BTF with a single type, `int` of 4 bytes (Documentation/bpf/btf.rst, sections 2 and 3).
fn int_btf() -> Vec<u8> {
    const INT: u32 = 1 << 24;
    let strings = b"\0int\0";
    let types = [1u32, INT, 4, 32];
    let type_bytes = size_of_val(&types) as u32;
    let mut bytes = vec![0x9f, 0xeb, 1, 0];
    for field in [24, 0, type_bytes, type_bytes, strings.len() as u32]
        .into_iter()
        .chain(types)
    {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(strings);
    bytes
}

/// Loads a program. After a refusal it is loaded once more to hear the verifier's complaint.
pub fn load(program: &Program<'_>) -> Result<OwnedFd, Refusal> {
    const LICENSE: &CStr = c"Dual MIT/GPL";
    let mut attr = ProgAttr {
        prog_type: program.prog_type,
        insn_count: program.insns.len() as u32,
        insns: program.insns.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        expected_attach_type: program.expected_attach_type,
        attach_btf_id: program.attach_btf_id,
        ..ProgAttr::default()
    };
    let refusal = match owned(bpf(Command::ProgLoad, attr.as_bytes()), "program load") {
        Ok(fd) => return Ok(fd),
        Err(refusal) => refusal,
    };
    let mut log = vec![0u8; LOG_BYTES];
    attr.log_level = 1;
    attr.log_bytes = log.len() as u32;
    attr.log = log.as_mut_ptr() as u64;
    match owned(bpf(Command::ProgLoad, attr.as_bytes()), "program load") {
        Ok(fd) => Ok(fd),
        Err(_) => Err(Refusal {
            complaint: complaint(&text_of(&log)).to_owned(),
            ..refusal
        }),
    }
}

fn text_of(log: &[u8]) -> Cow<'_, str> {
    CStr::from_bytes_until_nul(log)
        .map(CStr::to_string_lossy)
        .unwrap_or_default()
}

/// The line of a verifier's log that says what is wrong: the last one before its statistics.
pub fn complaint(log: &str) -> &str {
    const STATISTICS: [&str; 3] = ["verification time ", "stack depth ", "processed "];
    let is_statistics = |line: &str| STATISTICS.iter().any(|start| line.starts_with(start));
    let before = log.lines().take_while(|line| !is_statistics(line));
    before
        .filter(|line| !line.trim().is_empty())
        .last()
        .unwrap_or_default()
        .trim()
}

/// An error without the verifier's whole log: what was refused, and the line that says why.
pub fn one_line(error: &str) -> String {
    match error.split_once("Verifier output:") {
        Some((refused, log)) => format!("{}: {}", refused.trim().trim_end_matches('.'), complaint(log)),
        None => error.lines().next().unwrap_or_default().to_owned(),
    }
}

/// Runs an iterator program over everything it iterates over: a map's elements, or where none is given, what the
/// kernel has of the kind. Returns when it has seen all of it; nothing stays attached.
pub fn iterate(program: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
    const TRACE_ITER: u32 = 28;
    // union bpf_iter_link_info: a map's descriptor.
    let info = map.map(number);
    let attr = IterLinkAttr {
        prog_fd: number(program),
        attach_type: TRACE_ITER,
        info: info.as_ref().map_or(0, |info| std::ptr::from_ref(info) as u64),
        info_bytes: info.map_or(0, |_| size_of::<u32>() as u32),
        ..IterLinkAttr::default()
    };
    let link = owned(bpf(Command::LinkCreate, attr.as_bytes()), "iterator link")?;
    let attr = IterAttr {
        link_fd: number(link.as_fd()),
        ..IterAttr::default()
    };
    let walk = owned(bpf(Command::IterCreate, attr.as_bytes()), "iterator")?;
    // The programs print nothing: one read walks to the end. EAGAIN says that there is more to walk.
    let mut walk = std::fs::File::from(walk);
    let mut buffer = [0; 64];
    loop {
        match walk.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return Err(Refusal::last("iteration")),
        }
    }
}

/// Attaches a BTF tracepoint, fentry or fexit program. Dropping the descriptor detaches it.
pub fn attach_tracing(program: BorrowedFd<'_>) -> Result<OwnedFd, Refusal> {
    let attr = RawTracepointAttr {
        prog_fd: number(program),
        ..RawTracepointAttr::default()
    };
    owned(bpf(Command::RawTracepointOpen, attr.as_bytes()), "attach")
}

/// Attaches to a cgroup by a link. Dropping the descriptor detaches it.
pub fn attach_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> Result<OwnedFd, Refusal> {
    // link_create has the program first.
    let attr = AttachAttr {
        target_fd: number(program),
        prog_fd: number(cgroup),
        attach_type,
        flags: 0,
    };
    owned(bpf(Command::LinkCreate, attr.as_bytes()), "attach")
}

/// Attaches to a map of sockets, with which the attachment ends.
pub fn attach_map(program: BorrowedFd<'_>, map: BorrowedFd<'_>, attach_type: u32) -> Result<(), Refusal> {
    let attr = AttachAttr {
        target_fd: number(map),
        prog_fd: number(program),
        attach_type,
        flags: 0,
    };
    match bpf(Command::ProgAttach, attr.as_bytes()) {
        0 => Ok(()),
        _ => Err(Refusal::last("attach")),
    }
}

/// What a perf event watches.
#[derive(Clone, Copy, Debug)]
pub enum PerfTarget<'a> {
    /// A tracepoint by its id in tracefs.
    Tracepoint(u64),
    /// A kernel function; `pmu` is the type the kernel gave kprobes, `on_return` the bit that means kretprobe.
    Kprobe {
        pmu: u32,
        function: &'a CStr,
        on_return: u64,
    },
    /// An instruction of a file.
    Uprobe {
        pmu: u32,
        file: &'a CStr,
        offset_bytes: u64,
    },
}

/// Opens a disabled perf event and gives it a program. Dropping the descriptor removes both.
pub fn attach_perf(program: BorrowedFd<'_>, target: PerfTarget<'_>) -> Result<OwnedFd, Refusal> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const DISABLED: u64 = 1;
    const CLOSE_ON_EXEC: libc::c_ulong = 8;
    const SET_BPF: libc::Ioctl = 0x4004_2408;
    let mut attr = PerfAttr {
        bytes: size_of::<PerfAttr>() as u32,
        flags: DISABLED,
        ..PerfAttr::default()
    };
    match target {
        PerfTarget::Tracepoint(id) => (attr.kind, attr.config) = (PERF_TYPE_TRACEPOINT, id),
        PerfTarget::Kprobe {
            pmu,
            function,
            on_return,
        } => {
            (attr.kind, attr.config, attr.config1) = (pmu, on_return, function.as_ptr() as u64);
        }
        PerfTarget::Uprobe {
            pmu,
            file,
            offset_bytes,
        } => {
            (attr.kind, attr.config1, attr.config2) = (pmu, file.as_ptr() as u64, offset_bytes);
        }
    }
    let bytes = attr.as_bytes();
    // SAFETY: the kernel reads as many bytes as `attr` says it has; the strings it points to are borrowed by `target`.
    let opened = unsafe { libc::syscall(libc::SYS_perf_event_open, bytes.as_ptr(), -1, 0, -1, CLOSE_ON_EXEC) };
    let event = owned(opened, "perf event")?;
    // SAFETY: both descriptors are open; the call takes no memory of ours.
    let set = unsafe { libc::ioctl(event.as_raw_fd(), SET_BPF, program.as_raw_fd()) };
    if set < 0 {
        return Err(Refusal::last("attach to a perf event"));
    }
    Ok(event)
}

/// Lifts the limit on locked memory, to which kernels before 5.11 charge maps.
pub fn raise_memlock() -> Result<(), Refusal> {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid pointer to a limit.
    match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } {
        0 => Ok(()),
        _ => Err(Refusal::last("raising the limit on locked memory")),
    }
}

/// Size of a page.
pub fn page_bytes() -> u32 {
    // SAFETY: takes no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(bytes).unwrap_or(4096)
}

/// Instructions by name (Documentation/bpf/standardization/instruction-set.rst).
pub mod insn {
    const fn encode(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> u64 {
        let word = code as u64 | (dst as u64) << 8 | (src as u64) << 12 | (offset as u16 as u64) << 16;
        word | (immediate as u32 as u64) << 32
    }

    /// `r{dst} = immediate`
    pub const fn set(dst: u8, immediate: i32) -> u64 {
        encode(0xb7, dst, 0, 0, immediate)
    }

    /// `r{dst} = r{src}`
    pub const fn copy(dst: u8, src: u8) -> u64 {
        encode(0xbf, dst, src, 0, 0)
    }

    /// `r{dst} += immediate`
    pub const fn add(dst: u8, immediate: i32) -> u64 {
        encode(0x07, dst, 0, 0, immediate)
    }

    /// `*(u64 *)(r{dst} + offset) = 0`
    pub const fn zero(dst: u8, offset: i16) -> u64 {
        encode(0x7a, dst, 0, offset, 0)
    }

    /// `r{dst} = *(u64 *)(r{src} + offset)`
    pub const fn read(dst: u8, src: u8, offset: i16) -> u64 {
        encode(0x79, dst, src, offset, 0)
    }

    /// `r{dst} = map`, two words.
    pub const fn map(dst: u8, fd: i32) -> [u64; 2] {
        [encode(0x18, dst, 1, 0, fd), 0]
    }

    /// Calls a helper by its number.
    pub const fn call(helper: i32) -> u64 {
        encode(0x85, 0, 0, 0, helper)
    }

    /// Returns `r0`.
    pub const fn exit() -> u64 {
        encode(0x95, 0, 0, 0, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_lie_as_the_kernel_reads_them() {
        assert_eq!(std::mem::offset_of!(MapAttr, btf_fd), 48);
        assert_eq!(std::mem::offset_of!(ProgAttr, log), 32);
        assert_eq!(std::mem::offset_of!(ProgAttr, expected_attach_type), 68);
        assert_eq!(std::mem::offset_of!(ProgAttr, attach_btf_id), 108);
        assert_eq!(size_of::<PerfAttr>(), 72);
    }

    #[test]
    fn instructions_are_encoded() {
        assert_eq!(insn::set(0, 1).to_le_bytes(), [0xb7, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(insn::read(6, 1, 8).to_le_bytes(), [0x79, 0x16, 8, 0, 0, 0, 0, 0]);
        assert_eq!(insn::add(2, -8).to_le_bytes(), [0x07, 2, 0, 0, 0xf8, 0xff, 0xff, 0xff]);
        assert_eq!(insn::map(1, 5)[0].to_le_bytes(), [0x18, 0x11, 0, 0, 5, 0, 0, 0]);
    }

    #[test]
    fn the_complaint_is_the_last_word_before_the_statistics() {
        let log = b"0: (85) call bpf_probe_write_user#36\nprogram of this type cannot use helper x#36\n\
            verification time 4 usec\nstack depth 0\nprocessed 1 insns (limit 1000000)\n\0\0\0";
        assert_eq!(complaint(&text_of(log)), "program of this type cannot use helper x#36");
        assert_eq!(complaint(&text_of(&[0; 8])), "");
        assert_eq!(complaint(""), "");
    }

    #[test]
    fn refusals_say_who_and_why() {
        let refusal = Refusal {
            what: "program load".into(),
            errno: libc::EPERM,
            complaint: "no".into(),
        };
        assert_eq!(
            refusal.to_string(),
            "program load: Operation not permitted (os error 1) (no)"
        );
        assert_eq!(Refusal::absent("no kprobes").to_string(), "no kprobes");
    }
}
