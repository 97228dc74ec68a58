//! Finds the functions at kernel addresses: from names that the kernel printed for them, or else from /proc/kallsyms.
//!
//! The table is read once for all addresses that are looked up together, and never kept: it is 5 MB of text, three
//! times that when parsed, and reading it takes 0.05 s. The results are cached, except for modules and BPF programs:
//! others may be at the same addresses the next time.
//!
//! Must not depend on: processes, files, vmlinux. Only the running kernel's own table is certain to be right.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::Arc;

use super::shorten;
use crate::{StackLossReason, StackLosses};
use podopsy_model::profile::Frame;
use podopsy_model::text::escape_bytes;

/// The kernel has some 100,000 functions; stacks contain a few thousand distinct addresses in them.
const MAX_CACHED: usize = 16_384;

#[derive(Debug)]
struct CachedAddress {
    frames: Arc<[Frame]>,
    /// True if the address has a name and lies in the kernel's own image, whose functions do not move.
    is_fixed: bool,
}

#[derive(Debug, Default)]
pub(super) struct KernelSymbols {
    cache: HashMap<u64, CachedAddress>,
}

impl KernelSymbols {
    /// Looks up many addresses in one pass over the table, and caches them for [`KernelSymbols::frames`].
    pub fn look_up(&mut self, mut addresses: BTreeSet<u64>, losses: &mut StackLosses) {
        addresses.retain(|address| !self.cache.contains_key(address));
        if addresses.is_empty() {
            return;
        }
        if self.cache.len() + addresses.len() > MAX_CACHED {
            self.cache.clear();
        }
        let addresses: Vec<u64> = addresses.into_iter().take(MAX_CACHED).collect();
        let file = File::open("/proc/kallsyms").map(|file| BufReader::with_capacity(64 << 10, file));
        // With `kptr_restrict` (or without CAP_SYSLOG) the kernel prints every address as zero.
        let found = file.and_then(|table| search(table, &addresses)).unwrap_or_default();
        for (at, &address) in addresses.iter().enumerate() {
            let symbol = match &found {
                None => Err(StackLossReason::KernelAddressesHidden),
                Some(found) => found[at].as_ref().ok_or(StackLossReason::KernelSymbolNotFound),
            };
            let symbol = symbol.map_err(|reason| losses.add(reason, 1)).ok();
            let is_fixed = symbol.is_some_and(|symbol| symbol.module.is_none());
            self.cache.insert(address, CachedAddress { frames: frame(address, symbol), is_fixed });
        }
    }

    /// Adds the names that the kernel printed for addresses by `%ps`. An address without a name is left to
    /// [`KernelSymbols::look_up`].
    pub fn add_names(&mut self, names: impl IntoIterator<Item = (u64, Vec<u8>)>) {
        for (address, text) in names.into_iter().take(MAX_CACHED) {
            if let Some(symbol) = parse_printed_name(&text) {
                // The text does not show whether the address is in the image, so it may be of a module or of a program.
                self.cache.insert(
                    address,
                    CachedAddress { frames: frame(address, Some(&symbol)), is_fixed: false },
                );
            }
        }
    }

    /// The frame at an address, which is looked up if it is not cached.
    pub fn frames(&mut self, address: u64, losses: &mut StackLosses) -> Arc<[Frame]> {
        self.look_up(BTreeSet::from([address]), losses);
        self.cache.get(&address).map(|known| Arc::clone(&known.frames)).unwrap_or_default()
    }

    /// Removes what may have changed. Call between two profiles.
    pub fn trim(&mut self) {
        self.cache.retain(|_, known| known.is_fixed);
        self.cache.shrink_to_fit();
    }
}

/// A name in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KernelSymbol {
    name: String,
    /// The module, or `bpf` for a BPF program.
    module: Option<String>,
}

