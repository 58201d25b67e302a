//! What the kernel side tells user space of processes: that one has been seen which nobody has classified, that one executes
//! another program, and that one has ended.

use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_current_uid_gid};
use spanwire_common::abi::{
    flag, process_event, process_flag, ProcessClass, ProcessRecord, ProcessValue, GRANDPARENTS,
};
use spanwire_common::drop::KernelCounter;

use crate::call::copy_kernel;
use crate::count::{cost, count};
use crate::global::global;
use crate::maps::{EXECUTED, PROCESSES};
use crate::state::{Call, Exchange, EX_EXCLUDED, ROLE_SERVER};
use crate::{access, emit, offsets as off, sk};

/// After [`crate::exchange::request_head`]: whether [`note_process`] has anything to do.
#[inline(always)]
pub fn is_to_note(exchange: &Exchange) -> bool {
    exchange.state & EX_EXCLUDED == 0
        && (exchange.class == ProcessClass::Unclassified as u8 || exchange.flags & flag::PROCESS_SERVES == 0)
}

global! {
    /// Marks the process as one that serves, and asks user space about a process it has not classified.
    ///
    /// verifier: called by the parser's step and not by `request_head`, so that their frames need not fit on one stack.
    pub fn note_process(exchange: *const Exchange, call: *const Call) else { 0 } {
        // SAFETY: whole objects, as in `exchange::request_begins`.
        note(unsafe { &*exchange }, unsafe { &*call });
        0
    }
}

#[inline(always)]
fn note(exchange: &Exchange, call: &Call) {
    let serves = if exchange.side == ROLE_SERVER {
        process_flag::SERVES
    } else {
        0
    };
    let pid = exchange.pid;
    cost(KernelCounter::MapOperations);
    if let Some(process) = PROCESSES.get_ptr_mut(&pid) {
        // SAFETY: a live map value.
        let process = unsafe { &mut *process };
        process.flags |= serves;
        if process.class != ProcessClass::Unclassified as u8 || process.reserved[0] != 0 {
            return;
        }
        process.reserved[0] = 1;
    } else {
        let mut asked = ProcessValue {
            include: u32::MAX,
            flags: serves,
            ..ProcessValue::default()
        };
        asked.reserved[0] = 1;
        if PROCESSES.insert(&pid, &asked, 0).is_err() {
            count(KernelCounter::StateFull);
        }
    }
    ask(pid, call.now_ns, process_event::SEEN);
}

/// Sends a process record about the current task.
#[inline(always)]
pub fn ask(pid: u32, time_ns: u64, event: u8) {
    // SAFETY: a whole record, every field of which is written; a helper's own 16 bytes.
    let sent = emit::process(|record| unsafe {
        record.time_ns = time_ns;
        record.cgroup_id = 0;
        record.pid = pid;
        record.uid = bpf_get_current_uid_gid() as u32;
        record.event = event;
        record.reserved = [0; 3];
        ancestors(record);
        bpf_get_current_comm((&raw mut record.comm).cast(), 16);
        match EXECUTED.get_ptr(&pid) {
            Some(path) => _ = copy_kernel((&raw mut record.filename).cast(), 128, path.cast()),
            None => record.filename = [0; 128],
        }
    });
    if !sent {
        count(KernelCounter::RingFullOther);
    }
}

/// Names the current task's ancestors, up to the first process of the machine or the container.
#[inline(always)]
fn ancestors(record: &mut ProcessRecord) {
    // SAFETY: task_struct.real_parent and tgid, from a trusted pointer on; a load that faults yields zero.
    unsafe {
        let mut task = access::current_task();
        task = sk::load(task, off::task_real_parent());
        record.parent_pid = sk::load(task, off::task_tgid());
        let mut index = 0;
        while index < GRANDPARENTS {
            task = sk::load(task, off::task_real_parent());
            record.grandparents[index] = sk::load(task, off::task_tgid());
            index += 1;
        }
    }
}
