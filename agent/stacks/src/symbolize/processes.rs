//! The processes that were seen: when each started, and what it has mapped where.
//!
//! Must not depend on: symbols, ELF. Reads /proc; opens files through [`FileTable`].

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podopsy_worker::{FileHandle, Parser, Tenant};

use super::files::{FileHelpers, FileId, FileTable, MappedFile};
use super::maps::{self, Area, Mounts, ProcessStat};
use super::perf_map;
use super::{CodeLocation, ProgramImage};
use crate::{StackLossReason, StackLosses, tenant};

/// Processes that are remembered, also after they have ended; the least recently used is forgotten first.
const MAX_PROCESSES: usize = 8192;
/// Mappings of all processes together, of 40 bytes each. A container can give a process thousands.
const MAX_RANGES: usize = 256 << 10;
/// After a miss (dlopen) mappings are read again, at most once per pause. The pause doubles while that does not help.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Samples from before an exec or a dlclose need the mappings from before.
const MAX_GENERATIONS: usize = 4;
/// Perf maps held open.
const MAX_PERF_MAPS: usize = 256;
/// Names of code made at run time that are kept of a process, until [`ProcessTable::trim`].
const MAX_ANONYMOUS_NAMES: usize = 16_384;

/// An executable mapping, without its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MappedRange {
    start: u64,
    end: u64,
    /// Offset in the file.
    offset: u64,
    target: RangeTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RangeTarget {
    File(FileId),
    /// Anonymous memory in place of the file's code ([`Area::in_place_of`]).
    InPlaceOf(FileId),
    Vdso,
    Anonymous,
}

/// A frame whose place is found by the mappings of its process.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnplacedFrame {
    pub address: u64,
    /// The kernel side found anonymous memory there.
    pub is_anonymous: bool,
}

/// The mappings of a process at one time.
#[derive(Debug, Default, PartialEq, Eq)]
struct MappingGeneration {
    /// Which of the process's programs they are of ([`ProgramImage`]).
    image: ProgramImage,
    /// Ascending.
    ranges: Box<[MappedRange]>,
}

#[derive(Debug)]
struct KnownProcess {
    start_time: u64,
    tenant: Tenant,
    /// Newest first.
    generations: Vec<MappingGeneration>,
    perf_map: Option<FileHandle>,
    /// Names that the perf map has for addresses, or has not.
    anonymous_names: HashMap<u64, Option<Arc<str>>>,
    read_at: Instant,
    pause: Duration,
    last_used: u64,
}

#[derive(Debug, Default)]
pub(super) struct ProcessTable {
    known: HashMap<u32, KnownProcess>,
    /// The files of processes whose mappings are not remembered ([`ProcessTable::hold_files`]), by pid.
    held: HashMap<u32, HeldFiles>,
    /// Counts uses, to find the least recently used process.
    clock: u64,
}

/// The files that a process had mapped, the last time that was looked at.
#[derive(Debug)]
struct HeldFiles {
    start_time: u64,
    files: Box<[FileId]>,
    last_used: u64,
}

/// What is needed to open the files of mappings.
pub(super) struct FileOpener<'a> {
    pub files: &'a mut FileTable,
    pub helpers: FileHelpers<'a>,
    pub losses: &'a mut StackLosses,
}

impl ProcessTable {
    /// Reads the mappings of a process that is new, has exec'd, or has another start time than the known one of that
    /// pid.
    pub fn add(&mut self, pid: u32, opener: &mut FileOpener<'_>) {
        let Ok(stat) = maps::stat(pid) else {
            if !self.known.contains_key(&pid) {
                opener.losses.add(StackLossReason::MappingsProcessGone, 1);
            }
            return;
        };
        self.clock += 1;
        let (tenant, start_time) = (tenant::of_process(pid), stat.start_time);
        let generation = if stat.is_kernel_thread {
            Some(MappingGeneration::default())
        } else {
            read_mappings(pid, &stat, tenant, opener)
        };
        let Some(generation) = generation else { return };
        let clock = self.clock;
        match self.known.get_mut(&pid).filter(|process| process.start_time == start_time) {
            Some(process) => process.add_generation(generation, clock),
            None => {
                let process = KnownProcess {
                    start_time,
                    tenant,
                    generations: vec![generation],
                    perf_map: None,
                    anonymous_names: HashMap::new(),
                    read_at: Instant::now(),
                    pause: FIRST_PAUSE,
                    last_used: clock,
                };
                if self.known.insert(pid, process).is_some() {
                    opener.losses.add(StackLossReason::PidReused, 1);
                }
            }
        }
        self.forget_oldest(pid, opener.losses);
        self.open_perf_map(pid, opener);
    }

