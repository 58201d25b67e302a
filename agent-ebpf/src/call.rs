//! From a system call's registers to the user bytes it moved.
//!
//! Both socket hooks run after the call did its work, in its thread, so the registers still say where the bytes are
//! and the pages have just been touched. A buffer that cannot be read is counted, and the length is kept.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_user};
use spanwire_common::drop::KernelCounter;
use spanwire_common::protocol::window::{CARRY_BYTES, FILL_BYTES};

use crate::arch::{nr, Registers, USER_CS_32, USER_CS_64};
use crate::count::{cost, count};
use crate::global::global;
use crate::maps::{VectorPosition, VECTORS};
use crate::state::{Call, Scratch, SPILL_BYTES};

/// The most empty pieces one fill passes over.
const GATHER: u32 = 8;
/// The most pieces one skip passes over.
const SKIP: u32 = 64;

/// [`Call::readable`]: the bytes are a message's, in kernel memory.
pub const READABLE_MESSAGE: u32 = 2;

/// What the registers say about the call's buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// `Call::base`, `left`, `iov*` say where it is.
    User,
    /// The bytes came from or went to kernel pages (sendfile, splice): only the length is known.
    None,
    /// io_uring.
    Ring,
    /// A 32-bit task.
    Compat,
    /// Unknown call, or the pointer could not be read.
    Unreadable,
}

/// The clock, read at most once a call.
#[inline(always)]
pub fn now(call: &mut Call) -> u64 {
    if call.now_ns == 0 {
        cost(KernelCounter::ClockReads);
        // SAFETY: no arguments.
        call.now_ns = unsafe { bpf_ktime_get_ns() };
    }
    call.now_ns
}

/// Reads user memory; false on a fault.
#[inline(always)]
unsafe fn read_user(to: *mut u8, bytes: u32, from: u64) -> bool {
    cost(KernelCounter::UserReads);
    // SAFETY: the caller vouches for `to`; `from` is checked by the helper.
    unsafe { bpf_probe_read_user(to.cast(), bytes, from as *const _) == 0 }
}

/// Finds the buffer of the call under way.
///
/// verifier: where fields are read through the stack, in a frame of its own: see `opaque::sent`.
#[cfg_attr(feature = "untyped", inline(never))]
#[cfg_attr(not(feature = "untyped"), inline(always))]
pub fn describe(call: &mut Call, len: u64) -> Buffer {
    call.iov = 0;
    call.iov_count = 0;
    call.iov_next = 0;
    call.left = 0;
    let Some(registers) = Registers::current() else {
        return Buffer::Unreadable;
    };
    let (number, si, dx) = (registers.number(), registers.second(), registers.third());
    let cs = registers.code_segment();
    if cs != USER_CS_64 {
        return if cs == USER_CS_32 { Buffer::Compat } else { Buffer::None };
    }
    match number {
        nr::READ | nr::WRITE | nr::SENDTO | nr::RECVFROM => {
            call.base = si;
            call.left = len;
            Buffer::User
        }
        nr::READV | nr::WRITEV | nr::PREADV2 | nr::PWRITEV2 => {
            call.iov = si;
            call.iov_count = dx as u32;
            Buffer::User
        }
        nr::SENDMSG | nr::RECVMSG => message(call, si),
        nr::SENDMMSG | nr::RECVMMSG => vector(call, si, dx),
        nr::SENDFILE | nr::SPLICE => Buffer::None,
        nr::IO_URING_ENTER => Buffer::Ring,
        _ => Buffer::Unreadable,
    }
}

/// `struct user_msghdr` (include/linux/socket.h): msg_iov at 16, msg_iovlen at 24.
#[inline(always)]
fn message(call: &mut Call, header: u64) -> Buffer {
    let mut pair = [0u64; 2];
    // SAFETY: 16 bytes of stack.
    if !unsafe { read_user((&raw mut pair).cast(), 16, header.wrapping_add(16)) } {
        return Buffer::Unreadable;
    }
    call.iov = pair[0];
    call.iov_count = pair[1] as u32;
    Buffer::User
}

/// `struct mmsghdr`: a user_msghdr of 56 bytes and a length, 64 in all. Each message fires the hook once, in order;
/// which one it is, the thread's entry in VECTORS remembers.
#[inline(always)]
fn vector(call: &mut Call, headers: u64, count_of: u64) -> Buffer {
    let thread = call.pid_tgid;
    let mut index = 0;
    if let Some(position) = VECTORS.get_ptr_mut(&thread) {
        // SAFETY: a live map value.
        let position = unsafe { &mut *position };
        if position.vector == headers && position.next < count_of {
            index = position.next;
        }
        position.vector = headers;
        position.next = index + 1;
    } else if count_of > 1 {
        let first = VectorPosition {
            vector: headers,
            next: 1,
        };
        let _ = VECTORS.insert(&thread, &first, 0);
    }
    message(call, headers.wrapping_add(index * 64))
}

