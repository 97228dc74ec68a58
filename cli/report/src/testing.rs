//! Reports for tests.

use jiff::{SignedDuration, Timestamp};

use super::*;

/// A name with everything that a document, a script or a terminal could take for its own.
pub const HOSTILE: &str =
    "x\"'><img src=x onerror=alert(1)></script><script>alert(1)</script>\u{202e}\u{7}\u{200b}&lt;\\";

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A container that leaks until it is killed, with `name` in each place that can hold one.
pub fn example(name: &str) -> Report {
    let subject = format!("shop/{name}");
    let curve = |from: i64| {
        (0..90).map(|at| (time(from + at), ((4 + at as u64 * 2 / 3) << 20).min(64 << 20))).collect()
    };
    let kill = |at: i64| (time(at), format!("3f2a-{at} {name}"));
    let entry = |at: i64, kind: &str, how: Knowledge, text: String| Entry {
        time: time(at),
        until: None,
        kind: kind.into(),
        is_kill: kind == "oom-kill",
        how,
        subject: subject.clone(),
        id: (kind == "oom-kill").then(|| format!("3f2a-{at}")),
        text,
        correlated: (kind == "restart").then(|| format!("12 s after the oom-kill of {name}")),
    };
    Report {
        heading: Heading {
            subject: subject.clone(),
            node: format!("node-1 {name}"),
            source: format!("the agent at /run/{name}"),
            from: time(0),
            until: time(300),
            written: time(400),
            version: "0.1.0".into(),
        },
        verdict: Statement {
            text: format!(
                "The OOM killer killed leak[1202] of {subject} when the container met its limit of 64.0 MiB, and the pod stayed Running."
            ),
            how: Knowledge::Observed,
        },
        timeline: vec![
            entry(
                40,
                "dns-failures",
                Knowledge::Observed,
                format!("7 queries failed within 7 s: db.{name} (6); servfail 7"),
            ),
            entry(
                60,
                "memory",
                Knowledge::Observed,
                "memory reached 75 % of the limit: 48.2 MiB of 64.0 MiB".into(),
            ),
            entry(
                90,
                "oom-kill",
                Knowledge::Inferred,
                format!("limit container 64.0 MiB, victim {name}[1202]"),
            ),
            entry(102, "restart", Knowledge::Observed, format!("{name} restarted for the 1st time")),
            entry(
                190,
                "correlation",
                Knowledge::Correlated,
                "7 lookups failed and memory grew by 40 MiB".into(),
            ),
        ],
        memory: vec![MemoryChart {
            container: format!("{subject}/app"),
            instances: vec![curve(0), curve(102)],
            limit_bytes: Some(64 << 20),
            kills: vec![kill(90), kill(192)],
            failures: vec![(time(40), time(47))],
        }],
        flames: vec![flames("CPU", name), flames("Growth", name)],
        dns: DnsSummary {
            rows: (0..4).map(|at| dns_row(at, name)).collect(),
            latencies: (0..200).map(|at| at * at * 150_000).collect(),
            note: "Answered queries are counted in the agent's metrics, and are not in its history.".into(),
        },
        autopsies: vec![autopsy(name)],
        facts: vec![Fact {
            title: format!("oom.incident {name}"),
            json: format!("{{\n  \"comm\": {:?}\n}}", name),
        }],
        losses: [(format!("dns_ring {name}"), 3)].into(),
        notes: vec![format!("no agent ran from {name}")],
    }
}

fn flames(title: &str, name: &str) -> FlameGraph {
    let stack = |names: &[&str], value| (names.iter().map(|&name| name.to_owned()).collect(), value);
    let long = format!("std::collections::HashMap<{name}, alloc::vec::Vec<u8>>::insert");
    FlameGraph {
        title: format!("{title} of {name}"),
        unit: "samples".into(),
        note: format!("412 samples at 19 Hz of {name}"),
        stacks: vec![
            stack(&["_start", "main", "serve", "handle_request", "parse_json"], 120),
            stack(&["_start", "main", "serve", "handle_request", "remember_request", &long], 170),
            stack(
                &["_start", "main", "serve", "handle_request", "write_response", "[kernel] tcp_sendmsg"],
                60,
            ),
            stack(&["_start", "main", "collect_garbage"], 40),
            stack(&["[no frame pointer]", name], 22),
        ],
    }
}

fn dns_row(at: u64, name: &str) -> DnsRow {
    DnsRow {
        name: format!("db-{at}.{name}."),
        qtype: "A".into(),
        outcome: "servfail".into(),
        server: "10.0.0.10:53".into(),
        count: 9 - at,
        median_ns: 1_500_000 * (at + 1),
        last: time(47),
    }
}

fn autopsy(name: &str) -> Autopsy {
    let text = format!("{name}[1202], rss 40.3 MiB (anon 40.0 MiB, file 300 KiB)");
    Autopsy {
        id: "3f2a-90".into(),
        title: format!("OOM 3f2a-90 of {name}"),
        time: time(90),
        how: Knowledge::Observed,
        fields: vec![
            ("verdict".into(), "silent child kill: PID 1 lives on".into()),
            ("victim".into(), text),
            (name.into(), "a\nb".into()),
        ],
        tables: vec![Table {
            caption: format!("Processes of {name}"),
            header: ["PID", "Name", "RSS"].map(str::to_owned).into(),
            rows: (0..5).map(|at| vec![(1200 + at).to_string(), name.to_owned(), "1.0 MiB".into()]).collect(),
        }],
    }
}

/// More of everything than a report can hold, with long names that grow when they are escaped.
pub fn huge() -> Report {
    let name = "\u{202e}\"&<".repeat(500);
    let mut report = example(&name);
    let many = |at: i64| Entry { time: time(at), ..report.timeline[0].clone() };
    report.timeline = (0..5_000).map(many).collect();
    report.memory = vec![report.memory[0].clone(); 40];
    report.memory[0].instances[0] = (0..200_000).map(|at| (time(at), 1 << 20)).collect();
    report.autopsies = vec![report.autopsies[0].clone(); 200];
    report.facts = vec![Fact { title: name.clone(), json: name.repeat(20) }; 2_000];
    report.dns.rows = vec![report.dns.rows[0].clone(); 5_000];
    report.notes = vec![name.clone(); 500];
    for graph in &mut report.flames {
        let stack = |at: u64| {
            ((0..30).map(|depth| format!("{depth}-{}-{name}", at % (7 + depth))).collect(), 1 + at % 5)
        };
        graph.stacks = (0..5_000).map(stack).collect();
    }
    report.heading.written = time(0) + SignedDuration::from_secs(1);
    report
}
