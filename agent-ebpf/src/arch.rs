//! x86_64: system-call numbers and where a call's arguments are (arch/x86/entry/syscalls/syscall_64.tbl; the
//! system-call convention of the x86-64 psABI). The only file of the kernel side that knows the architecture.

/// `struct pt_regs` (arch/x86/include/asm/ptrace.h): its layout is user ABI.
#[repr(C)]
pub struct PtRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub orig_rax: u64,
    pub rip: u64,
    pub cs: u64,
    pub eflags: u64,
    pub rsp: u64,
    pub ss: u64,
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

/// Number of the system call the current task is in.
#[inline(always)]
fn current_call() -> u64 {
    use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
    // SAFETY: both helpers take and return trusted pointers; pt_regs may be loaded from directly (5.15+).
    unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const PtRegs;
        if regs.is_null() {
            u64::MAX
        } else {
            (*regs).orig_rax
        }
    }
}

/// The current task is in close(2).
#[inline(always)]
pub fn in_close() -> bool {
    current_call() == 3
}
