//! The demo's output: the events as they come, and a summary at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use podopsy_model::{Detail, Event, OomKill, Outcome};

use crate::outage::Recorded;
use crate::recorder::Recorder;

/// Prints the heading of a step.
pub fn step(what: &str) {
    println!("\n\x1b[1m==> {what}\x1b[0m");
}

/// The live view: each kind of DNS failure once, each kill, and the number of failures before it.
#[derive(Default)]
pub struct Live {
    seen: BTreeSet<String>,
    since_kill: u64,
}

impl Live {
    /// Prints the event. Names need no escaping: podopsy escapes them when it makes the event.
    pub fn show(&mut self, event: &Event) {
        let pod = pod(event);
        let clock = event.time.strftime("%H:%M:%S");
        match &event.detail {
            Detail::Dns(dns) => {
                self.since_kill += 1;
                let name = dns.name.as_deref().unwrap_or("(malformed)");
                let what = format!("{name} → {}", dns.outcome.as_str());
                if self.seen.insert(format!("{pod} {what}")) {
                    println!("{clock}  dns.failure  {pod:<21} {what} after {}", span(dns.latency_ns));
                }
            }
            // Its queries have been printed.
            Detail::Lookup(_) => {}
            Detail::Oom(kill) => {
                println!("          … {} failed DNS queries in all before this kill", self.since_kill);
                self.since_kill = 0;
                println!(
                    "{clock}  \x1b[31moom.kill\x1b[0m     {pod:<21} victim {}[{}], rss {:.1} MiB, attempt {}",
                    kill.victim.comm,
                    kill.victim.pid,
                    rss_mib(kill),
                    event.container.as_ref().map_or(0, |container| container.attempt)
                );
            }
            Detail::Sigkill(_) => {}
        }
    }
}

/// Prints the summary.
pub fn print(recorded: &Recorded, out: &Path) {
    step("what podopsy recorded");
    let of_checkout: Vec<&Event> =
        recorded.events.iter().filter(|event| pod(event) == "finance/checkout-api").collect();
    let mut failures: BTreeMap<(String, &str), u64> = BTreeMap::new();
    for event in &of_checkout {
        if let Detail::Dns(dns) = &event.detail {
            let name = dns.name.clone().unwrap_or_default();
            *failures.entry((name, dns.outcome.as_str())).or_default() += 1;
        }
    }
    let kills: Vec<&OomKill> = of_checkout
        .iter()
        .filter_map(|event| match &event.detail {
            Detail::Oom(kill) => Some(kill),
            _ => None,
        })
        .collect();
    println!("finance/checkout-api, in {:.0} s without DNS:", recorded.outage.as_secs_f64());
    for ((name, outcome), count) in &failures {
        println!("  observed    {count:>3} queries for {name}: {outcome}");
    }
    for kill in &kills {
        println!(
            "  observed    OOM kill of {}[{}] at {:.1} MiB; triggered by {}",
            kill.victim.comm,
            kill.victim.pid,
            rss_mib(kill),
            if kill.trigger.pid == kill.victim.pid { "the victim itself" } else { "another process" }
        );
    }
    let of_checkout_incidents =
        recorded.incidents.iter().filter(|event| pod(event) == "finance/checkout-api");
    let paths = of_checkout_incidents.filter_map(|event| match &event.detail {
        Detail::Oom(kill) => Some(allocation_path(kill)),
        _ => None,
    });
    if let Some(path) = paths.into_iter().find(|path| !path.is_empty()) {
        println!("  observed    where it asked, from the dead process's stack: {path}");
    }
    for (number, timeouts) in (1..).zip(timeouts_before_kills(&of_checkout)) {
        println!("  correlated  {timeouts} DNS queries timed out before kill {number}");
    }
    println!(
        "\nthe same pods as the container runtime reports them (podopsy pods -n finance):\n{}",
        recorded.pods
    );
    println!("finance/pricing, by podopsy profile:");
    // The heading and the hottest functions; the files have all of them.
    recorded.profile.lines().take(6).for_each(|line| println!("{line}"));
    println!();
    println!("files in {}:", out.display());
    println!("  history/        what the agent kept");
    println!("  events.jsonl    one JSON object per event");
    println!("  profile.pb.gz   go tool pprof -top {}", out.join("profile.pb.gz").display());
    println!("  profile.svg     open it in a browser");
}

/// Prints the commands that tell the story.
pub fn commands(recorder: &Recorder, recorded: &Recorded, is_kept: bool) {
    step(if is_kept {
        "the pods and the agent run until you press Enter here: in another terminal, as root, type"
    } else {
        "with --keep, the pods and the agent stay, for you to type"
    });
    if is_kept {
        let folder = recorder.podopsy.parent().unwrap_or(Path::new("."));
        println!("  export PATH={}:$PATH", folder.display());
        println!(
            "  export PODOPSY_SOCKET={} PODOPSY_CRI_SOCKET={}",
            recorder.socket.display(),
            recorder.cri_socket.display()
        );
    }
    for command in story(recorded) {
        println!("  podopsy {}", command.join(" "));
    }
    println!("and then podopsy top, or podopsy report finance/checkout-api -w checkout.html");
}

/// Three commands: what Kubernetes and the kernel say, in which order it happened, and which code it was.
pub fn story(recorded: &Recorded) -> [Vec<String>; 3] {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    let id = last_incident(recorded).unwrap_or("ID");
    [words("restarts -n finance"), words("timeline finance/checkout-api"), words(&format!("oom show {id}"))]
}

/// The id of checkout-api's last OOM kill.
fn last_incident(recorded: &Recorded) -> Option<&str> {
    let mut incidents = recorded.incidents.iter().filter(|event| pod(event) == "finance/checkout-api");
    incidents.next_back()?.kept_id()
}

fn pod(event: &Event) -> String {
    event.pod.as_ref().map_or_else(|| "host".to_owned(), |pod| format!("{}/{}", pod.namespace, pod.name))
}

fn rss_mib(kill: &OomKill) -> f64 {
    kill.rss
        .map_or(0.0, |rss| (rss.anon_bytes + rss.file_bytes + rss.shmem_bytes) as f64 / f64::from(1 << 20))
}

/// The trigger's functions from the allocation out to `main`, and the innermost one's line in the source.
fn allocation_path(kill: &OomKill) -> String {
    let frames = || kill.user_stack.iter().filter(|frame| !frame.inlined);
    let names: Vec<&str> = frames()
        .map_while(|frame| frame.function.as_deref())
        .take_while(|name| *name != "main")
        .take(6)
        .collect();
    let source = frames().next().and_then(|frame| frame.source.as_ref()).map(|(file, line)| {
        let file = std::path::Path::new(file.as_ref()).file_name().unwrap_or_default();
        format!(" ({}:{line})", file.to_string_lossy())
    });
    names.join(" ← ") + source.as_deref().unwrap_or_default()
}

/// Timeouts before the first kill, between the first and the second, and so on.
fn timeouts_before_kills(events: &[&Event]) -> Vec<usize> {
    let mut counts = Vec::new();
    let mut since = 0;
    for event in events {
        match &event.detail {
            Detail::Dns(dns) => since += usize::from(dns.outcome == Outcome::Timeout),
            Detail::Oom(_) => counts.push(std::mem::take(&mut since)),
            Detail::Sigkill(_) | Detail::Lookup(_) => {}
        }
    }
    counts
}

fn span(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{:.0} µs", ns as f64 / 1e3),
        1_000_000..100_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}
