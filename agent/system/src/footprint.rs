//! Keeps the program's own file out of the page cache, for a process that shares the memory limit of the pod that it examines.
//!
//! The page cache of a file is charged to the cgroup that reads it first. The kernel reads a program in windows of 128 KiB,
//! so that soon most of its file is charged, while a tenth of it is needed.

use std::ffi::{c_int, c_void};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd as _;

/// How far the kernel may read code ahead. Each window is a mapping, which takes 0.3 KiB of kernel memory.
const CODE_WINDOW: usize = 16 << 10;

/// Drops what was read of the program ahead of time, and asks the kernel to read less from now on.
///
/// Data is read by single pages. Since 6.16 the kernel reads code ahead in spite of `MADV_RANDOM`, but never beyond the end of
/// the mapping (`do_sync_mmap_readahead` in `mm/filemap.c`), so that code is split into small mappings.
pub fn read_own_program_by_pages() {
    let Ok(program) = File::open("/proc/self/exe") else { return };
    for segment in unwritten_segments() {
        advise(&segment.range, libc::MADV_RANDOM);
        if segment.is_code {
            split(&segment.range);
        }
        advise(&segment.range, libc::MADV_DONTNEED);
    }
    // SAFETY: takes a descriptor and numbers (posix_fadvise(2)).
    unsafe { libc::posix_fadvise(program.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Makes every other window a mapping of its own. Mappings are merged unless they differ; these differ in whether a core dump
/// has them, and code is in none by default (core(5)).
fn split(code: &Range<usize>) {
    for start in code.clone().step_by(2 * CODE_WINDOW) {
        advise(&(start..code.end.min(start + CODE_WINDOW)), libc::MADV_DONTDUMP);
    }
}

/// For a segment of [`unwritten_segments`] alone. A kernel that does not know the advice ignores it.
fn advise(range: &Range<usize>, advice: c_int) {
    // SAFETY: a mapping of this program's file without pages of its own: what is dropped is read again from the file, with the
    // same content. The other advices change nothing that the program sees (madvise(2)).
    unsafe { libc::madvise(range.start as *mut c_void, range.len(), advice) };
}

/// What the kernel mapped of the program's file, by pages.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    range: Range<usize>,
    is_code: bool,
}

/// The program's segments that nothing writes to: relocated data is in the others, and must not be dropped.
fn unwritten_segments() -> Vec<Segment> {
    let mut found = Vec::new();
    // SAFETY: the callback gets the vector that outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(add_segments), (&raw mut found).cast()) };
    found
}

/// Called for the program itself first (dl_iterate_phdr(3)): the result ends the iteration.
///
/// # Safety
///
/// Only `dl_iterate_phdr` may call it, with a pointer to a vector of segments.
unsafe extern "C" fn add_segments(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
    // SAFETY: `dl_iterate_phdr` passes its own structure and the pointer that `unwritten_segments` gave it; the headers are
    // part of the program for as long as it runs.
    let (info, found) = unsafe { (&*info, &mut *found.cast::<Vec<Segment>>()) };
    // SAFETY: as above.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let is_unwritten =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    found.extend(headers.iter().filter(is_unwritten).map(|header| Segment {
        range: pages(info.dlpi_addr + header.p_vaddr, header.p_filesz),
        is_code: header.p_flags & libc::PF_X != 0,
    }));
    1
}

/// The pages in which the bytes are.
fn pages(start: u64, length: u64) -> Range<usize> {
    let page = crate::page_size() as usize;
    let end = (start + length) as usize;
    start as usize / page * page..end.next_multiple_of(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mappings of this program's file with these permissions.
    fn mappings(permissions: &str) -> Vec<Range<usize>> {
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let is_ours = |line: &&str| line.ends_with(program.to_str().unwrap()) && line.contains(permissions);
        let address = |text: &str| usize::from_str_radix(text, 16).unwrap();
        let range = |line: &str| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            Some(address(start)..address(end))
        };
        maps.lines().filter(is_ours).filter_map(range).collect()
    }

    #[test]
    fn the_program_runs_on_with_its_code_in_small_mappings() {
        let code = unwritten_segments().into_iter().find(|segment| segment.is_code).unwrap().range;
        read_own_program_by_pages();
        read_own_program_by_pages();
        let windows = mappings("r-xp");
        assert_eq!(windows.iter().map(|window| window.len()).max(), Some(CODE_WINDOW));
        assert_eq!(windows.first().unwrap().start..windows.last().unwrap().end, code);
        let sum: u64 = (0..1000u64).map(|number| number.to_string().len() as u64).sum();
        assert_eq!(sum, 2890);
    }

    #[test]
    fn what_is_written_is_no_segment_to_drop() {
        static mut WRITTEN: u8 = 1;
        let written = (&raw const WRITTEN) as usize;
        let read = "text".as_ptr() as usize;
        let code = unwritten_segments as fn() -> Vec<Segment> as usize;
        let holds =
            |address: usize| unwritten_segments().iter().any(|segment| segment.range.contains(&address));
        assert!(holds(code) && holds(read) && !holds(written));
    }
}