    /// Opens the files of a process without remembering its mappings, only which files they are. A process that has ended is
    /// not a loss here: none of its samples asked for the files.
    pub fn hold_files(&mut self, pid: u32, opener: &mut FileOpener<'_>) {
        let Some(stat) = maps::stat(pid).ok().filter(|stat| !stat.is_kernel_thread) else { return };
        let (tenant, start_time) = (tenant::of_process(pid), stat.start_time);
        let Some(generation) = read_mappings(pid, &stat, tenant, opener) else { return };
        self.clock += 1;
        let files = files_of(&generation).collect::<BTreeSet<_>>().into_iter().collect();
        self.held.insert(pid, HeldFiles { start_time, files, last_used: self.clock });
        if self.held.len() > MAX_PROCESSES
            && let Some(pid) = self.held.iter().min_by_key(|(_, held)| held.last_used).map(|(&pid, _)| pid)
        {
            self.held.remove(&pid);
            opener.losses.add(StackLossReason::ProcessesForgotten, 1);
        }
    }

    /// Marks the files of a process as used. Opens those that were closed or never seen, if there is capacity.
    pub fn refresh_files(&mut self, pid: u32, opener: &mut FileOpener<'_>) {
        let Ok(ProcessStat { start_time, is_kernel_thread: false, .. }) = maps::stat(pid) else { return };
        let FileHelpers { openers, parser } = &opener.helpers;
        let Ok(areas) = maps::read_in_budget(openers, parser, tenant::of_process(pid), pid) else { return };
        let files = areas.areas.iter().filter(|area| area.is_file());
        // `count` visits all of them: every file must be touched, also after one that is not open.
        let not_open = files.filter(|area| !opener.files.touch(area)).count();
        let is_held = self.held.get(&pid).is_some_and(|held| held.start_time == start_time);
        if !is_held || (not_open > 0 && opener.files.has_capacity()) {
            self.hold_files(pid, opener);
        }
    }

    /// The files that were opened for a process, the newest mappings first.
    pub fn held_files(&self, pid: u32) -> Vec<FileId> {
        let known = self.known.get(&pid).into_iter().flat_map(|process| &process.generations);
        let held = self.held.get(&pid).into_iter().flat_map(|held| held.files.iter().copied());
        known.flat_map(files_of).chain(held).collect()
    }

    /// Reads the mappings again if one of `frames` does not agree with them, as often as the pause allows.
    pub fn refresh(
        &mut self,
        pid: u32,
        image: ProgramImage,
        frames: &[UnplacedFrame],
        opener: &mut FileOpener<'_>,
    ) {
        let Some(process) = self.known.get_mut(&pid) else { return };
        let is_incomplete =
            |process: &KnownProcess| frames.iter().any(|&frame| !process.knows_frame(image, frame));
        if !is_incomplete(process) || process.read_at.elapsed() < process.pause {
            return;
        }
        self.clock += 1;
        process.read_at = Instant::now();
        process.pause = (process.pause * 2).min(LONGEST_PAUSE);
        if let Some(stat) = maps::stat(pid).ok().filter(|now| now.start_time == process.start_time)
            && let Some(generation) = read_mappings(pid, &stat, process.tenant, opener)
        {
            process.add_generation(generation, self.clock);
            if !is_incomplete(process) {
                process.pause = FIRST_PAUSE;
            }
            self.open_perf_map(pid, opener);
            self.forget_oldest(pid, opener.losses);
        }
    }

    /// Where an address of a program lies by the known mappings of that program.
    pub fn find(&mut self, (pid, image): (u32, ProgramImage), address: u64) -> CodeLocation {
        self.clock += 1;
        let Some(process) = self.known.get_mut(&pid) else {
            return CodeLocation::Unmapped { address, reason: StackLossReason::ProcessUnknown };
        };
        process.last_used = self.clock;
        let reason = match process.knows(image) {
            true => StackLossReason::NoMapping,
            false => StackLossReason::ProgramReplaced,
        };
        process.find((pid, image), address).unwrap_or(CodeLocation::Unmapped { address, reason })
    }

