//! Reads the memory controller's files of one cgroup, on v1 and v2.
//!
//! A missing file (an old kernel, a controller without swap accounting) gives None or 0, never an error, because a
//! cgroup may disappear between two reads. This module must not depend on containers or pods.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::statistics::MemoryStatistics;
use podopsy_model::memory::{MemoryCounters, MemoryUsage, Pressure};
use podopsy_pods::hierarchy::CgroupVersion;
use podopsy_system::pid_namespace;

/// The largest of these files (`memory.stat`) has about 2 KiB on 6.18.
const BUFFER: usize = 16 << 10;

/// Reads files of cgroups into one buffer, with one open and one read for each.
pub struct MemoryFileReader {
    version: CgroupVersion,
    buffer: Vec<u8>,
}

impl MemoryFileReader {
    pub fn new(version: CgroupVersion) -> MemoryFileReader {
        MemoryFileReader { version, buffer: vec![0; BUFFER] }
    }

    /// What is charged to a cgroup and everything below it, without its limit; None: the cgroup is gone.
    pub fn usage(&mut self, dir: &Path) -> Option<MemoryUsage> {
        Some(match self.version {
            CgroupVersion::V1 => {
                let current = self.number(dir, "memory.usage_in_bytes")?;
                let kernel = self.number(dir, "memory.kmem.usage_in_bytes").unwrap_or(0);
                let stat = self.read(dir, "memory.stat").map(stat_v1).unwrap_or_default();
                MemoryUsage { current_bytes: current, kernel_bytes: kernel, ..stat }
            }
            CgroupVersion::V2 => {
                let current = self.number(dir, "memory.current")?;
                let swap = self.number(dir, "memory.swap.current").unwrap_or(0);
                let stat = self.read(dir, "memory.stat").map(stat_v2).unwrap_or_default();
                let pressure = self.read(dir, "memory.pressure").and_then(pressure);
                MemoryUsage { current_bytes: current, swap_bytes: swap, pressure, ..stat }
            }
        })
    }

    /// What is charged to a cgroup and everything below it: the usage, v1's kernel memory within it, and the statistics; None: the
    /// cgroup is gone.
    pub fn statistics(&mut self, dir: &Path) -> Option<(u64, Option<u64>, MemoryStatistics)> {
        let (usage, kernel) = match self.version {
            CgroupVersion::V1 => {
                (self.number(dir, "memory.usage_in_bytes")?, self.number(dir, "memory.kmem.usage_in_bytes"))
            }
            CgroupVersion::V2 => (self.number(dir, "memory.current")?, None),
        };
        Some((usage, kernel, MemoryStatistics::parse(self.read(dir, "memory.stat")?)))
    }

    /// As [`Self::usage`], with the last reading: if the sum has not changed, the last reading is returned. Most
    /// containers of a node are idle, and for these one file is read instead of three or four.
    pub fn usage_since(&mut self, dir: &Path, last: MemoryUsage) -> Option<MemoryUsage> {
        let name = if self.version == CgroupVersion::V1 { "memory.usage_in_bytes" } else { "memory.current" };
        if self.number(dir, name)? == last.current_bytes { Some(last) } else { self.usage(dir) }
    }

    /// The events of the cgroup itself, without those below it; None: the cgroup is gone, or it is the root of v2,
    /// which has no counters.
    pub fn counters(&mut self, dir: &Path) -> Option<MemoryCounters> {
        match self.version {
            CgroupVersion::V1 => {
                let limit_hits = self.number(dir, "memory.failcnt")?;
                let control = self.read(dir, "memory.oom_control")?;
                Some(MemoryCounters {
                    limit_hits,
                    oom_kills: value(control, b"oom_kill").unwrap_or(0),
                    ..MemoryCounters::default()
                })
            }
            CgroupVersion::V2 => {
                let text = self.read(dir, "memory.events.local")?;
                let get = |key: &[u8]| value(text, key).unwrap_or(0);
                Some(MemoryCounters {
                    limit_hits: get(b"max"),
                    high: get(b"high"),
                    ooms: Some(get(b"oom")),
                    oom_kills: get(b"oom_kill"),
                })
            }
        }
    }

