//! A reader of the kernel's own BTF (`/sys/kernel/btf/vmlinux`): just enough to find where a
//! structure keeps a member, what an enum counts to, and what a raw tracepoint passes.
//!
//! Format: Documentation/bpf/btf.rst. Every offset is checked: a damaged file is an error, no panic.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, bail};

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;

/// The kinds that are looked into; the rest is only skipped.
mod kind {
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const TYPE_TAG: u32 = 18;
    /// Those that are looked for by name.
    pub const SOUGHT: [u32; 4] = [STRUCT, UNION, ENUM, TYPEDEF];
}

/// A parsed BTF blob.
pub struct Btf {
    blob: Vec<u8>,
    types: Range<usize>,
    strings: Range<usize>,
    /// Offset of each type in `types`; id 0 is void.
    at: Vec<u32>,
    /// Hash of name and kind, and the type: a map of 150,000 names would be larger than all else that is in memory.
    by_name: Vec<(u32, u32)>,
}

/// One `struct btf_type` and what follows it.
struct Type<'a> {
    kind: u32,
    vlen: usize,
    /// Members' offsets carry a bit-field size in their high byte.
    kind_flag: bool,
    size_or_type: u32,
    tail: &'a [u8],
}

/// FNV-1a: the names are the kernel's own, so no one can choose them to collide.
fn hash(name: &[u8], kind: u32) -> u32 {
    name.iter().fold(0x811c_9dc5 ^ kind, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

impl Btf {
    /// The running kernel's.
    pub fn from_kernel() -> anyhow::Result<Btf> {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        let blob = std::fs::read(path).with_context(|| {
            format!("read {}: podopsy needs a kernel with CONFIG_DEBUG_INFO_BTF", path.display())
        })?;
        Btf::parse(blob).with_context(|| format!("read {}", path.display()))
    }

    pub fn parse(blob: Vec<u8>) -> anyhow::Result<Btf> {
        if blob.len() < HEADER || u16::from_le_bytes([blob[0], blob[1]]) != MAGIC {
            bail!("this is no little-endian BTF");
        }
        let field = |at| word(&blob, at).unwrap_or(0) as usize;
        let (header, type_off, type_len, str_off, str_len) =
            (field(4), field(8), field(12), field(16), field(20));
        let section = |offset: usize, len: usize| -> anyhow::Result<Range<usize>> {
            let start = header.checked_add(offset).context("BTF section offset overflows")?;
            let end = start.checked_add(len).context("BTF section length overflows")?;
            blob.get(start..end).context("BTF section outside the file")?;
            Ok(start..end)
        };
        let types = section(type_off, type_len)?;
        let strings = section(str_off, str_len)?;
        let mut btf = Btf { blob, types, strings, at: vec![0], by_name: Vec::new() };
        btf.index()?;
        Ok(btf)
    }

    fn types(&self) -> &[u8] {
        &self.blob[self.types.clone()]
    }

    fn strings(&self) -> &[u8] {
        &self.blob[self.strings.clone()]
    }

    fn index(&mut self) -> anyhow::Result<()> {
        let mut at = 0usize;
        while at < self.types().len() {
            let id = self.at.len() as u32;
            let (name, info) = match (word(self.types(), at), word(self.types(), at + 4)) {
                (Some(name), Some(info)) => (name, info),
                _ => bail!("BTF type {id} is cut off"),
            };
            let (kind, vlen) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let tail = match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * vlen,
                6 | 13 => 8 * vlen,
                2 | 7..=12 | 16 | 18 => 0,
                other => bail!("BTF type {id} has kind {other}, which is newer than this reader"),
            };
            self.at.push(at as u32);
            let text = self.string(name);
            if !text.is_empty() && kind::SOUGHT.contains(&kind) {
                let entry = (hash(text, kind), id);
                self.by_name.push(entry);
            }
            at += 12 + tail;
        }
        self.by_name.sort_unstable();
        Ok(())
    }

    /// The first type of that kind and name.
    fn find(&self, name: &str, kind: u32) -> Option<u32> {
        let hash = hash(name.as_bytes(), kind);
        let first = self.by_name.partition_point(|(other, _)| *other < hash);
        let same = self.by_name[first..].iter().take_while(|(other, _)| *other == hash);
        same.map(|(_, id)| *id).find(|id| {
            let found = self.at.get(*id as usize).and_then(|&at| {
                let (name, info) = (word(self.types(), at as usize)?, word(self.types(), at as usize + 4)?);
                Some((self.string(name), info >> 24 & 0x1f))
            });
            found == Some((name.as_bytes(), kind))
        })
    }

    fn string(&self, offset: u32) -> &[u8] {
        let rest = self.strings().get(offset as usize..).unwrap_or(&[]);
        let end = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
        &rest[..end]
    }

    fn get(&self, id: u32) -> Option<Type<'_>> {
        if id == 0 {
            return None;
        }
        let at = *self.at.get(id as usize)? as usize;
        let info = word(self.types(), at + 4)?;
        Some(Type {
            kind: info >> 24 & 0x1f,
            vlen: (info & 0xffff) as usize,
            kind_flag: info >> 31 == 1,
            size_or_type: word(self.types(), at + 8)?,
            tail: self.types().get(at + 12..)?,
        })
    }

    /// Follows typedefs and qualifiers; bounded, because a cycle would be endless.
    fn resolve(&self, mut id: u32) -> u32 {
        for _ in 0..32 {
            match self.get(id) {
                Some(t)
                    if matches!(
                        t.kind,
                        kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG
                    ) =>
                {
                    id = t.size_or_type
                }
                _ => break,
            }
        }
        id
    }

    /// Byte offset of a member, and its type: `path` is a chain of members, `[n]` an array's
    /// element. Members of anonymous structures and unions are found as C finds them.
    fn member(&self, struct_name: &str, path: &str) -> Option<(u32, u32)> {
        let mut id = self.find(struct_name, kind::STRUCT)?;
        let mut offset = 0;
        for step in path.split('.') {
            let (name, index) = match step.split_once('[') {
                Some((name, index)) => (name, Some(index.strip_suffix(']')?.parse::<u32>().ok()?)),
                None => (step, None),
            };
            let (at, mut member) = self.direct(id, name.as_bytes(), 0)?;
            offset += at;
            if let Some(index) = index {
                let array = self.get(self.resolve(member))?;
                if array.kind != kind::ARRAY || index >= word(array.tail, 8)? {
                    return None;
                }
                member = word(array.tail, 0)?;
                offset += index.checked_mul(self.size(member)?)?;
            }
            id = self.resolve(member);
        }
        Some((offset, id))
    }

    fn direct(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let parent = self.get(self.resolve(id))?;
        if !matches!(parent.kind, kind::STRUCT | kind::UNION) || depth > 8 {
            return None;
        }
        for i in 0..parent.vlen {
            let member_name = self.string(word(parent.tail, 12 * i)?);
            let member_type = word(parent.tail, 12 * i + 4)?;
            let raw = word(parent.tail, 12 * i + 8)?;
            let bits = if parent.kind_flag { raw & 0xff_ffff } else { raw };
            if member_name == name {
                // A bit-field has no address.
                let is_bit_field = parent.kind_flag && raw >> 24 != 0;
                return (!is_bit_field && bits % 8 == 0).then_some((bits / 8, member_type));
            }
            if member_name.is_empty()
                && let Some((inner, found)) = self.direct(member_type, name, depth + 1)
            {
                return Some((bits / 8 + inner, found));
            }
        }
        None
    }

    /// Size of a type in bytes.
    fn size(&self, id: u32) -> Option<u32> {
        let resolved = self.get(self.resolve(id))?;
        match resolved.kind {
            kind::PTR => Some(8),
            kind::ARRAY => self.size(word(resolved.tail, 0)?)?.checked_mul(word(resolved.tail, 8)?),
            kind::FUNC_PROTO => None,
            _ => Some(resolved.size_or_type),
        }
    }

    /// Byte offset of `path` in `struct struct_name`; None where this kernel has no such member.
    pub fn offset(&self, struct_name: &str, path: &str) -> Option<u32> {
        self.member(struct_name, path).map(|(offset, _)| offset)
    }

    /// Size of `union name` in bytes.
    pub fn union_size(&self, name: &str) -> Option<u32> {
        self.size(self.find(name, kind::UNION)?)
    }

    /// Size of `struct name` in bytes.
    pub fn struct_size(&self, name: &str) -> Option<u32> {
        self.size(self.find(name, kind::STRUCT)?)
    }

    /// The value of an enumerator.
    pub fn enumerator(&self, enum_name: &str, name: &str) -> Option<u32> {
        let found = self.get(self.find(enum_name, kind::ENUM)?)?;
        (0..found.vlen).find_map(|i| {
            let entry = self.string(word(found.tail, 8 * i)?);
            (entry == name.as_bytes()).then(|| word(found.tail, 8 * i + 4)).flatten()
        })
    }

    /// Whether argument `n` (0: the first of TP_PROTO) of a raw tracepoint is a pointer; None: this
    /// kernel has no such tracepoint.
    pub fn tracepoint_passes_pointer(&self, tracepoint: &str, n: usize) -> Option<bool> {
        let name = format!("btf_trace_{tracepoint}");
        let pointer = self.get(self.resolve(self.find(&name, kind::TYPEDEF)?))?;
        let prototype = self.get(self.resolve(pointer.size_or_type))?;
        // The first parameter is the tracepoint's private data.
        if prototype.kind != kind::FUNC_PROTO || n + 1 >= prototype.vlen {
            return None;
        }
        let argument = self.get(self.resolve(word(prototype.tail, 8 * (n + 1) + 4)?))?;
        Some(argument.kind == kind::PTR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob with: `struct s { int a; struct { long b[4]; }; }`, `enum e { X = 3 }`.
    fn blob() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0b\0e\0X\0";
        let name = |text: &str| {
            let needle = [b"\0", text.as_bytes(), b"\0"].concat();
            strings.windows(needle.len()).position(|w| w == needle).unwrap() as u32 + 1
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([name("int"), 1 << 24, 4, 32]); // 1
        types.extend([0, 3 << 24, 0, 6, 1, 4]); // 2: long[4] (6 is the long)
        types.extend([0, 4 << 24 | 1, 32, name("b"), 2, 0]); // 3: anonymous
        types.extend([name("s"), 4 << 24 | 2, 40, name("a"), 1, 0, 0, 3, 64]); // 4
        types.extend([name("e"), 6 << 24 | 1, 4, name("X"), 3]); // 5
        types.extend([0, 1 << 24, 8, 64]); // 6
        let types: Vec<u8> = types.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut out = vec![0x9f, 0xeb, 1, 0];
        for w in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            out.extend(w.to_le_bytes());
        }
        out.extend(types);
        out.extend(strings);
        out
    }

    #[test]
    fn finds_members_also_in_anonymous_structures_and_arrays() {
        let btf = Btf::parse(blob()).unwrap();
        assert_eq!(btf.offset("s", "a"), Some(0));
        assert_eq!(btf.offset("s", "b[0]"), Some(8));
        assert_eq!(btf.offset("s", "b[3]"), Some(32));
        assert_eq!(btf.offset("s", "b[4]"), None);
        assert_eq!(btf.offset("s", "c"), None);
        assert_eq!(btf.enumerator("e", "X"), Some(3));
        assert_eq!(btf.enumerator("e", "Y"), None);
    }

    #[test]
    fn a_damaged_blob_is_an_error_and_no_panic() {
        let whole = blob();
        for cut in 0..whole.len() {
            if let Ok(btf) = Btf::parse(whole[..cut].to_vec()) {
                btf.offset("s", "b[3]");
            }
        }
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0xff;
            if let Ok(btf) = Btf::parse(bad) {
                btf.offset("s", "b[3]");
                btf.enumerator("e", "X");
            }
        }
    }
}
