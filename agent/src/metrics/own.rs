//! The agent's own cost. The process metrics have the names that every Prometheus client library uses; the kernel memory
//! and the disk usage have podopsy's own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use podopsy_model::metric::MetricFamily;

use crate::descendants;

/// The families of this process, from /proc/self. A value that cannot be read has no family.
pub fn families(state_dir: Option<&Path>) -> Vec<MetricFamily> {
    let Ok(me) = procfs::process::Process::myself() else { return Vec::new() };
    let mut families = Vec::new();
    if let Ok(stat) = me.stat() {
        let ticks = procfs::ticks_per_second() as f64;
        let cpu = (stat.utime + stat.stime) as f64 / ticks;
        let rss = stat.rss as f64 * procfs::page_size() as f64;
        let help = "User and system CPU time of the agent.";
        families.push(MetricFamily::counter("process_cpu_seconds", help).single(cpu));
        families.push(
            MetricFamily::gauge("process_resident_memory_bytes", "Resident memory of the agent.").single(rss),
        );
        let help = "Virtual memory of the agent; most of it is never touched.";
        families.push(MetricFamily::gauge("process_virtual_memory_bytes", help).single(stat.vsize as f64));
        if let Ok(boot) = procfs::boot_time_secs() {
            let start = boot as f64 + stat.starttime as f64 / ticks;
            let help = "When the agent started, since the epoch.";
            families.push(MetricFamily::gauge("process_start_time_seconds", help).single(start));
        }
    }
    if let Ok(open) = me.fd_count() {
        families.push(
            MetricFamily::gauge("process_open_fds", "Open file descriptors of the agent.")
                .single(open as f64),
        );
    }
    let workers = descendants::usage();
    let help = "User and system CPU time of the processes that parse files for the agent; they are in no process_* metric.";
    families.push(MetricFamily::counter("podopsy_worker_cpu_seconds", help).single(workers.cpu_seconds));
    let help = "Resident memory of the processes that parse files for the agent.";
    families.push(
        MetricFamily::gauge("podopsy_worker_resident_memory_bytes", help).single(workers.resident as f64),
    );
    if let Some(bytes) = bpf_memory() {
        let help = "Kernel memory of the probes' maps, from fdinfo.";
        families.push(MetricFamily::gauge("podopsy_bpf_memory_bytes", help).single(bytes as f64));
    }
    if let Some(dir) = state_dir {
        let help = "Bytes of the files in the agent's state folder; --store-bytes bounds the history in it.";
        families
            .push(MetricFamily::gauge("podopsy_state_bytes", help).single(bytes_below(dir, DEPTH) as f64));
    }
    families
}

/// Levels of folders below the state folder that are counted.
const DEPTH: u32 = 2;

/// Bytes of all BPF maps; a map with several descriptors counts once. None: /proc/self/fd cannot be read.
pub fn bpf_memory() -> Option<u64> {
    let mut maps = BTreeMap::new();
    for fd in fs::read_dir("/proc/self/fd").ok()?.flatten() {
        if fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:bpf-map") {
            let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(fd.file_name()));
            maps.extend(info.ok().and_then(|info| map_memory(&info)));
        }
    }
    Some(maps.into_values().sum())
}

/// Reads the id and the bytes of a map from its fdinfo.
fn map_memory(info: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
    };
    Some((field("map_id")?, field("memlock")?))
}

fn bytes_below(dir: &Path, depth: u32) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_file() => found.len(),
        Ok(found) if found.is_dir() && depth > 0 => bytes_below(&entry.path(), depth - 1),
        _ => 0,
    };
    entries.flatten().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maps_memory_is_read_from_its_fdinfo() {
        let info = "pos:\t0\nflags:\t02000002\nmap_type:\t2\nmemlock:\t266240\nmap_id:\t41\nfrozen:\t0\n";
        assert_eq!(map_memory(info), Some((41, 266_240)));
        assert_eq!(map_memory("pos:\t0\n"), None);
    }

    #[test]
    fn files_are_counted_two_folders_deep() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        for (name, bytes) in [("x", 10), ("a/x", 20), ("a/b/x", 40), ("a/b/c/x", 80)] {
            fs::write(dir.path().join(name), vec![0; bytes]).unwrap();
        }
        std::os::unix::fs::symlink("/proc/kcore", dir.path().join("link")).unwrap();
        assert_eq!(bytes_below(dir.path(), DEPTH), 70);
    }
}
