//! x86_64: system-call numbers and where a call's arguments are (arch/x86/entry/syscalls/syscall_64.tbl; the
//! system-call convention of the x86-64 psABI). The only file of the kernel side that knows the architecture.

use core::mem::offset_of;

#[cfg(feature = "scalars")]
use crate::access::{self, load};
#[cfg(feature = "scalars")]
use crate::offsets as off;

/// `struct pt_regs` (arch/x86/include/asm/ptrace.h): its layout is user ABI.
#[repr(C)]
#[allow(dead_code, reason = "read by offset")]
struct PtRegs {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbp: u64,
    rbx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    orig_rax: u64,
    rip: u64,
    cs: u64,
    eflags: u64,
    rsp: u64,
    ss: u64,
}

/// Code segment of a 64-bit user task (`__USER_CS`). 0x23 is a 32-bit one; 0 or the kernel's own: no user task.
pub const USER_CS_64: u64 = 0x33;
/// Code segment of a 32-bit user task (`__USER32_CS`).
pub const USER_CS_32: u64 = 0x23;

pub mod nr {
    pub const READ: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const READV: u64 = 19;
    pub const WRITEV: u64 = 20;
    pub const SENDFILE: u64 = 40;
    pub const SENDTO: u64 = 44;
    pub const RECVFROM: u64 = 45;
    pub const SENDMSG: u64 = 46;
    pub const RECVMSG: u64 = 47;
    pub const SPLICE: u64 = 275;
    pub const PREADV2: u64 = 327;
    pub const PWRITEV2: u64 = 328;
    pub const RECVMMSG: u64 = 299;
    pub const SENDMMSG: u64 = 307;
    pub const IO_URING_ENTER: u64 = 426;
}

/// The registers with which the current task has come into the kernel.
#[derive(Clone, Copy)]
pub struct Registers(*const PtRegs);

impl Registers {
    /// None where the task has none.
    #[cfg(not(feature = "scalars"))]
    #[inline(always)]
    pub fn current() -> Option<Self> {
        use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
        // SAFETY: both helpers take and return trusted pointers.
        let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) as *const PtRegs };
        (!regs.is_null()).then_some(Self(regs))
    }

    /// They lie at the upper end of the task's stack (task_pt_regs(), arch/x86/include/asm/processor.h).
    #[cfg(feature = "scalars")]
    #[inline(always)]
    pub fn current() -> Option<Self> {
        // SAFETY: task_struct.stack.
        let stack: *const u8 = unsafe { load(access::current_task(), off::task_stack()) };
        // SAFETY: a static of this program, set before the load.
        let end = stack.wrapping_add(unsafe { core::ptr::read_volatile(&raw const THREAD_SIZE) } as usize);
        (!stack.is_null()).then_some(Self(end.cast::<PtRegs>().wrapping_sub(1)))
    }

    #[cfg(not(feature = "scalars"))]
    #[inline(always)]
    fn load(self, offset: usize) -> u64 {
        // SAFETY: pt_regs may be loaded from directly (5.15+); the offset is that of a field.
        unsafe { *self.0.cast::<u8>().add(offset).cast::<u64>() }
    }

    #[cfg(feature = "scalars")]
    #[inline(always)]
    fn load(self, offset: usize) -> u64 {
        // SAFETY: the offset is that of a field.
        unsafe { load(self.0.cast(), offset) }
    }

    /// Number of the system call.
    #[inline(always)]
    pub fn number(self) -> u64 {
        self.load(offset_of!(PtRegs, orig_rax))
    }

    /// Its arguments.
    #[cfg(feature = "untyped")]
    #[inline(always)]
    pub fn first(self) -> u64 {
        self.load(offset_of!(PtRegs, rdi))
    }

    #[inline(always)]
    pub fn second(self) -> u64 {
        self.load(offset_of!(PtRegs, rsi))
    }

    #[inline(always)]
    pub fn third(self) -> u64 {
        self.load(offset_of!(PtRegs, rdx))
    }

    #[cfg(feature = "untyped")]
    #[inline(always)]
    pub fn fourth(self) -> u64 {
        self.load(offset_of!(PtRegs, r10))
    }

    /// Code segment: says what kind of task it is.
    #[inline(always)]
    pub fn code_segment(self) -> u64 {
        self.load(offset_of!(PtRegs, cs))
    }
}

/// Size of a task's stack (arch/x86/include/asm/page_64_types.h), set by the loader.
#[cfg(feature = "scalars")]
#[no_mangle]
static THREAD_SIZE: u32 = 0;

/// The current task has come from user space, and its registers lie where they are looked for.
#[cfg(feature = "untyped")]
#[inline(always)]
pub fn has_registers() -> bool {
    if cfg!(not(feature = "scalars")) {
        return true;
    }
    let segment = Registers::current().map(Registers::code_segment);
    segment == Some(USER_CS_64) || segment == Some(USER_CS_32)
}

/// Number of the system call the current task is in.
#[inline(always)]
fn current_call() -> u64 {
    Registers::current().map_or(u64::MAX, Registers::number)
}

/// The current task, a 64-bit one, is in a call that sends from memory of its own: not io_uring, sendfile or splice.
#[inline(always)]
pub fn sends_from_user_memory() -> bool {
    let Some(registers) = Registers::current() else {
        return false;
    };
    let is_sending = matches!(
        registers.number(),
        nr::WRITE | nr::WRITEV | nr::PWRITEV2 | nr::SENDTO | nr::SENDMSG | nr::SENDMMSG
    );
    is_sending && registers.code_segment() == USER_CS_64
}

/// The current task is in close(2).
#[inline(always)]
pub fn in_close() -> bool {
    current_call() == 3
}
