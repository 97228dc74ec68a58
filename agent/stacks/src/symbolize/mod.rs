//! Address → function, for the living and the dead.
//!
//! Must not know: aya, CRI, pods, Kubernetes. Reads /proc and ELF files.
//!
//! ```text
//! pid, address ─ processes (maps) ─→ file, offset ─ files (held fd) ─→ copy of its symbols ─ resolver ─→ frames
//! ```
//!
//! A file is opened when its process is first seen (`open`: it is the container's, and hostile), and held, so that
//! its symbols can be read when the process is long dead. Its symbols are copied (`snapshot`) when the first address
//! in it is asked for.
//!
//! [`Symbolizer`] is `Send`, and blocks: on files for milliseconds, at a large file's first address for up to seconds.
//! Use it from `spawn_blocking` or a thread, not from an async task.

mod cache;
mod depth;
pub mod elf;
mod files;
pub mod go;
mod held;
mod kernel;
mod losses;
pub mod maps;
pub mod open;
mod perf_map;
mod processes;
mod resolver;
mod separate;
mod snapshot;
#[cfg(test)]
mod tests;
mod vdso;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use cache::Cache;
use files::{FileId, Files};
use kernel::Kernel;
use losses::Losses;
use podopsy_model::profile::{Frame, Mapping};
use processes::{Opening, Place, Processes};
use resolver::{Resolver, Symbol};

/// Bytes of frames that are kept: some 65,000 addresses of C++. A recorder that is always on keeps a part.
const CACHED: usize = 32 << 20;
const CACHED_ALWAYS: usize = 6 << 20;

/// A user-space address in a process, before symbolization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserAddress {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    pub address: u64,
    /// False for the innermost frame of an interrupted stack, true for return addresses (looked up at address - 1).
    pub is_return: bool,
}

/// Where an address of a stack is looked up: a return address may be the next function's first, and its call is before it.
pub fn looked_up_at(address: u64, is_return: bool) -> u64 {
    address.saturating_sub(u64::from(is_return))
}

/// An address that was looked up in its process, and can be named without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Located {
    /// In a file that the symbolizer knows.
    File {
        id: u32,
        offset: u64,
    },
    Vdso {
        offset: u64,
    },
    /// Code made at run time.
    Anonymous {
        pid: u32,
        address: u64,
    },
    /// In no known mapping: the counter's name.
    Nowhere {
        address: u64,
        reason: &'static str,
    },
}

/// Symbolizes; remembers each process's mappings and holds its files open from first sight.
#[derive(Debug)]
pub struct Symbolizer {
    processes: Processes,
    files: Files,
    resolver: Resolver,
    kernel: Kernel,
    vdso: vdso::Vdso,
    cache: Cache,
    losses: Losses,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::with(Files::default(), CACHED)
    }
}

impl Symbolizer {
    pub fn new() -> Self {
        Self::default()
    }

    fn with(files: Files, cached: usize) -> Self {
        Self {
            processes: Processes::default(),
            files,
            resolver: Resolver::default(),
            kernel: Kernel::default(),
            vdso: vdso::Vdso::default(),
            cache: Cache::with_limit(cached),
            losses: Losses::default(),
        }
    }

    /// For a recorder that is always on: holds no more than so many files open at a time, and so many bytes of their
    /// symbols and debug information (one file may need more, while it is the only one).
    pub fn holding(files: usize, bytes: u64) -> Self {
        Self::with(Files::holding(files, bytes), CACHED_ALWAYS)
    }

    /// Call on first sight of a process, and when it has exec'd (its comm changed): reads its mappings and opens its
    /// executables while it lives. A pid that now is another process (another start time) is seen anew.
    pub fn see_process(&mut self, pid: u32) {
        let (processes, mut opening) = self.opening();
        processes.see(pid, &mut opening);
    }

    /// Opens the executables of a process and remembers them alone: for [`Symbolizer::build_id`], when it is dead.
    pub fn hold_files(&mut self, pid: u32) {
        let (_, mut opening) = self.opening();
        Processes::hold(pid, &mut opening);
    }

    /// The same of one that has been seen before: its files are wanted still. See [`Symbolizer::let_go`].
    pub fn revisit_files(&mut self, pid: u32) {
        let (_, mut opening) = self.opening();
        Processes::revisit(pid, &mut opening);
    }

