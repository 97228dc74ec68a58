//! OOM incidents and other SIGKILLs as a list, with what Kubernetes shows of each.

use std::collections::HashMap;
use std::io::{self, Write};

use podopsy_model::event::Rss;
use podopsy_model::incident::{Evidence, Level, LimitHit, Verdict, Victim};
use podopsy_model::verdict;
use podopsy_model::{Event, KnownBy, OomIncident};

use super::list::TableStyle;
use super::table::TextTable;
use super::units;

/// The place of the node among the columns.
const NODE: usize = 2;

/// A row of the list, and the number of further kills that it stands for.
pub type Row<'a> = (&'a Event, u64);

/// A row for each kill.
pub fn single(events: &[Event]) -> Vec<Row<'_>> {
    events.iter().map(|event| (event, 0)).collect()
}

/// The rows of the list, oldest first. Kills of processes of one name in one cgroup, whose limit was met again and again, are
/// one row, which shows the newest.
pub fn grouped(events: &[Event]) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let mut groups: HashMap<(&str, &str, u64, &str), usize> = HashMap::new();
    for (event, more) in super::sigkill::grouped(events).into_iter().rev() {
        let victim = event.incident.as_ref().and_then(|incident| incident.victims.first());
        let key = victim
            .zip(event.cgroup.path.as_deref())
            .map(|(victim, path)| (event.node.as_str(), path, event.cgroup.id, victim.task.comm.as_str()));
        match key.and_then(|key| groups.get(&key)).map(|&at| &mut rows[at]) {
            Some((_, others)) => *others += 1 + more,
            None => {
                groups.extend(key.map(|key| (key, rows.len())));
                rows.push((event, more));
            }
        }
    }
    rows.reverse();
    rows
}

/// Prints the list, with a column for the node if there are several.
pub fn print(out: &mut impl Write, style: TableStyle, rows: &[Row<'_>], has_node: bool) -> io::Result<()> {
    let mut header = vec![
        "WHEN",
        "ID",
        "NODE",
        "POD",
        "CONTAINER",
        "RESTARTS",
        "LIMIT",
        "VICTIM",
        "RSS / LIMIT",
        "KUBERNETES SAYS",
    ];
    if style.is_wide {
        header.extend(["KNOWN BY", "TRIGGER", "QOS", "IMAGE"]);
    }
    if !has_node {
        header.remove(NODE);
    }
    let mut table = TextTable::new(&header);
    for &(event, more) in rows {
        if let Some(sigkill) = event.sigkill() {
            let mut row = vec![
                units::date(event.time),
                sigkill.id.clone(),
                event.node.clone(),
                pod(event),
                event.container.as_ref().map(|container| container.name.clone()).unwrap_or_default(),
            ];
            if !has_node {
                row.remove(NODE);
            }
            row.extend(super::sigkill::cells(event, sigkill, more));
            row.resize(header.len(), String::new());
            table.row(row);
            continue;
        }
        let Some(incident) = &event.incident else { continue };
        let mut row = vec![
            units::date(event.time),
            incident.id.clone(),
            event.node.clone(),
            pod(event),
            event.container.as_ref().map(|container| container.name.clone()).unwrap_or_default(),
            restarts(event, incident),
            short(&incident.limit),
            repeated(victims(incident), more),
            rss_of_limit(incident),
            kubernetes(incident),
        ];
        if !has_node {
            row.remove(NODE);
        }
        if style.is_wide {
            let recovered = if incident.recovered { ", recovered" } else { "" };
            row.push(format!("{}{recovered}", incident.limit.by));
            row.push(incident.trigger.as_ref().map(|t| format!("{}[{}]", t.comm, t.pid)).unwrap_or_default());
            row.push(incident.qos.clone().unwrap_or_default());
            row.push(event.container.as_ref().map(|container| container.image.clone()).unwrap_or_default());
        }
        table.row(row);
    }
    table.print(out, style)
}

/// One line of a live table.
pub fn summary(incident: &OomIncident) -> String {
    let mut text =
        format!("{}: limit {}, victim {}", incident.id, limit_hit(&incident.limit), victims(incident));
    for verdict in &incident.verdicts {
        text += "; ";
        text += &verdict::explain(*verdict, incident);
    }
    text
}

/// `container 64.0 MiB (observed)`.
pub fn limit_hit(limit: &LimitHit) -> String {
    let size = limit.limit_bytes.map(|bytes| format!(" {}", units::bytes(bytes))).unwrap_or_default();
    match limit.of {
        Level::Unknown => "unknown".to_owned(),
        of => format!("{}{size} ({})", level(of), how(limit.how)),
    }
}

pub fn level(level: Level) -> &'static str {
    match level {
        Level::InsideContainer => "inside the container",
        Level::Container => "container",
        Level::Pod => "pod",
        Level::Slice => "slice",
        Level::Node => "node",
        Level::Cpuset => "cpuset",
        Level::MemoryPolicy => "memory policy",
        Level::Unknown => "unknown",
    }
}