    /// `memory.oom.group`; always false on v1, which does not have this file.
    pub fn kills_as_group(&mut self, dir: &Path) -> bool {
        self.version == CgroupVersion::V2 && self.number(dir, "memory.oom.group") == Some(1)
    }

    /// The limit in bytes; None: no limit.
    pub fn limit(&mut self, dir: &Path) -> Option<u64> {
        let name = if self.version == CgroupVersion::V1 { "memory.limit_in_bytes" } else { "memory.max" };
        // "No limit" is the largest multiple of the page size on v1, and "max" on v2.
        self.number(dir, name).filter(|&limit| limit < 1 << 62)
    }

    fn number(&mut self, dir: &Path, name: &str) -> Option<u64> {
        parse_number(self.read(dir, name)?.trim_ascii())
    }

    fn read(&mut self, dir: &Path, name: &str) -> Option<&[u8]> {
        let mut file = File::open(dir.join(name)).ok()?;
        let count = file.read(&mut self.buffer).ok()?;
        Some(&self.buffer[..count])
    }
}

/// The memory of the whole machine, the level above all cgroups: (total, available) bytes of `/proc/meminfo`.
pub fn machine(proc_root: &Path) -> Option<(u64, u64)> {
    let text = std::fs::read(proc_root.join("meminfo")).ok()?;
    let kib = |key: &[u8]| value(&text, key).map(|kib| kib.saturating_mul(1024));
    Some((kib(b"MemTotal:")?, kib(b"MemAvailable:")?))
}

/// `oom_kill` of `/proc/vmstat`: all kills of the OOM killer since boot. None: this kernel does not count them, or this is a
/// pid namespace of its own, where most of them are not to be seen.
pub fn machine_oom_kills(proc_root: &Path) -> Option<u64> {
    if pid_namespace::own_in(proc_root).is_some_and(|own| own != pid_namespace::INITIAL) {
        return None;
    }
    value(&std::fs::read(proc_root.join("vmstat")).ok()?, b"oom_kill")
}

fn stat_v1(text: &[u8]) -> MemoryUsage {
    let get = |key: &[u8]| value(text, key).unwrap_or(0);
    let shmem = get(b"total_shmem");
    MemoryUsage {
        anon_bytes: get(b"total_rss"),
        // The controller's "cache" includes shared memory, which cannot be reclaimed without swap.
        file_bytes: get(b"total_cache").saturating_sub(shmem),
        shmem_bytes: shmem,
        swap_bytes: get(b"total_swap"),
        ..MemoryUsage::default()
    }
}

