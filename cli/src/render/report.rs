//! Makes the data of a report from evidence.

use std::collections::BTreeMap;

use jiff::Timestamp;
use podopsy_model::incident::{Evidence, Level};
use podopsy_model::{Detail, DnsTransaction, Event, OomIncident, Owner, sigkill_verdict, verdict};
use podopsy_profiles::import;
use podopsy_report::{
    Autopsy, DnsRow, DnsSummary, Entry, Fact, FlameGraph, Heading, Knowledge, MemoryChart, Report, Statement,
    Table,
};
use serde_json::json;

use super::{autopsy, oom, sigkill, units};
use crate::evidence::{CpuFacts, PodEvidence};
use crate::timeline::{self, EntryEvidence, EntryKind, TimelineEntry};

pub fn build(evidence: &PodEvidence, source: String, now: Timestamp) -> Report {
    let (manifest, sources) = (&evidence.manifest, &evidence.sources);
    let entries = timeline::build(sources, manifest.from);
    let latest = sources.events.iter().max_by_key(|event| event.time);
    let mut notes = manifest.notes.clone();
    notes.extend(evidence.gaps.iter().map(|gap| crate::history::describe_gap(gap, manifest.from)));
    let mut flames = Vec::new();
    if let (Some(pprof), Some(facts)) = (&evidence.cpu, &manifest.cpu) {
        match cpu(pprof, facts) {
            Ok(graph) => flames.push(graph),
            Err(error) => notes.push(format!("The CPU profile cannot be read: {error}")),
        }
    }
    flames.extend(growth(&sources.events));
    Report {
        heading: Heading {
            subject: manifest.subject.clone(),
            node: manifest.node.clone(),
            source,
            from: manifest.from,
            until: manifest.until,
            written: now,
            version: manifest.podopsy.clone(),
        },
        verdict: statement(evidence),
        memory: charts(evidence, &entries),
        timeline: entries.into_iter().map(entry).collect(),
        flames,
        dns: dns(&sources.events),
        autopsies: sources.events.iter().filter_map(autopsy_of).collect(),
        facts: facts(evidence),
        losses: latest.map(|event| event.losses.clone()).unwrap_or_default(),
        notes,
    }
}

fn knowledge(how: Evidence) -> Knowledge {
    match how {
        Evidence::Observed => Knowledge::Observed,
        Evidence::Inferred => Knowledge::Inferred,
    }
}

fn entry(entry: TimelineEntry) -> Entry {
    let container = entry.container.map(|container| format!("/{container}")).unwrap_or_default();
    Entry {
        time: entry.time,
        until: entry.until,
        kind: entry.kind.as_str().to_owned(),
        is_kill: matches!(entry.kind, EntryKind::OomKill | EntryKind::Sigkill),
        how: match entry.how {
            EntryEvidence::Observed => Knowledge::Observed,
            EntryEvidence::Inferred => Knowledge::Inferred,
            EntryEvidence::Correlated => Knowledge::Correlated,
        },
        subject: format!("{}/{}{container}", entry.namespace, entry.pod),
        id: entry.id,
        text: entry.text,
        correlated: entry.correlated,
    }
}

/// What happened, in one sentence: the kill that was asked for, or else the newest, or else the failed lookups.
fn statement(evidence: &PodEvidence) -> Statement {
    let events = &evidence.sources.events;
    let asked = evidence.manifest.incident.as_deref();
    let kills: Vec<&Event> = events.iter().filter(|event| event.kept_id().is_some()).collect();
    let is_asked = |event: &&&Event| asked.is_some() && event.kept_id() == asked;
    let Some(event) = kills.iter().find(is_asked).or_else(|| kills.iter().max_by_key(|event| event.time))
    else {
        return without_kill(evidence);
    };
    let more = match kills.len() - 1 {
        0 => String::new(),
        1 => " There is 1 other kill in this time.".to_owned(),
        more => format!(" There are {more} other kills in this time."),
    };
    let pod = oom::pod(event);
    if let Some(incident) = &event.incident {
        let how = knowledge(incident.limit.how);
        return Statement { text: format!("{}{more}", oom_sentence(&pod, event, incident)), how };
    }
    let text = event.sigkill().map(sigkill_verdict::explain).unwrap_or_default();
    let (process, time) = (&event.process, units::date(event.time));
    let text = format!("{}[{}] of {pod} got SIGKILL at {time}: {text}.{more}", process.comm, process.pid);
    Statement { text, how: Knowledge::Observed }
}

