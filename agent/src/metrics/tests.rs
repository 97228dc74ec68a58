//! Tests from events to the rendered page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;

use super::text::{Format, page};
use super::{Metrics, Scrape};
use podopsy_model::incident::Verdict;
use podopsy_model::owner::{ContainerRef, KnownBy, Owner, PodRef};
use podopsy_model::{Detail, DnsCounts, Event, EventKind, Losses, Outcome};
use podopsy_recorder::memory::MemoryTrend;
use podopsy_recorder::shed::{ShedCount, ShedStep};

fn owner(name: &str) -> Owner {
    let pod = PodRef { namespace: "shop".into(), name: "basket".into(), uid: "u".into(), labels: [].into() };
    let container =
        ContainerRef { name: name.into(), id: format!("id-{name}"), image: "i".into(), attempt: 0 };
    Owner { pod: Some(pod), container: Some(container), known_by: KnownBy::Cri, ..Owner::default() }
}

/// An event of a kill, or of the incident that contains it.
fn oom(kind: EventKind, already_dying: bool) -> Event {
    let mut incident = podopsy_model::testing::incident();
    incident.verdicts = vec![Verdict::SilentChildKill];
    let mut event = podopsy_model::testing::kill(Timestamp::UNIX_EPOCH, owner("api"), "3f2a-7", 9, false);
    event.kind = kind;
    let Detail::Oom(kill) = &mut event.detail else { unreachable!("it is a kill") };
    kill.already_dying = already_dying;
    event.incident = (kind == EventKind::OomIncident).then(|| Box::new(incident));
    event
}

fn scrape() -> Scrape {
    let mut dns = DnsCounts { owner: owner("api"), queries: 12, resends: 1, ..DnsCounts::default() };
    dns.outcomes = [(Outcome::Timeout, 3), (Outcome::Noerror, 9)].into();
    dns.latency.buckets = vec![0, 4, 5, 0];
    dns.latency.sum_us = 1_500_000;
    dns.not_visible.https = 2;
    Scrape {
        alive: vec![owner("api"), owner("idle")],
        dns: vec![dns],
        growth: vec![(
            owner("api"),
            MemoryTrend { held_bytes: 100, bytes_per_second: 4096.5, limit_bytes: Some(200) },
        )],
        losses: [("oom_ring".to_owned(), 3)].into(),
        own_kills: 8,
        shed: vec![ShedCount { step: ShedStep::DnsSlow, on: true, count: 7 }],
    }
}

#[test]
fn observed_events_are_on_the_page_and_series_start_at_zero() {
    let metrics = Metrics::default();
    metrics.observe(&oom(EventKind::OomKill, false));
    metrics.observe(&oom(EventKind::OomKill, true));
    metrics.observe(&oom(EventKind::OomIncident, false));
    metrics.apply_scrape(scrape());
    let text = page(&metrics.families(), Format::OpenMetrics);
    let api = "namespace=\"shop\",pod=\"basket\",container=\"api\"";
    let idle = "namespace=\"shop\",pod=\"basket\",container=\"idle\"";
    for line in [
        // A victim that was already dying counts no kill.
        format!("podopsy_oom_kills_total{{{api}}} 1 # {{incident_id=\"3f2a-7\"}} 1.0 0"),
        format!("podopsy_oom_kills_total{{{idle}}} 0"),
        format!("podopsy_oom_silent_kills_total{{{api}}} 1"),
        format!("podopsy_oom_incidents_total{{{api},limit=\"container\"}} 1"),
        format!("podopsy_oom_incidents_total{{{idle},limit=\"container\"}} 0"),
        format!("podopsy_oom_incidents_total{{{api},limit=\"pod\"}} 0"),
        format!("podopsy_sigkills_total{{{idle},sender=\"kubelet\"}} 0"),
        format!("podopsy_dns_lookups_failed_total{{{idle},result=\"timeout\"}} 0"),
        format!("podopsy_dns_queries_total{{{api}}} 12"),
        format!("podopsy_dns_outcomes_total{{{api},outcome=\"timeout\"}} 3"),
        format!("podopsy_dns_outcomes_total{{{idle},outcome=\"timeout\"}} 0"),
        format!("podopsy_dns_latency_seconds_bucket{{{api},le=\"0.000002\"}} 4"),
        format!("podopsy_dns_latency_seconds_bucket{{{api},le=\"+Inf\"}} 9"),
        format!("podopsy_dns_latency_seconds_sum{{{api}}} 1.5"),
        format!("podopsy_dns_latency_seconds_count{{{api}}} 9"),
        format!("podopsy_dns_not_visible_total{{{api},protocol=\"doh\"}} 2"),
        format!("podopsy_memory_growth_bytes_per_second{{{api}}} 4096.5"),
        format!("podopsy_memory_held_bytes{{{api}}} 100.0"),
        format!("podopsy_memory_limit_bytes{{{api}}} 200.0"),
        "podopsy_degraded 0.0".to_owned(),
        "podopsy_losses_total{counter=\"oom_ring\"} 3".to_owned(),
        "podopsy_events_total{kind=\"oom.kill\"} 2".to_owned(),
        "podopsy_sigkills_within_container_total 8".to_owned(),
        "podopsy_shed_total{what=\"dns_slow\"} 7".to_owned(),
        "podopsy_shedding{what=\"dns_slow\"} 1.0".to_owned(),
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
    assert!(!text.contains(&format!("podopsy_dns_latency_seconds_bucket{{{idle}")), "{text}");
}

#[test]
fn a_second_scrape_counts_nothing_twice() {
    let metrics = Metrics::default();
    metrics.observe(&oom(EventKind::OomKill, false));
    metrics.apply_scrape(scrape());
    let first = page(&metrics.families(), Format::Prometheus);
    metrics.apply_scrape(scrape());
    let again = page(&metrics.families(), Format::Prometheus);
    let ours = |page: &str| {
        page.lines().filter(|l| l.starts_with("podopsy_")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(ours(&first), ours(&again));
    assert!(ours(&first).len() > 40);
}

#[test]
fn a_probe_that_failed_to_attach_is_zero_and_one_not_requested_is_absent() {
    let metrics = Metrics::default();
    metrics.set_probe_attached("oom", true);
    metrics.set_probe_attached("dns", false);
    let text = page(&metrics.families(), Format::Prometheus);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("podopsy_probe_attached")).collect();
    assert_eq!(lines, ["podopsy_probe_attached{probe=\"dns\"} 0", "podopsy_probe_attached{probe=\"oom\"} 1"]);
}

#[test]
fn later_degradations_and_losses_are_on_the_next_page() {
    let (metrics, late) = (Metrics::default(), Arc::new(AtomicU64::new(0)));
    let (degraded, lost) = (late.clone(), late.clone());
    metrics.set_degraded_count(move || degraded.load(Relaxed) as usize);
    metrics.set_loss_source(move || Losses::from([("profiles_not_kept".to_owned(), lost.load(Relaxed))]));
    for count in [0, 2] {
        late.store(count, Relaxed);
        let page = page(&metrics.families(), Format::Prometheus);
        let has = |line: String| assert!(page.lines().any(|shown| shown == line), "{line}: {page}");
        has(format!("podopsy_degraded {count}.0"));
        has(format!("podopsy_losses_total{{counter=\"profiles_not_kept\"}} {count}"));
    }
}
