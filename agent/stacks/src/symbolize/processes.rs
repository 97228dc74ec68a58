//! The processes that were seen: when each started, and what it has mapped where.
//!
//! Must not depend on: symbols, ELF. Reads /proc; opens files through [`FileTable`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::CodeLocation;
use super::files::{FileId, FileTable, MappedFile};
use super::maps::{self, Areas, Mounts, ProcessStat};
use super::perf_map::PerfMap;
use super::resolver::Resolver;
use crate::{StackLossReason, StackLosses};

/// Processes that are remembered, also after they have ended; the least recently used is forgotten first.
const MAX_PROCESSES: usize = 8192;
/// After a miss (dlopen) mappings are read again, at most once per pause. The pause doubles while that does not help.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Samples from before an exec or a dlclose need the mappings from before.
const MAX_GENERATIONS: usize = 4;
/// Perf maps held open. A map takes at most 20 MB while its table is read.
const MAX_PERF_MAPS: usize = 32;

/// The mappings of a process at one time.
#[derive(Debug, Default)]
struct MappingGeneration {
    areas: Areas,
    /// The file of each area, in the order of `areas`.
    files: Vec<Option<FileId>>,
}

#[derive(Debug)]
struct KnownProcess {
    start_time: u64,
    /// Newest first.
    generations: Vec<MappingGeneration>,
    perf_map: Option<PerfMap>,
    read_at: Instant,
    pause: Duration,
    last_used: u64,
}

#[derive(Debug, Default)]
pub(super) struct ProcessTable {
    known: HashMap<u32, KnownProcess>,
    /// Counts uses, to find the least recently used process.
    clock: u64,
}

/// What is needed to open the files of mappings.
pub(super) struct FileOpener<'a> {
    pub files: &'a mut FileTable,
    pub resolver: &'a mut Resolver,
    pub losses: &'a mut StackLosses,
}

impl ProcessTable {
    /// Reads the mappings of a process that is new, has exec'd, or has another start time than the known one of that
    /// pid.
    pub fn add(&mut self, pid: u32, opener: &mut FileOpener<'_>) {
        let Ok(ProcessStat { start_time, is_kernel_thread, .. }) = maps::stat(pid) else {
            if !self.known.contains_key(&pid) {
                opener.losses.add(StackLossReason::MappingsProcessGone, 1);
            }
            return;
        };
        self.clock += 1;
        let generation = if is_kernel_thread {
            Some(MappingGeneration::default())
        } else {
            read_mappings(pid, start_time, opener)
        };
        let Some(generation) = generation else { return };
        let clock = self.clock;
        match self.known.get_mut(&pid).filter(|process| process.start_time == start_time) {
            Some(process) => process.add_generation(generation, clock),
            None => {
                let process = KnownProcess {
                    start_time,
                    generations: vec![generation],
                    perf_map: None,
                    read_at: Instant::now(),
                    pause: FIRST_PAUSE,
                    last_used: clock,
                };
                if self.known.insert(pid, process).is_some() {
                    opener.losses.add(StackLossReason::PidReused, 1);
                }
                self.forget_oldest(opener.losses);
            }
        }
        self.open_perf_map(pid);
    }

    /// Opens the files of a process without remembering its mappings. A process that has ended is not a loss here: none
    /// of its samples asked for the files.
    pub fn hold_files(pid: u32, opener: &mut FileOpener<'_>) {
        if let Ok(ProcessStat { start_time, is_kernel_thread: false, .. }) = maps::stat(pid) {
            read_mappings(pid, start_time, opener);
        }
    }

    /// Marks the files of a process as used. Opens those that were closed or never seen, if there is capacity.
    pub fn refresh_files(pid: u32, opener: &mut FileOpener<'_>) {
        let Ok(ProcessStat { start_time, is_kernel_thread: false, .. }) = maps::stat(pid) else { return };
        let Ok(areas) = maps::read(pid) else { return };
        let files = areas.areas.iter().filter(|area| area.is_file());
        // `count` visits all of them: every file must be touched, also after one that is not open.
        let not_open = files.filter(|area| !opener.files.touch(area)).count();
        if not_open > 0 && opener.files.has_capacity() {
            read_mappings(pid, start_time, opener);
        }
    }

    /// Reads the mappings again if one of `addresses` is in none of them, as often as the pause allows.
    pub fn refresh(&mut self, pid: u32, addresses: &[u64], opener: &mut FileOpener<'_>) {
        let Some(process) = self.known.get_mut(&pid) else { return };
        let is_incomplete =
            |process: &KnownProcess| addresses.iter().any(|&address| process.find(pid, address).is_none());
        if !is_incomplete(process) || process.read_at.elapsed() < process.pause {
            return;
        }
        self.clock += 1;
        process.read_at = Instant::now();
        process.pause = (process.pause * 2).min(LONGEST_PAUSE);
        if maps::stat(pid).is_ok_and(|now| now.start_time == process.start_time)
            && let Some(generation) = read_mappings(pid, process.start_time, opener)
        {
            process.add_generation(generation, self.clock);
            if !is_incomplete(process) {
                process.pause = FIRST_PAUSE;
            }
            self.open_perf_map(pid);
        }
    }

