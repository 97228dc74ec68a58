//! What the agent itself costs, under the names that every Prometheus client library uses.

use super::family::Family;

/// Of this process, from /proc/self; what cannot be read is left out.
pub fn families() -> Vec<Family> {
    let Ok(me) = procfs::process::Process::myself() else { return Vec::new() };
    let mut families = Vec::new();
    if let Ok(stat) = me.stat() {
        let ticks = procfs::ticks_per_second() as f64;
        let cpu = (stat.utime + stat.stime) as f64 / ticks;
        let rss = stat.rss as f64 * procfs::page_size() as f64;
        let help = "User and system CPU time of the agent.";
        families.push(Family::counter("process_cpu_seconds", help).single(cpu));
        families.push(
            Family::gauge("process_resident_memory_bytes", "Resident memory of the agent.").single(rss),
        );
        let help = "Virtual memory of the agent; most of it is never touched.";
        families.push(Family::gauge("process_virtual_memory_bytes", help).single(stat.vsize as f64));
        if let Ok(boot) = procfs::boot_time_secs() {
            let start = boot as f64 + stat.starttime as f64 / ticks;
            let help = "When the agent started, since the epoch.";
            families.push(Family::gauge("process_start_time_seconds", help).single(start));
        }
    }
    if let Ok(open) = me.fd_count() {
        families.push(
            Family::gauge("process_open_fds", "Open file descriptors of the agent.").single(open as f64),
        );
    }
    families
}
