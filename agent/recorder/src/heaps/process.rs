//! Finds a JVM's performance counters in a process, and reads them from its memory.
//!
//! They are read from the mapping and not from the file: the container may have removed or replaced that, and the mapping is found
//! under whatever user and folder the JVM made it.

use std::fs;

use podopsy_opener::{FileHandle, OpenError, Target};
use podopsy_stacks::symbolize::maps;
use podopsy_stacks::{Helpers, tenant};

use super::perf_data::{self, PerfData};
use super::settings::{self, HeapSettings};

/// The largest mapping that is read: a JVM's has 32 KiB, or 64 in newer versions.
const READ_MAX: u64 = 128 << 10;

/// What of a runtime a process shows.
#[derive(Debug)]
pub enum Found {
    /// It has counters.
    Counters(CounterMemory),
    /// It has the JVM's library, and no counters: they are switched off, or it has not made them yet.
    WithoutCounters,
    /// It is no JVM, and says how large its heap may be.
    Settings(HeapSettings),
    Nothing,
}

/// Where the counters of a JVM lie. The handle stays with the address space of the moment.
#[derive(Debug)]
pub struct CounterMemory {
    helpers: Helpers,
    target: Target,
    memory: FileHandle,
    address: u64,
    length: u32,
}

/// Looks through the mappings of a process. None: they could not be read.
pub fn find(helpers: &Helpers, pid: u32) -> Option<Found> {
    let tenant = tenant::of_process(pid);
    let (mut counters, mut has_library) = (None, false);
    let visited = maps::visit_all(helpers, tenant, pid, |area| {
        let name = area.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        has_library |= name == b"libjvm.so";
        if is_counters(&area.path) && area.offset == 0 && area.end > area.start {
            counters.get_or_insert((area.start, (area.end - area.start).min(READ_MAX)));
        }
    });
    visited.ok()?;
    let target = Target { tenant, pid, may_hang: false };
    match counters {
        Some((address, length)) => {
            let memory = helpers.openers.open_memory(target).ok()?;
            let length = u32::try_from(length).ok()?;
            Some(Found::Counters(CounterMemory { helpers: helpers.clone(), target, memory, address, length }))
        }
        None if has_library => Some(Found::WithoutCounters),
        None => Some(read_settings(helpers, target).map_or(Found::Nothing, Found::Settings)),
    }
}

fn read_settings(helpers: &Helpers, target: Target) -> Option<HeapSettings> {
    let program = fs::read_link(format!("/proc/{}/exe", target.pid)).ok()?;
    let places = argument_places(&fs::read(format!("/proc/{}/stat", target.pid)).ok()?)?;
    let memory = helpers.openers.open_memory(target).ok()?;
    let mut parts = helpers.openers.read_memory(target, &memory, places.to_vec()).ok()?.into_iter();
    let (arguments, environment) = (parts.next()??, parts.next()??);
    settings::of(program.file_name()?.as_encoded_bytes(), &arguments, &environment)
}

/// Where the arguments and the environment lie: address and length of each (`/proc/PID/stat`, the fields from 48 on).
fn argument_places(stat: &[u8]) -> Option<[(u64, u32); 2]> {
    let mut numbers = maps::fields_after_comm(stat)?
        .skip(48 - 3)
        .map(|field| std::str::from_utf8(field).ok()?.parse::<u64>().ok());
    let mut place = || {
        let (start, end) = (numbers.next()??, numbers.next()??);
        let length = end.checked_sub(start)?.min(settings::BYTES_MAX as u64);
        (start > 0).then_some((start, u32::try_from(length).ok()?))
    };
    Some([place()?, place()?])
}

impl CounterMemory {
    /// None: they are not those of a JVM that has started.
    ///
    /// # Errors
    /// The process has ended, or its memory could not be read in time.
    pub fn read(&self) -> Result<Option<PerfData>, OpenError> {
        let CounterMemory { helpers, target, memory, address, length } = self;
        let parts = helpers.openers.read_memory(*target, memory, vec![(*address, *length)])?;
        let bytes = parts.into_iter().next().flatten().filter(|bytes| !bytes.is_empty());
        Ok(perf_data::parse(&bytes.ok_or(OpenError::OutOfReach)?))
    }
}

/// `…/hsperfdata_USER/PID`, also of a file that was removed.
fn is_counters(path: &[u8]) -> bool {
    let mut parts = path.rsplit(|&byte| byte == b'/');
    let is_number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let pid = parts.next().map(|name| name.strip_suffix(b" (deleted)").unwrap_or(name));
    pid.is_some_and(is_number) && parts.next().is_some_and(|folder| folder.starts_with(b"hsperfdata_"))
}

/// The resident memory of a process in bytes (`/proc/PID/statm`, the second field).
pub fn resident(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    Some(statm.split(' ').nth(1)?.parse::<u64>().ok()? * podopsy_system::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_folder_and_number() {
        for path in [&b"/tmp/hsperfdata_root/1"[..], b"/x/hsperfdata_1000/77 (deleted)"] {
            assert!(is_counters(path), "{}", String::from_utf8_lossy(path));
        }
        for path in [&b"/tmp/hsperfdata_root/1.bak"[..], b"/tmp/hsperfdata/1", b"1", b"", b"/hsperfdata_x/"] {
            assert!(!is_counters(path), "{}", String::from_utf8_lossy(path));
        }
    }

    #[test]
    fn the_arguments_and_the_environment_are_found_behind_any_comm() {
        let fields = (3..=52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("7 (a) 1 (b) {fields}\n");
        assert_eq!(argument_places(stat.as_bytes()), Some([(48, 1), (50, 1)]));
        assert_eq!(argument_places(b"7 (a) S 1 2"), None);
        assert_eq!(argument_places(stat.replace(" 48 ", " 0 ").as_bytes()), None);
        let mut child =
            std::process::Command::new("sleep").arg("60").env("GOMEMLIMIT", "9MiB").spawn().unwrap();
        let target = Target { tenant: 1, pid: child.id(), may_hang: false };
        // Until it has executed the program, it is a copy of this one.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let helpers = Helpers::in_threads();
        let settings = loop {
            let settings = read_settings(&helpers, target);
            if settings.is_some() || std::time::Instant::now() > until {
                break settings;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(settings.unwrap().options, ["GOMEMLIMIT=9MiB"]);
    }

    #[test]
    fn a_process_that_is_no_jvm_shows_nothing() {
        let helpers = Helpers::in_threads();
        assert!(matches!(find(&helpers, std::process::id()), Some(Found::Nothing)));
        assert!(find(&helpers, u32::MAX).is_none());
        assert!(resident(std::process::id()).unwrap() > 1 << 20);
    }

    /// Measures a look and a read: `PODOPSY_JVM=PID cargo test --release -p podopsy-recorder --lib -- --ignored --nocapture
    /// reading_a_jvm_by_hand`.
    #[test]
    #[ignore = "a measurement, as root, of a JVM that runs"]
    fn reading_a_jvm_by_hand() {
        const TIMES: u32 = 1000;
        let pid = std::env::var("PODOPSY_JVM").expect("PODOPSY_JVM").parse().unwrap();
        let helpers = Helpers::in_threads();
        let begin = std::time::Instant::now();
        let Some(Found::Counters(memory)) = find(&helpers, pid) else {
            panic!("{pid} is no JVM with counters")
        };
        println!("a look: {:?}", begin.elapsed());
        let begin = std::time::Instant::now();
        (0..TIMES).for_each(|_| assert!(memory.read().unwrap().is_some()));
        println!("a read: {:?}", begin.elapsed() / TIMES);
    }
}
