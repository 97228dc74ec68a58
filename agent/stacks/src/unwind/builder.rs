//! The handle of the thread that builds tables: first for the processes that already run, then for each file that the
//! kernel side requests.
//!
//! Must not depend on: aya, symbols.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::Context;
use podopsy_wire::{FileKey, TABLES_MAX, TableRequest};

use super::scan::PrebuildScope;
use super::tables::KernelMaps;
use super::worker::TableWorker;
use crate::python::InterpreterRegistry;
use crate::{FileNumbers, Helpers, StackLossReason};
use podopsy_model::profile::UnwindCost;
use podopsy_system::sync::lock;

/// Requests that can wait for the thread. A file is requested once, so this is many new files at a time.
pub(super) const REQUEST_QUEUE: usize = 1024;

/// What the thread returns when it ends.
#[derive(Debug, Default)]
pub struct TableBuilderReport {
    /// Why files or rows have no table, by counter name.
    pub losses: BTreeMap<String, u64>,
    pub cost: UnwindCost,
}

/// A running thread that builds tables.
pub struct TableBuilder {
    requests: SyncSender<BuilderMessage>,
    thread: JoinHandle<TableBuilderReport>,
    state: Arc<BuilderState>,
}

/// What the thread is asked to do.
pub(super) enum BuilderMessage {
    Build(TableRequest),
    /// Free the kernel's memory for tables: nothing is sampled for now.
    Free,
}

/// State that both sides of the queue use.
#[derive(Default)]
pub(super) struct BuilderState {
    /// Files whose requests found the queue full, at most [`TABLES_MAX`]. The kernel side requests a file once, so it must
    /// forget these requests, or the files would never have a table.
    pub dropped: Mutex<Vec<FileKey>>,
    drops: AtomicU64,
    pub losses: Mutex<BTreeMap<String, u64>>,
    pub interpreters: InterpreterRegistry,
    pub numbers: FileNumbers,
}

impl BuilderState {
    fn add_drops(&self, losses: &mut BTreeMap<String, u64>) {
        let dropped = self.drops.load(Relaxed);
        losses.insert(StackLossReason::RequestQueueFull.as_str().to_owned(), dropped);
        losses.retain(|_, count| *count > 0);
    }
}

impl TableBuilder {
    /// Builds tables for the processes in `scope`, for a bounded time, then starts the thread.
    pub fn start<K: KernelMaps>(
        kernel: K,
        max_bytes: usize,
        scope: &PrebuildScope,
        helpers: &Helpers,
    ) -> anyhow::Result<TableBuilder> {
        let state = Arc::<BuilderState>::default();
        let mut worker = TableWorker::new(kernel, max_bytes, scope, state.clone(), helpers)?;
        worker.prebuild();
        let (requests, received) = sync_channel(REQUEST_QUEUE);
        let thread = std::thread::Builder::new()
            .name("unwind-tables".into())
            .spawn(move || worker.run(&received))
            .context("start the thread that builds unwind tables")?;
        Ok(TableBuilder { requests, thread, state })
    }

    /// Passes a request on. Never waits: if the queue is full, the request is dropped and counted.
    pub fn request(&self, request: TableRequest) {
        if self.requests.try_send(BuilderMessage::Build(request)).is_ok() {
            return;
        }
        self.state.drops.fetch_add(1, Relaxed);
        // A request with address 0 is not for a certain file, so the kernel side has nothing to forget.
        if request.address != 0 {
            let mut dropped = lock(&self.state.dropped);
            if dropped.len() < TABLES_MAX {
                dropped.push(request.key);
            }
        }
    }

    /// Frees the kernel's memory for tables. Files are requested again when they are sampled again. Never waits: if the queue
    /// is full, tables are in use.
    pub fn free(&self) {
        let _ = self.requests.try_send(BuilderMessage::Free);
    }

    /// Requests tables for all files that a process has mapped, before its first sample does.
    pub fn look_at(&self, pid: u32) {
        self.request(TableRequest { key: FileKey::VDSO, address: 0, pid, unused: 0 });
    }

    /// The registry of the Python interpreters that are found, including those that will be found later.
    pub fn interpreters(&self) -> InterpreterRegistry {
        self.state.interpreters.clone()
    }

    /// The numbers of files in frames, for the symbolizer.
    pub fn numbers(&self) -> FileNumbers {
        self.state.numbers.clone()
    }

    /// Why files or rows have no table, up to now, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let mut losses = lock(&self.state.losses).clone();
        self.state.add_drops(&mut losses);
        losses
    }

    /// Ends the thread. Blocks until it has finished the file that it is reading.
    pub fn stop(self) -> TableBuilderReport {
        drop(self.requests);
        let mut report = self.thread.join().unwrap_or_else(|_| TableBuilderReport {
            losses: BTreeMap::from([(StackLossReason::BuilderPanicked.as_str().to_owned(), 1)]),
            cost: UnwindCost::default(),
        });
        self.state.add_drops(&mut report.losses);
        report
    }
}

#[cfg(test)]
#[path = "builder_tests.rs"]
mod tests;
