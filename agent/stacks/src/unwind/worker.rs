//! Builds tables on a thread of its own: requested files first, then the files of processes that were seen.
//!
//! Must not depend on: aya, symbols. Files belong to containers; [`super::scan`] opens them.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use podopsy_opener::Openers;
use podopsy_wire::{FileKey, TABLES_MAX, TableRequest};
use podopsy_worker::{FileHandle, FoundUnwind, Interpreter, MAX_UNWIND_BYTES, Parser, Tenant};

use super::builder::{BuilderMessage, BuilderState, TableBuilderReport};
use super::scan::{
    OpenedFile, PendingFile, PrebuildScope, file_key, files_in_scope, filesystem_of, is_area_of_key,
    is_file_of_key, mapped_files, mappings, open_file, smallest_last,
};
use super::tables::{KernelMaps, UnwindTables};
use crate::file_numbers::NumberedFile;
use crate::python::InterpreterNumber;
use crate::symbolize::maps::Area;
use crate::symbolize::{open, vdso};
use crate::{Helpers, StackLossReason, tenant};
use podopsy_system::heap;
use podopsy_system::sync::lock;

/// Requested files that are held open.
const MAX_OPEN_REQUESTS: usize = 64;
/// Files that wait for a table without a request.
const MAX_BACKLOG: usize = 4096;
/// The same of one process.
const MAX_BACKLOG_OF_PROCESS: usize = 512;
/// The dynamic loader maps a new program's libraries in its first milliseconds, so the process is scanned again after this.
const RESCAN_AFTER: Duration = Duration::from_millis(10);
/// Started programs that are scanned in one second. The others get their tables when their first sample requests them.
const MAX_SCANS_PER_SECOND: u32 = 200;
/// The start waits this long for tables of running processes. The rest is built while samples come, after requested files.
const PREBUILD_TIME: Duration = Duration::from_secs(10);
/// On a node-wide profile, a file gets a table without a request if its call frame information has at most this many
/// bytes. libc's has 150 KB.
const MAX_UNREQUESTED_BYTES: u64 = 512 << 10;
/// The time until a file that could not be opened may be requested again. Otherwise each of its samples would request it.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const IDLE_WAIT: Duration = Duration::from_secs(3600);
/// The time until a file may be requested again whose container has used up the CPU time for its files, or has hung a
/// helper.
const RETRY_REFUSED_AFTER: Duration = Duration::from_secs(15);

/// A file that a stack went through and that has no table yet.
struct RequestedFile {
    key: FileKey,
    opened: OpenedFile,
    /// Bytes of code. The more there are, the longer its table takes.
    size: u64,
    /// A table is built only if the call frame information has at most this many bytes.
    max_bytes: u64,
}

/// The scans of started programs in the current second.
struct ScanRate {
    since: Instant,
    scans: u32,
}

impl ScanRate {
    /// Counts a scan. False if this second has had its share.
    fn allow(&mut self) -> bool {
        if self.since.elapsed() > Duration::from_secs(1) {
            *self = ScanRate { since: Instant::now(), scans: 0 };
        }
        self.scans += 1;
        self.scans <= MAX_SCANS_PER_SECOND
    }
}

pub(super) struct TableWorker<K> {
    tables: UnwindTables<K>,
    openers: Openers,
    parser: Parser,
    requested: Vec<RequestedFile>,
    /// Files to read when none is requested.
    backlog: Vec<PendingFile>,
    /// Processes to scan again, and when.
    rescans: Vec<(Instant, u32)>,
    /// Files that may be requested again, and when.
    retries: Vec<(Instant, FileKey)>,
    scan_rate: ScanRate,
    /// Processes that were scanned because one of their files was requested.
    scanned: HashSet<u32>,
    /// Programs whose start has been handled.
    started: HashSet<FileKey>,
    /// A file gets a table without a request if its call frame information has at most this many bytes.
    max_unrequested_bytes: u64,
    state: Arc<BuilderState>,
}

impl<K: KernelMaps> TableWorker<K> {
    pub fn new(
        kernel: K,
        max_bytes: usize,
        scope: &PrebuildScope,
        state: Arc<BuilderState>,
        helpers: &Helpers,
    ) -> anyhow::Result<Self> {
        let parser = helpers.parsers.parser();
        let is_node = matches!(scope, PrebuildScope::Node { .. });
        Ok(Self {
            tables: UnwindTables::new(kernel, max_bytes)?.with_numbers(state.numbers.clone()),
            backlog: files_in_scope(&helpers.openers, &parser, scope),
            openers: helpers.openers.clone(),
            parser,
            requested: Vec::new(),
            rescans: Vec::new(),
            retries: Vec::new(),
            scan_rate: ScanRate { since: Instant::now(), scans: 0 },
            scanned: HashSet::new(),
            started: HashSet::new(),
            max_unrequested_bytes: if is_node { MAX_UNREQUESTED_BYTES } else { MAX_UNWIND_BYTES },
            state,
        })
    }

