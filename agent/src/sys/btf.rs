//! Field offsets from the running kernel's BTF (Documentation/bpf/btf.rst): one pass over `/sys/kernel/btf/vmlinux`,
//! nothing kept but the answers. Rust eBPF emits no CO-RE relocations; the loader writes these numbers into read-only
//! globals instead.

use std::collections::HashMap;
use std::path::Path;

use thiserror::Error;

/// Where the kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the offsets could not be had.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel was built without CONFIG_DEBUG_INFO_BTF, or sysfs is not mounted.
    #[error("cannot read {path}: {source}; spanwire needs a kernel with CONFIG_DEBUG_INFO_BTF and /sys mounted")]
    Missing {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are not BTF.
    #[error("kernel BTF is malformed at byte {at}")]
    Malformed {
        /// Where.
        at: usize,
    },
    /// This kernel has no such field.
    #[error("this kernel has no {structure}.{field}")]
    NoField {
        /// `struct` name.
        structure: &'static str,
        /// Field name.
        field: &'static str,
    },
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_ENUM: u32 = 6;
const KIND_VAR: u32 = 14;

/// One type of the type section.
struct Entry {
    name_at: u32,
    info: u32,
    /// The type it is about, where the kind has one.
    refers_to: u32,
    count: usize,
    kind: u32,
    body: usize,
    next: usize,
}

/// One struct or union: where its members lie in the type section.
#[derive(Clone, Copy)]
struct Aggregate {
    members_at: usize,
    count: usize,
    bitfields: bool,
}

/// The kernel's types, as far as offsets need them.
pub struct Btf {
    raw: Vec<u8>,
    types_at: usize,
    types_end: usize,
    strings_at: usize,
    /// Type id -> struct or union.
    aggregates: HashMap<u32, Aggregate>,
    /// Name -> type id, structs only, the first of each name.
    structs: HashMap<&'static str, u32>,
    /// Names of `btf_trace_*` typedefs that were asked for and are there.
    typedefs: Vec<&'static str>,
}

impl Btf {
    /// Reads the running kernel's BTF, looking for `structs` and `typedefs` by name.
    ///
    /// # Errors
    /// [`BtfError::Missing`] or [`BtfError::Malformed`].
    pub fn load(path: &Path, structs: &[&'static str], typedefs: &[&'static str]) -> Result<Self, BtfError> {
        let raw = std::fs::read(path).map_err(|source| BtfError::Missing {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(raw, structs, typedefs)
    }

    /// Parses BTF bytes.
    ///
    /// # Errors
    /// [`BtfError::Malformed`].
    pub fn parse(raw: Vec<u8>, structs: &[&'static str], typedefs: &[&'static str]) -> Result<Self, BtfError> {
        if u16_at(&raw, 0)? != 0xeb9f {
            return Err(BtfError::Malformed { at: 0 });
        }
        let header_bytes = u32_at(&raw, 4)? as usize;
        let types_at = header_bytes + u32_at(&raw, 8)? as usize;
        let types_end = types_at + u32_at(&raw, 12)? as usize;
        let strings_at = header_bytes + u32_at(&raw, 16)? as usize;
        let mut btf = Self {
            raw,
            types_at,
            types_end,
            strings_at,
            aggregates: HashMap::new(),
            structs: HashMap::new(),
            typedefs: Vec::new(),
        };
        let mut at = types_at;
        let mut id = 1;
        while at < types_end {
            at = btf.take_type(at, id, structs, typedefs)?;
            id += 1;
        }
        Ok(btf)
    }

    /// Notes one type; returns where the next begins.
    fn take_type(
        &mut self,
        at: usize,
        id: u32,
        structs: &[&'static str],
        typedefs: &[&'static str],
    ) -> Result<usize, BtfError> {
        let Entry {
            name_at,
            info,
            count,
            kind,
            body,
            next,
            ..
        } = self.entry(at)?;
        if kind == KIND_STRUCT || kind == KIND_UNION {
            let aggregate = Aggregate {
                members_at: body,
                count,
                bitfields: info >> 31 != 0,
            };
            self.aggregates.insert(id, aggregate);
            if kind == KIND_STRUCT {
                if let Some(name) = structs.iter().find(|name| self.is_named(name_at, name)) {
                    self.structs.entry(name).or_insert(id);
                }
            }
        } else if kind == 8 {
            if let Some(name) = typedefs.iter().find(|name| self.is_named(name_at, name)) {
                self.typedefs.push(name);
            }
        }
        Ok(next)
    }

    /// The type at `at`. Sizes by kind: btf.rst, section 2.2.
    fn entry(&self, at: usize) -> Result<Entry, BtfError> {
        let name_at = u32_at(&self.raw, at)?;
        let info = u32_at(&self.raw, at + 4)?;
        let refers_to = u32_at(&self.raw, at + 8)?;
        let (count, kind) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
        let body = at + 12;
        let extra = match kind {
            // int, var, decl_tag
            1 | KIND_VAR | 17 => 4,
            // array
            3 => 12,
            // struct, union, datasec, enum64
            KIND_STRUCT | KIND_UNION | 15 | 19 => count * 12,
            // enum, func_proto
            KIND_ENUM | KIND_FUNC_PROTO => count * 8,
            // ptr, fwd, typedef, volatile, const, restrict, func, float, type_tag
            2 | 7..=KIND_FUNC | 16 | 18 => 0,
            _ => return Err(BtfError::Malformed { at }),
        };
        Ok(Entry {
            name_at,
            info,
            refers_to,
            count,
            kind,
            body,
            next: body + extra,
        })
    }

    /// How many parameters a kernel function has; none if there is no such function. Walks all types: for the few
    /// questions that the fallbacks ask.
    pub fn parameters(&self, function: &str) -> Option<usize> {
        let named = |entry: &Entry| entry.kind == KIND_FUNC && self.is_named(entry.name_at, function);
        let prototype = self.walk().find(|(_, entry)| named(entry))?.1.refers_to;
        let (_, entry) = self.walk().find(|(id, _)| *id == prototype)?;
        (entry.kind == KIND_FUNC_PROTO).then_some(entry.count)
    }

    /// The kernel has a variable of this name that each CPU has its own of (BTF knows no others). Walks all types.
    pub fn has_percpu_variable(&self, name: &str) -> bool {
        self.walk()
            .any(|(_, entry)| entry.kind == KIND_VAR && self.is_named(entry.name_at, name))
    }

    /// The value of an enumerator. Walks all types.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        let is_it = |entry: &Entry| entry.kind == KIND_ENUM && self.is_named(entry.name_at, enumeration);
        let (_, entry) = self.walk().find(|(_, entry)| is_it(entry))?;
        (0..entry.count).find_map(|nth| {
            let at = entry.body + nth * 8;
            let name_at = u32_at(&self.raw, at).ok()?;
            self.is_named(name_at, name).then(|| u32_at(&self.raw, at + 4).ok())?
        })
    }

    /// Every type with its id.
    fn walk(&self) -> impl Iterator<Item = (u32, Entry)> + '_ {
        let (mut at, mut id) = (self.types_at, 0);
        std::iter::from_fn(move || {
            let entry = (at < self.types_end).then(|| self.entry(at).ok()).flatten()?;
            at = entry.next;
            id += 1;
            Some((id, entry))
        })
    }

    /// The string at `offset` of the string section is `name`.
    fn is_named(&self, offset: u32, name: &str) -> bool {
        let from = self.strings_at + offset as usize;
        self.raw.get(from..from + name.len() + 1).is_some_and(|bytes| {
            bytes
                .split_last()
                .is_some_and(|(end, text)| *end == 0 && text == name.as_bytes())
        })
    }

    /// True if the typedef is there (`btf_trace_NAME` means that the tracepoint NAME exists with BTF).
    pub fn has_typedef(&self, name: &str) -> bool {
        self.typedefs.contains(&name)
    }

    /// Byte offset of a field, looking into anonymous members.
    ///
    /// # Errors
    /// [`BtfError::NoField`].
    pub fn offset(&self, structure: &'static str, field: &'static str) -> Result<u32, BtfError> {
        self.structs
            .get(structure)
            .and_then(|id| self.find(*id, field, 0))
            .ok_or(BtfError::NoField { structure, field })
    }

    fn find(&self, id: u32, field: &str, depth: u32) -> Option<u32> {
        let aggregate = *self.aggregates.get(&id)?;
        if depth > 8 {
            return None;
        }
        for index in 0..aggregate.count {
            let at = aggregate.members_at + index * 12;
            let name = u32_at(&self.raw, at).ok()?;
            let member = u32_at(&self.raw, at + 4).ok()?;
            let place = u32_at(&self.raw, at + 8).ok()?;
            let bits = if aggregate.bitfields {
                place & 0x00ff_ffff
            } else {
                place
            };
            if self.is_named(name, field) {
                return Some(bits / 8);
            }
            if name == 0 || self.is_named(name, "__sk_common") {
                if let Some(inner) = self.find(member, field, depth + 1) {
                    return Some(bits / 8 + inner);
                }
            }
        }
        None
    }
}

fn u16_at(raw: &[u8], at: usize) -> Result<u16, BtfError> {
    raw.get(at..at + 2)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_le_bytes)
        .ok_or(BtfError::Malformed { at })
}

fn u32_at(raw: &[u8], at: usize) -> Result<u32, BtfError> {
    raw.get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes)
        .ok_or(BtfError::Malformed { at })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test")]
    use super::*;

    #[test]
    fn finds_fields_of_the_running_kernel() {
        let btf = Btf::load(
            Path::new(VMLINUX),
            &["sock", "tcp_sock", "unix_sock"],
            &["btf_trace_inet_sock_set_state", "btf_trace_no_such_tracepoint"],
        )
        .unwrap();
        // sock_common's first members are addresses; the family follows them and the ports (include/net/sock.h).
        assert_eq!(btf.offset("sock", "skc_daddr").unwrap(), 0);
        assert_eq!(btf.offset("sock", "skc_rcv_saddr").unwrap(), 4);
        assert_eq!(btf.offset("sock", "skc_family").unwrap(), 16);
        assert!(btf.offset("tcp_sock", "write_seq").unwrap() > 700);
        assert!(btf.offset("unix_sock", "peer").unwrap() > 0);
        assert!(btf.has_typedef("btf_trace_inet_sock_set_state"));
        assert!(!btf.has_typedef("btf_trace_no_such_tracepoint"));
        // int tcp_sendmsg(struct sock *, struct msghdr *, size_t) since 4.1.
        assert_eq!(btf.parameters("tcp_sendmsg"), Some(3));
        assert_eq!(btf.parameters("no_such_function"), None);
        assert!(matches!(
            btf.offset("sock", "no_such_field"),
            Err(BtfError::NoField { .. })
        ));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(
            Btf::parse(vec![1, 2, 3], &[], &[]),
            Err(BtfError::Malformed { .. })
        ));
        let mut raw = vec![0u8; 64];
        raw[..2].copy_from_slice(&0xeb9fu16.to_le_bytes());
        raw[4] = 24;
        raw[12] = 200;
        assert!(matches!(Btf::parse(raw, &[], &[]), Err(BtfError::Malformed { .. })));
    }
}
