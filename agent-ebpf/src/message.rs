//! A message on its way out through sk_msg, and the only two ways in which it is changed: text put in, text put in place
//! of text of the same length.
//!
//! What the kernel does to a message that is pushed into is treacherous (docs/rewriting.md has the experiments): text is
//! put into the first element only, all of it is made one element again before it goes (else: segments of their own, 40 ms
//! of Nagle each), and only where the socket has room for all of it (else: a send that is cut short repeats bytes of the
//! application). Whatever fails is taken back.

use aya_ebpf::bindings::sk_msg_md;
use aya_ebpf::helpers::generated::{bpf_msg_pop_data, bpf_msg_pull_data, bpf_msg_push_data};

use crate::sk::Sock;

/// Longest text that is put in, in bytes: a traceparent, and a tracestate of 512 characters.
pub const LINE_BYTES: usize = 640;
/// Text is put in at most that many bytes into a message.
pub const MOST_AT: u32 = 0x3fff;
/// What the kernel itself needs besides, for each buffer it allocates (SKB_TRUESIZE of an empty one is less).
const OVERHEAD: u32 = 4096;
/// Least length of a text: the last eight bytes of it are written at once.
const LEAST: u32 = 8;

/// A text to be put in.
#[repr(C)]
pub struct Line {
    pub words: [u64; LINE_BYTES / 8],
    /// verifier: what is read behind the last word stays inside.
    pub spill: [u64; 64],
    pub len: u32,
    pub reserved: u32,
}

/// What came of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It failed, and the message is what it was.
    Undone,
    /// It failed, and could not be taken back; the text is where it was to be. Nothing is tried on this socket again.
    Doubtful,
    /// The text's place can be neither taken away nor written: what it holds must not leave this machine.
    Broken,
}

/// Set by the loader, for tests: the step that is to fail ([`fault`]); 0: none.
#[no_mangle]
static REWRITE_FAULT: u32 = 0;

/// Steps that can be made to fail.
pub mod fault {
    pub const PULL: u32 = 1;
    pub const PUSH: u32 = 2;
    pub const LINEARISE: u32 = 3;
    pub const WRITE: u32 = 4;
    pub const POP: u32 = 5;
    pub const ENROL: u32 = 6;
    /// Making it one element fails, and so does taking it back.
    pub const LINEARISE_AND_POP: u32 = 7;
}

/// Whether this step is to fail.
#[inline(always)]
pub fn fails(step: u32) -> bool {
    // SAFETY: a static of this program, set before the load.
    unsafe { core::ptr::read_volatile(&raw const REWRITE_FAULT) == step }
}

/// A `struct sk_msg_md *`.
#[derive(Clone, Copy)]
pub struct Message(pub *mut sk_msg_md);

impl Message {
    /// Bytes in all.
    #[inline(always)]
    pub fn size(self) -> u32 {
        // SAFETY: the program's context.
        unsafe { (*self.0).size }
    }

    /// The first visible byte.
    #[inline(always)]
    pub fn data(self) -> *mut u8 {
        // SAFETY: as above.
        unsafe { (*self.0).__bindgen_anon_1.data.cast() }
    }

    /// Behind the last visible byte.
    #[inline(always)]
    pub fn data_end(self) -> *mut u8 {
        // SAFETY: as above.
        unsafe { (*self.0).__bindgen_anon_2.data_end.cast() }
    }

    /// Bytes that can be seen: those of the first element.
    #[inline(always)]
    pub fn visible(self) -> u32 {
        (self.data_end() as u64).wrapping_sub(self.data() as u64) as u32
    }

    /// Its socket; null where the kernel names none.
    #[inline(always)]
    pub fn sock(self) -> *const u8 {
        // SAFETY: as above.
        unsafe { (*self.0).__bindgen_anon_3.sk as *const u8 }
    }

    /// Makes the bytes up to `to` one element.
    #[inline(always)]
    pub fn pull(self, to: u32) -> bool {
        // SAFETY: the program's context.
        !fails(fault::PULL) && unsafe { bpf_msg_pull_data(self.0, 0, to, 0) == 0 }
    }

    /// Whether a send of this message, and `more` bytes with it, goes out whole (`__sk_stream_memory_free`,
    /// `tcp_stream_memory_free`).
    #[inline(always)]
    pub fn has_room(self, sk: Sock, more: u32) -> bool {
        let Some(tcp) = sk.tcp() else { return false };
        let need = self.size().saturating_add(more).saturating_add(OVERHEAD);
        tcp.has_room(need)
    }
}