pub fn how(how: Evidence) -> &'static str {
    match how {
        Evidence::Observed => "observed",
        Evidence::Inferred => "inferred",
    }
}

/// The kernel's own sum (get_mm_rss); swap is not resident memory.
pub fn resident(rss: &Rss) -> u64 {
    rss.anon_bytes.saturating_add(rss.file_bytes).saturating_add(rss.shmem_bytes)
}

fn short(limit: &LimitHit) -> String {
    let guess =
        if limit.how == Evidence::Inferred && limit.of != Level::Unknown { " (inferred)" } else { "" };
    format!("{}{guess}", level(limit.of))
}

pub fn pod(event: &Event) -> String {
    match (&event.pod, event.known_by) {
        (Some(pod), _) if pod.name.is_empty() => format!("(pod {})", pod.uid),
        (Some(pod), _) => format!("{}/{}", pod.namespace, pod.name),
        (None, KnownBy::Host) => "(host)".to_owned(),
        (None, _) => "(unknown)".to_owned(),
    }
}

fn restarts(event: &Event, incident: &OomIncident) -> String {
    let reported = incident.runtime.as_ref().map(|view| view.restarts);
    let restarts = reported.or(event.container.as_ref().map(|container| container.attempt));
    restarts.map(|count| count.to_string()).unwrap_or_default()
}

fn victims(incident: &OomIncident) -> String {
    let name = |victim: &Victim| format!("{}[{}]", victim.task.comm, victim.task.pid);
    match &incident.victims[..] {
        [] => String::new(),
        [one] => name(one),
        [first, rest @ ..] => format!("{} and {} more", name(first), rest.len()),
    }
}

/// `storm[17] ×160`.
fn repeated(victims: String, more: u64) -> String {
    if more > 0 { format!("{victims} ×{}", more + 1) } else { victims }
}

fn rss_of_limit(incident: &OomIncident) -> String {
    let rss: Option<u64> = incident.victims.iter().map(|victim| victim.rss.as_ref().map(resident)).sum();
    let side = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), units::bytes);
    format!("{} / {}", side(rss), side(incident.limit.limit_bytes))
}

fn kubernetes(incident: &OomIncident) -> String {
    let Some(view) = &incident.runtime else { return String::new() };
    let state = verdict::container_state(view);
    let remark = incident.verdicts.iter().find_map(|verdict| match verdict {
        Verdict::SilentChildKill => Some("silent"),
        Verdict::RuntimeDisagrees => Some("no OOM"),
        Verdict::Agrees if verdict::counts_as_success(incident) => Some("succeeded"),
        _ => None,
    });
    remark.map_or(state.clone(), |remark| format!("{state}: {remark}"))
}

#[cfg(test)]
pub mod tests {
    use jiff::{SignedDuration, Timestamp};
    use podopsy_model::event::{OomTask, ProcessRef};
    use podopsy_model::incident::{LevelState, ProcessRow, ProcessTable, RuntimeView};
    use podopsy_model::memory::Curve;
    use podopsy_model::profile::Frame;
    use podopsy_model::{CgroupRef, ContainerRef, Detail, EventKind, OomKill, Owner, PodRef};

    use super::*;
    use crate::terminal::Terminal;

    const MIB: u64 = 1 << 20;

