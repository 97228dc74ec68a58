//! What was charged to the cgroup whose limit was hit, by kind: from the OOM killer's statistics in the kernel's log, else from
//! the cgroup's own, read right after the kill.

use std::path::Path;

use super::limit::LevelReading;
use crate::kernel_log::visit::Visit;
use crate::memory::files::MemoryFileReader;
use crate::memory::statistics::MemoryStatistics;
use podopsy_model::charged::{ChargedMemory, KernelMemory, KernelParts};
use podopsy_model::incident::{Evidence, LimitHit};
use podopsy_model::text;

/// By how much the kinds may exceed the usage: each CPU has pages that are charged and not counted, or the reverse.
const TOLERANCE: f64 = 0.1;
const TOLERANCE_BYTES: u64 = 4 << 20;

/// None: the limit is no cgroup's, or neither source has the statistics.
pub fn of(visit: Option<&Visit>, limit: &LimitHit, levels: &[LevelReading]) -> Option<ChargedMemory> {
    let path = limit.path.as_ref()?;
    visit.and_then(|visit| from_log(visit, path)).or_else(|| {
        let level = levels.iter().find(|level| level.state.path == *path)?;
        level.charged.clone()
    })
}

/// Reads a cgroup's statistics; None: it is gone.
pub fn read(reader: &mut MemoryFileReader, dir: &Path) -> Option<ChargedMemory> {
    let (usage, kernel, statistics) = reader.statistics(dir)?;
    by_kind("memory.stat", usage, kernel, &statistics)
}

/// `path`: of the cgroup whose limit was hit, as it is shown. The log's statistics must be of that cgroup.
fn from_log(visit: &Visit, path: &str) -> Option<ChargedMemory> {
    let statistics = visit.statistics.as_ref().filter(|found| text::escape_bytes(&found.path) == path)?;
    let kernel = visit.kernel_memory.map(|kernel| kernel.usage_bytes);
    by_kind("kernel log", visit.memory?.usage_bytes, kernel, &statistics.values)
}

/// `v1_kernel`: the kernel memory as v1 counts it.
fn by_kind(
    source: &str,
    usage_bytes: u64,
    v1_kernel: Option<u64>,
    statistics: &MemoryStatistics,
) -> Option<ChargedMemory> {
    let user = statistics.user()?;
    let sock_bytes = statistics.get("sock");
    let known = [user.anon_bytes, user.file_bytes, user.shmem_bytes, sock_bytes.unwrap_or(0)];
    let known = known.into_iter().fold(0, u64::saturating_add);
    let is_v1 = statistics.get("total_rss").is_some();
    let kernel = if is_v1 {
        v1_kernel.map(|bytes| KernelMemory { bytes, how: Evidence::Observed, parts: None })
    } else {
        let (bytes, how) = match statistics.get("kernel") {
            Some(bytes) => (bytes, Evidence::Observed),
            None => (usage_bytes.saturating_sub(known), Evidence::Inferred),
        };
        Some(KernelMemory { bytes, how, parts: Some(parts(statistics)) })
    };
    let sum = known.saturating_add(kernel.as_ref().map_or(0, |kernel| kernel.bytes));
    let most = (usage_bytes as f64 * (1.0 + TOLERANCE)) as u64;
    // Otherwise the two are not of one moment, or not of one cgroup.
    (sum <= most.saturating_add(TOLERANCE_BYTES)).then(|| ChargedMemory {
        source: source.into(),
        usage_bytes,
        anon_bytes: user.anon_bytes,
        file_bytes: user.file_bytes,
        shmem_bytes: user.shmem_bytes,
        kernel,
        sock_bytes,
        unheld_shmem_bytes: user.mapped_bytes.map(|mapped| user.shmem_bytes.saturating_sub(mapped)),
    })
}