/// Puts a text in, `at` bytes from the beginning, within the first element.
///
/// verifier: a function of its own: what a program knows of a message ends with every call that changes it.
#[inline(never)]
pub fn insert(message: *mut sk_msg_md, at: u32, line: &Line) -> u32 {
    let message = Message(message);
    let (size, len) = (message.size(), line.len);
    let behind = at.wrapping_add(len).wrapping_add(2);
    if at > MOST_AT || len < LEAST || len > LINE_BYTES as u32 || message.visible() < at.wrapping_add(2) {
        return Outcome::Undone as u32;
    }
    // SAFETY: the program's context.
    if fails(fault::PUSH) || unsafe { bpf_msg_push_data(message.0, at, len, 0) } != 0 {
        return if message.size() == size {
            Outcome::Undone as u32
        } else {
            Outcome::Doubtful as u32
        };
    }
    // SAFETY: as above.
    let linear = !fails(fault::LINEARISE)
        && !fails(fault::LINEARISE_AND_POP)
        && unsafe { bpf_msg_pull_data(message.0, 0, behind, 0) == 0 };
    if linear && !fails(fault::WRITE) && !fails(fault::POP) && write(message.0, at, line) != 0 {
        return Outcome::Done as u32;
    }
    take_back(message, at, size, line) as u32
}

/// The text's place is there, and the text is not.
#[inline(always)]
fn take_back(message: Message, at: u32, size: u32, line: &Line) -> Outcome {
    let can_pop = !fails(fault::POP) && !fails(fault::LINEARISE_AND_POP);
    // SAFETY: the program's context.
    let popped = can_pop && unsafe { bpf_msg_pop_data(message.0, at, line.len, 0) == 0 };
    if popped && message.size() == size {
        return Outcome::Undone;
    }
    // The place cannot be taken away, so the text belongs there after all. Bytes of one element can be seen for certain, and
    // are all that is seen (`bpf_msg_pull_data`: from `start` to `end`).
    // SAFETY: as above.
    let alone = unsafe { bpf_msg_pull_data(message.0, at, at.wrapping_add(line.len), 0) } == 0;
    if alone && write_alone(message.0, line) != 0 {
        Outcome::Doubtful
    } else {
        Outcome::Broken
    }
}

/// Writes the text `at` bytes into what is visible, if all of it is, and two bytes behind it.
///
/// verifier: as [`insert`].
#[inline(never)]
fn write(message: *mut sk_msg_md, at: u32, line: &Line) -> u32 {
    let message = Message(message);
    if message.visible() < at.wrapping_add(line.len).wrapping_add(2) {
        return 0;
    }
    u32::from(put(message, at, line))
}

/// As [`write`], where what is visible is the text's place and nothing else.
#[inline(never)]
fn write_alone(message: *mut sk_msg_md, line: &Line) -> u32 {
    let message = Message(message);
    if message.visible() < line.len {
        return 0;
    }
    u32::from(put(message, 0, line))
}

/// verifier: each piece is compared with the message's end by itself; a comparison of a length that varies proves nothing.
#[inline(always)]
fn put(message: Message, at: u32, line: &Line) -> bool {
    let (data, end) = (message.data(), message.data_end());
    let at = bound_at(at);
    let len = line.len;
    for index in 0..LINE_BYTES / 8 {
        let offset = index as u32 * 8;
        if offset + 8 > len {
            break;
        }
        if !put_word(data, end, at + u64::from(offset), line.words[index]) {
            return false;
        }
    }
    if len & 7 == 0 {
        return true;
    }
    let last = bound_len(len).wrapping_sub(8);
    // SAFETY: the last eight bytes of a text that is at least as long; `spill` follows it.
    let word = unsafe {
        (&raw const line.words)
            .cast::<u8>()
            .add(bound_len(last) as usize)
            .cast::<u64>()
            .read_unaligned()
    };
    put_word(data, end, at + u64::from(bound_len(last)), word)
}

#[inline(always)]
fn put_word(data: *mut u8, end: *mut u8, at: u64, word: u64) -> bool {
    // SAFETY: compared with the message's end before it is written.
    unsafe {
        let place = data.add(at as usize);
        if place.add(8) > end {
            return false;
        }
        core::ptr::write_volatile(place.cast::<u64>(), word);
    }
    true
}

/// Writes two words, 16 bytes, over what is visible `at` bytes from the beginning.
///
/// verifier: as [`insert`].
#[inline(never)]
pub fn replace(message: *mut sk_msg_md, at: u32, first: u64, second: u64) -> u32 {
    let message = Message(message);
    let at = bound_at(at);
    if u64::from(message.visible()) < at + 16 || fails(fault::WRITE) {
        return 0;
    }
    let (data, end) = (message.data(), message.data_end());
    // SAFETY: compared with the message's end before anything is written: both or nothing.
    unsafe {
        let place = data.add(at as usize);
        if place.add(16) > end {
            return 0;
        }
        core::ptr::write_volatile(place.cast::<u64>(), first);
        core::ptr::write_volatile(place.add(8).cast::<u64>(), second);
    }
    1
}

/// At most [`MOST_AT`], in a way LLVM cannot fold away.
#[inline(always)]
fn bound_at(at: u32) -> u64 {
    let mut at = u64::from(at);
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{0} &= 0x3fff", inout(reg) at) };
    at
}

/// Less than 1,024, the same.
#[inline(always)]
fn bound_len(len: u32) -> u32 {
    const { assert!(size_of::<Line>() >= 1023 + 8) };
    let mut len = u64::from(len);
    // SAFETY: register arithmetic only.
    unsafe { core::arch::asm!("{0} &= 1023", inout(reg) len) };
    len as u32
}
