//! `tracestate` as W3C Trace Context (Level 2, 3.3) has it: the lines of a head are one list, and a list that breaks a rule
//! is dropped whole.
//!
//! A list is put together member by member while its lines are in view; after each one it is what may be sent on.

use super::swar;
use super::window::Window;

/// Most members in a list (3.3.1.1).
pub const MEMBERS: usize = 32;
/// Most characters passed on (3.3.1.5 asks for at least 512). What is longer loses whole members, the longest first, the
/// later one of two that are equally long.
pub const LIST_BYTES: usize = 512;
/// Longest key, and longest value (3.3.1.3).
const PART_BYTES: u32 = 256;
/// Calls of [`locate`] for one line: its members, one more than there may be, and the line's end.
pub const CALLS: usize = MEMBERS + 2;

const LIST_WORDS: usize = LIST_BYTES / 8;

/// [`TraceState::state`].
pub mod state {
    /// More may come.
    pub const OPEN: u8 = 0;
    /// The end of a line was not in view. What comes after it has no place; what came before it stays.
    pub const CUT: u8 = 1;
    /// A rule was broken: there is no list.
    pub const DROPPED: u8 = 2;
}

/// A list, in its shortest form: `key=value,key=value`. All zero: an empty one.
///
/// Each member takes its own length and that of a comma behind it, which the last one has room for, too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceState {
    /// The characters, the first one lowest in the first word. What lies behind the list means nothing; the last word is
    /// there for a store that goes over the end.
    words: [u64; LIST_WORDS + 1],
    /// What each member takes, in the order they came; 0 for one that was left out.
    taken: [u16; MEMBERS],
    /// What all of them take.
    end: u16,
    /// Members that came, those included that were left out.
    members: u8,
    /// One of [`state`].
    pub state: u8,
    in_hand: Member,
}

/// A member in the window: where it begins, where its `=` is, and where it ends; nothing if it ends where it begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Member {
    from: u32,
    equals: u32,
    to: u32,
}

impl Default for TraceState {
    fn default() -> Self {
        Self {
            words: [0; LIST_WORDS + 1],
            taken: [0; MEMBERS],
            end: 0,
            members: 0,
            state: state::OPEN,
            in_hand: Member::default(),
        }
    }
}

impl TraceState {
    /// How long the list is, at most [`LIST_BYTES`].
    #[inline(always)]
    pub fn len(&self) -> u32 {
        (self.end as u32).saturating_sub(1)
    }

    /// Nothing may be sent on.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// The eight characters from `pos` on, the first one lowest.
    ///
    /// verifier: as `Window::word`; a masked index has a successor.
    #[inline(always)]
    pub fn load8(&self, pos: u32) -> u64 {
        let index = (pos >> 3) as usize & (LIST_WORDS - 1);
        let shift = (pos & 7) * 8;
        let low = self.words.get(index).map_or(0, |word| *word);
        let high = self.words.get(index + 1).map_or(0, |word| *word);
        (low >> shift) | ((high << 1) << (63 - shift))
    }

    /// Writes eight characters at `pos`, and no others.
    #[inline(always)]
    fn store8(&mut self, pos: u32, characters: u64) {
        let shift = (pos & 7) * 8;
        let front = !(!0_u64 << shift);
        let index = (pos >> 3) as usize & (LIST_WORDS - 1);
        if let Some(low) = self.words.get_mut(index) {
            *low = (*low & front) | (characters << shift);
        }
        if let Some(high) = self.words.get_mut(index + 1) {
            *high = (*high & !front) | ((characters >> 1) >> (63 - shift));
        }
    }

    #[inline(always)]
    fn drop_whole(&mut self) {
        self.state = state::DROPPED;
        self.end = 0;
    }
}

/// Finds the next member of the line in `from..to`; returns where the rest of the line begins, `to` if there is none. To be
/// called until the line is used up, [`CALLS`] times at the most, and [`check`] and [`take`] after each call. `cut`: the line
/// goes on where it is not in view.
///
/// verifier: each of the three is to be a BPF function of its own; the member in hand is in memory between them.
#[inline(always)]
pub fn locate(list: &mut TraceState, w: &Window, from: u32, to: u32, cut: bool) -> u32 {
    list.in_hand = Member::default();
    if list.state != state::OPEN {
        return to;
    }
    let start = w.find_list_text(from, to);
    let comma = w.launder(w.find_byte(start, to, b','));
    if cut && comma >= to {
        // What is missing may be another member's beginning, too.
        list.state = state::CUT;
        return to;
    }
    list.in_hand.from = start;
    list.in_hand.equals = w.find_byte(start, comma, b'=');
    list.in_hand.to = trim_end(w, w.launder(start), comma);
    if comma < to {
        comma + 1
    } else {
        to
    }
}

/// Whether the member in hand is one; if not, the list is dropped.
#[inline(always)]
pub fn check(list: &mut TraceState, w: &Window) {
    let Member { from, equals, to } = list.in_hand;
    if from == to {
        return;
    }
    if list.members as usize >= MEMBERS || !is_key(w, from, equals) || !is_value(w, equals + 1, to) {
        list.drop_whole();
    }
}

/// `to` without the blanks in front of it.
#[inline(always)]
fn trim_end(w: &Window, from: u32, to: u32) -> u32 {
    // A line is longer than one search goes.
    let to = w.launder(w.trim_end(from, to));
    w.trim_end(from, to)
}