fn oom_sentence(pod: &str, event: &Event, incident: &OomIncident) -> String {
    let victim = incident.victims.first().map(|victim| format!("{}[{}]", victim.task.comm, victim.task.pid));
    let victim = victim.unwrap_or_else(|| "a process".to_owned());
    let size =
        incident.limit.limit_bytes.map(|bytes| format!(" of {}", units::bytes(bytes))).unwrap_or_default();
    let limit = match incident.limit.of {
        Level::Unknown => "; whose limit was met is not known".to_owned(),
        Level::Node => ", because the machine's memory was short".to_owned(),
        Level::InsideContainer => format!(", when a cgroup inside the container met its limit{size}"),
        level => format!(", when the {}'s limit{size} was met", oom::level(level)),
    };
    let shown = incident.verdicts.iter().map(|one| format!(" ({})", verdict::explain(*one, incident)));
    let time = units::date(event.time);
    format!("The OOM killer killed {victim} of {pod} at {time}{limit}{}.", shown.collect::<String>())
}

fn without_kill(evidence: &PodEvidence) -> Statement {
    let failures = queries(&evidence.sources.events).filter(|(_, query)| query.is_failure());
    let mut names: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, query) in failures {
        *names.entry(query.name.as_deref().unwrap_or("(unreadable)")).or_default() += 1;
    }
    let text = match names.iter().max_by_key(|(_, count)| **count) {
        Some((name, most)) => format!(
            "No kill is recorded in this time; {} failed, {most} of them for {name}.",
            units::plural(names.values().sum(), "DNS query").replace("querys", "queries")
        ),
        None => "No kill and no failed DNS query is recorded in this time.".to_owned(),
    };
    Statement { text, how: Knowledge::Observed }
}

/// `namespace/pod/container`, and the parts that are known.
fn path(owner: &Owner) -> Option<String> {
    let (pod, container) = (owner.pod.as_ref()?, owner.container.as_ref()?);
    Some(format!("{}/{}/{}", pod.namespace, pod.name, container.name))
}

/// The samples of a container: by the id of the instance, and by time.
#[derive(Default)]
struct Samples {
    limit_bytes: Option<u64>,
    instances: BTreeMap<String, BTreeMap<Timestamp, u64>>,
}

impl Samples {
    fn add(&mut self, container: &str, limit: Option<u64>, points: impl Iterator<Item = (Timestamp, u64)>) {
        self.limit_bytes = limit.or(self.limit_bytes);
        self.instances.entry(container.to_owned()).or_default().extend(points);
    }
}

/// A chart for each container.
fn charts(evidence: &PodEvidence, entries: &[TimelineEntry]) -> Vec<MemoryChart> {
    let mut samples: BTreeMap<String, Samples> = BTreeMap::new();
    for record in &evidence.sources.memory {
        let (Some(name), Some(container)) = (path(&record.owner), &record.owner.container) else { continue };
        let samples = samples.entry(name).or_default();
        samples.add(&container.id, record.steps.limit_bytes, timeline::samples(&record.steps));
    }
    for event in &evidence.sources.events {
        let (Some(incident), Some(name)) = (&event.incident, path(&event.owner())) else { continue };
        let Some(container) = &event.container else { continue };
        let limit = incident.limit.limit_bytes.filter(|_| incident.limit.of == Level::Container);
        let curve = incident.curve.iter();
        let points =
            curve.flat_map(|curve| curve.time.iter().copied().zip(curve.current_bytes.iter().copied()));
        samples.entry(name).or_default().add(&container.id, limit, points);
    }
    // A kill without a curve has a limit alone.
    let drawn =
        samples.into_iter().filter(|(_, samples)| samples.instances.values().any(|one| !one.is_empty()));
    drawn.map(|(name, samples)| chart(name, samples, entries)).collect()
}

fn chart(container: String, samples: Samples, entries: &[TimelineEntry]) -> MemoryChart {
    let points = |points: BTreeMap<Timestamp, u64>| points.into_iter().collect();
    let mut instances: Vec<Vec<(Timestamp, u64)>> = samples.instances.into_values().map(points).collect();
    instances.sort_by_key(|points| points.first().map(|point| point.0));
    let (kills, failures) = marks(&container, entries);
    MemoryChart { container, instances, limit_bytes: samples.limit_bytes, kills, failures }
}

/// A time and its label, and a span.
type Marks = (Vec<(Timestamp, String)>, Vec<(Timestamp, Timestamp)>);

