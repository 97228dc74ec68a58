//! The agent's resources at one moment, read from outside: /proc, its state folder, and its /metrics.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

/// One moment.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub seconds: f64,
    /// User and system time since its start.
    pub cpu_seconds: f64,
    pub rss_mib: f64,
    pub pss_mib: f64,
    /// The part that belongs to no file: heap and stacks.
    pub anonymous_mib: f64,
    /// The kernel's memory in its BPF maps.
    pub maps_mib: f64,
    /// Its state folder.
    pub disk_mib: f64,
    pub descriptors: f64,
    pub threads: f64,
    pub watches: f64,
    /// Lines of /metrics.
    pub series: f64,
    pub events: f64,
    /// By counter, without those that are 0.
    pub losses: BTreeMap<String, u64>,
    pub dropped: f64,
    pub shed: f64,
}

const MIB: f64 = (1 << 20) as f64;

impl Sample {
    pub fn take(pid: u32, state: &Path, address: &str, seconds: f64, cpu: Duration) -> Result<Sample> {
        let process = Path::new("/proc").join(pid.to_string());
        let memory = read(&process.join("smaps_rollup"))?;
        let mib = |name| number(&memory, name).map_or(0.0, |kib| kib as f64 / 1024.0);
        let kernel = KernelResources::of(&process)?;
        let page = get(address, "/metrics")?;
        let sum = |family: &str| values(&page, family).map(|(_, value)| value).sum();
        Ok(Sample {
            seconds,
            cpu_seconds: cpu.as_secs_f64(),
            rss_mib: mib("Rss:"),
            pss_mib: mib("Pss:"),
            anonymous_mib: mib("Anonymous:"),
            maps_mib: kernel.map_bytes as f64 / MIB,
            disk_mib: bytes_below(state) as f64 / MIB,
            descriptors: kernel.descriptors as f64,
            threads: number(&read(&process.join("status"))?, "Threads:").unwrap_or(0) as f64,
            watches: kernel.watches as f64,
            series: page.lines().filter(|line| !line.starts_with('#')).count() as f64,
            events: sum("podopsy_events_total"),
            losses: values(&page, "podopsy_losses_total")
                .filter(|(_, value)| *value > 0.0)
                .map(|(labels, value)| (labels.split('"').nth(1).unwrap_or(labels).to_owned(), value as u64))
                .collect(),
            dropped: sum("podopsy_dns_events_dropped_total"),
            shed: sum("podopsy_shed_total"),
        })
    }
}

impl Sample {
    /// One line of JSON.
    pub fn line(&self) -> String {
        json!({
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "rss_mib": self.rss_mib,
            "pss_mib": self.pss_mib,
            "anonymous_mib": self.anonymous_mib,
            "maps_mib": self.maps_mib,
            "disk_mib": self.disk_mib,
            "descriptors": self.descriptors,
            "threads": self.threads,
            "watches": self.watches,
            "series": self.series,
            "events": self.events,
            "losses": self.losses,
            "dropped": self.dropped,
            "shed": self.shed,
        })
        .to_string()
    }
}

/// The kernel resources that its descriptors hold.
#[derive(Default)]
struct KernelResources {
    descriptors: usize,
    map_bytes: u64,
    watches: usize,
}

impl KernelResources {
    fn of(process: &Path) -> Result<KernelResources> {
        let folder = process.join("fdinfo");
        let mut kernel = KernelResources::default();
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten() {
            kernel.descriptors += 1;
            // It may be closed by now.
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            kernel.watches += text.lines().filter(|line| line.starts_with("inotify ")).count();
            if let (Some(id), Some(bytes)) = (number(&text, "map_id:"), number(&text, "memlock:")) {
                maps.insert(id, bytes);
            }
        }
        kernel.map_bytes = maps.into_values().sum();
        Ok(kernel)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}: does the agent still run?", path.display()))
}

/// The first number of the line that begins so.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Labels and value of each series of a family.
fn values<'a>(page: &'a str, family: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    page.lines().filter_map(move |line| {
        let rest = line.strip_prefix(family).filter(|rest| rest.starts_with(['{', ' ']))?;
        // A label's value may contain spaces and braces; the number is the last field.
        let (labels, value) = rest.rsplit_once(' ')?;
        Some((labels, value.parse().ok()?))
    })
}

/// The size of all files below the folder. Deleted files that are still open do not count.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(facts) if facts.is_dir() => bytes_below(&entry.path()),
            Ok(facts) => facts.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The body of an answer 200.
pub fn get(address: &str, path: &str) -> Result<String> {
    let asked = || -> Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
        let mut all = String::new();
        stream.read_to_string(&mut all)?;
        let (head, body) = all.split_once("\r\n\r\n").context("no answer")?;
        anyhow::ensure!(head.split(' ').nth(1) == Some("200"), "{}", head.lines().next().unwrap_or_default());
        Ok(body.to_owned())
    };
    asked().with_context(|| format!("ask the agent for http://{address}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_with_any_text_in_their_labels() {
        let page = "# TYPE podopsy_losses counter\npodopsy_losses_total{counter=\"a b} 7\"} 3\n\
            podopsy_losses_total{counter=\"oom_ring\"} 0\npodopsy_losses_total_more 9\npodopsy_events_total 4\n";
        let found: Vec<_> = values(page, "podopsy_losses_total").collect();
        assert_eq!(found, [("{counter=\"a b} 7\"}", 3.0), ("{counter=\"oom_ring\"}", 0.0)]);
        assert_eq!(values(page, "podopsy_events_total").map(|(_, value)| value).sum::<f64>(), 4.0);
    }

    #[test]
    fn this_process_has_memory_descriptors_and_a_folder() {
        let process = Path::new("/proc/self");
        assert!(number(&read(&process.join("smaps_rollup")).unwrap(), "Rss:").unwrap() > 100);
        assert!(KernelResources::of(process).unwrap().descriptors >= 3);
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        fs::write(folder.path().join("below/a"), [0; 1000]).unwrap();
        fs::write(folder.path().join("b"), [0; 24]).unwrap();
        assert_eq!(bytes_below(folder.path()), 1024);
    }
}
