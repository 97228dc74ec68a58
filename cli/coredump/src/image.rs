//! Which pages of which mappings go into the core: `/proc/PID/maps` and `/proc/PID/pagemap`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use podopsy_system::page_size;

use crate::layout::{self, Layout};
use crate::{CoreError, CoreOptions, read_error};

/// Bits of an entry in `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;
/// Entries that are read at a time.
const ENTRIES: usize = 64 << 10;
/// Untouched pages of anonymous memory between two others that are written as zeros, rather than as a segment of their own.
const GAP_PAGES: u64 = 16;

/// A mapping of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub is_readable: bool,
    pub is_writable: bool,
    pub is_executable: bool,
    pub offset: u64,
    /// As in maps, with its escapes; empty for anonymous memory.
    pub path: Vec<u8>,
}

/// A part of a mapping: either its memory is in the core, or nothing of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub mapping: usize,
    pub start: u64,
    pub end: u64,
    pub has_content: bool,
    /// Indices of the runs in it; the rest is zeros.
    pub runs: Range<usize>,
}

#[derive(Debug, Default)]
pub struct Image {
    pub mappings: Vec<Mapping>,
    pub segments: Vec<Segment>,
    /// Runs of pages that are read, by address.
    pub runs: Vec<Range<u64>>,
    /// Runs that follow a page in swap: what is between is not zeros.
    pub behind_swap: HashSet<usize>,
    pub swapped: u64,
    pub excluded: u64,
}

impl Image {
    /// Reads the mappings through a thread that is alive: the first one may have ended.
    pub fn read(pid: u32, tid: i32, layout: &Layout, options: CoreOptions) -> Result<Image, CoreError> {
        let maps = fs::read(format!("/proc/{tid}/maps")).map_err(read_error(pid, "the mappings"))?;
        let error = read_error(pid, "the page table");
        let pagemap = File::open(format!("/proc/{tid}/pagemap")).map_err(&error)?;
        let mut image = Image { mappings: mappings(&maps), ..Image::default() };
        if image.mappings.is_empty() {
            return Err(CoreError::Gone(pid));
        }
        for index in 0..image.mappings.len() {
            image.add(index, layout, options, &pagemap).map_err(&error)?;
        }
        Ok(image)
    }

    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Adds the segments of a mapping.
    fn add(&mut self, index: usize, layout: &Layout, options: CoreOptions, pagemap: &File) -> io::Result<()> {
        let mapping = &self.mappings[index];
        let range = (mapping.start, mapping.end);
        let first = self.runs.len();
        // In a mapping of a file or of shared memory, a page that is not present is not known to be zeros.
        let is_anonymous = mapping.path.is_empty() || mapping.path.starts_with(b"[");
        let gap = if is_anonymous { GAP_PAGES * page_size() } else { 0 };
        if mapping.is_device() || layout.is_excluded(range) {
            // The kernel's own data (vvar) is in every process.
            let is_kernels = mapping.path.starts_with(b"[v");
            self.excluded += if is_kernels { 0 } else { range.1 - range.0 };
        } else if mapping.path == b"[vdso]" {
            // The kernel's own page, which gdb has no other source for.
            self.runs.push(range.0..range.1);
        } else if mapping.is_readable && !layout.is_reserve(range) {
            let is_in_file =
                if options.exclude_file_backed && mapping.is_file() { FILE_OR_SHARED } else { 0 };
            self.scan(range, pagemap, |entry| entry & PRESENT != 0 && entry & is_in_file == 0)?;
        }
        self.close(index, first, gap);
        Ok(())
    }

    /// Adds the runs of wanted pages.
    fn scan(&mut self, range: (u64, u64), pagemap: &File, is_wanted: impl Fn(u64) -> bool) -> io::Result<()> {
        let page = page_size();
        let first = self.runs.len();
        let mut entries = vec![0; ((range.1 - range.0) / page).min(ENTRIES as u64) as usize * 8];
        let (mut address, mut is_behind_swap) = (range.0, false);
        while address < range.1 {
            let count = entries.len().min(((range.1 - address) / page) as usize * 8);
            let read = pagemap.read_at(&mut entries[..count], address / page * 8)?;
            if read < 8 {
                return Ok(());
            }
            for entry in entries[..read].chunks_exact(8) {
                let entry = u64::from_ne_bytes(entry.try_into().unwrap_or_default());
                if entry & SWAPPED != 0 {
                    self.swapped += page;
                    is_behind_swap = true;
                }
                if is_wanted(entry) {
                    match self.runs[first..].last_mut().filter(|run| run.end == address) {
                        Some(run) => run.end += page,
                        None => {
                            if std::mem::take(&mut is_behind_swap) {
                                self.behind_swap.insert(self.runs.len());
                            }
                            self.runs.push(address..address + page);
                        }
                    }
                }
                address += page;
            }
        }
        Ok(())
    }

    /// Makes the segments of a mapping: runs with gaps of at most `gap` bytes are one.
    fn close(&mut self, mapping: usize, first: usize, gap: u64) {
        let Mapping { mut start, end, .. } = self.mappings[mapping];
        let mut segment = |start, end, runs: Range<usize>| {
            if start < end {
                self.segments.push(Segment { mapping, start, end, has_content: !runs.is_empty(), runs });
            }
        };
        let mut begin = first;
        while begin < self.runs.len() {
            let joins = |at: &usize| {
                self.runs[*at].start - self.runs[*at - 1].end <= gap && !self.behind_swap.contains(at)
            };
            let count = (begin + 1..self.runs.len()).take_while(joins).count();
            let last = begin + count;
            segment(start, self.runs[begin].start, 0..0);
            segment(self.runs[begin].start, self.runs[last].end, begin..last + 1);
            start = self.runs[last].end;
            begin = last + 1;
        }
        segment(start, end, 0..0);
    }
}

