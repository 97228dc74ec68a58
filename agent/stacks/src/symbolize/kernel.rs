//! Kernel addresses, from what the kernel itself has said of them, or else from /proc/kallsyms.
//!
//! Must not know: processes, files, vmlinux: the running kernel's own table is the one that is right.
//!
//! The table is read once for all addresses that are asked for together, and never held: it is 5 MB of text, three times
//! that when it is parsed, and reading it takes 0.05 s. What is found is kept, but for modules and BPF programs: others
//! may be at their addresses the next time.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::Arc;

use super::losses::Losses;
use super::resolver::shorten;
use podopsy_model::profile::Frame;
use podopsy_model::text::escape_bytes;

/// The kernel has some 100,000 functions; stacks meet a few thousand of their addresses.
const MAX_CACHED: usize = 16_384;

#[derive(Debug)]
struct Known {
    frames: Arc<[Frame]>,
    /// In the kernel's own image, whose functions do not move; and with a name.
    stays: bool,
}

#[derive(Debug, Default)]
pub(super) struct Kernel {
    cache: HashMap<u64, Known>,
}

impl Kernel {
    /// Looks many addresses up in one pass; [`Kernel::frames`] has them then.
    pub fn look_up(&mut self, mut addresses: BTreeSet<u64>, losses: &mut Losses) {
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
                None => Err("kernel_addresses_hidden"),
                Some(found) => found[at].as_ref().ok_or("kernel_symbol_not_found"),
            };
            let symbol = symbol.map_err(|reason| losses.add(reason)).ok();
            let stays = symbol.is_some_and(|symbol| symbol.module.is_none());
            self.cache.insert(address, Known { frames: frame(address, symbol), stays });
        }
    }

    /// What the kernel has written for `%ps` of these addresses. An address without a name is left to [`Kernel::look_up`].
    pub fn learn(&mut self, names: impl IntoIterator<Item = (u64, Vec<u8>)>) {
        for (address, text) in names.into_iter().take(MAX_CACHED) {
            if let Some(symbol) = said(&text) {
                // Where the image ends it does not say, so that any may be a module's or a program's.
                self.cache.insert(address, Known { frames: frame(address, Some(&symbol)), stays: false });
            }
        }
    }

    pub fn frames(&mut self, address: u64, losses: &mut Losses) -> Arc<[Frame]> {
        self.look_up(BTreeSet::from([address]), losses);
        self.cache.get(&address).map(|known| Arc::clone(&known.frames)).unwrap_or_default()
    }

    /// Between two profiles.
    pub fn trim(&mut self) {
        self.cache.retain(|_, known| known.stays);
        self.cache.shrink_to_fit();
    }
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Symbol {
    name: String,
    /// Or `bpf`.
    module: Option<String>,
}

/// What each address (in ascending order) lies in: the nearest symbol that does not begin after it, if that is code. None:
/// the table tells no addresses.
fn search(mut table: impl BufRead, addresses: &[u64]) -> io::Result<Option<Vec<Option<Symbol>>>> {
    // Of each address, the last of those symbols that begin after the address before it.
    let mut best: Vec<Option<Start>> = vec![None; addresses.len()];
    let (mut line, mut tells) = (Vec::new(), false);
    while table.read_until(b'\n', &mut line)? > 0 {
        if let Some((start, is_code, name)) = parse(&line) {
            tells |= start != 0;
            let at = addresses.partition_point(|&address| address < start);
            // Of those that begin at one place the kernel names the first.
            if let Some(one) = best.get_mut(at) {
                let one = one.get_or_insert_default();
                if one.name.is_empty() || one.at < start || (one.at == start && !one.is_code && is_code) {
                    (one.at, one.is_code) = (start, is_code);
                    one.name.clear();
                    one.name.extend_from_slice(name);
                }
            }
        }
        line.clear();
    }
    let mut nearest = None;
    let found = best.into_iter().map(|one| {
        // Those of later addresses begin later.
        nearest = one.or(nearest.take());
        nearest.as_ref().filter(|one| one.is_code).map(|one| symbol(&one.name))
    });
    Ok(tells.then(|| found.collect()))
}

/// Where a symbol begins, and the rest of its line.
#[derive(Clone, Debug, Default)]
struct Start {
    at: u64,
    is_code: bool,
    name: Vec<u8>,
}