    /// A silent child kill in shop/orders, `seconds_ago`, with 40 processes and a memory curve.
    pub fn event(id: &str, seconds_ago: i64) -> Event {
        let time = Timestamp::now() - SignedDuration::from_secs(seconds_ago);
        let task = OomTask { pid: 1202, tid: 1202, comm: "leak".into() };
        let container = ContainerRef {
            name: "api".into(),
            id: "3f2a9c".into(),
            image: "registry.local/orders:2.0".into(),
            attempt: 1,
        };
        let cgroup = CgroupRef { id: 7, path: Some("/k/pod1/c1".into()) };
        let level = |of, path: &str, usage: u64, limit: Option<u64>| LevelState {
            of,
            path: path.into(),
            usage_bytes: Some(usage * MIB),
            limit_bytes: limit.map(|limit| limit * MIB),
            swap_bytes: Some(0),
            headroom_bytes: limit.map(|limit| (limit - usage) * MIB),
            limit_hits: Some(9),
            oom_kills: Some(1),
        };
        let row = |n: u64| ProcessRow {
            pid: 1200 + n as u32,
            comm: if n == 2 { "leak".into() } else { format!("worker-{n}") },
            rss_bytes: if n == 2 { 40 * MIB } else { MIB },
            swap_bytes: 0,
            oom_score_adj: 999,
            share: Some(if n == 2 { 0.625 } else { 0.0156 }),
            victim: n == 2,
        };
        let mut rows: Vec<_> = (1..=40).map(row).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.rss_bytes));
        let column = |of: &dyn Fn(u64) -> u64| (0..60).map(of).collect::<Vec<u64>>();
        let incident = OomIncident {
            id: id.into(),
            victims: vec![Victim {
                task: task.clone(),
                rss: Some(Rss { anon_bytes: 40 * MIB, file_bytes: 300 << 10, shmem_bytes: 0, swap_bytes: 0 }),
                oom_score_adj: Some(999),
                already_dying: false,
                container: Some(container.clone()),
                cgroup: cgroup.clone(),
            }],
            trigger: Some(OomTask { pid: 1207, tid: 1209, comm: "worker-7".into() }),
            trigger_cgroup: cgroup.clone(),
            group: false,
            kernel_kills: 1,
            constraint: Some("memcg".into()),
            limit: LimitHit {
                of: Level::Container,
                how: Evidence::Observed,
                by: "kernel log".into(),
                path: cgroup.path.clone(),
                limit_bytes: Some(64 * MIB),
                usage_bytes: Some(64 * MIB),
            },
            levels: vec![
                level(Level::Container, "/k/pod1/c1", 30, Some(64)),
                level(Level::Pod, "/k/pod1", 30, None),
                level(Level::Slice, "/k", 400, None),
                level(Level::Node, "/", 3000, Some(8000)),
            ],
            processes: Some(ProcessTable {
                source: "kernel log".into(),
                rows,
                others: 0,
                others_rss_bytes: 0,
            }),
            charged: None,
            heap: None,
            curve: Some(Curve {
                time: (0..60).map(|s| time - SignedDuration::from_secs(60 - s)).collect(),
                current_bytes: column(&|s| (s + 4) * MIB),
                anon_bytes: column(&|s| (s + 2) * MIB),
                file_bytes: column(&|_| MIB),
                shmem_bytes: column(&|_| 0),
                kernel_bytes: column(&|_| MIB),
                growth_bytes_per_second: Some(MIB as f64),
                pressure: Some(0.03),
            }),
            growth: Some(super::super::growth::tests::profile()),
            qos: Some("Burstable".into()),
            runtime: Some(RuntimeView {
                state: "running".into(),
                reason: String::new(),
                exit_code: None,
                restarts: 1,
                started_at: Some(time - SignedDuration::from_secs(61)),
                finished_at: None,
                pid: Some(1201),
                asked_at: time + SignedDuration::from_secs(2),
            }),
            verdicts: vec![Verdict::SilentChildKill],
            attempts: Vec::new(),
            advice: Some("grew by 60.0 MiB a minute over the last 59 s".into()),
            recovered: false,
        };
        let owner = Owner {
            pod: Some(PodRef {
                namespace: "shop".into(),
                name: "orders".into(),
                uid: "u".into(),
                labels: [("app".to_owned(), "orders".to_owned())].into(),
            }),
            container: Some(container),
            cgroup,
            known_by: KnownBy::Cri,
        };
        let process = ProcessRef { pid: 1202, comm: "leak".into(), start_time: None };
        let frame = |name: &str| Frame { function: Some(name.into()), ..Frame::default() };
        let kill = OomKill {
            victim: task,
            trigger: incident.trigger.clone().unwrap(),
            trigger_cgroup: incident.trigger_cgroup.clone(),
            rss: incident.victims[0].rss,
            oom_score_adj: Some(999),
            kernel_stack: vec![frame("oom_kill_process")],
            user_stack: ["keep", "append_history", "handle_order"].map(frame).into(),
            incident: Some(id.into()),
            limit: Some(incident.limit.clone()),
            already_dying: false,
            recovered: false,
        };
        let mut event = Event::new(
            time,
            EventKind::OomIncident,
            "n",
            owner,
            process,
            Detail::Oom(kill),
            Default::default(),
        );
        event.incident = Some(Box::new(incident));
        event
    }

    #[test]
    fn the_list_marks_silent_kills_and_inferred_limits() {
        let mut one = event("3f2a-28908", 0);
        one.time = "2026-03-01T03:04:05.678Z".parse().unwrap();
        let mut host = event("3f2a-t9-100", 0);
        host.time = one.time;
        (host.pod, host.container, host.known_by) = (None, None, KnownBy::Host);
        if let Some(incident) = &mut host.incident {
            incident.runtime = None;
            incident.limit.how = Evidence::Inferred;
            incident.victims[0].rss = None;
        }
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN.into(), &single(&[one.clone(), host]), false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
WHEN                  ID           POD          CONTAINER  RESTARTS  LIMIT                 VICTIM      RSS / LIMIT          KUBERNETES SAYS
2026-03-01 03:04:05Z  3f2a-28908   shop/orders  api        1         container             leak[1202]  40.3 MiB / 64.0 MiB  Running: silent
2026-03-01 03:04:05Z  3f2a-t9-100  (host)       -          -         container (inferred)  leak[1202]  ? / 64.0 MiB         -
"
        );
        let mut out = Vec::new();
        let style = TableStyle { is_wide: true, ..Terminal::PLAIN.into() };
        print(&mut out, style, &single(&[one]), true).unwrap();
        let text = String::from_utf8(out).unwrap();
        let columns: Vec<&str> = text.lines().flat_map(|line| line.split("  ")).map(str::trim).collect();
        assert!(columns.contains(&"NODE") && columns.contains(&"n"), "{text}");
    }

    #[test]
    fn repeated_kills_in_one_cgroup_are_one_row_with_the_newest() {
        let mut storm: Vec<Event> = (0..160).map(|n| event(&format!("3f2a-{n}"), 200 - n)).collect();
        let mut other = event("3f2a-500", 150);
        other.cgroup.path = Some("/k/pod2/c2".into());
        // The cgroup of the container's next instance has the same path and another number.
        let mut restarted = event("3f2a-501", 1);
        restarted.cgroup.id = 8;
        storm.insert(50, other);
        storm.push(restarted);
        let rows = grouped(&storm);
        let ids: Vec<(&str, u64)> =
            rows.iter().map(|(event, more)| (event.kept_id().unwrap(), *more)).collect();
        assert_eq!(ids, [("3f2a-500", 0), ("3f2a-159", 159), ("3f2a-501", 0)]);
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN.into(), &rows, false).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("leak[1202] ×160"));
        assert_eq!(single(&storm).len(), 162);
    }

    #[test]
    fn a_live_line_has_the_verdict() {
        let incident = event("3f2a-1", 0).incident.unwrap();
        let line = summary(&incident);
        assert!(
            line.starts_with(
                "3f2a-1: limit container 64.0 MiB (observed), victim leak[1202]; silent child kill"
            ),
            "{line}"
        );
    }
}
