//! The worker's loop: a job, its answer, the next job, until the socket is closed.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use podopsy_helper::channel::{receive, send};
use podopsy_helper::{FileStat, open_sealed};
use podopsy_parse::unwind::UnwindSource;
use podopsy_parse::{StackLossReason, elf, names, perf_map, python, unwind};
use podopsy_system::heap;

use crate::jail::{self, WorkerLimits};
use crate::job::{Answer, FileDescription, FoundUnwind, Job, JobOrder};
use crate::pool::ARGUMENT;

/// Makes this process the supervisor if it was started as one, and returns its exit code at the end. To be called first of
/// all in `main`.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let memory = (arguments.next()? == *OsStr::new(ARGUMENT)).then(|| arguments.next())??;
    let limits = WorkerLimits { memory: memory.to_str()?.parse().ok()? };
    let work = |socket: UnixStream| {
        heap::keep_freed();
        // Narrowed before the first byte of a container is read.
        jail::narrow(&limits, socket.as_raw_fd())?;
        serve(socket, &CpuTimer::default())
    };
    Some(podopsy_helper::run(c"podopsy-parser", jail::enter, &work))
}

/// What bounds a job from inside.
pub(crate) trait JobClock {
    /// Called when a job begins, with the CPU time that it may use.
    fn begin(&self, cpu: Duration);
    /// Called when it has ended. Returns the CPU time that it used.
    fn end(&self) -> Duration;
}

/// The kernel ends the process that has used its CPU time.
#[derive(Default)]
pub(crate) struct CpuTimer(Cell<Duration>);

impl JobClock for CpuTimer {
    fn begin(&self, cpu: Duration) {
        self.0.set(cpu);
        set_timer(cpu);
    }

    fn end(&self) -> Duration {
        self.0.get().saturating_sub(set_timer(Duration::ZERO))
    }
}

/// `SIGPROF`, whose default action is the end, after so much CPU time; none for zero. Returns what was left of the time before.
fn set_timer(cpu: Duration) -> Duration {
    let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let value = libc::timeval {
        tv_sec: libc::time_t::try_from(cpu.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(cpu.subsec_micros() as i32),
    };
    let timer = libc::itimerval { it_interval: none, it_value: value };
    let mut before = libc::itimerval { it_interval: none, it_value: none };
    // SAFETY: both live until the call returns.
    unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, &raw mut before) };
    let left = before.it_value;
    Duration::new(left.tv_sec.unsigned_abs(), 0) + Duration::from_micros(left.tv_usec.unsigned_abs())
}

/// For a worker that is a thread of a test: nothing bounds it.
#[cfg(feature = "testing")]
pub(crate) struct NoClock;

#[cfg(feature = "testing")]
impl JobClock for NoClock {
    fn begin(&self, _: Duration) {}
    fn end(&self) -> Duration {
        Duration::ZERO
    }
}

/// Serves jobs until the other end is closed.
pub(crate) fn serve(mut socket: UnixStream, clock: &impl JobClock) -> io::Result<()> {
    let mut jobs = Jobs::default();
    loop {
        let (JobOrder { job, cpu, unchanged }, sent): (JobOrder, Vec<File>) = match receive(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            received => received?,
        };
        clock.begin(cpu);
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let files: Vec<File> = sent.into_iter().map(open_sealed).collect::<io::Result<_>>()?;
            Ok::<_, io::Error>(match unchanged {
                Some(stat) if !is_unchanged(files.first(), stat) => Answer::Changed,
                _ => jobs.handle(job, &files),
            })
            // The files are closed here: that may wait for their file system, and is part of the job.
        }));
        let used = clock.end();
        let answer = answer.ok().and_then(Result::ok).unwrap_or(Answer::Panicked);
        send(&mut socket, &(answer, used), &[])?;
    }
}

fn is_unchanged(file: Option<&File>, stat: FileStat) -> bool {
    file.is_some_and(|file| file.metadata().is_ok_and(|meta| FileStat::from(&meta) == stat))
}

/// The state between two jobs.
#[derive(Default)]
struct Jobs {
    /// What the last [`Job::FindUnwind`] found.
    unwind: Option<UnwindSource>,
}

impl Jobs {
    fn handle(&mut self, job: Job, files: &[File]) -> Answer {
        let (file, debug_file) = (files.first(), files.get(1));
        match (job, file) {
            (Job::Describe, Some(file)) => Answer::Described(describe(file)),
            (Job::Names(query), Some(file)) => Answer::Names(names::look_up(file, debug_file, &query)),
            (Job::PerfMap { addresses }, Some(map)) => Answer::PerfMap(perf_map::look_up(map, &addresses)),
            (Job::FindUnwind { max_bytes, key }, Some(file)) => {
                Answer::Unwind(self.find_unwind(file, max_bytes, key))
            }
            (Job::ReadRows, _) => {
                let source = self.unwind.take().ok_or(StackLossReason::NoInformation);
                Answer::Rows(source.and_then(|source| source.read_rows()))
            }
            #[cfg(feature = "testing")]
            (Job::Misbehave(how), _) => how.misbehave(),
            (_, None) => Answer::Panicked,
        }
    }

    fn find_unwind(
        &mut self,
        file: &File,
        max_bytes: u64,
        key: [u64; 2],
    ) -> Result<FoundUnwind, StackLossReason> {
        self.unwind = None;
        let source = unwind::find_source(file, max_bytes);
        // The caller will ask again with a larger bound, when the file is needed.
        if max_bytes < unwind::MAX_BYTES && matches!(source, Err(StackLossReason::SectionTooLarge)) {
            return Err(StackLossReason::SectionTooLarge);
        }
        let digest = source.as_ref().map(|source| source.digest(key)).map_err(|reason| *reason);
        self.unwind = source.ok();
        Ok(FoundUnwind { digest, python: python::detect_interpreter(file) })
    }
}

fn describe(file: &File) -> Option<FileDescription> {
    Some(FileDescription { layout: elf::layout(file)?, debug_link: names::DebugLink::read(file) })
}
