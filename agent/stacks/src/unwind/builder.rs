//! The thread that makes tables: of what runs at the start, and of every file that the kernel side then asks for.
//!
//! Must not know: aya, symbols. Files are the containers': they are opened as [`crate::symbolize`] opens them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::hash::Hash;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};
use podopsy_wire::{FileKey, TABLES_MAX, TableRequest};

use super::file::{self, Source};
use super::tables::{Kernel, Tables};
use crate::python::{self, Interpreters};
use crate::symbolize::elf::read_at;
use crate::symbolize::maps::{self, Area, Ground, Mounts};
use crate::symbolize::open;
use podopsy_model::profile::UnwindCost;
use podopsy_system::heap;

/// Requests between the ring and the thread; a file is asked for once, so that this is many new files at a time.
const QUEUE: usize = 1024;
/// Of them, those whose files are open.
const ASKED: usize = 64;
/// Files that have not been asked for.
const BACKLOG: usize = 4096;
/// The dynamic loader maps a new program's libraries in its first milliseconds.
const SECOND_LOOK: Duration = Duration::from_millis(10);
/// Programs started in a second that are looked at; others wait for their first sample.
const LOOKS_A_SECOND: u32 = 200;
/// The start waits this long for tables of what runs; the rest is made while samples come, behind what they ask for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of call frame information of a file that gets its table unasked, of a node's programs: libc's are 150 KB.
const AHEAD: u64 = 512 << 10;
/// Until a file that could not be opened may be asked for again: each of its samples would ask.
const AGAIN: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(3600);
const VDSO_BYTES: u64 = 1 << 20;

/// What the thread hands back.
#[derive(Debug, Default)]
pub struct Built {
    pub losses: BTreeMap<String, u64>,
    pub cost: UnwindCost,
}

/// The running thread.
pub struct Builder {
    requests: SyncSender<TableRequest>,
    thread: JoinHandle<Built>,
    shared: Arc<Shared>,
}

/// What both sides of the queue see.
#[derive(Default)]
struct Shared {
    /// Requests that found the queue full. The kernel side believes that they are being worked on: it has to be told
    /// otherwise, or their files would never have a table. No more than files that it knows.
    dropped: Mutex<Vec<FileKey>>,
    drops: AtomicU64,
    losses: Mutex<BTreeMap<String, u64>>,
    interpreters: Interpreters,
}

/// Whose tables to make before anyone asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    Process(u32),
    /// Of who runs at the moment, and of who has worked so much since it started that one of so many samples of a CPU
    /// would meet it. A node has more programs than are ever seen at work; those are asked for.
    Node {
        samples: u64,
    },
    /// Paths of cgroups, below their hierarchy's root.
    Cgroups(Vec<String>),
}

impl Builder {
    /// Makes the tables of what runs, for a while at most, then starts the thread.
    pub fn start<K: Kernel>(kernel: K, max_bytes: usize, of: &Of) -> anyhow::Result<Builder> {
        let shared = Arc::<Shared>::default();
        let mut worker = Worker {
            tables: Tables::new(kernel, max_bytes)?,
            asked: Vec::new(),
            backlog: scan(of),
            later: Vec::new(),
            again: Vec::new(),
            looks: (Instant::now(), 0),
            looked_at: HashSet::new(),
            started: HashSet::new(),
            ahead: if matches!(of, Of::Node { .. }) { AHEAD } else { file::MAX_BYTES },
            shared: shared.clone(),
        };
        worker.vdso();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && worker.next() {}
        let (requests, received) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("unwind-tables".into())
            .spawn(move || worker.run(&received))
            .context("start the thread that makes unwind tables")?;
        Ok(Builder { requests, thread, shared })
    }

    /// Passes a request on; never waits.
    pub fn request(&self, request: TableRequest) {
        if self.requests.try_send(request).is_ok() {
            return;
        }
        self.shared.drops.fetch_add(1, Relaxed);
        // One that asked for no table leaves nothing behind.
        if request.address != 0 {
            let mut dropped = self.shared.dropped.lock().unwrap_or_else(PoisonError::into_inner);
            if dropped.len() < TABLES_MAX {
                dropped.push(request.key);
            }
        }
    }

    /// Has the tables of all that a process has mapped made, before its first sample asks.
    pub fn look_at(&self, pid: u32) {
        self.request(TableRequest { key: FileKey::VDSO, address: 0, pid, unused: 0 });
    }

    /// The Python interpreters that were met, and those that will be.
    pub fn interpreters(&self) -> Interpreters {
        self.shared.interpreters.clone()
    }

