//! An ELF core of a running process, as gdb opens it.
//!
//! ```text
//!             ┌────────────── the process is stopped ──────────────┐
//! Layout ───▶ trace: seize, interrupt ─▶ notes: registers ─▶ memory ─▶ detach ─▶ elf: headers, notes, pages
//! (smaps)                                image: maps, pagemap ─▶ runs of pages
//! ```
//!
//! The pages are copied into memory that was reserved before, and written after the process goes on. Only pages that are
//! present are read, so that no page is charged to the process, and no file system that does not answer can hold it up.
//!
//! Must not depend on: pods, output files, compression.

mod elf;
mod image;
mod layout;
mod memory;
mod notes;
mod trace;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use image::Image;
use layout::Layout;
use memory::{Copied, Live};
use trace::StoppedProcess;

#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    #[error("process {0} has ended, or is a kernel thread")]
    Gone(u32),
    #[error("thread {tid} of process {pid} may not be traced{tracer}")]
    Refused { pid: u32, tid: i32, tracer: String },
    #[error(
        "thread {tid} of process {pid} does not stop: it waits in the kernel (state {state}); nothing was read"
    )]
    DoesNotStop { pid: u32, tid: i32, state: char },
    #[error("process {0} is not a program of this machine's own architecture and word size")]
    OtherArchitecture(u32),
    #[error("cannot read {what} of process {pid}")]
    Read { pid: u32, what: &'static str, source: io::Error },
    #[error("cannot reserve {0} bytes of memory")]
    Memory(u64),
    #[error("cannot write")]
    Write(#[source] io::Error),
    #[error("stopped")]
    Cancelled,
    #[error("the thread that writes the core failed")]
    Thread,
}

/// What to include, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoreOptions {
    /// Leave out pages that are the same in a file.
    pub exclude_file_backed: bool,
    /// Write while the process is stopped: needs no memory for a copy, and takes longer.
    pub stream: bool,
}

/// A core that is planned: the process runs, and its size is an estimate.
#[derive(Debug)]
pub struct CorePlan {
    pid: u32,
    options: CoreOptions,
    layout: Layout,
    bytes: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug)]
pub struct CoreSummary {
    pub threads: usize,
    pub mappings: usize,
    /// Bytes of the core before compression.
    pub bytes: u64,
    /// From the first interrupt to the last detach.
    pub pause: Duration,
    /// Of it, until all threads had stopped.
    pub stopping: Duration,
    /// Bytes in swap, which are left out: reading them would charge the process.
    pub swapped: u64,
    /// Bytes that could not be read.
    pub unreadable: u64,
    /// Bytes of mappings that the program excludes from cores (`MADV_DONTDUMP`), or that belong to devices.
    pub excluded: u64,
}

impl CorePlan {
    pub fn new(pid: u32, options: CoreOptions) -> Result<CorePlan, CoreError> {
        let layout = Layout::read(pid)?;
        let image = Image::read(pid, pid as i32, &layout, options)?;
        Ok(CorePlan { pid, options, layout, bytes: image.bytes() })
    }

    /// The size of the memory that goes into the core, as it is now.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The memory that the copy takes, with a reserve for what the process takes until it is stopped.
    pub fn memory_needed(&self) -> u64 {
        if self.options.stream { memory::CHUNK as u64 } else { self.bytes + self.bytes / 16 + (1 << 20) }
    }

    /// Writes the core.
    pub fn write(
        &self,
        cancelled: &AtomicBool,
        out: &mut (dyn Write + Send),
    ) -> Result<CoreSummary, CoreError> {
        // A tracer is a thread: when this one ends, the kernel detaches it from what could not be detached.
        thread::scope(|scope| {
            scope.spawn(|| self.trace_and_write(cancelled, out)).join().unwrap_or(Err(CoreError::Thread))
        })
    }

    fn trace_and_write(
        &self,
        cancelled: &AtomicBool,
        out: &mut (dyn Write + Send),
    ) -> Result<CoreSummary, CoreError> {
        let mut copy = if self.options.stream { Vec::new() } else { memory::reserve(self.memory_needed())? };
        let begin = Instant::now();
        let stopped = StoppedProcess::stop(self.pid, cancelled)?;
        let stopping = begin.elapsed();
        let image = Image::read(self.pid, stopped.first(), &self.layout, self.options)?;
        let notes = notes::of(&stopped, &image)?;
        let (pause, unreadable) = if self.options.stream {
            let mut pages = Live::new(&stopped, cancelled);
            elf::write(&image, &notes, &mut pages, out)?;
            let unreadable = pages.unreadable();
            drop(stopped);
            (begin.elapsed(), unreadable)
        } else {
            let unreadable = memory::copy(&stopped, &image.runs, &mut copy, cancelled)?;
            drop(stopped);
            let pause = begin.elapsed();
            elf::write(&image, &notes, &mut Copied::new(&copy, cancelled), out)?;
            (pause, unreadable)
        };
        Ok(CoreSummary {
            threads: notes.threads,
            mappings: image.mappings.len(),
            bytes: elf::length(&image, &notes),
            pause,
            stopping,
            swapped: image.swapped,
            unreadable,
            excluded: image.excluded,
        })
    }
}

fn check(cancelled: &AtomicBool) -> Result<(), CoreError> {
    if cancelled.load(Relaxed) { Err(CoreError::Cancelled) } else { Ok(()) }
}

fn read_error(pid: u32, what: &'static str) -> impl Fn(io::Error) -> CoreError {
    move |source| match source.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => CoreError::Gone(pid),
        _ => CoreError::Read { pid, what, source },
    }
}