    /// Where an address lies by the known mappings.
    pub fn find(&mut self, pid: u32, address: u64) -> CodeLocation {
        self.clock += 1;
        let Some(process) = self.known.get_mut(&pid) else {
            return CodeLocation::Unmapped { address, reason: StackLossReason::ProcessUnknown };
        };
        process.last_used = self.clock;
        let unmapped = CodeLocation::Unmapped { address, reason: StackLossReason::NoMapping };
        process.find(pid, address).unwrap_or(unmapped)
    }

    /// The name of code made at run time, from the process's perf map.
    pub fn anonymous_name(&mut self, pid: u32, address: u64) -> Option<String> {
        self.known.get_mut(&pid)?.perf_map.as_mut()?.find(address)
    }

    /// Frees the tables of perf maps.
    pub fn trim(&mut self) {
        for perf_map in self.known.values_mut().filter_map(|process| process.perf_map.as_mut()) {
            perf_map.trim();
        }
    }

    /// Opens the perf map of a process that has code made at run time.
    fn open_perf_map(&mut self, pid: u32) {
        let open = self.known.values().filter(|process| process.perf_map.is_some()).count();
        if open < MAX_PERF_MAPS
            && let Some(process) = self.known.get_mut(&pid)
            && process.perf_map.is_none()
            && process.has_anonymous_code()
        {
            process.perf_map = PerfMap::open(pid);
        }
    }

    fn forget_oldest(&mut self, losses: &mut StackLosses) {
        if self.known.len() > MAX_PROCESSES
            && let Some(pid) =
                self.known.iter().min_by_key(|(_, process)| process.last_used).map(|(&pid, _)| pid)
        {
            self.known.remove(&pid);
            losses.add(StackLossReason::ProcessesForgotten, 1);
        }
    }
}

impl KnownProcess {
    fn has_anonymous_code(&self) -> bool {
        let newest = self.generations.first().into_iter().flat_map(|generation| &generation.areas.areas);
        newest.into_iter().any(|area| area.path.is_empty() || area.path.starts_with(b"[anon"))
    }

    fn add_generation(&mut self, generation: MappingGeneration, clock: u64) {
        self.last_used = clock;
        self.read_at = Instant::now();
        // Mostly the mappings have not changed, and no generation is added.
        if self.generations.first().is_some_and(|newest| newest.areas.areas == generation.areas.areas) {
            return;
        }
        self.generations.insert(0, generation);
        self.generations.truncate(MAX_GENERATIONS);
    }

    fn find(&self, pid: u32, address: u64) -> Option<CodeLocation> {
        self.generations.iter().find_map(|generation| {
            let area = generation.areas.find(address)?;
            let index = generation.areas.areas.partition_point(|other| other.start < area.start);
            let offset = (address - area.start).wrapping_add(area.offset);
            Some(match generation.files.get(index).copied().flatten() {
                Some(id) => CodeLocation::File { id, offset },
                None if area.is_vdso() => CodeLocation::Vdso { offset: address - area.start },
                None => CodeLocation::Anonymous { pid, address },
            })
        })
    }
}

/// Reads the mappings of a process and opens their files. Returns none if the process that started at `start_time` has
/// ended.
fn read_mappings(pid: u32, start_time: u64, opener: &mut FileOpener<'_>) -> Option<MappingGeneration> {
    let areas = match maps::read(pid) {
        Ok(areas) if !areas.areas.is_empty() => areas,
        _ => {
            opener.losses.add(StackLossReason::MappingsProcessGone, 1);
            return None;
        }
    };
    if areas.truncated {
        opener.losses.add(StackLossReason::MappingsTruncated, 1);
    }
    let mounts = Mounts::for_areas(pid, &areas.areas);
    let FileOpener { files, resolver, losses } = opener;
    let ids = areas.areas.iter().map(|area| {
        let filesystem = mounts.filesystem(area.device);
        area.is_file().then(|| files.add_mapped(&MappedFile { pid, area, filesystem }, resolver, losses))
    });
    let ids = ids.collect();
    // If another process has the pid by now, the mappings may be its own, wholly or in part.
    if maps::stat(pid).is_ok_and(|now| now.start_time != start_time) {
        losses.add(StackLossReason::PidReused, 1);
        return None;
    }
    Some(MappingGeneration { areas, files: ids })
}