    /// Why files or rows have no table, up to now.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let mut losses = self.shared.losses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        losses.insert("unwind_queue".to_owned(), self.shared.drops.load(Relaxed));
        losses.retain(|_, count| *count > 0);
        losses
    }

    /// Ends the thread; blocks until it has finished the file that it is at.
    pub fn stop(self) -> Built {
        drop(self.requests);
        let mut built = self.thread.join().unwrap_or_else(|_| Built {
            losses: BTreeMap::from([("unwind_builder_panicked".to_owned(), 1)]),
            cost: UnwindCost::default(),
        });
        built.losses.insert("unwind_queue".to_owned(), self.shared.drops.load(Relaxed));
        built.losses.retain(|_, count| *count > 0);
        built
    }
}

/// A file to make a table of, that nobody has asked for yet: whose, which, and if it has at most so many bytes.
type Ahead = (u32, Area, u64);

/// A file that a stack has met.
struct Asked {
    key: FileKey,
    pid: u32,
    file: File,
    /// Bytes of code: the more, the longer will its table take.
    size: u64,
    /// Bytes of call frame information that it may have.
    max: u64,
}

/// The files that those processes have mapped, each once; the last is the smallest, and the first to be popped.
fn scan(of: &Of) -> Vec<Ahead> {
    let pids = match of {
        Of::Process(pid) => vec![*pid],
        Of::Cgroups(paths) if paths.is_empty() => Vec::new(),
        Of::Node { .. } | Of::Cgroups(_) => {
            let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        }
    };
    let uptime = maps::uptime();
    let wanted = |pid: &u32| match of {
        Of::Cgroups(paths) => {
            let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            // hierarchy:controllers:path
            own.lines().any(|line| {
                line.splitn(3, ':').nth(2).is_some_and(|own| paths.iter().any(|path| path == own))
            })
        }
        Of::Node { samples } => maps::stat(*pid).is_ok_and(|stat| stat.is_met_by(*samples, uptime)),
        Of::Process(_) => true,
    };
    let mut files = HashMap::new();
    for pid in pids.into_iter().filter(wanted) {
        for area in files_of(pid) {
            files.entry((area.device, area.inode)).or_insert((pid, area, file::MAX_BYTES));
        }
    }
    small_last(files.into_values().collect())
}

/// The files that a process has mapped, each of which can be opened: a daemon of the container's may never answer.
fn files_of(pid: u32) -> Vec<Area> {
    let mut areas = maps::read(pid).map(|areas| areas.areas).unwrap_or_default();
    areas.retain(Area::is_file);
    let mounts = Mounts::below(pid, &areas);
    areas.retain(|area| mounts.ground(area.device) != Ground::Fuse);
    areas
}

/// Opens the file behind a mapping without asking a daemon for it.
fn open_file(pid: u32, area: &Area) -> Result<File, &'static str> {
    let ground = Mounts::below(pid, std::slice::from_ref(area)).ground(area.device);
    open::mapped_file(pid, area, ground)
}

fn small_last(mut files: Vec<Ahead>) -> Vec<Ahead> {
    files.sort_by_key(|(_, area, _)| Reverse(area.end - area.start));
    files
}

struct Worker<K> {
    tables: Tables<K>,
    /// The last is the smallest, and the next.
    asked: Vec<Asked>,
    /// What to do when nobody asks.
    backlog: Vec<Ahead>,
    /// Processes to look at again, and when.
    later: Vec<(Instant, u32)>,
    /// Files that may be asked for again, and when.
    again: Vec<(Instant, FileKey)>,
    /// A second's start, and the looks taken in it.
    looks: (Instant, u32),
    /// Processes all of whose files were looked at when one of them was asked for.
    looked_at: HashSet<u32>,
    /// Programs whose start was told already.
    started: HashSet<FileKey>,
    /// Bytes of call frame information that a file may have to get a table that nobody has asked for.
    ahead: u64,
    shared: Arc<Shared>,
}