    /// Builds the tables of the vDSO and of the backlog, for at most [`PREBUILD_TIME`].
    pub fn prebuild(&mut self) {
        self.load_vdso();
        let until = Instant::now() + PREBUILD_TIME;
        while Instant::now() < until && self.build_next_pending() {}
    }

    /// Serves requests until their sender is dropped.
    pub fn run(mut self, received: &Receiver<BuilderMessage>) -> TableBuilderReport {
        let mut has_built = true;
        loop {
            let idle = self.backlog.is_empty() && self.requested.is_empty();
            // Reading a large program's rows takes tens of MB, which are not needed any more.
            if idle && std::mem::take(&mut has_built) {
                self.parser.rest();
                heap::give_back();
            }
            has_built |= !idle;
            let wait = if idle { self.time_to_next_event() } else { Duration::ZERO };
            match received.recv_timeout(wait) {
                Ok(message) => self.receive(&message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while self.requested.len() < MAX_OPEN_REQUESTS
                && let Ok(message) = received.try_recv()
            {
                self.receive(&message);
            }
            self.allow_retries();
            if let Some(requested) = self.next_requested() {
                self.build_requested(&requested);
            } else {
                self.rescan_due_processes();
                self.build_next_pending();
            }
            self.publish_losses();
        }
        TableBuilderReport { losses: self.tables.losses(), cost: self.tables.cost() }
    }

    /// The next file to read: the smallest one of a container that has used little of the CPU time for its files. Otherwise
    /// the files of one container could delay those of all others.
    fn next_requested(&mut self) -> Option<RequestedFile> {
        let parser = &self.parser;
        let rank = |(_, file): &(usize, &RequestedFile)| {
            (Reverse(parser.left(file.opened.tenant).as_millis() / 500), file.size)
        };
        let next = self.requested.iter().enumerate().min_by_key(rank).map(|(index, _)| index)?;
        Some(self.requested.swap_remove(next))
    }

    fn time_to_next_event(&self) -> Duration {
        let rescans = self.rescans.iter().map(|(at, _)| at);
        let next = rescans.chain(self.retries.iter().map(|(at, _)| at)).min();
        next.map_or(IDLE_WAIT, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Lets the kernel side request files again whose requests were dropped, or whose time to wait has passed.
    fn allow_retries(&mut self) {
        let mut keys = std::mem::take(&mut *lock(&self.state.dropped));
        let now = Instant::now();
        keys.extend(self.retries.extract_if(.., |(at, _)| *at <= now).map(|(_, key)| key));
        for key in &keys {
            if !self.tables.has_answer(key) {
                self.tables.forget(key);
            }
        }
    }

    fn rescan_due_processes(&mut self) {
        let now = Instant::now();
        let due: Vec<(Instant, u32)> = self.rescans.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, pid) in due {
            self.scan_process(pid);
        }
    }

    fn publish_losses(&self) {
        *lock(&self.state.losses) = self.tables.losses();
    }

    /// Builds the next table of the backlog. False if the backlog is empty.
    fn build_next_pending(&mut self) -> bool {
        let Some(pending) = self.backlog.pop() else { return false };
        let tenant = tenant::of_process(pending.pid);
        match open_file(&self.openers, pending.pid, tenant, &pending.area) {
            Ok(opened) => {
                let key = file_key(&opened.file, &pending.area);
                if !self.tables.has_answer(&key) {
                    self.pass_on(&key, &opened);
                    self.build(&key, &opened.file, pending.max_bytes, tenant);
                }
            }
            Err(StackLossReason::FileSystemNoAnswer) => {
                self.tables.count_loss(StackLossReason::FileSystemNoAnswer);
            }
            // The process has ended, or its file is requested again when a sample needs it.
            Err(_) => {}
        }
        true
    }

    fn receive(&mut self, message: &BuilderMessage) {
        match message {
            BuilderMessage::Build(request) => self.handle(request),
            BuilderMessage::Free => self.free(),
        }
    }

    fn free(&mut self) {
        self.backlog = Vec::new();
        self.scanned.clear();
        // The kernel side has requested them, and does so once.
        for requested in std::mem::take(&mut self.requested) {
            self.tables.forget(&requested.key);
        }
        if let Err(error) = self.tables.free() {
            tracing::warn!("free the kernel's memory for unwind tables: {error:#}");
        }
        self.parser.rest();
        heap::give_back();
    }

    fn handle(&mut self, request: &TableRequest) {
        if request.address == 0 {
            self.handle_new_program(request);
        } else {
            self.handle_file_without_table(request);
        }
    }

    /// A stack went through a file that has no table.
    fn handle_file_without_table(&mut self, request: &TableRequest) {
        let areas = match mappings(&self.openers, &self.parser, request.pid) {
            Ok(areas) => areas,
            Err(reason) => return self.retry_after(RETRY_REFUSED_AFTER, request.key, reason),
        };
        let tenant = tenant::of_process(request.pid);
        let Some(area) = areas.find(request.address).filter(|area| area.is_file()) else {
            // The process ended before its file could be opened. The next process with that file may request it again.
            self.tables.count_loss(StackLossReason::ProcessGone);
            return self.tables.forget(&request.key);
        };
        // Opened now, because the process may have ended when it is this file's turn.
        match open_file(&self.openers, request.pid, tenant, area) {
            Ok(opened) if is_file_of_key(&opened.file, &request.key) => {
                self.queue(request.key, opened, MAX_UNWIND_BYTES);
            }
            Ok(opened) => {
                // The table must not be stored under the requested key, which other containers may share. It is stored under
                // the key of the file itself, where it is found if an overlay has more than one inode for the file
                // (metacopy, composefs).
                let own_key = file_key(&opened.file, area);
                if own_key != request.key && !self.tables.has_answer(&own_key) {
                    self.queue(own_key, opened, MAX_UNWIND_BYTES);
                }
                self.retry_later(request.key, StackLossReason::MappedFileReplaced);
            }
            Err(reason) => self.handle_refused_file(request, area, reason),
        }
    }

    /// A file that a stack went through could not be opened.
    fn handle_refused_file(&mut self, request: &TableRequest, area: &Area, reason: StackLossReason) {
        let is_requested_file = is_area_of_key(area, &request.key);
        let is_permanent = open::PERMANENT.contains(&reason);
        let has_no_answer = reason == StackLossReason::FileSystemNoAnswer;
        if is_requested_file && (is_permanent || has_no_answer) {
            self.pass_on_refused(request, area, reason);
        }
        if is_requested_file && is_permanent {
            return self.set_no_table(&request.key, 0, reason);
        }
        // Otherwise the process may have ended just now, or have mapped another file at the address.
        let pause = if has_no_answer { RETRY_REFUSED_AFTER } else { RETRY_AFTER };
        self.retry_after(pause, request.key, reason);
    }

    /// A process has started a program, or is to be scanned before its first sample.
    fn handle_new_program(&mut self, request: &TableRequest) {
        // On overlayfs, the start of a program may carry another inode than its mapping. It is reported only once anyway.
        if request.key != FileKey::VDSO && self.started.contains(&request.key) {
            return;
        }
        if !self.scan_rate.allow() {
            return;
        }
        let areas = self.scan_process(request.pid);
        self.rescans.push((Instant::now() + RESCAN_AFTER, request.pid));
        // The program itself is opened at once, because many programs live for less time than a table takes. Its file is the
        // lowest mapping.
        let program = areas.iter().find(|area| is_area_of_key(area, &request.key)).or(areas.first());
        let tenant = tenant::of_process(request.pid);
        if let Some(area) = program
            && let Ok(opened) = open_file(&self.openers, request.pid, tenant, area)
        {
            let key = file_key(&opened.file, area);
            // Only now: the start of a program that ended before it could be opened is handled again next time.
            insert_bounded(&mut self.started, request.key);
            if self.tables.has_answer(&key) {
                self.pass_on(&key, &opened);
            } else {
                self.queue(key, opened, self.max_unrequested_bytes);
            }
        }
    }

    fn queue(&mut self, key: FileKey, opened: OpenedFile, max_bytes: u64) {
        self.pass_on(&key, &opened);
        let size = opened.area.end - opened.area.start;
        self.requested.push(RequestedFile { key, opened, size, max_bytes });
    }

    /// Passes the open file to the symbolizer, under the number that frames have for it.
    fn pass_on(&self, key: &FileKey, opened: &OpenedFile) {
        let numbers = &self.state.numbers;
        numbers.add_opened(opened.numbered(numbers.number(key)));
    }

    /// Passes to the symbolizer why the file of a frame has no names.
    fn pass_on_refused(&self, request: &TableRequest, area: &Area, reason: StackLossReason) {
        let numbers = &self.state.numbers;
        let (pid, tenant) = (request.pid, tenant::of_process(request.pid));
        let filesystem = filesystem_of(pid, area);
        let number = numbers.number(&request.key);
        numbers.add_opened(NumberedFile {
            number,
            file: Err(reason),
            pid,
            tenant,
            area: area.clone(),
            filesystem,
        });
    }

    /// Lets the kernel side request a file again after [`RETRY_AFTER`].
    fn retry_later(&mut self, key: FileKey, reason: StackLossReason) {
        self.retry_after(RETRY_AFTER, key, reason);
    }

    fn retry_after(&mut self, pause: Duration, key: FileKey, reason: StackLossReason) {
        self.tables.count_loss(reason);
        // Of more files than the kernel side knows, none has to be allowed again.
        if self.retries.len() < TABLES_MAX {
            self.retries.push((Instant::now() + pause, key));
        }
    }

    fn build_requested(&mut self, requested: &RequestedFile) {
        let OpenedFile { pid, tenant, ref file, .. } = requested.opened;
        self.build(&requested.key, file, requested.max_bytes, tenant);
        // A process that was sampled once will be sampled again, in other files that it has mapped.
        if insert_bounded(&mut self.scanned, pid) {
            self.scan_process(pid);
        }
    }

    /// Adds the files that a process has mapped to the backlog, and returns their mappings.
    fn scan_process(&mut self, pid: u32) -> Vec<Area> {
        let areas = mapped_files(&self.openers, &self.parser, pid).unwrap_or_else(|reason| {
            self.tables.count_loss(reason);
            Vec::new()
        });
        // The new files are read after those that wait already. If the backlog is full, they have to be requested.
        if self.backlog.len() < MAX_BACKLOG {
            let max_bytes = self.max_unrequested_bytes;
            let files = areas.iter().map(|area| PendingFile { pid, area: area.clone(), max_bytes });
            self.backlog.splice(0..0, smallest_last(files.take(MAX_BACKLOG_OF_PROCESS).collect()));
        }
        areas
    }

    /// Builds a file's table if its call frame information has at most `max_bytes`. If it has more, the file gets no answer
    /// unless `max_bytes` is the largest bound, so that it can still be requested.
    fn build(&mut self, key: &FileKey, file: &FileHandle, max_bytes: u64, tenant: Tenant) {
        let found = match self.parser.find_unwind(tenant, file, max_bytes) {
            Ok(Ok(found)) => found,
            Ok(Err(StackLossReason::SectionTooLarge)) if max_bytes < MAX_UNWIND_BYTES => return,
            Ok(Err(reason)) => return self.set_no_table(key, 0, reason),
            Err(failure) if failure.is_permanent() => return self.set_no_table(key, 0, failure.loss()),
            Err(failure) => return self.retry_after(RETRY_REFUSED_AFTER, *key, failure.loss()),
        };
        self.load(key, file, &found, tenant);
    }

    fn load(&mut self, key: &FileKey, file: &FileHandle, found: &FoundUnwind, tenant: Tenant) {
        let python = match &found.python {
            Ok(None) => 0,
            Ok(Some(interpreter)) => self.register_interpreter(interpreter, tenant),
            Err(reason) => {
                self.tables.count_loss(*reason);
                0
            }
        };
        let digest = match found.digest {
            Ok(digest) => digest,
            Err(reason) => return self.set_no_table(key, python, reason),
        };
        let parser = &mut self.parser;
        let rows = || parser.rows(tenant, file).unwrap_or_else(|failure| Err(failure.loss()));
        warn_if_failed(self.tables.load(key, python, digest, tenant, rows));
    }

    fn set_no_table(&mut self, key: &FileKey, python: u32, reason: StackLossReason) {
        warn_if_failed(self.tables.set_no_table(key, python, reason));
    }

    /// The number that the kernel side has for the interpreter, or 0 if it cannot have one.
    fn register_interpreter(&mut self, interpreter: &Interpreter, tenant: Tenant) -> u32 {
        let number = match self.state.interpreters.number(interpreter, tenant) {
            Some(InterpreterNumber::Own(number)) => number,
            Some(InterpreterNumber::Reused(number)) => {
                self.tables.count_loss(StackLossReason::PythonInterpretersFull);
                self.tables.forget_python(number);
                number
            }
            None => {
                self.tables.count_loss(StackLossReason::PythonInterpretersFull);
                return 0;
            }
        };
        match self.tables.set_python(number, &interpreter.layout) {
            Ok(()) => number,
            Err(error) => {
                tracing::warn!("cannot show Python frames of an interpreter: {error:#}");
                0
            }
        }
    }

    /// Builds the table of the vDSO from our own copy, which is the same in every 64-bit process.
    fn load_vdso(&mut self) {
        match vdso::copy_image() {
            Some((copy, _)) => self.build(&FileKey::VDSO, &copy, MAX_UNWIND_BYTES, 0),
            None => self.set_no_table(&FileKey::VDSO, 0, StackLossReason::Vdso),
        }
    }
}

fn warn_if_failed(written: anyhow::Result<()>) {
    if let Err(error) = written {
        tracing::warn!("cannot write an unwind table into the kernel's maps: {error:#}");
    }
}

/// True if `value` is new. The set is emptied when it is full.
fn insert_bounded<T: Eq + Hash>(set: &mut HashSet<T>, value: T) -> bool {
    if set.len() >= TABLES_MAX {
        set.clear();
    }
    set.insert(value)
}