/// `lcalpha / DIGIT`, then these and `_`, `-`, `*`, `/`, `@`.
#[inline(always)]
fn is_key(w: &Window, from: u32, to: u32) -> bool {
    let begins = !letters_and_digits(w.load8(from)) & 0x80 == 0;
    let other = |word| {
        let signs = equal(word, b'_') | equal(word, b'-') | equal(word, b'*') | equal(word, b'/') | equal(word, b'@');
        !(letters_and_digits(word) | signs) & swar::HIGH
    };
    begins && is_part(w, from, to, other)
}

/// Printable characters without `,` and `=`. The last one is not a space: those are no part of the value.
#[inline(always)]
fn is_value(w: &Window, from: u32, to: u32) -> bool {
    // Nothing in front of a comma has a comma in it.
    is_part(w, from, to, |word| {
        (!swar::between(word, b' ', b'~') | equal(word, b'=')) & swar::HIGH
    })
}

#[inline(always)]
const fn letters_and_digits(word: u64) -> u64 {
    swar::between(word, b'a', b'z') | swar::between(word, b'0', b'9')
}

/// Marks bytes equal to `byte` (below 0x80). Exact for every byte.
#[inline(always)]
const fn equal(word: u64, byte: u8) -> u64 {
    !swar::nonzero(word ^ swar::splat(byte)) & swar::HIGH
}

/// Whether `from..to` is a key's or a value's length long and nothing in it is marked.
#[inline(always)]
fn is_part(w: &Window, from: u32, to: u32, mark: impl Fn(u64) -> u64) -> bool {
    let mut marks = 0;
    for i in 0..PART_BYTES / 8 {
        let at = from + i * 8;
        if at >= to {
            break;
        }
        marks |= mark(w.load8(at)) & swar::keep(to - at);
    }
    let marked = w.launder((marks >> 32) as u32 | marks as u32);
    marked == 0 && from < to && to - from <= PART_BYTES
}

/// Takes the member in hand, if there is room for it or if a longer one makes room.
#[inline(always)]
pub fn take(list: &mut TraceState, w: &Window) {
    const ROOM: u32 = LIST_BYTES as u32 + 1;
    let Member { from, to, .. } = list.in_hand;
    if from >= to || list.state == state::DROPPED {
        return;
    }
    let len = to - from;
    let place = list.members as usize & (MEMBERS - 1);
    list.members += 1;
    if list.end as u32 + len + 1 > ROOM && !leave_out_longer(list, w, len) {
        return;
    }
    let at = w.launder(list.end as u32);
    if at != 0 {
        list.store8(at - 1, b',' as u64);
    }
    for i in 0..LIST_WORDS as u32 {
        let read = i * 8;
        if read >= len {
            break;
        }
        list.store8(at + read, w.load8(from + read) & swar::keep(w.launder(len - read)));
    }
    if let Some(taken) = list.taken.get_mut(place) {
        *taken = (len + 1) as u16;
    }
    list.end = (at + len + 1) as u16;
}

/// Leaves out the longest member if it is longer than `len`, which makes room enough: with the longer one the list was not
/// too long.
///
/// To leave out the longest whenever a list gets too long comes to the same as to do so at its end: no member that is as
/// long could have been taken since.
#[inline(always)]
fn leave_out_longer(list: &mut TraceState, w: &Window, len: u32) -> bool {
    let longest = longest(list, w);
    let gap = longest >> 16;
    if gap <= len + 1 {
        return false;
    }
    let (at, gap) = (w.launder((longest >> 5) & 0x7ff), w.launder(gap));
    let end = list.end as u32;
    for i in 0..LIST_WORDS as u32 {
        let to = at + i * 8;
        if to + gap >= end {
            break;
        }
        // The longest of 32 that are too long together is longer than eight characters: nothing is overwritten unread.
        let moved = list.load8(to + gap);
        list.store8(to, moved);
    }
    if let Some(taken) = list.taken.get_mut(longest as usize & (MEMBERS - 1)) {
        *taken = 0;
    }
    list.end = w.launder(end.wrapping_sub(gap)) as u16;
    true
}

/// The longest member, the last of those: from bit 16 on what it takes, from bit 5 on where it begins, then its place in the
/// order they came.
#[inline(always)]
fn longest(list: &TraceState, w: &Window) -> u32 {
    let mut longest = 0;
    let mut at = 0;
    for (place, taken) in (0_u32..).zip(list.taken.iter()) {
        let taken = *taken as u32;
        let this = (taken << 16) | (at << 5) | place;
        // verifier: one path from here on, not two for each member.
        longest = w.launder(if this > longest { this } else { longest });
        at += taken;
    }
    longest
}

#[cfg(any(test, feature = "host"))]
impl TraceState {
    /// Adds a line of at most [`FILL_BYTES`](super::window::FILL_BYTES), as the kernel side does.
    pub fn append(&mut self, line: &[u8], cut: bool) {
        let mut window = Window::default();
        super::http1::stream::copy_in(&mut window, 0, line);
        let to = line.len() as u32;
        let mut at = 0;
        for _ in 0..CALLS {
            at = locate(self, &window, at, to, cut);
            check(self, &window);
            take(self, &window);
        }
    }

    /// The characters of the list.
    pub fn bytes(&self) -> std::vec::Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .take(self.len() as usize)
            .collect()
    }
}