impl<K: Kernel> Worker<K> {
    fn run(mut self, received: &Receiver<TableRequest>) -> Built {
        let mut made = true;
        loop {
            let next = self.later.iter().map(|(at, _)| at).chain(self.again.iter().map(|(at, _)| at)).min();
            let wait = next.map(|at| at.saturating_duration_since(Instant::now()));
            let idle = self.backlog.is_empty() && self.asked.is_empty();
            let wait = if idle { wait.unwrap_or(LONG) } else { Duration::ZERO };
            // A large program's rows are tens of MB, on their way to the kernel.
            if idle && std::mem::take(&mut made) {
                heap::give_back();
            }
            made |= !idle;
            match received.recv_timeout(wait) {
                Ok(request) => self.take_in(&request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while self.asked.len() < ASKED
                && let Ok(request) = received.try_recv()
            {
                self.take_in(&request);
            }
            self.take_back();
            if let Some(asked) = self.asked.pop() {
                self.answer(asked);
                self.publish();
                continue;
            }
            let now = Instant::now();
            let due: Vec<u32> = self.later.iter().filter(|(at, _)| *at <= now).map(|(_, pid)| *pid).collect();
            self.later.retain(|(at, _)| *at > now);
            due.into_iter().for_each(|pid| drop(self.process(pid)));
            self.next();
            self.publish();
        }
        Built { losses: self.tables.losses(), cost: self.tables.cost() }
    }

    /// Files whose requests were dropped while the queue was full, or that have waited long enough, may be asked for again.
    fn take_back(&mut self) {
        let mut keys =
            std::mem::take(&mut *self.shared.dropped.lock().unwrap_or_else(PoisonError::into_inner));
        let now = Instant::now();
        keys.extend(self.again.extract_if(.., |(at, _)| *at <= now).map(|(_, key)| key));
        for key in &keys {
            if !self.tables.knows(key) {
                self.tables.take_back(key);
            }
        }
    }

    fn publish(&self) {
        *self.shared.losses.lock().unwrap_or_else(PoisonError::into_inner) = self.tables.losses();
    }

    /// Makes the next table of the backlog; false: there is none.
    fn next(&mut self) -> bool {
        let Some((pid, area, max)) = self.backlog.pop() else { return false };
        self.file(pid, &area, max);
        true
    }

    fn take_in(&mut self, request: &TableRequest) {
        if request.address == 0 { self.new_program(request) } else { self.met(request) }
    }

    /// A stack has met a file that has no table.
    fn met(&mut self, request: &TableRequest) {
        let areas = maps::read(request.pid).unwrap_or_default();
        let Some(area) = areas.find(request.address).filter(|area| area.is_file()) else {
            // A process that was gone too soon says nothing about its file: the next one may ask again.
            return self.tables.forget(&request.key, "unwind_process_gone");
        };
        // Now: the process may be gone when it is this file's turn.
        match open_file(request.pid, area) {
            Ok(file) if is(&file, &request.key) => {
                self.ask(request.key, request.pid, area, file, file::MAX_BYTES);
            }
            // Never in the name of what was met, which may be every container's. Under its own it is found if an overlay has
            // more than one inode for it (metacopy, composefs).
            Ok(file) => {
                if let Ok(own) = key(&file, area)
                    && own != request.key
                    && !self.tables.knows(&own)
                {
                    self.ask(own, request.pid, area, file, file::MAX_BYTES);
                }
                self.wait(request.key, "unwind_file_replaced");
            }
            Err(reason) if open::FOR_GOOD.contains(&reason) && names(area, &request.key) => {
                self.load(&request.key, Err(reason), 0);
            }
            // The process may have ended just then, or have mapped something else there.
            Err(reason) => self.wait(request.key, reason),
        }
    }

    /// A process has a new program, or is to be looked at before its first sample.
    fn new_program(&mut self, request: &TableRequest) {
        // On overlayfs a program's start may name another inode than its mapping will: it is told once, all the same.
        if request.key != FileKey::VDSO && self.started.contains(&request.key) {
            return;
        }
        if self.looks.0.elapsed() > Duration::from_secs(1) {
            self.looks = (Instant::now(), 0);
        }
        self.looks.1 += 1;
        if self.looks.1 > LOOKS_A_SECOND {
            return;
        }
        let areas = self.process(request.pid);
        self.later.push((Instant::now() + SECOND_LOOK, request.pid));
        // Now, too: many a program lives for less than a table takes. Its file is its lowest mapping.
        let program = areas.iter().find(|area| names(area, &request.key)).or(areas.first());
        if let Some(area) = program
            && let Ok(file) = open_file(request.pid, area)
            && let Ok(key) = key(&file, area)
        {
            // A program that was gone too soon is told again.
            remember(&mut self.started, request.key);
            if !self.tables.knows(&key) {
                self.ask(key, request.pid, area, file, self.ahead);
            }
        }
    }

    fn ask(&mut self, key: FileKey, pid: u32, area: &Area, file: File, max: u64) {
        self.asked.push(Asked { key, pid, file, size: area.end - area.start, max });
        self.asked.sort_by_key(|asked| Reverse(asked.size));
    }

    /// A file that was asked for cannot be had now.
    fn wait(&mut self, key: FileKey, reason: &'static str) {
        self.tables.lose(reason);
        self.again.push((Instant::now() + AGAIN, key));
    }

    fn answer(&mut self, asked: Asked) {
        self.make(&asked.key, &asked.file, asked.max);
        // Who was seen at work once will be again, in other files of its own.
        if remember(&mut self.looked_at, asked.pid) {
            self.process(asked.pid);
        }
    }

    /// Makes the tables of what a process has mapped, when nobody asks for others; which files these are.
    fn process(&mut self, pid: u32) -> Vec<Area> {
        let areas = files_of(pid);
        // What is there comes first; whoever has started so many may ask.
        if self.backlog.len() < BACKLOG {
            let files = areas.iter().map(|area| (pid, area.clone(), self.ahead));
            self.backlog.splice(0..0, small_last(files.collect()));
        }
        areas
    }

    fn file(&mut self, pid: u32, area: &Area, max: u64) {
        let Ok(file) = open_file(pid, area) else { return };
        let Ok(key) = key(&file, area) else { return };
        if !self.tables.knows(&key) {
            self.make(&key, &file, max);
        }
    }

    /// Makes a file's table, if its call frame information has at most `max` bytes; if it may have more, it can still be asked
    /// for.
    fn make(&mut self, key: &FileKey, file: &File, max: u64) {
        let source = file::source(file, max);
        if max < file::MAX_BYTES && matches!(source, Err("unwind_too_large")) {
            return;
        }
        let python = match python::interpreter(file) {
            Ok(None) => 0,
            Ok(Some(interpreter)) => self.python(interpreter),
            Err(reason) => {
                self.tables.lose(reason);
                0
            }
        };
        self.load(key, source, python);
    }

    /// The interpreter's number, which the kernel side knows it by; 0: there is no room for it.
    fn python(&mut self, interpreter: python::Interpreter) -> u32 {
        let Some(number) = self.shared.interpreters.number(&interpreter) else {
            self.tables.lose("python_interpreters_full");
            return 0;
        };
        match self.tables.set_python(number, &interpreter.layout) {
            Ok(()) => number,
            Err(error) => {
                tracing::warn!("Python frames: {error:#}");
                0
            }
        }
    }

    fn load(&mut self, key: &FileKey, source: Result<Source, &'static str>, python: u32) {
        let loaded = match source {
            Ok(source) => {
                let digest = self.tables.digest(&source);
                self.tables.load(key, python, digest, move || source.rows())
            }
            Err(reason) => self.tables.has_none(key, python, reason),
        };
        if let Err(error) = loaded {
            tracing::warn!("unwind tables: {error:#}");
        }
    }

    /// The vDSO is the same in every 64-bit process, so ours will do.
    fn vdso(&mut self) {
        let image = || {
            let areas = maps::read(std::process::id()).ok()?;
            let area = areas.areas.iter().find(|area| area.is_vdso())?;
            let len = usize::try_from((area.end - area.start).min(VDSO_BYTES)).ok()?;
            let bytes = read_at(&File::open("/proc/self/mem").ok()?, area.start, len).ok()?;
            let mut copy = File::from(memfd_create("podopsy-vdso", MFdFlags::MFD_CLOEXEC).ok()?);
            copy.write_all(&bytes).ok()?;
            Some(copy)
        };
        let source = image().ok_or("unwind_vdso").and_then(|file| file::source(&file, file::MAX_BYTES));
        self.load(&FileKey::VDSO, source, 0);
    }
}

/// True when it is new; what is remembered is bounded.
fn remember<T: Eq + Hash>(all: &mut HashSet<T>, one: T) -> bool {
    if all.len() >= TABLES_MAX {
        all.clear();
    }
    all.insert(one)
}

/// Whether it is the file that the kernel calls so, under whatever number: a process can have mapped another one since.
fn is(file: &File, key: &FileKey) -> bool {
    file.metadata().is_ok_and(|meta| (meta.size(), meta.ctime() as u32) == (key.size, key.changed))
}

/// Whether a mapping is of the file that the kernel calls so.
fn names(area: &Area, key: &FileKey) -> bool {
    (area.inode, device(area)) == (key.inode, key.device)
}

/// As the kernel writes it: 12 bits of major number, 20 of minor (`<linux/kdev_t.h>`).
fn device(area: &Area) -> u32 {
    area.device.0 << 20 | area.device.1
}

/// A file's name in the kernel, as far as user space can tell: the device is the mapping's, which is the inode's own.
fn key(file: &File, area: &Area) -> std::io::Result<FileKey> {
    let meta = file.metadata()?;
    Ok(FileKey { inode: area.inode, size: meta.size(), device: device(area), changed: meta.ctime() as u32 })
}

#[cfg(test)]
#[path = "builder_tests.rs"]
mod tests;