    /// Closes files that nobody has been seen with since, dead or alive. They are opened again when they are seen again.
    pub fn let_go(&mut self, since: Instant) {
        self.files.let_go(since);
    }

    /// Call with each new stack while the process may still live: addresses outside of every known mapping (dlopen)
    /// have the mappings read again, rate-limited per process.
    pub fn notice(&mut self, pid: u32, addresses: &[u64]) {
        let (processes, mut opening) = self.opening();
        processes.notice(pid, addresses, &mut opening);
    }

    /// Innermost first; one address gives several frames where functions were inlined, at least one always.
    ///
    /// [`Frame::offset`] is of the address looked up: of a return address, the last byte of the call.
    pub fn user(&mut self, address: UserAddress) -> Arc<[Frame]> {
        let at = looked_up_at(address.address, address.is_return);
        self.notice(address.pid, &[at]);
        let located = self.locate(address);
        self.name(located)
    }

    /// Where an address is, by the mappings that are known now: to be named later, when the process may be gone and
    /// its pid another's.
    pub fn locate(&mut self, address: UserAddress) -> Located {
        let UserAddress { pid, address, is_return } = address;
        let address = looked_up_at(address, is_return);
        match self.processes.find(pid, address) {
            Place::File { id, offset } => Located::File { id, offset },
            Place::Vdso { offset } => Located::Vdso { offset },
            Place::Anonymous => Located::Anonymous { pid, address },
            Place::Nowhere(reason) => Located::Nowhere { address, reason },
        }
    }

    /// The frames of what [`Symbolizer::locate`] found.
    pub fn name(&mut self, located: Located) -> Arc<[Frame]> {
        let bare = |module: Option<&str>, offset| {
            Arc::from([Frame { module: module.map(Arc::from), offset, ..Frame::default() }])
        };
        match located {
            Located::File { id, offset } => self.in_file(id, offset),
            Located::Vdso { offset } => match self.vdso.file(&mut self.files) {
                Some(id) => self.in_file(id, offset),
                None => {
                    self.losses.add("vdso_unreadable");
                    bare(Some("[vdso]"), offset)
                }
            },
            Located::Anonymous { pid, address } => {
                if let Some(name) = self.processes.name_of_anonymous(pid, address) {
                    let (function, module) = (Some(name.into()), Some(Arc::from("[anonymous]")));
                    return Arc::from([Frame { function, module, offset: address, ..Frame::default() }]);
                }
                self.losses.add("anonymous_code");
                bare(Some("[anonymous]"), address)
            }
            Located::Nowhere { address, reason } => {
                self.losses.add(reason);
                bare(None, address)
            }
        }
    }

    /// Looks many addresses up at once: first the kernel's, then file by file, so that one file's symbols are in memory at
    /// a time and not those of all. What is found is cached for [`Symbolizer::user`] and [`Symbolizer::kernel`].
    pub fn look_up(
        &mut self,
        kernel: impl IntoIterator<Item = (u64, bool)>,
        user: impl IntoIterator<Item = UserAddress>,
    ) {
        self.look_up_kernel(kernel);
        let mut files: BTreeMap<FileId, BTreeSet<u64>> = BTreeMap::new();
        for address in user {
            let at = looked_up_at(address.address, address.is_return);
            self.notice(address.pid, &[at]);
            if let Located::File { id, offset } = self.locate(address)
                && !self.cache.knows(id, offset)
            {
                files.entry(id).or_default().insert(offset);
            }
        }
        // Files that are the same one are neighbours: their symbols are read once.
        let mut files: Vec<(Option<Arc<str>>, FileId, BTreeSet<u64>)> = files
            .into_iter()
            .map(|(id, offsets)| (self.files.name(id).and_then(|(_, build_id)| build_id), id, offsets))
            .collect();
        files.sort_unstable();
        let mut before: Option<Arc<str>> = None;
        for (build_id, id, offsets) in files {
            if build_id.is_none() || build_id != before {
                self.files.forget_copies(&mut self.resolver);
            }
            for offset in offsets {
                self.in_file(id, offset);
            }
            before = build_id;
        }
        self.files.forget_copies(&mut self.resolver);
    }