/// The kills of a container, and the failed lookups of its pod.
fn marks(container: &str, entries: &[TimelineEntry]) -> Marks {
    let mut marks = Marks::default();
    for entry in entries {
        let pod = format!("{}/{}/", entry.namespace, entry.pod);
        if !container.starts_with(&pod) {
            continue;
        }
        let is_own = entry.container.as_deref() == Some(&container[pod.len()..]);
        match entry.kind {
            EntryKind::OomKill | EntryKind::Sigkill if is_own => {
                marks.0.push((entry.time, entry.id.clone().unwrap_or_default()));
            }
            EntryKind::DnsFailures => marks.1.push((entry.time, entry.until.unwrap_or(entry.time))),
            _ => {}
        }
    }
    marks
}

/// The flame graph of the stored CPU profiles.
fn cpu(pprof: &[u8], facts: &CpuFacts) -> Result<FlameGraph, import::pprof::ImportError> {
    let read = import::pprof::read(pprof, Some("samples"))?;
    let name =
        |&frame: &u32| read.functions.get(frame as usize).map_or_else(String::new, |name| name.to_string());
    let stacks =
        read.stacks().map(|(frames, value)| (frames.iter().rev().map(name).collect(), value)).collect();
    let complete = match facts.user_stacks {
        0 => String::new(),
        all => format!(" {} of {all} user stacks are complete.", facts.complete),
    };
    Ok(FlameGraph {
        title: "CPU time".to_owned(),
        unit: "samples".to_owned(),
        note: format!(
            "Observed: {} at {} Hz from {} to {}, sampled by the agent; {}.{complete}",
            units::plural(facts.samples, "sample"),
            facts.frequency_hz,
            units::date(facts.from),
            units::date(facts.until),
            super::losses(&facts.lost)
        ),
        stacks,
    })
}

/// The flame graph of the page faults before the newest kill that has some.
fn growth(events: &[Event]) -> Option<FlameGraph> {
    let incidents = events.iter().rev().filter_map(|event| event.incident.as_ref());
    let (incident, growth) =
        incidents.filter_map(|incident| Some((incident, incident.growth.as_ref()?))).next()?;
    let stacks = growth.paths.iter().map(|path| {
        let frames = path.frames.iter().rev().map(|frame| frame.function.clone()).collect();
        (frames, path.samples)
    });
    Some(FlameGraph {
        title: format!("Memory growth before {}", incident.id),
        unit: "samples".to_owned(),
        note: format!(
            "Observed: {} in {:.0} s, one page fault in {}; estimated: {} touched, and some of it may be free again. {} of {} stacks are complete.",
            units::plural(growth.samples, "sample"),
            growth.window_seconds,
            growth.period,
            units::bytes(growth.estimated_bytes),
            growth.complete,
            growth.samples
        ),
        stacks: stacks.collect(),
    })
}

fn queries(events: &[Event]) -> impl Iterator<Item = (Timestamp, &DnsTransaction)> {
    events.iter().filter_map(|event| match &event.detail {
        Detail::Dns(query) => Some((event.time, query)),
        _ => None,
    })
}

/// The queries in the history, by name, type, outcome and server; the most frequent first.
pub fn dns(events: &[Event]) -> DnsSummary {
    let mut groups: BTreeMap<_, Vec<(Timestamp, &DnsTransaction)>> = BTreeMap::new();
    for (time, query) in queries(events) {
        let key = (&query.name, &query.qtype, query.outcome, query.server);
        groups.entry(key).or_default().push((time, query));
    }
    let mut rows: Vec<DnsRow> = groups.values().filter_map(|group| dns_row(group)).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.count));
    DnsSummary {
        rows,
        latencies: queries(events).map(|(_, query)| query.latency_ns).collect(),
        note: "Answered queries are counted in the agent's metrics, and are not in its history. Encrypted queries are not visible."
            .to_owned(),
    }
}

/// Equal queries as one row.
fn dns_row(group: &[(Timestamp, &DnsTransaction)]) -> Option<DnsRow> {
    let (_, query) = group.first()?;
    let mut latencies: Vec<u64> = group.iter().map(|(_, query)| query.latency_ns).collect();
    latencies.sort_unstable();
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "(unreadable)".to_owned());
    Some(DnsRow {
        name: text(&query.name),
        qtype: text(&query.qtype),
        outcome: query.outcome.as_str().to_owned(),
        server: query.server.to_string(),
        count: group.len() as u64,
        median_ns: latencies[latencies.len() / 2],
        last: group.iter().map(|(time, _)| *time).max()?,
    })
}

