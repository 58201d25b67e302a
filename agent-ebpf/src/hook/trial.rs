//! sk_msg: the program that the self-test of rewriting tries out on sockets of its own (`agent/src/sys/selftest/`).

use aya_ebpf::bindings::sk_action;
use aya_ebpf::btf_maps::SockHash;
use aya_ebpf::macros::{btf_map, sk_msg};
use aya_ebpf::programs::SkMsgContext;
use spanwire_common::trial::{INSERT, LINE, LINEARISE, LINE_AT};

use crate::access;
use crate::message::{insert, Line, Message, LINE_BYTES};

/// Sockets of the self-test. Written and deleted by user space.
#[btf_map]
pub static TRIAL_SOCKETS: SockHash<u64, 64> = SockHash::new();

/// What a message that is to have a line put in must have: as much behind it as a head has.
const LEAST: u32 = LINE_AT + 2;

/// [`LINE`] as it is put in.
static TEXT: Line = text();

const fn text() -> Line {
    let mut words = [0; LINE_BYTES / 8];
    let mut at = 0;
    while at < LINE.len() {
        words[at / 8] |= (LINE[at] as u64) << (at % 8 * 8);
        at += 1;
    }
    Line {
        words,
        spill: [0; 64],
        len: LINE.len() as u32,
        reserved: 0,
    }
}

/// Puts a line into the messages that ask for it, and makes those one piece that ask for that.
#[sk_msg]
pub fn try_out_message(ctx: SkMsgContext) -> u32 {
    let message = Message(ctx.msg);
    match begin(message) {
        INSERT_WORD => {
            // As the agent does with a message that is longer than a piece.
            let _ = message.visible() >= message.size() || message.pull(message.size());
            if message.has_room(access::sock(message.sock()), LINE.len() as u32) {
                // What comes of it is seen at the other end.
                insert(ctx.msg, LINE_AT, &TEXT);
            }
        }
        LINEARISE_WORD => {
            // What is not one piece goes out as it is: later, not otherwise.
            let _ = message.pull(message.size());
        }
        _ => {}
    }
    sk_action::SK_PASS
}

const INSERT_WORD: u64 = u64::from_le_bytes(INSERT);
const LINEARISE_WORD: u64 = u64::from_le_bytes(LINEARISE);

/// The message's first eight bytes; 0 where they cannot be seen.
#[inline(always)]
fn begin(message: Message) -> u64 {
    if message.size() < LEAST || (message.visible() < LEAST && !message.pull(LEAST)) {
        return 0;
    }
    let data = message.data();
    // SAFETY: compared with the message's end before it is read.
    unsafe {
        if data.add(8) > message.data_end() {
            return 0;
        }
        data.cast::<u64>().read_unaligned()
    }
}
