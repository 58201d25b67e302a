//! What user space tells the kernel side once, or whenever it changes: settings, header names, ranges of addresses, header lines
//! for responses.

#[cfg(feature = "host")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{KEPT_HEADERS, KEPT_NAME_BYTES};

/// How many ranges of addresses DESTINATIONS and TRUSTED hold.
pub const RANGES_MOST: usize = 64;

/// Element of the maps DESTINATIONS and TRUSTED. An address is 16 bytes in network order, as two words in memory order; one of IPv4 is the
/// mapped one (`::ffff:a.b.c.d`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct AddressRange {
    /// The range's first address.
    pub address: [u64; 2],
    /// The bits of it that count.
    pub mask: [u64; 2],
    /// 1: in use. Elements behind one that is not in use are not looked at.
    pub used: u64,
}

/// Longest text put into a response, in bytes.
pub const RETURN_BYTES: usize = 512;
/// How many header lines it has at most.
pub const RETURN_LINES: usize = 4;

/// The only element of the map RETURN_LINES: header lines that bear the trace id, with room for a traceparent in each.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct ReturnLines {
    /// The lines, each with its line end; whatever stands where the traceparents go.
    pub words: [u64; RETURN_BYTES / 8],
    /// Bytes of `words` in use.
    pub len: u32,
    /// How many of `value_at` are in use.
    pub count: u32,
    /// Where the traceparents go, in bytes from the beginning.
    pub value_at: [u32; RETURN_LINES],
}

impl Default for ReturnLines {
    fn default() -> Self {
        Self {
            words: [0; RETURN_BYTES / 8],
            len: 0,
            count: 0,
            value_at: [0; RETURN_LINES],
        }
    }
}

/// Key of the map INGRESS: a listening socket.
pub const fn ingress_key(netns: u32, port: u16) -> u64 {
    (netns as u64) << 32 | port as u64
}

/// A listed header name, in lower case and zero-filled: compared eight bytes at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct HeaderName {
    /// The name's bytes, little endian, zero after the end.
    pub words: [u64; KEPT_NAME_BYTES / 8],
    /// Length in bytes; 0: slot not used.
    pub len: u32,
    /// 1: this is the tenant header.
    pub tenant: u8,
    /// 1: its value is kept as `http.request.header.<name>`.
    pub keep: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// Bits of [`Settings::flags`].
pub mod setting {
    /// Capture is on.
    pub const CAPTURE: u32 = 1;
    /// Calls on protocols not understood, made while serving a traced request, become opaque records.
    pub const OPAQUE: u32 = 2;
    /// The path leaves the kernel (`capture.paths` is not `off`).
    pub const PATHS: u32 = 4;
    /// The user agent is sent as text (an exclusion's glob is more than a prefix).
    pub const USER_AGENT_TEXT: u32 = 8;
    /// Every unix socket that was there before the agent bears a mark. Until then any of them may be one.
    pub const OLD_SOCKETS_MARKED: u32 = 16;
    /// Requests are rewritten.
    pub const REWRITE: u32 = 32;
    /// Responses bear the trace id.
    pub const RETURN: u32 = 64;
    /// Inbound context is adopted from peers in TRUSTED only.
    pub const TRUST: u32 = 128;
}

/// How many user-agent prefixes the kernel side compares.
pub const USER_AGENT_PREFIXES: usize = 4;
/// Longest user-agent prefix compared, in bytes.
pub const USER_AGENT_PREFIX_BYTES: usize = 16;

/// The only element of the map SETTINGS: what may change while the agent runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "host", derive(FromBytes, IntoBytes, KnownLayout, Immutable))]
pub struct Settings {
    /// Bits of [`setting`].
    pub flags: u32,
    /// Counts up with every change; sockets ask again for admission when it differs.
    pub generation: u32,
    /// Include items that name no port.
    pub include_any_port: u32,
    /// Exclude items that name no port.
    pub exclude_any_port: u32,
    /// The same of `propagate.include` ...
    pub propagate_include_any_port: u32,
    /// ... and of `propagate.exclude`.
    pub propagate_exclude_any_port: u32,
    /// The agent's own thread group id.
    pub own_pid: u32,
    /// The API's port, 0 if it does not listen: connections to it are the agent's own.
    pub api_port: u16,
    /// The health listener's port, 0 if none.
    pub health_port: u16,
    /// How many of `names` are in use.
    pub name_count: u32,
    /// How many of `user_agents` are in use.
    pub user_agent_count: u32,
    /// Bits of the first letters of `names`: see `http1::skim::set_initials`.
    pub name_initials: u32,
    /// The same of `user_agents`.
    pub agent_initials: u32,
    /// Listed header names.
    pub names: [HeaderName; KEPT_HEADERS],
    /// User-agent prefixes to exclude, in lower case: bytes, zero after the end.
    pub user_agents: [[u64; USER_AGENT_PREFIX_BYTES / 8]; USER_AGENT_PREFIXES],
}