impl Mapping {
    /// Whether a file has its content, unless the process has changed it. Shared memory has a name, and no file.
    pub fn is_file(&self) -> bool {
        let memory: [&[u8]; 4] = [b"/dev/shm/", b"/memfd:", b"/SYSV", b"/dev/zero"];
        self.path.starts_with(b"/") && !memory.iter().any(|prefix| self.path.starts_with(prefix))
    }

    fn is_device(&self) -> bool {
        let is_kernel = [&b"[vvar]"[..], b"[vvar_vclock]", b"[vsyscall]"].contains(&&self.path[..]);
        is_kernel || (self.is_file() && self.path.starts_with(b"/dev/"))
    }
}

fn mappings(maps: &[u8]) -> Vec<Mapping> {
    maps.split(|byte| *byte == b'\n').filter_map(mapping).collect()
}

/// `start-end perms offset device inode      path`
fn mapping(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let (start, end) = layout::range(field()?)?;
    let flags = field()?.as_bytes();
    let offset = u64::from_str_radix(field()?, 16).ok()?;
    let (_device, _inode) = (field()?, field()?);
    let path = fields.next().unwrap_or_default().trim_ascii_start().to_vec();
    let has = |at: usize, flag: u8| flags.get(at) == Some(&flag);
    Some(Mapping {
        start,
        end,
        is_readable: has(0, b'r'),
        is_writable: has(1, b'w'),
        is_executable: has(2, b'x'),
        offset,
        path,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn image(runs: &[Range<u64>], gap: u64) -> Vec<(u64, u64, bool)> {
        let mapping = mapping(b"1000-9000 rw-p 00000000 00:00 0 ").unwrap();
        let mut image = Image { mappings: vec![mapping], runs: runs.to_vec(), ..Image::default() };
        image.close(0, 0, gap);
        image.segments.iter().map(|segment| (segment.start, segment.end, segment.has_content)).collect()
    }

    #[test]
    fn small_gaps_are_joined_and_everything_is_covered() {
        assert_eq!(image(&[], 0), [(0x1000, 0x9000, false)]);
        let runs = [0x2000..0x3000, 0x4000..0x5000];
        assert_eq!(
            image(&runs, 0x1000),
            [(0x1000, 0x2000, false), (0x2000, 0x5000, true), (0x5000, 0x9000, false)]
        );
        let apart = image(&runs, 0);
        assert_eq!(apart.len(), 5);
        assert_eq!(apart[2], (0x3000, 0x4000, false));
        assert_eq!(image(std::slice::from_ref(&(0x1000..0x9000)), 0), [(0x1000, 0x9000, true)]);
    }

    #[test]
    fn pages_in_swap_are_missing_and_not_zeros() {
        let page = page_size();
        let mut pagemap = tempfile::tempfile().unwrap();
        for entry in [PRESENT, SWAPPED, PRESENT, 0, PRESENT] {
            pagemap.write_all(&entry.to_ne_bytes()).unwrap();
        }
        let line = format!("0-{:x} rw-p 00000000 00:00 0 ", 5 * page);
        let mut image = Image { mappings: vec![mapping(line.as_bytes()).unwrap()], ..Image::default() };
        image.add(0, &Layout::default(), CoreOptions::default(), &pagemap).unwrap();
        let segments: Vec<_> =
            image.segments.iter().map(|s| (s.start / page, s.end / page, s.has_content)).collect();
        assert_eq!(segments, [(0, 1, true), (1, 2, false), (2, 5, true)]);
        assert_eq!((image.swapped, image.bytes()), (page, 3 * page));
    }

    #[test]
    fn mappings_have_their_paths_also_with_spaces_and_invalid_text() {
        let all = mappings(b"7f00-8000 r-xp 00001000 08:01 42    /a b\xff (deleted)\n9000-a000 rw-p 00000000 00:00 0 \nnonsense\n");
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].path.as_slice(), all[0].offset), (&b"/a b\xff (deleted)"[..], 0x1000));
        assert!(all[0].is_executable && all[0].is_file() && all[1].path.is_empty());
        let named =
            |path: &str| mapping(format!("1000-2000 rw-s 00000000 00:00 0 {path}").as_bytes()).unwrap();
        assert!(!named("/memfd:x (deleted)").is_file() && !named("/dev/shm/x").is_device());
        assert!(named("/dev/nvidia0").is_device() && named("[vvar]").is_device());
    }

    #[test]
    fn own_memory_is_found_page_by_page() {
        let mut touched = vec![0_u8; 64 * page_size() as usize];
        let at = touched.as_ptr() as u64;
        touched[40 * page_size() as usize] = 1;
        let pid = std::process::id();
        let image = Image::read(pid, pid as i32, &Layout::default(), CoreOptions::default()).unwrap();
        let page = (at + 40 * page_size()) / page_size() * page_size();
        assert!(image.runs.iter().any(|run| run.contains(&page)));
        let without = CoreOptions { exclude_file_backed: true, ..CoreOptions::default() };
        let smaller = Image::read(pid, pid as i32, &Layout::default(), without).unwrap();
        assert!(smaller.bytes() < image.bytes());
        assert!(image.runs.is_sorted_by(|a, b| a.end <= b.start));
        drop(touched);
    }
}
