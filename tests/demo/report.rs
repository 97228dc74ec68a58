//! What the demo prints: the events as they come, then the story that they make.

use std::collections::BTreeMap;
use std::path::Path;

use podopsy_agent::model::{Detail, Event, Kind, OomKill};

use crate::story::Caught;

/// A step of the demo itself.
pub fn step(what: &str) {
    println!("\n\x1b[1m==> {what}\x1b[0m");
}

/// One line an event; names in it are escaped at their source.
pub fn live(event: &Event) {
    let pod = pod(event);
    let clock = event.time.strftime("%H:%M:%S");
    match &event.detail {
        Detail::Dns(dns) => println!(
            "{clock}  dns.failure  {pod:<22} {} {} → {:?} after {:.1} s ({})",
            dns.name.as_deref().unwrap_or("(malformed)"),
            dns.qtype.as_deref().unwrap_or("-"),
            dns.outcome,
            dns.latency_ns as f64 / 1e9,
            dns.server
        ),
        Detail::Oom(kill) => println!(
            "{clock}  \x1b[31moom.kill\x1b[0m     {pod:<22} victim {}[{}], rss {:.1} MiB, attempt {}",
            kill.victim.comm,
            kill.victim.pid,
            rss_mib(kill),
            event.container.as_ref().map_or(0, |container| container.attempt)
        ),
    }
}

/// The end: what was caught, in the words of events.
pub fn print(caught: &Caught, out: &Path) {
    step("what podopsy caught");
    let of_checkout: Vec<&Event> =
        caught.events.iter().filter(|event| pod(event) == "finance/checkout-api").collect();
    let mut failures: BTreeMap<(String, String), u64> = BTreeMap::new();
    for event in &of_checkout {
        if let Detail::Dns(dns) = &event.detail {
            let name = dns.name.clone().unwrap_or_default();
            *failures.entry((name, format!("{:?}", dns.outcome).to_lowercase())).or_default() += 1;
        }
    }
    let kills: Vec<&OomKill> = of_checkout
        .iter()
        .filter_map(|event| match &event.detail {
            Detail::Oom(kill) => Some(kill),
            Detail::Dns(_) => None,
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
    let before = of_checkout.iter().position(|event| event.kind == Kind::OomKill).unwrap_or(0);
    println!(
        "  correlated  {before} failed queries before the first kill, and some before each of the others"
    );
    println!(
        "\nand what the container runtime says of the same pods (podopsy pods -n finance):\n{}",
        caught.pods
    );
    println!("finance/pricing, by podopsy profile:\n{}", caught.profile);
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
