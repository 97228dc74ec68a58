//! What is remembered of each process: when it started, and what is mapped where.
//!
//! Must not know: symbols, ELF. Reads /proc; opens files through [`Files`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::files::{FileId, Files};
use super::losses::Losses;
use super::maps::{self, Areas, Mounts, Stat};
use super::perf_map::PerfMap;
use super::resolver::Resolver;

/// The dead stay until this many have been seen since.
const MAX_PROCESSES: usize = 8192;
/// Mappings are read again on a miss (dlopen), at most this often; the pause doubles while it does not help.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After exec and dlclose the samples from before still want the mappings from before.
const MAX_GENERATIONS: usize = 4;

/// Perf maps held open; a map costs 20 MB at most while its table is read.
const MAX_PERF_MAPS: usize = 32;

/// What an address lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File {
        id: FileId,
        offset: u64,
    },
    Vdso {
        offset: u64,
    },
    /// Executable memory without a file: code made at run time.
    Anonymous,
    /// No executable mapping, or no such process: the counter's name.
    Nowhere(&'static str),
}

#[derive(Debug, Default)]
struct Generation {
    areas: Areas,
    /// A file for each area that has one.
    files: Vec<Option<FileId>>,
}

#[derive(Debug)]
struct Process {
    start_time: u64,
    /// Newest first.
    generations: Vec<Generation>,
    perf_map: Option<PerfMap>,
    read_at: Instant,
    pause: Duration,
    used: u64,
}

#[derive(Debug, Default)]
pub(super) struct Processes {
    known: HashMap<u32, Process>,
    clock: u64,
}

/// What is needed to open the files of mappings.
pub(super) struct Opening<'a> {
    pub files: &'a mut Files,
    pub resolver: &'a mut Resolver,
    pub losses: &'a mut Losses,
}

impl Processes {
    /// Reads the mappings of a process that is new, has exec'd, or has another start time than the one of that pid.
    pub fn see(&mut self, pid: u32, opening: &mut Opening<'_>) {
        let Ok(Stat { start_time, is_kernel_thread, .. }) = maps::stat(pid) else {
            if !self.known.contains_key(&pid) {
                opening.losses.add("process_gone");
            }
            return;
        };
        self.clock += 1;
        let generation =
            if is_kernel_thread { Some(Generation::default()) } else { read(pid, start_time, opening) };
        let Some(generation) = generation else { return };
        let clock = self.clock;
        match self.known.get_mut(&pid).filter(|process| process.start_time == start_time) {
            Some(process) => process.renew(generation, clock),
            None => {
                let process = Process {
                    start_time,
                    generations: vec![generation],
                    perf_map: None,
                    read_at: Instant::now(),
                    pause: FIRST_PAUSE,
                    used: clock,
                };
                if self.known.insert(pid, process).is_some() {
                    opening.losses.add("pid_reused");
                }
                self.forget_oldest(opening.losses);
            }
        }
        self.hold_perf_map(pid);
    }

    /// Opens the files of a process, and remembers nothing of itself. One that is gone is no loss: nobody asked for it.
    pub fn hold(pid: u32, opening: &mut Opening<'_>) {
        if let Ok(Stat { start_time, is_kernel_thread: false, .. }) = maps::stat(pid) {
            read(pid, start_time, opening);
        }
    }

    /// Marks the files of a process as still wanted, and opens those that were let go of or never seen, if there is room.
    pub fn revisit(pid: u32, opening: &mut Opening<'_>) {
        let Ok(Stat { start_time, is_kernel_thread: false, .. }) = maps::stat(pid) else { return };
        let Ok(areas) = maps::read(pid) else { return };
        let files = areas.areas.iter().filter(|area| area.is_file());
        // Each is touched, whatever became of the one before.
        let lacking = files.filter(|area| !opening.files.touch(area)).count();
        if lacking > 0 && opening.files.has_room() {
            read(pid, start_time, opening);
        }
    }

