//! Tracepoints of the system calls that move a stream's bytes (include/trace/events/syscalls.h, kernel/trace/
//! trace_syscalls.c): for kernels that have nothing better. The entry finds the socket behind the descriptor, the exit
//! knows the result.
//!
//! What goes past these calls is not seen: io_uring, and 32-bit programs, for which the kernel fires none of them.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use aya_ebpf::EbpfContext as _;

use crate::access;
use crate::arch::{nr, Registers};
use crate::hook::call::{self, begin, end, is_wanted};
use crate::maps::{VectorPosition, VECTORS};
use crate::offsets as off;
use crate::sk::{load, Sock};

/// Layout of what a program is given (struct syscall_tp_t): number, then arguments or result.
const NUMBER: usize = 8;
const RESULT: usize = 16;

/// The most messages that recvmmsg and sendmmsg take (UIO_MAXIOV).
const MESSAGES: u32 = 1024;
/// `struct mmsghdr`: its size, and where `msg_len` is.
const MESSAGE_BYTES: u64 = 64;
const MESSAGE_LENGTH: u64 = 56;

/// The one system call a thread is in.
const CALL: u32 = 0;

/// A field of the context, which is neither kernel nor user memory.
#[inline(always)]
fn field(ctx: &TracePointContext, offset: usize) -> u64 {
    // SAFETY: within the context: number and result are eight bytes each at these offsets.
    unsafe { *ctx.as_ptr().cast::<u8>().add(offset).cast::<u64>() }
}

/// The call's number, for which the kernel keeps an int.
#[inline(always)]
fn number(ctx: &TracePointContext) -> u64 {
    u64::from(field(ctx, NUMBER) as u32)
}

/// sys_enter_*: remembers the socket, and the flags of the call.
#[tracepoint]
pub fn sys_enter(ctx: TracePointContext) -> u32 {
    if !is_wanted() {
        return 0;
    }
    let Some(registers) = Registers::current() else {
        return 0;
    };
    let (third, fourth) = (registers.third(), registers.fourth());
    let number = number(&ctx);
    let flags = match number {
        nr::RECVFROM | nr::SENDTO | nr::RECVMMSG | nr::SENDMMSG => fourth as u32,
        nr::RECVMSG | nr::SENDMSG => third as u32,
        _ => 0,
    };
    let sk = socket_of(descriptor(registers, number));
    if sk.0.is_null() {
        // What an earlier call left is not this one's.
        end(CALL);
    } else {
        begin(CALL, sk, flags);
    }
    0
}

/// The descriptor that a call sends to or receives from. Of splice, the one it writes to: what it takes out of a socket no
/// family of hooks sees.
#[inline(always)]
fn descriptor(registers: Registers, number: u64) -> u64 {
    let (first, third) = (registers.first(), registers.third());
    if number == nr::SPLICE {
        third
    } else {
        first
    }
}

/// The socket behind a descriptor of the current task, null if it is none.
#[inline(always)]
fn socket_of(descriptor: u64) -> Sock {
    let none = Sock(core::ptr::null());
    // SAFETY: task_struct.files -> files_struct.fdt -> fdtable.max_fds, fd. A null on the way reads as zero.
    let file: *const u8 = unsafe {
        let files: *const u8 = load(access::current_task(), off::task_files());
        let table: *const u8 = load(files, off::files_table());
        let size: u32 = load(table, off::table_size());
        if descriptor >= u64::from(size) {
            return none;
        }
        let open: *const u8 = load(table, off::table_files());
        load(open, descriptor as usize * 8)
    };
    if file.is_null() {
        return none;
    }
    access::sock_of_file(file)
}

/// The call that ends: its socket's address, its flags and its number. None where the descriptor has become another
/// socket's meanwhile, or is closed: what the call moved is then missing on its socket, which shows there.
#[inline(always)]
fn ended(ctx: &TracePointContext) -> Option<(u64, u32, u64)> {
    let call = end(CALL)?;
    let registers = Registers::current()?;
    let number = number(ctx);
    if socket_of(descriptor(registers, number)).0 as u64 != call.sock {
        return None;
    }
    Some((call.sock, call.flags, number))
}

/// Length of a message of the vector that has just been sent or received; what looks at its bytes next is told which
/// message it is (`call.rs`).
///
/// verifier: a frame of its own: see `opaque::sent`.
#[inline(never)]
fn message(index: u32) -> i32 {
    let Some(registers) = Registers::current() else {
        return 0;
    };
    let vector = registers.second();
    // SAFETY: no arguments.
    let thread = unsafe { bpf_get_current_pid_tgid() };
    let position = VectorPosition {
        vector,
        next: u64::from(index),
    };
    let _ = VECTORS.insert(&thread, &position, 0);
    length(vector, index)
}

/// Length of the message at `index`.
#[inline(always)]
fn length(vector: u64, index: u32) -> i32 {
    let header = vector.wrapping_add(u64::from(index) * MESSAGE_BYTES);
    let mut length = 0i32;
    // SAFETY: four bytes of stack.
    unsafe {
        let from = header.wrapping_add(MESSAGE_LENGTH) as *const _;
        bpf_probe_read_user((&raw mut length).cast(), 4, from);
    }
    length
}

/// Bytes of the first `count` messages.
///
/// verifier: as [`message`].
#[inline(never)]
fn whole(count: u32) -> u32 {
    let Some(registers) = Registers::current() else {
        return 0;
    };
    let vector = registers.second();
    let mut bytes = 0u32;
    for index in 0..MESSAGES.min(count) {
        bytes = bytes.wrapping_add(length(vector, index) as u32);
    }
    bytes
}

/// Tells of the messages one by one: length, and how many bytes are behind it.
#[inline(always)]
fn each_message(count: i32, tell: impl Fn(i32, u32) -> u32) {
    let count = count.max(0) as u32;
    let mut later = whole(count);
    for index in 0..MESSAGES.min(count) {
        let length = message(index);
        later = later.wrapping_sub(length as u32);
        tell(length, later);
    }
}

/// sys_exit_* of calls that receive.
#[tracepoint]
pub fn sys_exit_receive(ctx: TracePointContext) -> u32 {
    let Some((sk, flags, number)) = ended(&ctx) else {
        return 0;
    };
    let result = field(&ctx, RESULT) as i32;
    if number == nr::RECVMMSG {
        each_message(result, |length, later| call::received(sk, length, flags, later));
    } else {
        call::received(sk, result, flags, 0);
    }
    0
}

/// sys_exit_* of calls that send.
#[tracepoint]
pub fn sys_exit_send(ctx: TracePointContext) -> u32 {
    let Some((sk, _, number)) = ended(&ctx) else { return 0 };
    let result = field(&ctx, RESULT) as i32;
    if number == nr::SENDMMSG {
        each_message(result, |length, later| call::sent(sk, length, 0, later));
    } else {
        call::sent(sk, result, 0, 0);
    }
    0
}
