//! Newtypes that let aya's maps carry the records of `spanwire_common::abi`.
#![allow(unsafe_code, reason = "aya::Pod is an unsafe trait: any bit pattern must be a value")]

use spanwire_common::abi;

macro_rules! pod {
    ($($(#[$meta:meta])* $name:ident($inner:ty);)*) => {
        $(
            $(#[$meta])*
            #[repr(transparent)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name(pub $inner);

            // SAFETY: repr(transparent) over a repr(C) struct of integers without padding (zerocopy checks it).
            unsafe impl aya::Pod for $name {}
        )*
    };
}

pod! {
    /// Value of SETTINGS.
    Settings(abi::Settings);
    /// Value of PROCESSES.
    Process(abi::ProcessValue);
    /// Value of PORTS.
    Port(abi::PortValue);
    /// Value of WIRES.
    Wire(abi::WireValue);
    /// Key of CALLS.
    CallKey(abi::CallKey);
    /// Value of CALLS.
    CallUnderWay(abi::CallUnderWay);
    /// Value of RETURN_LINES.
    ReturnLines(abi::ReturnLines);
    /// Value of DESTINATIONS and TRUSTED.
    AddressRange(abi::AddressRange);
    /// Value of OPAQUE_TURNS.
    OpaqueTurn(abi::OpaqueTurn);
}
