//! Global functions: BPF functions with external linkage, which the verifier walks once, with arguments of which it knows
//! nothing, instead of once for each path that leads to a call (ARCHITECTURE.md, "Global functions").

/// Declares one: pointers to whole objects, then numbers behind a semicolon. A null pointer ends it with what stands
/// behind `else`; the body has pointers that are not null (the verifier's rule for pointer arguments of global
/// functions).
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

pub(crate) use global;