    /// Where anonymous memory lies in a file, if it is in place of the file's code.
    pub fn find_in_place(&mut self, (pid, image): (u32, ProgramImage), address: u64) -> Option<CodeLocation> {
        let process = self.known.get(&pid)?;
        let is_in_place = matches!(process.range_of(image, address)?.target, RangeTarget::InPlaceOf(_));
        is_in_place.then(|| self.find((pid, image), address))
    }

    /// The name of code made at run time, from the process's perf map. The map is that of the process's last program.
    pub fn anonymous_name(
        &mut self,
        (pid, image): (u32, ProgramImage),
        address: u64,
        parser: &mut Parser,
        losses: &mut StackLosses,
    ) -> Option<Arc<str>> {
        if !self.is_last_program(pid, image) {
            return None;
        }
        self.look_up_anonymous(pid, &BTreeSet::from([address]), parser, losses);
        self.known.get(&pid)?.anonymous_names.get(&address)?.clone()
    }

    /// Whether a program is the last one that the process is known to have started.
    pub fn is_last_program(&self, pid: u32, image: ProgramImage) -> bool {
        let last = self.known.get(&pid).and_then(|process| process.generations.first());
        last.is_some_and(|last| last.image.may_be(image))
    }

    /// Looks up many addresses in one reading of the perf map, for [`ProcessTable::anonymous_name`].
    pub fn look_up_anonymous(
        &mut self,
        pid: u32,
        addresses: &BTreeSet<u64>,
        parser: &mut Parser,
        losses: &mut StackLosses,
    ) {
        let Some(process) = self.known.get_mut(&pid) else { return };
        let Some(map) = &process.perf_map else { return };
        let is_new = |address: &&u64| !process.anonymous_names.contains_key(*address);
        let new: Vec<u64> = addresses.iter().filter(is_new).copied().take(MAX_ANONYMOUS_NAMES).collect();
        if new.is_empty() {
            return;
        }
        if process.anonymous_names.len() + new.len() > MAX_ANONYMOUS_NAMES {
            process.anonymous_names.clear();
        }
        let names = perf_map::names(process.tenant, map, &new, parser, losses);
        process.anonymous_names.extend(new.into_iter().zip(names));
    }

    /// Frees the names of code made at run time: the next profile reads newer ones.
    pub fn trim(&mut self) {
        for process in self.known.values_mut() {
            process.anonymous_names = HashMap::new();
        }
    }

    /// Opens the perf map of a process that has code made at run time.
    fn open_perf_map(&mut self, pid: u32, opener: &mut FileOpener<'_>) {
        let is_needed = |process: &KnownProcess| process.perf_map.is_none() && process.has_anonymous_code();
        if !self.known.get(&pid).is_some_and(is_needed) {
            return;
        }
        let open = self.known.iter().filter(|(_, process)| process.perf_map.is_some());
        if open.clone().count() >= MAX_PERF_MAPS {
            let oldest = open.min_by_key(|(_, process)| process.last_used).map(|(&pid, _)| pid);
            if let Some(process) = oldest.and_then(|oldest| self.known.get_mut(&oldest)) {
                process.perf_map = None;
            }
        }
        if let Some(process) = self.known.get_mut(&pid) {
            let openers = opener.helpers.openers;
            process.perf_map = perf_map::open(openers, process.tenant, pid, opener.losses);
        }
    }

    /// Forgets the least recently used processes, but not `newest`, until the rest is within bounds.
    fn forget_oldest(&mut self, newest: u32, losses: &mut StackLosses) {
        let mut ranges: usize = self.known.values().map(KnownProcess::ranges).sum();
        while self.known.len() > MAX_PROCESSES || ranges > MAX_RANGES {
            let others = self.known.iter().filter(|(pid, _)| **pid != newest);
            let Some((&pid, _)) = others.min_by_key(|(_, process)| process.last_used) else { return };
            ranges -= self.known.remove(&pid).map_or(0, |process| process.ranges());
            losses.add(StackLossReason::ProcessesForgotten, 1);
        }
    }
}

impl KnownProcess {
    fn ranges(&self) -> usize {
        self.generations.iter().map(|generation| generation.ranges.len()).sum()
    }

    fn has_anonymous_code(&self) -> bool {
        let newest = self.generations.first().into_iter().flat_map(|generation| &generation.ranges);
        newest.into_iter().any(|range| range.target == RangeTarget::Anonymous)
    }