/// `ffffffff81000000 T name`, and a tab and `[module]` for some. Per-CPU variables stand at zero in an honest table, too.
fn parse(line: &[u8]) -> Option<(u64, bool, &[u8])> {
    let (start, rest) = line.trim_ascii_end().split_at_checked(16)?;
    let start = u64::from_str_radix(str::from_utf8(start).ok()?, 16).ok()?;
    match rest {
        [b' ', kind, b' ', name @ ..] if !kind.eq_ignore_ascii_case(&b'a') => {
            Some((start, matches!(kind, b't' | b'T' | b'w' | b'W'), name))
        }
        _ => None,
    }
}

fn frame(address: u64, symbol: Option<&Symbol>) -> Arc<[Frame]> {
    let module = symbol.and_then(|symbol| symbol.module.as_deref());
    Arc::from([Frame {
        function: symbol.map(|symbol| Arc::from(&*symbol.name)),
        module: Some(module.map_or_else(|| "[kernel]".into(), |module| format!("[{module}]").into())),
        offset: address,
        ..Frame::default()
    }])
}

/// `name`, `name [module]`; an address without a name is its number. A BPF program has no module here: its name is
/// `bpf_prog_`, its tag, and perhaps its own name.
fn said(text: &[u8]) -> Option<Symbol> {
    if text.is_empty() || text.starts_with(b"0x") {
        return None;
    }
    let mut words = text.splitn(2, |&byte| byte == b' ');
    let name = words.next().unwrap_or_default();
    let module = words.next().and_then(|word| word.strip_prefix(b"[")?.strip_suffix(b"]"));
    let tag = name.strip_prefix(b"bpf_prog_").and_then(|rest| rest.get(..16));
    let is_program = tag.is_some_and(|tag| tag.iter().all(u8::is_ascii_hexdigit));
    let module = module.or(is_program.then_some(b"bpf"));
    Some(Symbol { name: shorten(escape_bytes(name)), module: module.map(escape_bytes) })
}

fn symbol(name: &[u8]) -> Symbol {
    let mut words = name.splitn(2, |&byte| byte == b'\t');
    let name = shorten(escape_bytes(words.next().unwrap_or_default()));
    let module = words.next().and_then(|word| word.strip_prefix(b"[")?.strip_suffix(b"]"));
    Symbol { name, module: module.map(escape_bytes) }
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

    fn found(table: &str, addresses: &[u64]) -> Option<Vec<Option<Symbol>>> {
        search(table.as_bytes(), addresses).unwrap()
    }

    #[test]
    fn an_address_is_in_the_nearest_code_before_it_and_not_in_a_variable() {
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
    fn the_kernels_own_word_is_taken_where_it_has_one() {
        let mut kernel = Kernel::default();
        let names = [
            "do_syscall_64",
            "nf_hook [nf_conntrack]",
            "bpf_prog_6deef7357e7b4530_oom\x1b",
            "bpf_prog_run",
            "0x12",
        ];
        kernel.learn((1..).zip(names.map(|name| name.as_bytes().to_vec())));
        let of = |address: u64| {
            let frame = &kernel.cache.get(&address)?.frames[0];
            Some((frame.function.as_deref()?, frame.module.as_deref()?))
        };
        assert_eq!(of(1), Some(("do_syscall_64", "[kernel]")));
        assert_eq!(of(2), Some(("nf_hook", "[nf_conntrack]")));
        assert_eq!(of(3), Some(("bpf_prog_6deef7357e7b4530_oom\\x1b", "[bpf]")));
        assert_eq!(of(4), Some(("bpf_prog_run", "[kernel]")));
        assert_eq!(of(5), None);
    }

    #[test]
    fn hidden_addresses_are_said_to_be_hidden() {
        let hidden = "0000000000000000 A fixed_percpu_data\n0000000000000000 T _stext\n";
        assert_eq!(found(hidden, &[1]), None);
        assert_eq!(found("no table\n\nffffffff8100000 T short", &[1]), None);
    }

    #[test]
    fn what_may_move_is_looked_for_again() {
        let known = |stays| Known { frames: Arc::from([Frame::default()]), stays };
        let mut kernel = Kernel { cache: HashMap::from([(1, known(true)), (2, known(false))]) };
        kernel.trim();
        assert_eq!(kernel.cache.keys().collect::<Vec<_>>(), [&1]);
    }
}
