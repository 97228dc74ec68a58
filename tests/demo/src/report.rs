//! What the demo prints: the events as they come, then the story that they make.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use podopsy_model::{Detail, Event, OomKill, Outcome};

use crate::story::Caught;

/// A step of the demo itself.
pub fn step(what: &str) {
    println!("\n\x1b[1m==> {what}\x1b[0m");
}

/// The live view: each kind of failure once, each kill, and how much was seen between them.
#[derive(Default)]
pub struct Live {
    seen: BTreeSet<String>,
    since_kill: u64,
}

impl Live {
    /// Names in an event are escaped at their source.
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
            // Its queries have been shown.
            Detail::Lookup(_) => {}
            Detail::Oom(kill) => {
                println!(
                    "          … {} failed queries in all since the last line of this kind",
                    self.since_kill
                );
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

/// The end: what was caught, in the words of events.
pub fn print(caught: &Caught, out: &Path) {
    step("what podopsy caught");
    let of_checkout: Vec<&Event> =
        caught.events.iter().filter(|event| pod(event) == "finance/checkout-api").collect();
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
    println!("finance/checkout-api, in {:.0} s without DNS:", caught.outage.as_secs_f64());
    for ((name, outcome), count) in &failures {
        println!("  observed    {count:>3} queries for {name}: {outcome}");
    }
    for kill in &kills {
        println!(
            "  observed    OOM kill of {}[{}] at {:.1} MiB; it was {} that asked for memory",
            kill.victim.comm,
            kill.victim.pid,
            rss_mib(kill),
            if kill.trigger.pid == kill.victim.pid { "the victim itself" } else { "another process" }
        );
    }
    if let Some(path) = kills.first().map(|kill| path_to(kill)).filter(|path| !path.is_empty()) {
        println!("  observed    the last straw, from the dead process's stack: {path}");
    }
    for (number, timeouts) in (1..).zip(timeouts_before_kills(&of_checkout)) {
        println!("  correlated  {timeouts} queries timed out on the way to kill {number}");
    }
    println!(
        "\nand what the container runtime says of the same pods (podopsy pods -n finance):\n{}",
        caught.pods
    );
    println!("finance/pricing, by podopsy profile:");
    // The table's head and the hottest functions; the files have the rest.
    caught.profile.lines().take(6).for_each(|line| println!("{line}"));
    println!();
    println!("left in {}:", out.display());
    println!("  events.jsonl    one JSON object an event");
    println!("  profile.pb.gz   go tool pprof -top {}", out.join("profile.pb.gz").display());
    println!("  profile.svg     open it in a browser");
}

fn pod(event: &Event) -> String {
    event.pod.as_ref().map_or_else(|| "host".to_owned(), |pod| format!("{}/{}", pod.namespace, pod.name))
}

fn rss_mib(kill: &OomKill) -> f64 {
    kill.rss
        .map_or(0.0, |rss| (rss.anon_bytes + rss.file_bytes + rss.shmem_bytes) as f64 / f64::from(1 << 20))
}

/// The trigger's functions from the allocation out to `main`, and where the innermost stands in the source.
fn path_to(kill: &OomKill) -> String {
    let frames = || kill.user_stack.iter().filter(|frame| !frame.inlined);
    let names: Vec<&str> = frames()
        .map_while(|frame| frame.function.as_deref())
        .take_while(|name| *name != "main")
        .take(6)
        .collect();
    let place = frames().next().and_then(|frame| frame.source.as_ref()).map(|(file, line)| {
        let file = std::path::Path::new(file.as_ref()).file_name().unwrap_or_default();
        format!(" ({}:{line})", file.to_string_lossy())
    });
    names.join(" ← ") + place.as_deref().unwrap_or_default()
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