fn stat_v2(text: &[u8]) -> MemoryUsage {
    let get = |key: &[u8]| value(text, key);
    let shmem = get(b"shmem").unwrap_or(0);
    // `kernel` exists since 5.18; older kernels have only its parts.
    let parts = [&b"kernel_stack"[..], b"pagetables", b"percpu", b"sock", b"slab"];
    let kernel = get(b"kernel").unwrap_or_else(|| parts.iter().filter_map(|part| get(part)).sum());
    MemoryUsage {
        anon_bytes: get(b"anon").unwrap_or(0),
        file_bytes: get(b"file").unwrap_or(0).saturating_sub(shmem),
        shmem_bytes: shmem,
        kernel_bytes: kernel,
        ..MemoryUsage::default()
    }
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same for `full`; `total` is in µs.
fn pressure(text: &[u8]) -> Option<Pressure> {
    let total = |line: &[u8]| {
        let at = line.windows(6).position(|window| window == b"total=")?;
        parse_number(line[at + 6..].trim_ascii())
    };
    let line = |kind: &[u8]| text.split(|&b| b == b'\n').find(|line| line.starts_with(kind));
    Some(Pressure { some_us: total(line(b"some ")?)?, full_us: line(b"full ").and_then(total).unwrap_or(0) })
}

/// The number that follows `key` at the beginning of a line.
fn value(text: &[u8], key: &[u8]) -> Option<u64> {
    text.split(|&b| b == b'\n').find_map(|line| {
        let rest = line.strip_prefix(key)?.strip_prefix(b" ")?;
        parse_number(rest.trim_ascii().split(|&b| b == b' ').next()?)
    })
}

fn parse_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    #[test]
    fn v2_usage_is_split_into_parts_and_v2_counters_are_of_the_cgroup_itself() {
        let dir = dir(&[
            ("memory.current", "1000000\n"),
            ("memory.max", "2000000\n"),
            ("memory.swap.current", "7\n"),
            (
                "memory.stat",
                "anon 600000\nfile 300000\nkernel 90000\nkernel_stack 5\nshmem 100000\nfile_mapped 3\n",
            ),
            (
                "memory.pressure",
                "some avg10=1.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n",
            ),
            ("memory.events.local", "low 0\nhigh 4\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("memory.oom.group", "1\n"),
        ]);
        let mut reader = MemoryFileReader::new(CgroupVersion::V2);
        let usage = reader.usage(dir.path()).unwrap();
        assert_eq!((usage.anon_bytes, usage.file_bytes, usage.shmem_bytes), (600_000, 200_000, 100_000));
        assert_eq!((usage.kernel_bytes, usage.swap_bytes, usage.limit_bytes), (90_000, 7, None));
        assert_eq!(usage.pressure, Some(Pressure { some_us: 1234, full_us: 99 }));
        assert_eq!(reader.limit(dir.path()), Some(2_000_000));
        let counters = reader.counters(dir.path()).unwrap();
        assert_eq!(counters, MemoryCounters { limit_hits: 12, high: 4, ooms: Some(2), oom_kills: 1 });
        assert!(reader.kills_as_group(dir.path()));
    }

    #[test]
    fn if_the_sum_has_not_changed_the_other_files_are_not_read() {
        let dir = dir(&[("memory.current", "1000\n"), ("memory.stat", "anon 600\n")]);
        let mut reader = MemoryFileReader::new(CgroupVersion::V2);
        let idle = MemoryUsage {
            current_bytes: 1000,
            anon_bytes: 500,
            limit_bytes: Some(1),
            ..MemoryUsage::default()
        };
        assert_eq!(reader.usage_since(dir.path(), idle), Some(idle));
        let grown = reader.usage_since(dir.path(), MemoryUsage { current_bytes: 999, ..idle }).unwrap();
        assert_eq!((grown.current_bytes, grown.anon_bytes), (1000, 600));
        assert_eq!(reader.usage_since(Path::new("/nonexistent"), idle), None, "it is gone");
    }

    #[test]
    fn v2_before_5_18_has_kernel_memory_in_parts() {
        assert_eq!(
            stat_v2(b"anon 1\nkernel_stack 10\npagetables 20\nslab 300\nslab_reclaimable 9\n").kernel_bytes,
            330
        );
    }

    #[test]
    fn v1_usage_is_of_the_subtree_and_v1_counters_are_of_the_cgroup_itself() {
        let dir = dir(&[
            ("memory.usage_in_bytes", "67108864\n"),
            ("memory.kmem.usage_in_bytes", "356352\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory.stat",
                "cache 1\nrss 2\nshmem 0\ntotal_cache 4096\ntotal_rss 66748416\ntotal_shmem 96\ntotal_swap 5\n",
            ),
            ("memory.failcnt", "1391\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ]);
        let mut reader = MemoryFileReader::new(CgroupVersion::V1);
        let usage = reader.usage(dir.path()).unwrap();
        assert_eq!((usage.anon_bytes, usage.file_bytes, usage.shmem_bytes), (66_748_416, 4000, 96));
        assert_eq!((usage.kernel_bytes, usage.swap_bytes, usage.limit_bytes), (356_352, 5, None));
        assert_eq!(reader.limit(dir.path()), None);
        let counters = reader.counters(dir.path()).unwrap();
        assert_eq!(counters, MemoryCounters { limit_hits: 1391, oom_kills: 3, ..MemoryCounters::default() });
        assert!(!reader.kills_as_group(dir.path()));
    }

    #[test]
    fn a_cgroup_that_is_gone_gives_none() {
        let mut reader = MemoryFileReader::new(CgroupVersion::V2);
        assert_eq!(reader.usage(Path::new("/nonexistent")), None);
        assert_eq!(reader.counters(Path::new("/nonexistent")), None);
    }

    #[test]
    fn this_machine_has_memory() {
        let (total, available) = machine(Path::new("/proc")).unwrap();
        assert!(total > available && available > 0);
        assert!(machine_oom_kills(Path::new("/proc")).is_some());
    }
}