/// The symbol that each address (in ascending order) lies in: the nearest symbol that does not begin after it, if that
/// is code. Returns none if the table hides its addresses.
fn search(mut table: impl BufRead, addresses: &[u64]) -> io::Result<Option<Vec<Option<KernelSymbol>>>> {
    // For each address, the last of the symbols that begin after the previous address and not after this one.
    let mut best: Vec<Option<SymbolStart>> = vec![None; addresses.len()];
    let mut line = Vec::new();
    let mut has_addresses = false;
    while table.read_until(b'\n', &mut line)? > 0 {
        if let Some((start, is_code, name)) = parse_line(&line) {
            has_addresses |= start != 0;
            let index = addresses.partition_point(|&address| address < start);
            if let Some(best) = best.get_mut(index) {
                best.get_or_insert_default().improve(start, is_code, name);
            }
        }
        line.clear();
    }
    let mut nearest = None;
    let found = best.into_iter().map(|best| {
        // If no symbol begins between the previous address and this one, the nearest is the same.
        nearest = best.or(nearest.take());
        nearest.as_ref().filter(|start| start.is_code).map(|start| parse_table_name(&start.name))
    });
    Ok(has_addresses.then(|| found.collect()))
}

/// Where a symbol begins, and the rest of its line.
#[derive(Clone, Debug, Default)]
struct SymbolStart {
    address: u64,
    is_code: bool,
    name: Vec<u8>,
}

impl SymbolStart {
    /// Takes another symbol if it begins later, or if it is the first code at the same address. Of several symbols at
    /// one address, the kernel prints the first.
    fn improve(&mut self, address: u64, is_code: bool, name: &[u8]) {
        if self.name.is_empty()
            || self.address < address
            || (self.address == address && !self.is_code && is_code)
        {
            (self.address, self.is_code) = (address, is_code);
            self.name.clear();
            self.name.extend_from_slice(name);
        }
    }
}

/// Parses `ffffffff81000000 T name`; a tab and `[module]` may follow. Per-CPU variables have the address zero even if
/// addresses are not hidden.
fn parse_line(line: &[u8]) -> Option<(u64, bool, &[u8])> {
    let (start, rest) = line.trim_ascii_end().split_at_checked(16)?;
    let start = u64::from_str_radix(str::from_utf8(start).ok()?, 16).ok()?;
    match rest {
        [b' ', kind, b' ', name @ ..] if !kind.eq_ignore_ascii_case(&b'a') => {
            Some((start, matches!(kind, b't' | b'T' | b'w' | b'W'), name))
        }
        _ => None,
    }
}

fn frame(address: u64, symbol: Option<&KernelSymbol>) -> Arc<[Frame]> {
    let module = symbol.and_then(|symbol| symbol.module.as_deref());
    Arc::from([Frame {
        function: symbol.map(|symbol| Arc::from(&*symbol.name)),
        module: Some(module.map_or_else(|| "[kernel]".into(), |module| format!("[{module}]").into())),
        offset: address,
        ..Frame::default()
    }])
}

/// Parses `name` or `name [module]`. For an address without a name the kernel prints the number. A BPF program has no
/// module here: its name is `bpf_prog_`, its tag, and perhaps its own name.
fn parse_printed_name(text: &[u8]) -> Option<KernelSymbol> {
    if text.is_empty() || text.starts_with(b"0x") {
        return None;
    }
    let mut words = text.splitn(2, |&byte| byte == b' ');
    let name = words.next().unwrap_or_default();
    let module = words.next().and_then(|word| word.strip_prefix(b"[")?.strip_suffix(b"]"));
    let tag = name.strip_prefix(b"bpf_prog_").and_then(|rest| rest.get(..16));
    let is_program = tag.is_some_and(|tag| tag.iter().all(u8::is_ascii_hexdigit));
    let module = module.or(is_program.then_some(b"bpf"));
    Some(KernelSymbol { name: shorten(escape_bytes(name)), module: module.map(escape_bytes) })
}