fn parts(statistics: &MemoryStatistics) -> KernelParts {
    let get = |key| statistics.get(key).unwrap_or(0);
    KernelParts {
        slab_bytes: get("slab"),
        page_tables_bytes: get("pagetables"),
        stacks_bytes: get("kernel_stack"),
        per_cpu_bytes: get("percpu"),
        vmalloc_bytes: get("vmalloc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_log::line::Charged;
    use crate::kernel_log::visit::LoggedStatistics;
    use podopsy_model::incident::{Level, LevelState};

    const MIB: u64 = 1 << 20;

    fn limit(path: &str) -> LimitHit {
        LimitHit {
            of: Level::Pod,
            how: Evidence::Observed,
            by: "kernel log".into(),
            path: Some(path.into()),
            limit_bytes: Some(64 * MIB),
            usage_bytes: Some(64 * MIB),
        }
    }

    fn visit(path: &str, kernel: Option<u64>, text: &str) -> Visit {
        let charged = |usage_bytes| Charged { usage_bytes, limit_bytes: None, hits: 1 };
        let values = MemoryStatistics::parse(text.as_bytes());
        Visit {
            memory: Some(charged(64 * MIB)),
            kernel_memory: kernel.map(charged),
            statistics: Some(LoggedStatistics { path: path.into(), values, ..LoggedStatistics::default() }),
            ..Visit::default()
        }
    }

    fn v1(shmem: u64) -> String {
        let (cache, shmem) = ((shmem + 1) * MIB, shmem * MIB);
        format!("total_cache {cache}\ntotal_rss 7340032\ntotal_shmem {shmem}\ntotal_mapped_file 131072\n")
    }

    #[test]
    fn shared_memory_that_no_process_has_mapped_is_held_by_no_process() {
        let visit = visit("/k/pod1", Some(MIB / 2), &v1(55));
        let found = of(Some(&visit), &limit("/k/pod1"), &[]).unwrap();
        assert_eq!((found.source.as_str(), found.usage_bytes), ("kernel log", 64 * MIB));
        assert_eq!((found.shmem_bytes, found.file_bytes, found.anon_bytes), (55 * MIB, MIB, 7 * MIB));
        assert_eq!(found.unheld_shmem_bytes, Some(55 * MIB - 131_072));
        let kernel = found.kernel.unwrap();
        assert_eq!((kernel.bytes, kernel.how, kernel.parts), (MIB / 2, Evidence::Observed, None));
    }

    #[test]
    fn statistics_of_another_cgroup_or_of_another_moment_are_not_taken() {
        let visit = visit("/k/pod2", Some(MIB), &v1(55));
        assert_eq!(of(Some(&visit), &limit("/k/pod1"), &[]), None, "another cgroup");
        let impossible = self::visit("/k/pod1", Some(MIB), &v1(80));
        assert_eq!(of(Some(&impossible), &limit("/k/pod1"), &[]), None, "more than there was");
        let node = LimitHit { path: None, ..limit("") };
        assert_eq!(of(Some(&visit), &node, &[]), None, "the machine's memory has other statistics");
    }

    #[test]
    fn kernel_memory_is_observed_or_the_rest_of_the_usage() {
        let text = "anon 1048576\nfile 1048576\nkernel 63963136\nslab 2097152\nshmem 1048576\nfile_mapped 0\nsock 4096\n";
        let found = of(Some(&visit("/a", None, text)), &limit("/a"), &[]).unwrap();
        let kernel = found.kernel.unwrap();
        assert_eq!((kernel.bytes, kernel.how), (63_963_136, Evidence::Observed));
        assert_eq!((kernel.rest_bytes(), found.sock_bytes), (Some(63_963_136 - 2 * MIB), Some(4096)));
        let older = text.replace("kernel 63963136\n", "");
        let kernel = of(Some(&visit("/a", None, &older)), &limit("/a"), &[]).unwrap().kernel.unwrap();
        assert_eq!((kernel.bytes, kernel.how), (62 * MIB - 4096, Evidence::Inferred));
    }

    #[test]
    fn without_the_log_the_cgroups_own_statistics_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("memory.current", "60000000\n"),
            ("memory.stat", "anon 0\nfile 58720256\nkernel 4096\nshmem 58720256\nfile_mapped 0\n"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let mut reader = MemoryFileReader::new(podopsy_pods::hierarchy::CgroupVersion::V2);
        let state = LevelState {
            of: Level::Pod,
            path: "/k/pod1".into(),
            usage_bytes: None,
            limit_bytes: Some(64 * MIB),
            swap_bytes: None,
            headroom_bytes: None,
            limit_hits: None,
            oom_kills: None,
        };
        let charged = read(&mut reader, dir.path());
        let level = LevelReading { state, kernel_path: b"/k/pod1".to_vec(), since: None, charged };
        let found = of(None, &limit("/k/pod1"), std::slice::from_ref(&level)).unwrap();
        assert_eq!((found.source.as_str(), found.unheld_shmem_bytes), ("memory.stat", Some(56 * MIB)));
        assert_eq!(of(None, &limit("/k"), &[level]), None, "another level's limit");
        assert_eq!(read(&mut reader, Path::new("/nonexistent")), None);
    }
}
