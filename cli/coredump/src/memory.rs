//! Reads pages of the stopped process, by process_vm_readv.

use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread::{self, available_parallelism};

use podopsy_system::page_size;
use podopsy_system::sync::lock;

use crate::trace::StoppedProcess;
use crate::{CoreError, check};

/// Bytes that are read or written at a time; between two, Ctrl-C is noticed.
pub const CHUNK: usize = 8 << 20;
/// Threads that copy, if the machine has as many processors.
const COPIERS: usize = 4;
/// Parts of one call (`IOV_MAX` is 1024).
const PARTS: usize = 512;

/// Memory for the copy. Its pages are touched now: the kernel would clear them while the process is stopped.
pub fn reserve(bytes: u64) -> Result<Vec<u8>, CoreError> {
    let length = usize::try_from(bytes).map_err(|_| CoreError::Memory(bytes))?;
    let mut copy = Vec::new();
    copy.try_reserve_exact(length).map_err(|_| CoreError::Memory(bytes))?;
    // Other than zeros, which would come from the kernel untouched.
    copy.resize(length, 0xA5);
    Ok(copy)
}

/// Copies all runs into `copy`, one behind the other. Returns the bytes that could not be read, which are zeros.
pub fn copy(
    stopped: &StoppedProcess,
    runs: &[Range<u64>],
    copy: &mut Vec<u8>,
    cancelled: &AtomicBool,
) -> Result<u64, CoreError> {
    let bytes: u64 = runs.iter().map(|run| run.end - run.start).sum();
    let length = usize::try_from(bytes).map_err(|_| CoreError::Memory(bytes))?;
    let more = length.saturating_sub(copy.len());
    copy.try_reserve_exact(more).map_err(|_| CoreError::Memory(bytes))?;
    copy.resize(length, 0);
    let batches = batches(runs, copy);
    let threads = available_parallelism().map_or(1, NonZero::get).min(COPIERS).min(batches.len());
    let queue = Mutex::new(batches.into_iter());
    let work = || {
        let mut unreadable = 0;
        while let Some((parts, into)) = lock(&queue).next() {
            check(cancelled)?;
            unreadable += read(stopped, &parts, into)?;
        }
        Ok(unreadable)
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or(Err(CoreError::Thread));
        others.into_iter().map(join).fold(own, |sum, one| Ok(sum? + one?))
    })
}

/// Parts of about a chunk, each with its place in the copy.
fn batches<'a>(runs: &[Range<u64>], mut copy: &'a mut [u8]) -> Vec<(Vec<Range<u64>>, &'a mut [u8])> {
    let mut batches = Vec::new();
    let (mut pending, mut bytes) = (Vec::new(), 0);
    for part in runs.iter().flat_map(|run| parts(run.clone())) {
        bytes += length_of(&part);
        pending.push(part);
        if bytes >= CHUNK || pending.len() == PARTS {
            let (now, rest) = copy.split_at_mut(bytes);
            batches.push((std::mem::take(&mut pending), now));
            (copy, bytes) = (rest, 0);
        }
    }
    batches.push((pending, copy));
    batches
}

/// A run in parts of at most a chunk.
fn parts(run: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = run.end;
    run.step_by(CHUNK).map(move |start| start..end.min(start + CHUNK as u64))
}

fn length_of(part: &Range<u64>) -> usize {
    (part.end - part.start) as usize
}

/// Reads parts into `into`, which has their length. A page that cannot be read becomes zeros, and is counted.
fn read(stopped: &StoppedProcess, parts: &[Range<u64>], into: &mut [u8]) -> Result<u64, CoreError> {
    let mut unreadable = 0;
    let mut done = 0;
    while done < into.len() {
        match read_once(stopped.first(), &remaining(parts, done), &mut into[done..]) {
            Ok(read) if read > 0 => done += read,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                return Err(CoreError::Gone(stopped.pid()));
            }
            // The page that is next cannot be read.
            Ok(_) | Err(_) => {
                let page = (page_size() as usize).min(into.len() - done);
                into[done..done + page].fill(0);
                (done, unreadable) = (done + page, unreadable + page as u64);
            }
        }
    }
    Ok(unreadable)
}

