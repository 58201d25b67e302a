//! Global functions: BPF functions with external linkage, which the verifier walks once, with arguments of which it knows
//! nothing, instead of once for each path that leads to a call (ARCHITECTURE.md, "Global functions").
//!
//! Since Linux 5.13 they take pointers to whole objects. Before, they take numbers only: there (feature `scalars`) a
//! function is told which element of the working memory is its call's, and finds everything else by what stands in it.

#[cfg(feature = "scalars")]
use crate::access::SOCKETS;
use crate::maps::SCRATCH;
#[cfg(feature = "scalars")]
use crate::maps::{PipelineKey, PIPELINE};
use crate::state::Scratch;
#[cfg(feature = "scalars")]
use crate::state::{Call, Exchange, SockState};

/// Declares one: pointers to whole objects, then numbers behind a semicolon. A null pointer ends it with what stands
/// behind `else`; the body has pointers that are not null (the verifier's rule for pointer arguments of global
/// functions).
#[cfg(not(feature = "scalars"))]
macro_rules! global {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($pointer:ident: $object:ty),+ $(; $($number:ident: $kind:ty),+)?) else $none:block
        $body:block
    ) => {
        $(#[$meta])*
        #[no_mangle]
        #[inline(never)]
        $vis extern "C" fn $name($($pointer: $object,)+ $($($number: $kind),+)?) -> u32 {
            if $($pointer.is_null())||+ {
                return $none;
            }
            $body
        }
    };
}

/// The same for callers; the function itself is the inner one.
#[cfg(feature = "scalars")]
macro_rules! global {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($pointer:ident: *$access:tt $object:ident),+ $(; $($number:ident: $kind:ty),+)?)
        else $none:block
        $body:block
    ) => {
        #[inline(always)]
        $vis fn $name($($pointer: *$access $object,)+ $($($number: $kind),+)?) -> u32 {
            $(#[$meta])*
            #[no_mangle]
            #[inline(never)]
            extern "C" fn $name(place: u64, $($($number: $kind),+)?) -> u32 {
                $(
                    let $pointer: *$access $object = <$object as crate::global::Object>::find(place);
                    if $pointer.is_null() {
                        return $none;
                    }
                )+
                $body
            }
            let place = $(<$object as crate::global::Object>::place($pointer))|+;
            $name(place, $($($number),+)?)
        }
    };
}

pub(crate) use global;

/// An element of the working memory, for a program that it belongs to.
#[inline(always)]
pub fn working(element: u32) -> Option<*mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(element)?;
    #[cfg(feature = "scalars")]
    // SAFETY: an element of a per-CPU array.
    unsafe {
        (*scratch).call.slot = element as u8;
    }
    Some(scratch)
}

/// What global functions work on. Its place is a number: that of the call's working memory, and above it the ordinal of the
/// exchange that is meant.
#[cfg(feature = "scalars")]
pub trait Object {
    /// What is known of the place from this object; the places of all of them make one.
    fn place(this: *const Self) -> u64;

    /// The object; null if it is gone.
    fn find(place: u64) -> *mut Self;
}

#[cfg(feature = "scalars")]
impl Object for Scratch {
    #[inline(always)]
    fn place(this: *const Self) -> u64 {
        // SAFETY: callers of global functions have whole objects.
        u64::from(unsafe { (*this).call.slot })
    }

    #[inline(always)]
    fn find(place: u64) -> *mut Self {
        SCRATCH.get_ptr_mut(place as u32).unwrap_or(core::ptr::null_mut())
    }
}

#[cfg(feature = "scalars")]
impl Object for Call {
    #[inline(always)]
    fn place(this: *const Self) -> u64 {
        // SAFETY: as above.
        u64::from(unsafe { (*this).slot })
    }

    #[inline(always)]
    fn find(place: u64) -> *mut Self {
        let scratch = Scratch::find(place);
        if scratch.is_null() {
            return core::ptr::null_mut();
        }
        // SAFETY: an element of a per-CPU array.
        unsafe { &raw mut (*scratch).call }
    }
}

#[cfg(feature = "scalars")]
impl Object for SockState {
    #[inline(always)]
    fn place(_this: *const Self) -> u64 {
        // By its socket, which the call has.
        0
    }

    #[inline(always)]
    fn find(place: u64) -> *mut Self {
        let call = Call::find(place);
        if call.is_null() {
            return core::ptr::null_mut();
        }
        // SAFETY: non-null: a whole call.
        let socket = unsafe { &(*call).socket };
        SOCKETS.get_ptr_mut(socket).unwrap_or(core::ptr::null_mut())
    }
}

#[cfg(feature = "scalars")]
impl Object for Exchange {
    #[inline(always)]
    fn place(this: *const Self) -> u64 {
        // SAFETY: as above.
        u64::from(unsafe { (*this).ordinal }) << 32
    }

    #[inline(always)]
    fn find(place: u64) -> *mut Self {
        let state = SockState::find(place);
        if state.is_null() {
            return core::ptr::null_mut();
        }
        // SAFETY: non-null: a whole state.
        let state = unsafe { &mut *state };
        let ordinal = place >> 32;
        if u64::from(state.exchange.ordinal) == ordinal {
            return &raw mut state.exchange;
        }
        let key = PipelineKey {
            cookie: state.cookie,
            ordinal,
        };
        PIPELINE.get_ptr_mut(&key).unwrap_or(core::ptr::null_mut())
    }
}