/// Parses the name and the module in a line of the table.
fn parse_table_name(name: &[u8]) -> KernelSymbol {
    let mut words = name.splitn(2, |&byte| byte == b'\t');
    let name = shorten(escape_bytes(words.next().unwrap_or_default()));
    let module = words.next().and_then(|word| word.strip_prefix(b"[")?.strip_suffix(b"]"));
    KernelSymbol { name, module: module.map(escape_bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T first
ffffffff81000100 t second
ffffffff81000200 D a_variable
ffffffff81000300 W weak
ffffffffc0000000 t in_module\t[nf_conntrack]
ffffffffa0000000 t bpf_prog_6deef7357e7b4530_oom\x1b\t[bpf]
";

    fn found(table: &str, addresses: &[u64]) -> Option<Vec<Option<KernelSymbol>>> {
        search(table.as_bytes(), addresses).unwrap()
    }

    #[test]
    fn an_address_lies_in_the_nearest_code_before_it_and_never_in_a_variable() {
        let addresses = [
            0xffff_ffff_8000_0000,
            0xffff_ffff_8100_0000,
            0xffff_ffff_8100_00ff,
            0xffff_ffff_8100_0100,
            0xffff_ffff_8100_01ff,
            0xffff_ffff_8100_0250,
            0xffff_ffff_8100_0300,
            0xffff_ffff_a000_0001,
            0xffff_ffff_c000_0fff,
        ];
        let found = found(TABLE, &addresses).unwrap();
        let names: Vec<_> = found.iter().map(|symbol| symbol.as_ref().map(|symbol| &*symbol.name)).collect();
        let bpf = "bpf_prog_6deef7357e7b4530_oom\\x1b";
        let expected = [
            None,
            Some("_text"),
            Some("_text"),
            Some("second"),
            Some("second"),
            None,
            Some("weak"),
            Some(bpf),
            Some("in_module"),
        ];
        assert_eq!(names, expected);
        let modules: Vec<_> = found[6..].iter().flatten().map(|symbol| symbol.module.as_deref()).collect();
        assert_eq!(modules, [None, Some("bpf"), Some("nf_conntrack")]);
    }

    #[test]
    fn a_name_printed_by_the_kernel_is_used() {
        let mut kernel = KernelSymbols::default();
        let names = [
            "do_syscall_64",
            "nf_hook [nf_conntrack]",
            "bpf_prog_6deef7357e7b4530_oom\x1b",
            "bpf_prog_run",
            "0x12",
        ];
        kernel.add_names((1..).zip(names.map(|name| name.as_bytes().to_vec())));
        let names_at = |address: u64| {
            let frame = &kernel.cache.get(&address)?.frames[0];
            Some((frame.function.as_deref()?, frame.module.as_deref()?))
        };
        assert_eq!(names_at(1), Some(("do_syscall_64", "[kernel]")));
        assert_eq!(names_at(2), Some(("nf_hook", "[nf_conntrack]")));
        assert_eq!(names_at(3), Some(("bpf_prog_6deef7357e7b4530_oom\\x1b", "[bpf]")));
        assert_eq!(names_at(4), Some(("bpf_prog_run", "[kernel]")));
        assert_eq!(names_at(5), None);
    }

    #[test]
    fn a_table_with_hidden_addresses_is_recognised() {
        let hidden = "0000000000000000 A fixed_percpu_data\n0000000000000000 T _stext\n";
        assert_eq!(found(hidden, &[1]), None);
        assert_eq!(found("no table\n\nffffffff8100000 T short", &[1]), None);
    }

    #[test]
    fn only_addresses_in_the_kernel_image_stay_cached() {
        let known = |is_fixed| CachedAddress { frames: Arc::from([Frame::default()]), is_fixed };
        let mut kernel = KernelSymbols { cache: HashMap::from([(1, known(true)), (2, known(false))]) };
        kernel.trim();
        assert_eq!(kernel.cache.keys().collect::<Vec<_>>(), [&1]);
    }
}