/// One call, which ends at the first page that cannot be read.
fn read_once(tid: i32, remote: &[libc::iovec], into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let parts = remote.len() as libc::c_ulong;
    // SAFETY: `local` describes `into`, and the kernel only reads at the addresses of the other process.
    let read = unsafe { libc::process_vm_readv(tid, &local, 1, remote.as_ptr(), parts, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// What is left of the parts after the first `done` bytes.
fn remaining(parts: &[Range<u64>], done: usize) -> Vec<libc::iovec> {
    let mut skip = done;
    let mut remote = Vec::with_capacity(parts.len());
    for part in parts {
        let skipped = skip.min(length_of(part));
        skip -= skipped;
        if skipped < length_of(part) {
            let address = part.start as usize + skipped;
            let iov_base = std::ptr::without_provenance_mut(address);
            remote.push(libc::iovec { iov_base, iov_len: length_of(part) - skipped });
        }
    }
    remote
}

/// Where the writer gets the pages from, in the order of their addresses.
pub trait PageSource {
    /// The next part, which has at most [`CHUNK`] bytes.
    fn next(&mut self, part: Range<u64>) -> Result<&[u8], CoreError>;

    fn write_run(
        &mut self,
        run: Range<u64>,
        write: &mut dyn FnMut(&[u8]) -> Result<(), CoreError>,
    ) -> Result<(), CoreError> {
        parts(run).try_for_each(|part| write(self.next(part)?))
    }
}

/// Pages that were copied.
pub struct Copied<'a> {
    rest: &'a [u8],
    cancelled: &'a AtomicBool,
}

impl<'a> Copied<'a> {
    pub fn new(copy: &'a [u8], cancelled: &'a AtomicBool) -> Copied<'a> {
        Copied { rest: copy, cancelled }
    }
}

impl PageSource for Copied<'_> {
    fn next(&mut self, part: Range<u64>) -> Result<&[u8], CoreError> {
        check(self.cancelled)?;
        let (now, rest) = self.rest.split_at(length_of(&part));
        self.rest = rest;
        Ok(now)
    }
}

/// Pages that are read when they are written, while the process is stopped.
pub struct Live<'a> {
    stopped: &'a StoppedProcess,
    buffer: Vec<u8>,
    cancelled: &'a AtomicBool,
    unreadable: u64,
}

impl<'a> Live<'a> {
    pub fn new(stopped: &'a StoppedProcess, cancelled: &'a AtomicBool) -> Live<'a> {
        Live { stopped, buffer: vec![0; CHUNK], cancelled, unreadable: 0 }
    }

    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

impl PageSource for Live<'_> {
    fn next(&mut self, part: Range<u64>) -> Result<&[u8], CoreError> {
        check(self.cancelled)?;
        let length = length_of(&part);
        self.unreadable += read(self.stopped, &[part], &mut self.buffer[..length])?;
        Ok(&self.buffer[..length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_all_runs_in_order() {
        let page = page_size();
        let many: Vec<Range<u64>> = (0..2000).map(|at| at * 2 * page..(at * 2 + 1) * page).collect();
        let large = std::iter::once(0..3 * CHUNK as u64 + page).collect();
        for runs in [vec![], large, many] {
            let bytes: usize = runs.iter().map(length_of).sum();
            let mut copy = vec![0; bytes];
            let batches = batches(&runs, &mut copy);
            assert!(
                batches.iter().all(|(parts, into)| parts.iter().map(length_of).sum::<usize>() == into.len())
            );
            assert!(batches.iter().all(|(parts, into)| parts.len() <= PARTS && into.len() < 2 * CHUNK));
            assert_eq!(batches.iter().map(|(_, into)| into.len()).sum::<usize>(), bytes);
            assert!(batches.iter().flat_map(|(parts, _)| parts).is_sorted_by(|a, b| a.end <= b.start));
        }
    }

    #[test]
    fn what_is_left_of_the_parts_begins_behind_what_was_read() {
        let left = |done| {
            let remote = remaining(&[0x1000..0x3000, 0x5000..0x6000], done);
            remote.iter().map(|part| (part.iov_base.addr(), part.iov_len)).collect::<Vec<_>>()
        };
        assert_eq!(left(0), [(0x1000, 0x2000), (0x5000, 0x1000)]);
        assert_eq!(left(0x1800), [(0x2800, 0x800), (0x5000, 0x1000)]);
        assert_eq!(left(0x2000), [(0x5000, 0x1000)]);
        assert!(left(0x3000).is_empty());
    }
}
