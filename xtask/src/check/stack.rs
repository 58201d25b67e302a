//! Before 6.13 a program and all that it calls share 512 bytes of stack, each frame rounded up to 32 bytes (to 16 since
//! 6.9; kernel/bpf/verifier.c, check_max_stack_depth). A chain that is longer is refused there and not here, so it is
//! reckoned from the object.

use std::collections::BTreeMap;

use anyhow::{bail, Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind};

const MOST_BYTES: u32 = 512;
const FRAME_BYTES: u32 = 32;

/// Bytes of an instruction.
const INSTRUCTION: u64 = 8;
/// The frame pointer.
const R10: usize = 10;

/// A function: where it lies, what it uses, whom it calls.
struct Function {
    name: String,
    depth_bytes: u32,
    calls: Vec<(SectionIndex, u64)>,
}

type Functions = BTreeMap<(usize, u64), Function>;

pub(super) fn check(elf: &[u8]) -> Result<()> {
    let functions = functions(elf)?;
    let mut longest = (0, String::new());
    for key in functions.keys() {
        let chain = chain(&functions, *key, 0).context("a function calls itself")?;
        if chain.0 > longest.0 {
            longest = chain;
        }
    }
    if longest.0 > MOST_BYTES {
        bail!(
            "a chain of calls takes {} bytes of stack, kernels before 6.13 have {MOST_BYTES}: {}",
            longest.0,
            longest.1
        );
    }
    Ok(())
}

/// The deepest chain from a function on: bytes, and who is on it.
fn chain(functions: &Functions, key: (usize, u64), calls: u32) -> Option<(u32, String)> {
    if calls > 16 {
        return None;
    }
    let function = functions.get(&key)?;
    let mut deepest = (0, String::new());
    for (section, address) in &function.calls {
        let below = chain(functions, (section.0, *address), calls + 1)?;
        if below.0 > deepest.0 {
            deepest = below;
        }
    }
    let own = function.depth_bytes.max(1).next_multiple_of(FRAME_BYTES);
    let path = format!("{} ({}) {}", function.name, function.depth_bytes, deepest.1);
    Some((own + deepest.0, path))
}

fn functions(elf: &[u8]) -> Result<Functions> {
    let object = object::File::parse(elf).context("the eBPF object is not an ELF file")?;
    let mut functions = Functions::new();
    for symbol in object.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let (Some(index), size) = (symbol.section_index(), symbol.size()) else {
            continue;
        };
        let section = object.section_by_index(index)?;
        let code = section
            .data_range(symbol.address(), size)?
            .with_context(|| format!("{}: no code", symbol.name().unwrap_or("?")))?;
        let mut calls = Vec::new();
        let mut relocated = Vec::new();
        for (offset, relocation) in section.relocations() {
            let at = offset.wrapping_sub(symbol.address());
            if at >= size || !is_call(&instruction(code, at)) {
                continue;
            }
            relocated.push(at);
            let RelocationTarget::Symbol(target) = relocation.target() else {
                continue;
            };
            let target = object.symbol_by_index(target)?;
            let to = target.section_index().context("a call of what is not there")?;
            let address = if target.kind() == SymbolKind::Section {
                // The section's, and the instruction says how far in: in instructions, behind this one.
                behind(0, &instruction(code, at))
            } else {
                target.address()
            };
            calls.push((to, address));
        }
        for at in (0..size).step_by(INSTRUCTION as usize) {
            // Within a section the assembler knows the distance, and leaves no relocation.
            if is_call(&instruction(code, at)) && !relocated.contains(&at) {
                calls.push((index, behind(symbol.address() + at, &instruction(code, at))));
            }
        }
        let function = Function {
            name: symbol.name().unwrap_or("?").to_owned(),
            depth_bytes: depth(code),
            calls,
        };
        functions.insert((index.0, symbol.address()), function);
    }
    Ok(functions)
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
struct Instruction {
    code: u8,
    to: usize,
    from: usize,
    offset: i16,
    immediate: i32,
}