    /// Kernel addresses at once: their table is read for all of them together.
    pub fn look_up_kernel(&mut self, addresses: impl IntoIterator<Item = (u64, bool)>) {
        let at = addresses.into_iter().map(|(address, is_return)| looked_up_at(address, is_return));
        self.kernel.look_up(at.collect(), &mut self.losses);
    }

    /// Takes the kernel's own word for what is at some of its addresses: `name`, or `name [module]`.
    pub fn learn_kernel(&mut self, names: impl IntoIterator<Item = (u64, Vec<u8>)>) {
        self.kernel.learn(names);
    }

    /// A kernel address.
    pub fn kernel(&mut self, address: u64, is_return: bool) -> Arc<[Frame]> {
        self.kernel.frames(looked_up_at(address, is_return), &mut self.losses)
    }

    /// A file with this build id is open.
    pub fn holds(&self, build_id: &[u8; 20]) -> bool {
        self.files.by_build_id(build_id).is_some_and(|id| self.files.is_held(id))
    }

    /// By build id and file offset, from any file held open (`bpf_stack_build_id` in `<linux/bpf.h>`).
    pub fn build_id(&mut self, build_id: &[u8; 20], offset: u64, is_return: bool) -> Arc<[Frame]> {
        let offset = looked_up_at(offset, is_return);
        match self.files.by_build_id(build_id) {
            Some(id) => self.in_file(id, offset),
            None => {
                self.losses.add("build_id_unknown");
                let hex: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
                Arc::from([Frame { build_id: Some(hex.into()), offset, ..Frame::default() }])
            }
        }
    }

    /// Executable mappings seen so far, one a file.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.files.mappings()
    }

    /// Why addresses stayed without a name, by counter name. An address counts once between two [`Symbolizer::trim`]s while
    /// its frames are cached, and not once a sample.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        self.losses.all()
    }

    /// Frees symbol tables and debug information; held files and known processes stay, and names that were asked for in
    /// the last profiles. For a recorder that is always on, between two profiles.
    pub fn trim(&mut self) {
        self.resolver.reset();
        self.files.forget_copies(&mut self.resolver);
        // Another reason may be the moment's: a file that is not held open now will be when it is seen again.
        self.cache.turn(|reason| reason == "symbol_not_found");
        self.kernel.trim();
        self.processes.trim();
    }

    fn opening(&mut self) -> (&mut Processes, Opening<'_>) {
        let Self { processes, files, resolver, losses, .. } = self;
        (processes, Opening { files, resolver, losses })
    }

    fn in_file(&mut self, id: FileId, offset: u64) -> Arc<[Frame]> {
        if let Some((frames, lacks)) = self.cache.get(id, offset) {
            lacks.into_iter().for_each(|reason| self.losses.add(reason));
            return frames;
        }
        let symbol = self.files.symbol(id, offset, &mut self.resolver, &mut self.losses);
        let (module, build_id) = match self.files.name(id) {
            Some((name, build_id)) => (Some(name), build_id),
            None => (None, None),
        };
        // A line without a name is worth showing, and is a name missed.
        let lacks = match &symbol {
            Err(reason) => Some(*reason),
            Ok(symbol) if !symbol.has_name() => Some("symbol_not_found"),
            Ok(_) => None,
        };
        lacks.into_iter().for_each(|reason| self.losses.add(reason));
        let frames = frames(symbol.ok(), &Frame { module, build_id, offset, ..Frame::default() });
        self.cache.put(id, offset, Arc::clone(&frames), lacks);
        frames
    }
}

/// A symbol's functions as frames, all at the place of `at`; without a symbol, `at` itself.
fn frames(symbol: Option<Symbol>, at: &Frame) -> Arc<[Frame]> {
    let Some(symbol) = symbol else { return Arc::from([at.clone()]) };
    let last = symbol.functions.len().saturating_sub(1);
    let frame = |(index, named): (usize, resolver::Named)| Frame {
        function: (!named.function.is_empty()).then(|| named.function.into()),
        source: named.source,
        inlined: index < last,
        ..at.clone()
    };
    symbol.functions.into_iter().enumerate().map(frame).collect()
}
