//! The thread that makes tables: of every program that runs at the start, and of every file that the kernel side then
//! asks for.
//!
//! Must not know: aya, symbols. Files are the containers': they are opened as [`crate::symbolize`] opens them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};
use podopsy_wire::{FileKey, TableRequest};

use super::file;
use super::tables::{Kernel, Tables};
use crate::model::profile::UnwindCost;
use crate::symbolize::elf::read_at;
use crate::symbolize::maps::{self, Area};
use crate::symbolize::open;

/// Requests between the ring and the thread; a file is asked for once, so that this is many new files at a time.
const QUEUE: usize = 1024;
/// The dynamic loader maps a new program's libraries in its first milliseconds.
const SECOND_LOOK: Duration = Duration::from_millis(10);
/// Programs started in a second that are looked at; others wait for their first sample.
const LOOKS_A_SECOND: u32 = 200;
/// The scan at the start ends here, wherever it is: what is not done by then is asked for.
const SCAN_TIME: Duration = Duration::from_secs(10);
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
    /// Requests that found the queue full.
    dropped: u64,
}

impl Builder {
    /// Makes the tables of what runs (blocking, at most [`SCAN_TIME`]), then starts the thread.
    pub fn start<K: Kernel>(kernel: K, max_bytes: usize, pids: Option<Vec<u32>>) -> anyhow::Result<Builder> {
        let mut worker =
            Worker { tables: Tables::new(kernel, max_bytes)?, later: Vec::new(), looks: (Instant::now(), 0) };
        worker.vdso();
        let until = Instant::now() + SCAN_TIME;
        for pid in pids.map_or_else(processes, |pids| pids) {
            if Instant::now() > until {
                break;
            }
            worker.process(pid);
        }
        let (requests, received) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("unwind-tables".into())
            .spawn(move || worker.run(received))
            .context("start the thread that makes unwind tables")?;
        Ok(Builder { requests, thread, dropped: 0 })
    }

    /// Passes a request on; never waits.
    pub fn request(&mut self, request: TableRequest) {
        self.dropped += u64::from(self.requests.try_send(request).is_err());
    }

    /// Ends the thread; blocks until it has finished the file that it is at.
    pub fn stop(self) -> Built {
        drop(self.requests);
        let mut built = self.thread.join().unwrap_or_else(|_| Built {
            losses: BTreeMap::from([("unwind_builder_panicked".to_owned(), 1)]),
            cost: UnwindCost::default(),
        });
        built.losses.insert("unwind_queue".to_owned(), self.dropped);
        built.losses.retain(|_, count| *count > 0);
        built
    }
}

/// Every process there is; kernel threads have no mappings, and cost a look.
fn processes() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

struct Worker<K> {
    tables: Tables<K>,
    /// Processes to look at again, and when.
    later: Vec<(Instant, u32)>,
    /// A second's start, and the looks taken in it.
    looks: (Instant, u32),
}

impl<K: Kernel> Worker<K> {
    fn run(mut self, received: Receiver<TableRequest>) -> Built {
        loop {
            let wait = self.later.iter().map(|(at, _)| at.saturating_duration_since(Instant::now())).min();
            match received.recv_timeout(wait.unwrap_or(Duration::from_secs(3600))) {
                Ok(request) => self.answer(&request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            let due: Vec<u32> = self.later.iter().filter(|(at, _)| *at <= now).map(|(_, pid)| *pid).collect();
            self.later.retain(|(at, _)| *at > now);
            due.into_iter().for_each(|pid| self.process(pid));
        }
        Built { losses: self.tables.losses(), cost: self.tables.cost() }
    }

    fn answer(&mut self, request: &TableRequest) {
        if request.address != 0 {
            let rows = match mapped(request.pid, request.address) {
                Some(area) => open::mapped_file(request.pid, &area).and_then(|file| file::rows(&file)),
                None => Err("unwind_process_gone"),
            };
            // A process that was gone too soon says nothing about its file: the next one may ask again.
            if let Err("unwind_process_gone") = rows {
                self.tables.forget(&request.key, "unwind_process_gone");
                return;
            }
            return self.load(&request.key, rows);
        }
        if self.looks.0.elapsed() > Duration::from_secs(1) {
            self.looks = (Instant::now(), 0);
        }
        self.looks.1 += 1;
        if self.looks.1 <= LOOKS_A_SECOND {
            self.process(request.pid);
            self.later.push((Instant::now() + SECOND_LOOK, request.pid));
        }
    }

    /// Makes the tables of all that a process has mapped.
    fn process(&mut self, pid: u32) {
        let Ok(areas) = maps::read(pid) else { return };
        for area in areas.areas.iter().filter(|area| area.is_file()) {
            let Ok(file) = open::mapped_file(pid, area) else { continue };
            // On overlayfs the kernel side may see another number: then the first sample asks, and finds the same rows.
            let Ok(key) = key(&file, area) else { continue };
            if !self.tables.knows(&key) {
                self.load(&key, file::rows(&file));
            }
        }
    }

    fn load(&mut self, key: &FileKey, rows: Result<super::rows::Rows, &'static str>) {
        if let Err(error) = self.tables.load(key, rows.as_ref().map_err(|reason| *reason)) {
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
        let rows = image().ok_or("unwind_vdso").and_then(|file| file::rows(&file));
        self.load(&FileKey::VDSO, rows);
    }
}

/// The executable mapping at an address of a process.
fn mapped(pid: u32, address: u64) -> Option<Area> {
    maps::read(pid).ok()?.find(address).filter(|area| area.is_file()).cloned()
}

/// A file's name in the kernel, as far as user space can tell: the device is the mapping's, which is the inode's own.
fn key(file: &File, area: &Area) -> std::io::Result<FileKey> {
    let meta = file.metadata()?;
    Ok(FileKey {
        inode: area.inode,
        size: meta.size(),
        device: area.device.0 << 20 | area.device.1,
        modified: meta.mtime() as u32,
    })
}