    /// Reads the mappings again when one of `addresses` is in none of them, as often as the pause allows.
    pub fn notice(&mut self, pid: u32, addresses: &[u64], opening: &mut Opening<'_>) {
        let Some(process) = self.known.get_mut(&pid) else { return };
        let missed = |process: &Process| addresses.iter().any(|&address| process.find(address).is_none());
        if !missed(process) || process.read_at.elapsed() < process.pause {
            return;
        }
        self.clock += 1;
        process.read_at = Instant::now();
        process.pause = (process.pause * 2).min(LONGEST_PAUSE);
        if maps::stat(pid).is_ok_and(|now| now.start_time == process.start_time)
            && let Some(generation) = read(pid, process.start_time, opening)
        {
            process.renew(generation, self.clock);
            if !missed(process) {
                process.pause = FIRST_PAUSE;
            }
            self.hold_perf_map(pid);
        }
    }

    /// Where an address is, by what is remembered.
    pub fn find(&mut self, pid: u32, address: u64) -> Place {
        self.clock += 1;
        let Some(process) = self.known.get_mut(&pid) else { return Place::Nowhere("process_unknown") };
        process.used = self.clock;
        process.find(address).unwrap_or(Place::Nowhere("no_mapping"))
    }

    /// The name of code made at run time, from the process's perf map.
    pub fn name_of_anonymous(&mut self, pid: u32, address: u64) -> Option<String> {
        self.known.get_mut(&pid)?.perf_map.as_mut()?.find(address)
    }

    /// Frees the tables of perf maps.
    pub fn trim(&mut self) {
        self.known.values_mut().filter_map(|process| process.perf_map.as_mut()).for_each(PerfMap::trim);
    }

    /// Opens the perf map of a process that has code made at run time.
    fn hold_perf_map(&mut self, pid: u32) {
        let held = self.known.values().filter(|process| process.perf_map.is_some()).count();
        if held < MAX_PERF_MAPS
            && let Some(process) = self.known.get_mut(&pid)
            && process.perf_map.is_none()
            && process.has_anonymous_code()
        {
            process.perf_map = PerfMap::open(pid);
        }
    }

    fn forget_oldest(&mut self, losses: &mut Losses) {
        if self.known.len() > MAX_PROCESSES
            && let Some(pid) = self.known.iter().min_by_key(|(_, process)| process.used).map(|(&pid, _)| pid)
        {
            self.known.remove(&pid);
            losses.add("processes_forgotten");
        }
    }
}

impl Process {
    fn has_anonymous_code(&self) -> bool {
        let newest = self.generations.first().into_iter().flat_map(|generation| &generation.areas.areas);
        newest.into_iter().any(|area| area.path.is_empty() || area.path.starts_with(b"[anon"))
    }

    fn renew(&mut self, generation: Generation, used: u64) {
        self.used = used;
        self.read_at = Instant::now();
        // The same again is the usual case, and no generation of its own.
        if self.generations.first().is_some_and(|newest| newest.areas.areas == generation.areas.areas) {
            return;
        }
        self.generations.insert(0, generation);
        self.generations.truncate(MAX_GENERATIONS);
    }

    fn find(&self, address: u64) -> Option<Place> {
        self.generations.iter().find_map(|generation| {
            let area = generation.areas.find(address)?;
            let index = generation.areas.areas.partition_point(|other| other.start < area.start);
            let offset = (address - area.start).wrapping_add(area.offset);
            Some(match generation.files.get(index).copied().flatten() {
                Some(id) => Place::File { id, offset },
                None if area.is_vdso() => Place::Vdso { offset: address - area.start },
                None => Place::Anonymous,
            })
        })
    }
}

fn read(pid: u32, start_time: u64, opening: &mut Opening<'_>) -> Option<Generation> {
    let areas = match maps::read(pid) {
        Ok(areas) if !areas.areas.is_empty() => areas,
        _ => {
            opening.losses.add("process_gone");
            return None;
        }
    };
    if areas.truncated {
        opening.losses.add("mappings_truncated");
    }
    let mounts = Mounts::below(pid, &areas.areas);
    let Opening { files, resolver, losses } = opening;
    let ids = areas.areas.iter().map(|area| {
        area.is_file().then(|| files.see(pid, area, mounts.ground(area.device), resolver, losses))
    });
    let ids = ids.collect();
    // It died meanwhile, and another has its pid: then these were the other's mappings, or some of both.
    if maps::stat(pid).is_ok_and(|now| now.start_time != start_time) {
        losses.add("pid_reused");
        return None;
    }
    Some(Generation { areas, files: ids })
}
