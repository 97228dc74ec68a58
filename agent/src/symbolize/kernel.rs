//! Kernel addresses, from /proc/kallsyms.
//!
//! Must not know: processes, files, vmlinux: the running kernel's own table is the one that is right.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use super::losses::Losses;
use super::resolver::Resolver;
use crate::model::profile::Frame;

/// The kernel has some 100,000 functions; stacks meet a few thousand of their addresses.
const MAX_CACHED: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Kernel {
    cache: HashMap<u64, Arc<[Frame]>>,
    /// None: not looked yet.
    hidden: Option<bool>,
}

impl Kernel {
    pub fn frames(&mut self, address: u64, resolver: &mut Resolver, losses: &mut Losses) -> Arc<[Frame]> {
        if let Some(frames) = self.cache.get(&address) {
            return Arc::clone(frames);
        }
        let symbol = if *self.hidden.get_or_insert_with(addresses_hidden) {
            Err("kernel_addresses_hidden")
        } else {
            resolver.kernel(address).and_then(|found| found.ok_or("kernel_symbol_not_found"))
        };
        let symbol = symbol.map_err(|reason| losses.add(reason)).ok();
        let module = symbol.as_ref().and_then(|symbol| symbol.module.as_deref());
        let module = module
            .map_or_else(|| "[kernel]".into(), |module| format!("[{}]", module.trim_matches(['[', ']'])));
        let frames = super::frames(
            symbol,
            &Frame { module: Some(module.into()), offset: address, ..Frame::default() },
        );
        if self.cache.len() >= MAX_CACHED {
            self.cache.clear();
        }
        self.cache.insert(address, Arc::clone(&frames));
        frames
    }

    pub fn trim(&mut self) {
        self.cache = HashMap::new();
    }
}

/// With `kptr_restrict` (or without CAP_SYSLOG) the kernel prints every address as zero.
fn addresses_hidden() -> bool {
    let mut start = String::new();
    let read = File::open("/proc/kallsyms").and_then(|file| file.take(64 << 10).read_to_string(&mut start));
    read.is_err() || all_zero(&start)
}

/// Per-cpu symbols stand at zero in an honest table too: one address elsewhere is enough.
fn all_zero(table: &str) -> bool {
    table
        .lines()
        .filter_map(|line| line.split(' ').next())
        .all(|address| address.bytes().all(|digit| digit == b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_addresses_are_said_to_be_hidden() {
        let hidden = "0000000000000000 A fixed_percpu_data\n0000000000000000 T _stext\n";
        assert!(all_zero(hidden));
        assert!(!all_zero(&format!("{hidden}ffffffff81000000 T _text\n")));

        let mut kernel = Kernel { hidden: Some(true), ..Kernel::default() };
        let mut losses = Losses::default();
        let frames = kernel.frames(0xffff_ffff_8100_0000, &mut Resolver::default(), &mut losses);
        assert_eq!((frames[0].function.as_deref(), frames[0].module.as_deref()), (None, Some("[kernel]")));
        assert_eq!(losses.all()["kernel_addresses_hidden"], 1);
    }
}
