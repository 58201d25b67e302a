//! Unix sockets that are older than the agent. A socket of which nothing is known but that it exists may be anywhere in
//! a message.

use crate::access;
use crate::sk::{Sock, AF_UNIX};

/// Marks the socket, if it is a unix stream.
#[inline(always)]
pub fn mark(sk: Sock) {
    if sk.family() == AF_UNIX && sk.is_stream(AF_UNIX) {
        access::mark(sk);
    }
}

/// True for a unix stream that was there when the agent came. One that nobody had accepted yet had no file, so no walk
/// came to its server's end: the client's tells.
#[inline(always)]
pub fn is_old(sk: Sock) -> bool {
    access::is_marked(sk) || sk.unix_peer().is_some_and(access::is_marked)
}