fn instruction(code: &[u8], at: u64) -> Instruction {
    let mut bytes = [0; 8];
    if let Some(found) = code.get(at as usize..at as usize + 8) {
        bytes.copy_from_slice(found);
    }
    let [code, registers, o0, o1, i0, i1, i2, i3] = bytes;
    Instruction {
        code,
        to: usize::from(registers & 15),
        from: usize::from(registers >> 4),
        offset: i16::from_le_bytes([o0, o1]),
        immediate: i32::from_le_bytes([i0, i1, i2, i3]),
    }
}

/// A call of another function of the object; those of the kernel's helpers have another source register.
fn is_call(instruction: &Instruction) -> bool {
    instruction.code == 0x85 && instruction.from == 1
}

/// Where a call that lies at `at` goes.
fn behind(at: u64, call: &Instruction) -> u64 {
    at.wrapping_add_signed((i64::from(call.immediate) + 1) * INSTRUCTION as i64)
}

/// How far below the frame pointer a function reaches: by accesses through it, and by pointers made from it.
fn depth(code: &[u8]) -> u32 {
    let mut deepest = 0;
    // What each register is above the frame pointer, where it is known to be made from it.
    let mut above: [Option<i32>; 16] = [None; 16];
    above[R10] = Some(0);
    for at in (0..code.len() as u64).step_by(INSTRUCTION as usize) {
        let Instruction {
            code,
            to,
            from,
            offset,
            immediate,
        } = instruction(code, at);
        let base = match code & 7 {
            // Loads (LDX), stores (ST, STX).
            1 => above[from],
            2 | 3 => above[to],
            _ => None,
        };
        if let Some(base) = base {
            deepest = deepest.min(base + i32::from(offset));
        }
        match code {
            // r = r
            0xbf => above[to] = above[from],
            // r += number
            0x07 => {
                above[to] = above[to].map(|base| base + immediate);
                deepest = deepest.min(above[to].unwrap_or(0));
            }
            // A call leaves nothing in the registers of its arguments.
            0x85 => above[..6].fill(None),
            _ if matches!(code & 7, 0 | 1 | 4 | 7) => above[to] = None,
            _ => {}
        }
    }
    deepest.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(instructions: &[(u8, u8, i16, i32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (code, registers, offset, immediate) in instructions {
            bytes.extend([*code, *registers]);
            bytes.extend(offset.to_le_bytes());
            bytes.extend(immediate.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_frame_is_as_deep_as_its_lowest_access() {
        // *(u64 *)(r10 - 16) = r1; r2 = r10; r2 += -72; call
        let made = code(&[
            (0x7b, 0x1a, -16, 0),
            (0xbf, 0xa2, 0, 0),
            (0x07, 0x02, 0, -72),
            (0x85, 0, 0, 1),
        ]);
        assert_eq!(depth(&made), 72);
        assert_eq!(depth(&made[..8]), 16);
        assert_eq!(depth(&code(&[(0x95, 0, 0, 0)])), 0);
    }

    #[test]
    fn what_a_call_leaves_in_a_register_is_no_address() {
        // r1 = r10; r1 += -16; call; r1 += -343; r6 = r10; call; r6 += -24
        let made = code(&[
            (0xbf, 0xa1, 0, 0),
            (0x07, 0x01, 0, -16),
            (0x85, 0, 0, 1),
            (0x07, 0x01, 0, -343),
            (0xbf, 0xa6, 0, 0),
            (0x85, 0, 0, 1),
            (0x07, 0x06, 0, -24),
        ]);
        assert_eq!(depth(&made), 24);
    }

    #[test]
    fn frames_of_a_chain_are_rounded_and_added() {
        let function = |depth_bytes, calls: &[u64]| Function {
            name: "f".to_owned(),
            depth_bytes,
            calls: calls.iter().map(|address| (SectionIndex(1), *address)).collect(),
        };
        let functions = Functions::from([
            ((1, 0), function(104, &[8, 16])),
            ((1, 8), function(0, &[])),
            ((1, 16), function(64, &[8])),
        ]);
        assert_eq!(chain(&functions, (1, 0), 0).map(|chain| chain.0), Some(128 + 64 + 32));
        let endless = Functions::from([((1, 0), function(8, &[0]))]);
        assert!(chain(&endless, (1, 0), 0).is_none());
    }
}