/// Makes `base` and `left` the next piece; false when there is none.
#[inline(always)]
fn next_piece(call: &mut Call) -> bool {
    if call.iov_next >= call.iov_count {
        return false;
    }
    let mut piece = [0u64; 2];
    let at = call.iov.wrapping_add(u64::from(call.iov_next) * 16);
    // SAFETY: 16 bytes of stack.
    if !unsafe { read_user((&raw mut piece).cast(), 16, at) } {
        count(KernelCounter::UnreadableBuffer);
        return false;
    }
    call.iov_next += 1;
    call.base = piece[0];
    call.left = piece[1];
    true
}

global! {
    /// Copies the next bytes of the call into the window behind `cursor.end`, up to FILL_BYTES of them. Returns how many
    /// were added; 0 if none could be read.
    ///
    /// verifier: a global function, so it is verified once with unknown memory; the loop's state is in memory.
    pub fn fill(scratch: *mut Scratch) else { 0 } {
        // SAFETY: non-null means a whole Scratch (the verifier's rule for pointer arguments of global functions).
        let scratch = unsafe { &mut *scratch };
        let mut added = 0u32;
        for _ in 0..GATHER {
            let at = scratch.cursor.end;
            if at > (CARRY_BYTES + FILL_BYTES) as u32 || scratch.call.unread == 0 {
                break;
            }
            if scratch.call.left == 0 {
                if !next_piece(&mut scratch.call) {
                    break;
                }
                continue;
            }
            let mut bytes = scratch.call.left.min(scratch.call.unread);
            if bytes > FILL_BYTES as u64 {
                bytes = FILL_BYTES as u64;
            }
            let bytes = bound_fill(bytes);
            // SAFETY: `at` is at most CARRY + FILL, `bytes` at most FILL: `spill` follows the window for the sum.
            let read = unsafe {
                let to = (&raw mut scratch.window).cast::<u8>().add(at as usize);
                if scratch.call.readable == READABLE_MESSAGE {
                    copy_kernel(to, bytes, scratch.call.base as *const u8)
                } else {
                    read_user(to, bytes, scratch.call.base)
                }
            };
            if !read {
                count(KernelCounter::UnreadableBuffer);
                break;
            }
            scratch.call.base = scratch.call.base.wrapping_add(u64::from(bytes));
            scratch.call.left = scratch.call.left.wrapping_sub(u64::from(bytes));
            scratch.call.unread = scratch.call.unread.wrapping_sub(u64::from(bytes));
            scratch.cursor.end = at.wrapping_add(bytes);
            added = bytes;
            // One piece at a time: a head that ends in it needs no other (nginx: head and body are two), and one that
            // does not asks again.
            break;
        }
        added
    }
}

/// Bounds a length that is at most FILL_BYTES in a way LLVM cannot fold away ("R2 min value is negative").
#[inline(always)]
fn bound_fill(bytes: u64) -> u32 {
    const { assert!(FILL_BYTES < SPILL_BYTES) };
    let mut bytes = bytes;
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{0} &= 4095", inout(reg) bytes) };
    bytes as u32
}

global! {
    /// Passes over `bytes` of the call that need not be read. False if the pieces do not reach that far.
    pub fn skip(scratch: *mut Scratch; bytes: u64) else { 0 } {
        // SAFETY: as in `fill`.
        let call = unsafe { &mut (*scratch).call };
        call.unread = call.unread.wrapping_sub(bytes);
        let mut bytes = bytes;
        for _ in 0..SKIP {
            if bytes == 0 {
                return 1;
            }
            if call.left == 0 {
                if !next_piece(call) {
                    return 0;
                }
                continue;
            }
            let step = call.left.min(bytes);
            call.base = call.base.wrapping_add(step);
            call.left = call.left.wrapping_sub(step);
            bytes = bytes.wrapping_sub(step);
        }
        u32::from(bytes == 0)
    }
}

/// Copies within kernel memory.
///
/// # Safety
/// `to` has room for `bytes`.
#[inline(always)]
pub unsafe fn copy_kernel(to: *mut u8, bytes: u32, from: *const u8) -> bool {
    // SAFETY: see above; the source is checked by the helper.
    unsafe { bpf_probe_read_kernel(to.cast(), bytes, from.cast()) == 0 }
}
