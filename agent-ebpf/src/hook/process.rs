//! tp_btf/sched_process_fork, exec, exit (include/trace/events/sched.h): who is whose child, and when to forget.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel_str};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use spanwire_common::abi::{process_event, process_flag, ProcessClass};

use crate::maps::{EXECUTED, PROCESSES, UNITS, VECTORS};
use crate::{offsets as off, process, refused, sk, unit};

/// `(struct task_struct *parent, struct task_struct *child)`.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let child: *const u8 = ctx.arg(1);
    // SAFETY: task_struct.pid, task_struct.tgid of a trusted pointer.
    let (tid, pid): (u32, u32) = unsafe { (sk::load(child, off::task_pid()), sk::load(child, off::task_tgid())) };
    // SAFETY: no arguments.
    let parent = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    if pid == parent {
        // A thread: what it serves shows when it reads.
        return 0;
    }
    if let Some(entry) = PROCESSES.get_ptr_mut(&parent) {
        // SAFETY: a live map value, copied. A fork is the same program: class and selectors hold for the child.
        let mut process = unsafe { *entry };
        process.flags &= !process_flag::SERVES;
        // Nobody has asked about the child yet.
        process.reserved[0] = 0;
        let _ = PROCESSES.insert(&pid, &process, 0);
        refused::forget();
    } else {
        // What was told of an earlier bearer of this id after it had ended.
        forget(pid);
    }
    unit::inherit(u64::from(pid) << 32 | u64::from(tid));
    0
}

/// `(struct task_struct *, pid_t old, struct linux_binprm *)`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let (task, bprm): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(2));
    // SAFETY: task_struct.tgid and linux_binprm.filename of trusted pointers.
    let (pid, filename): (u32, *const u8) =
        unsafe { (sk::load(task, off::task_tgid()), sk::load(bprm, off::bprm_filename())) };
    // Another program: what was known of the process holds no more.
    let known = forget(pid);
    let mut path = [0u8; 128];
    // SAFETY: 128 bytes of stack; the helper checks the source and ends the string.
    unsafe { bpf_probe_read_kernel_str((&raw mut path).cast(), 128, filename.cast()) };
    let _ = EXECUTED.insert(&pid, &path, 0);
    if known {
        // User space has been asked about it, and would take its spans for the earlier program's.
        // SAFETY: no arguments.
        process::ask(pid, unsafe { bpf_ktime_get_ns() }, process_event::EXEC);
    }
    0
}

/// `(struct task_struct *)`; every thread of a process fires it.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn sched_process_exit(_ctx: BtfTracePointContext) -> i32 {
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    let (pid, tid) = ((thread >> 32) as u32, thread as u32);
    let _ = UNITS.remove(&thread);
    let _ = VECTORS.remove(&thread);
    if pid != tid {
        return 0;
    }
    let _ = EXECUTED.remove(&pid);
    let Some(entry) = PROCESSES.get_ptr_mut(&pid) else {
        return 0;
    };
    // SAFETY: a live map value.
    let known = unsafe { (*entry).class != ProcessClass::Unclassified as u8 || (*entry).reserved[0] != 0 };
    forget(pid);
    if known {
        // SAFETY: no arguments.
        process::ask(pid, unsafe { bpf_ktime_get_ns() }, process_event::EXIT);
    }
    0
}

/// Nothing is known of a process any more. True if something was.
#[inline(always)]
fn forget(pid: u32) -> bool {
    let known = PROCESSES.remove(&pid).is_ok();
    if known {
        refused::forget();
    }
    known
}