    fn add_generation(&mut self, generation: MappingGeneration, clock: u64) {
        self.last_used = clock;
        self.read_at = Instant::now();
        // Mostly the mappings have not changed, and no generation is added.
        if self.generations.first() == Some(&generation) {
            return;
        }
        // Another program: it writes a perf map of its own.
        if self.generations.first().is_some_and(|last| !last.image.may_be(generation.image)) {
            self.perf_map = None;
            self.anonymous_names = HashMap::new();
        }
        self.generations.insert(0, generation);
        self.generations.truncate(MAX_GENERATIONS);
    }

    /// Whether mappings of a program are known.
    fn knows(&self, image: ProgramImage) -> bool {
        self.generations.iter().any(|generation| generation.image.may_be(image))
    }

    /// The newest mapping of an address in a program.
    fn range_of(&self, image: ProgramImage, address: u64) -> Option<&MappedRange> {
        let generations = self.generations.iter().filter(|generation| generation.image.may_be(image));
        generations.map(|generation| &generation.ranges).find_map(|ranges| {
            let after = ranges.partition_point(|range| range.start <= address);
            ranges[..after].last().filter(|range| address < range.end)
        })
    }

    fn find(&self, (pid, image): (u32, ProgramImage), address: u64) -> Option<CodeLocation> {
        let range = self.range_of(image, address)?;
        Some(match range.target {
            RangeTarget::File(id) | RangeTarget::InPlaceOf(id) => {
                CodeLocation::File { id, offset: (address - range.start).wrapping_add(range.offset) }
            }
            RangeTarget::Vdso => CodeLocation::Vdso { offset: address - range.start },
            RangeTarget::Anonymous => CodeLocation::Anonymous { pid, image, address },
        })
    }

    /// Whether a frame agrees with the mappings that are known.
    fn knows_frame(&self, image: ProgramImage, frame: UnplacedFrame) -> bool {
        let range = self.range_of(image, frame.address);
        range.is_some_and(|range| !(frame.is_anonymous && matches!(range.target, RangeTarget::File(_))))
    }
}

fn files_of(ranges: &MappingGeneration) -> impl Iterator<Item = FileId> {
    ranges.ranges.iter().filter_map(|range| match range.target {
        RangeTarget::File(id) | RangeTarget::InPlaceOf(id) => Some(id),
        _ => None,
    })
}

/// Reads the mappings of a process and opens their files, in the CPU time of its container. Returns none if the process
/// with this `stat` has ended or started another program, or if that time is used up.
fn read_mappings(
    pid: u32,
    stat: &ProcessStat,
    tenant: Tenant,
    opener: &mut FileOpener<'_>,
) -> Option<MappingGeneration> {
    let FileHelpers { openers, parser } = &opener.helpers;
    let areas = match maps::read_in_budget(openers, parser, tenant, pid) {
        Ok(areas) if !areas.areas.is_empty() => areas,
        read => {
            opener.losses.add(read.err().unwrap_or(StackLossReason::MappingsProcessGone), 1);
            return None;
        }
    };
    if areas.truncated {
        opener.losses.add(StackLossReason::MappingsTruncated, 1);
    }
    let mounts = Mounts::for_areas(pid, &areas.areas);
    let FileOpener { files, helpers, losses } = opener;
    let ranges = areas.areas.iter().map(|area: &Area| MappedRange {
        start: area.start,
        end: area.end,
        offset: area.offset,
        target: if area.is_file() {
            let filesystem = mounts.filesystem(area.device);
            let id = files.add_mapped(&MappedFile { pid, tenant, area, filesystem }, helpers, losses);
            if area.in_place_of.is_some() { RangeTarget::InPlaceOf(id) } else { RangeTarget::File(id) }
        } else if area.is_vdso() {
            RangeTarget::Vdso
        } else {
            RangeTarget::Anonymous
        },
    });
    let ranges = ranges.collect();
    let image = ProgramImage(stat.start_stack);
    let Ok(now) = maps::stat(pid) else { return Some(MappingGeneration { image, ranges }) };
    // If another process has the pid by now, the mappings may be its own, wholly or in part.
    if now.start_time != stat.start_time {
        losses.add(StackLossReason::PidReused, 1);
        return None;
    }
    if !ProgramImage(now.start_stack).may_be(image) {
        losses.add(StackLossReason::ProgramReplaced, 1);
        return None;
    }
    Some(MappingGeneration { image, ranges })
}
