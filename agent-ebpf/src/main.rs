//! The kernel side of spanwire: programs and maps.
//!
//! ```text
//! hook/*  ->  socket (admit, find state)  ->  engine (parse)  ->  exchange, unit, wire (context)  ->  emit (record)
//! ```
//!
//! Protocol knowledge is in `spanwire_common::protocol`; policy is in maps that user space writes.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![deny(unsafe_op_in_unsafe_fn)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values of maps stay where they are: by value they would be copied onto the 512-byte stack"
)]

#[cfg_attr(not(feature = "untyped"), path = "access/typed.rs")]
#[cfg_attr(feature = "untyped", path = "access/untyped.rs")]
mod access;
mod arch;
mod atomic;
mod before;
mod call;
mod connection;
mod count;
mod emit;
mod engine;
mod enrol;
mod exchange;
mod global;
#[cfg(feature = "untyped")]
mod gone;
mod header;
mod hook;
mod ids;
mod lines;
mod maps;
mod message;
mod offsets;
mod opaque;
mod prepared;
mod process;
mod refused;
mod response;
mod rewrite;
mod seen;
mod sk;
mod socket;
mod state;
#[cfg(not(feature = "scalars"))]
mod tracestate;
mod unit;
mod wire;
mod worker;

/// Licence of the object: it calls helpers that are GPL only.
#[link_section = "license"]
#[no_mangle]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: a panicking path would leave this loop in the object, and the verifier refuses it.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