fn autopsy_of(event: &Event) -> Option<Autopsy> {
    if let Some(incident) = &event.incident {
        return Some(of_incident(event, incident));
    }
    let sigkill = event.sigkill()?;
    let fields = sigkill::fields(event, sigkill).into_iter().map(|(name, text)| (name.to_owned(), text));
    Some(Autopsy {
        id: sigkill.id.clone(),
        title: sigkill::title(event, sigkill),
        time: event.time,
        fields: fields.collect(),
        ..Autopsy::default()
    })
}

fn of_incident(event: &Event, incident: &OomIncident) -> Autopsy {
    // These are tables here, and the memory has a chart.
    let is_text = |name: &str| !["levels", "processes"].contains(&name);
    let text = |(name, text): (&str, String)| match (name, text.split_once('\n')) {
        ("memory", Some((_, figures))) => (name.to_owned(), figures.to_owned()),
        _ => (name.to_owned(), text),
    };
    let fields = autopsy::fields(event, incident).into_iter().filter(|(name, _)| is_text(name)).map(text);
    Autopsy {
        id: incident.id.clone(),
        title: autopsy::title(event, incident),
        time: event.time,
        how: knowledge(incident.limit.how),
        fields: fields.collect(),
        tables: levels(incident).into_iter().chain(processes(incident)).collect(),
    }
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn levels(incident: &OomIncident) -> Option<Table> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "–".to_owned(), units::bytes);
    let count = |count: Option<u64>| count.map_or_else(|| "–".to_owned(), |count| count.to_string());
    let rows = incident.levels.iter().map(|one| {
        vec![
            oom::level(one.of).to_owned(),
            size(one.usage_bytes),
            size(one.limit_bytes),
            size(one.swap_bytes),
            count(one.limit_hits),
            count(one.oom_kills),
            one.path.clone(),
        ]
    });
    (!incident.levels.is_empty()).then(|| Table {
        caption: "Levels of the memory hierarchy, just after the kill".to_owned(),
        header: header(&["Level", "Usage", "Limit", "Swap", "Limit hits", "Kills", "Cgroup"]),
        rows: rows.take(TABLE_ROWS).collect(),
    })
}

/// Rows of a table in an autopsy.
const TABLE_ROWS: usize = 20;

fn processes(incident: &OomIncident) -> Option<Table> {
    let table = incident.processes.as_ref()?;
    let rows = table.rows.iter().map(|row| {
        vec![
            row.pid.to_string(),
            row.comm.clone(),
            units::bytes(row.rss_bytes),
            row.share.map_or_else(|| "–".to_owned(), |share| format!("{:.0} %", share * 100.0)),
            units::bytes(row.swap_bytes),
            row.oom_score_adj.to_string(),
            if row.victim { "victim".to_owned() } else { String::new() },
        ]
    });
    let all = table.rows.len() + table.others as usize;
    let when = if table.source == "kernel log" {
        "as the OOM killer listed them"
    } else {
        "that still ran shortly after the kill"
    };
    Some(Table {
        caption: format!("The {} largest of {all} processes, {when}", all.min(TABLE_ROWS)),
        header: header(&["PID", "Name", "RSS", "Share", "Swap", "Adjustment", ""]),
        rows: rows.take(TABLE_ROWS).collect(),
    })
}

/// The records, those of kills last: the report shows the last ones first.
fn facts(evidence: &PodEvidence) -> Vec<Fact> {
    let fact = |title: String, value: serde_json::Value| Fact { title, json: format!("{value:#}") };
    let event = |event: &Event| {
        let title = format!("{} {}", event.kind.as_str(), units::date(event.time));
        fact(title, json!(event))
    };
    let sources = &evidence.sources;
    let (kills, others): (Vec<&Event>, Vec<&Event>) =
        sources.events.iter().partition(|event| event.kept_id().is_some());
    let mut facts: Vec<Fact> = others.into_iter().map(event).collect();
    facts.extend(
        sources
            .pods
            .iter()
            .filter(|pod| !pod.containers.is_empty())
            .map(|pod| fact("pod, as the runtime lists it".to_owned(), json!(pod))),
    );
    facts.extend(
        sources.incidents.iter().map(|one| fact(format!("pod incident {}", one.incident), json!(one))),
    );
    facts.extend(kills.into_iter().map(event));
    facts
}
