//! The autopsy of one OOM kill on one screen (100 columns, 40 lines): the verdict first, then the evidence.

use std::io::{self, Write};

use podopsy_model::event::OomTask;
use podopsy_model::incident::{Level, LevelState, LimitHit, OomIncident, ProcessTable, Victim};
use podopsy_model::memory::Curve;
use podopsy_model::verdict;
use podopsy_model::{Detail, Event};

use super::growth;
use super::inspect::workload;
use super::oom::{how, level, pod, resident};
use super::table::{KEYS, NARROW, cut, field, heading, pad};
use super::units;
use crate::terminal::{Terminal, visible};

/// How many rows each section shows; the others are counted, and the JSON has them.
const VICTIMS: usize = 3;
const PROCESSES: usize = 8;
const FRAMES: usize = 5;
/// Width of the name of a cgroup inside the container, which may be an id of 64 digits.
const NESTED_NAME: usize = 20;
/// Fields whose lines are aligned with each other: a line that is too long is cut. Those of others, and on a narrow terminal all,
/// are broken.
const ALIGNED: [&str; 7] = ["memory", "charged", "heap", "growth", "levels", "processes", "stack"];
/// Width of the sparkline.
const SPARKS: usize = 60;

pub fn print(out: &mut impl Write, terminal: Terminal, event: &Event) -> io::Result<()> {
    let Some(incident) = &event.incident else { return Ok(()) };
    heading(out, terminal, &title(event, incident))?;
    let width = terminal.width.filter(|&width| width >= NARROW).map(|width| width - KEYS);
    for (key, value) in fields(event, incident) {
        if width.is_some() && ALIGNED.contains(&key) {
            let lines: Vec<String> = value.split('\n').map(|line| cut(line, width)).collect();
            field(out, terminal, key, &lines.join("\n"))?;
        } else {
            field(out, terminal, key, &value)?;
        }
    }
    Ok(())
}

pub fn title(event: &Event, incident: &OomIncident) -> String {
    let name = event.container.as_ref().map(|container| format!("/{}", container.name)).unwrap_or_default();
    format!("OOM {} of {}{name} at {}", incident.id, visible(&pod(event)), units::date(event.time))
}

/// The known facts, each with its name.
pub fn fields(event: &Event, incident: &OomIncident) -> Vec<(&'static str, String)> {
    let mut fields: Vec<(&str, String)> =
        incident.verdicts.iter().map(|one| ("verdict", verdict::explain(*one, incident))).collect();
    fields.extend([
        ("seen", incident.advice.clone().unwrap_or_default()),
        ("whose limit", limit_hit(incident)),
        ("victim", victims(incident)),
        ("trigger", trigger(incident)),
        ("workload", event.pod.as_ref().map(workload).unwrap_or_default()),
        ("container", container(event, incident)),
        ("runtime", runtime(event, incident)),
        ("memory", incident.curve.as_ref().map(|curve| memory(curve, incident)).unwrap_or_default()),
        ("charged", super::charged::text(incident)),
        ("heap", incident.heap.as_ref().map(super::heap::text).unwrap_or_default()),
        ("growth", incident.growth.as_ref().map(growth::text).unwrap_or_default()),
        ("levels", levels(&incident.levels)),
        ("processes", incident.processes.as_ref().map(processes).unwrap_or_default()),
        ("stack", stack(event)),
        ("losses", losses(event, incident)),
    ]);
    fields.retain(|(_, value)| !value.is_empty());
    fields
}

fn limit_hit(incident: &OomIncident) -> String {
    let limit = &incident.limit;
    let constraint = incident
        .constraint
        .as_ref()
        .map(|constraint| format!(", constraint {constraint}"))
        .unwrap_or_default();
    let fill = match (limit.usage_bytes, limit.limit_bytes) {
        (Some(usage), Some(max)) => format!(": {} of {}", units::bytes(usage), units::bytes(max)),
        (None, Some(max)) => format!(": {}", units::bytes(max)),
        _ => String::new(),
    };
    let by = if limit.of == Level::Unknown {
        limit.by.clone()
    } else {
        format!("{}: {}", how(limit.how), limit.by)
    };
    let path = limit.path.as_ref().map(|path| format!("\n{path}")).unwrap_or_default();
    let outer =
        if limit.of == Level::InsideContainer { container_limit(&incident.levels) } else { String::new() };
    format!("{}{fill} ({by}{constraint}){path}{outer}", limited(limit))
}

/// What the limit is of; a cgroup that the container created is named, because it is not the one that Kubernetes limits.
fn limited(limit: &LimitHit) -> String {
    match (limit.of, &limit.path) {
        // The whole path follows on a line of its own.
        (Level::InsideContainer, Some(path)) => {
            format!("a cgroup inside the container, {}", cut(&tail(path), Some(NESTED_NAME)))
        }
        (Level::InsideContainer, None) => "a cgroup inside the container".to_owned(),
        (of, _) => level(of).to_owned(),
    }
}

/// A line with the limit of the Kubernetes container itself.
fn container_limit(levels: &[LevelState]) -> String {
    let own = levels.iter().find(|one| one.of == Level::Container);
    match own.map(|own| own.limit_bytes) {
        Some(Some(limit)) => {
            format!("\nthe Kubernetes container's own limit is {}", units::bytes(limit))
        }
        Some(None) => "\nthe Kubernetes container has no limit of its own".to_owned(),
        None => String::new(),
    }
}

fn task(task: &OomTask) -> String {
    let thread =
        if task.tid != task.pid && task.pid != 0 { format!(" thread {}", task.tid) } else { String::new() };
    format!("{}[{}]{thread}", task.comm, task.pid)
}

fn victims(incident: &OomIncident) -> String {
    let line = |victim: &Victim| {
        let mut text = task(&victim.task);
        if let Some(rss) = &victim.rss {
            text += &format!(
                ", rss {} (anon {}, file {}, shmem {}, swap {})",
                units::bytes(resident(rss)),
                units::bytes(rss.anon_bytes),
                units::bytes(rss.file_bytes),
                units::bytes(rss.shmem_bytes),
                units::bytes(rss.swap_bytes)
            );
        }
        text += &victim.oom_score_adj.map(|adj| format!(", oom_score_adj {adj}")).unwrap_or_default();
        if victim.already_dying {
            text += ", was dying already";
        }
        text
    };
    let mut lines: Vec<String> = incident.victims.iter().take(VICTIMS).map(line).collect();
    let more = incident.victims.len().saturating_sub(VICTIMS);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    if incident.group {
        lines.push("all of the cgroup's processes were killed together (memory.oom.group)".to_owned());
    }
    lines.join("\n")
}

fn trigger(incident: &OomIncident) -> String {
    match &incident.trigger {
        None => "not known: the kernel's log has no header for this kill".to_owned(),
        Some(one) if incident.victims.iter().any(|victim| victim.task.pid == one.pid) => {
            format!("{}: it asked for memory itself", task(one))
        }
        Some(one) => {
            let location = incident.trigger_cgroup.path.as_ref().filter(|path| {
                incident.victims.first().is_some_and(|victim| victim.cgroup.path.as_ref() != Some(path))
            });
            let location = location.map(|path| format!(", in {path}")).unwrap_or_default();
            format!("{} asked for memory, and is not the victim{location}", task(one))
        }
    }
}

fn container(event: &Event, incident: &OomIncident) -> String {
    let Some(container) = &event.container else { return String::new() };
    let qos = incident.qos.as_ref().map(|qos| format!(", QoS {qos}")).unwrap_or_default();
    format!("{}, attempt {}{qos}", container.image, container.attempt)
}

fn runtime(event: &Event, incident: &OomIncident) -> String {
    let Some(view) = &incident.runtime else { return String::new() };
    let after = view.asked_at.duration_since(event.time).as_secs_f64();
    let mut text = format!(
        "{}, {}, asked {after:.0} s after",
        verdict::container_state(view),
        units::plural(view.restarts.into(), "restart")
    );
    if let Some(started) = view.started_at {
        let lived = event.time.duration_since(started);
        text += &format!("; started {:.0} s before the kill", lived.as_secs_f64());
    }
    if !incident.attempts.is_empty() {
        let attempts = incident.attempts.iter().map(|one| format!("#{} {:.0} s", one.attempt, one.seconds));
        text += &format!("\nstart to kill: {}", attempts.collect::<Vec<_>>().join(", "));
    }
    text
}

/// The memory curve as a sparkline: in eighths of the container's limit if that was hit, otherwise of its maximum.
fn memory(curve: &Curve, incident: &OomIncident) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let (Some(first), Some(last)) = (curve.current_bytes.first(), curve.current_bytes.last()) else {
        return String::new();
    };
    let limit = incident.limit.limit_bytes.filter(|_| incident.limit.of == Level::Container).unwrap_or(0);
    let top = curve.current_bytes.iter().copied().max().unwrap_or(0).max(limit).max(1);
    let count = curve.current_bytes.len();
    let width = SPARKS.min(count);
    let bars: String = (0..width)
        .map(|at| {
            // The highest of the points that share a column.
            let points = &curve.current_bytes
                [at * count / width..((at + 1) * count / width).max(at * count / width + 1)];
            let high = points.iter().copied().max().unwrap_or(0);
            BARS[(high as u128 * 7 / top as u128).min(7) as usize]
        })
        .collect();
    let share =
        |column: &[u64]| column.last().map_or(0.0, |bytes| *bytes as f64 * 100.0 / (*last).max(1) as f64);
    let mut text = format!(
        "{bars}\n{} → {} in {:.0} s; anon {:.0} %, file {:.0} %, shmem {:.0} %, kernel {:.0} %",
        units::bytes(*first),
        units::bytes(*last),
        curve.seconds(),
        share(&curve.anon_bytes),
        share(&curve.file_bytes),
        share(&curve.shmem_bytes),
        share(&curve.kernel_bytes)
    );
    if let Some(slope) = curve.growth_bytes_per_second {
        let sign = if slope < 0.0 { '-' } else { '+' };
        text += &format!("; {sign}{}/s", units::bytes(slope.abs() as u64));
    }
    if let Some(usage) = incident.limit.usage_bytes.filter(|_| limit > 0) {
        text += &format!("; {} at the kill", units::bytes(usage));
    }
    if let Some(pressure) = curve.pressure {
        text += &format!("; waiting {:.0} %", pressure * 100.0);
    }
    text
}

/// The last part of a path; whole cgroup paths are wider than the screen.
fn tail(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [] => "/".to_owned(),
        [.., last] if parts.len() > 1 => format!("…/{last}"),
        [last, ..] => format!("/{last}"),
    }
}

fn levels(levels: &[LevelState]) -> String {
    if levels.is_empty() {
        return String::new();
    }
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), units::bytes);
    let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    let mut lines = vec![columns(
        &["LEVEL", "USAGE", "LIMIT", "HEADROOM", "SWAP", "HITS", "KILLS", "CGROUP"],
        LEVEL_WIDTHS,
    )];
    for one in levels {
        lines.push(columns(
            &[
                short_level(one.of),
                &size(one.usage_bytes),
                &size(one.limit_bytes),
                &size(one.headroom_bytes),
                &size(one.swap_bytes),
                &count(one.limit_hits),
                &count(one.oom_kills),
                &tail(&one.path),
            ],
            LEVEL_WIDTHS,
        ));
    }
    lines.join("\n")
}

/// The name of a level that fits its column.
fn short_level(of: Level) -> &'static str {
    match of {
        Level::InsideContainer => "nested",
        of => level(of),
    }
}

const LEVEL_WIDTHS: &[usize] = &[10, 10, 10, 10, 9, 5, 5];
const PROCESS_WIDTHS: &[usize] = &[8, 16, 10, 7, 9, 5];

fn columns(cells: &[&str], widths: &[usize]) -> String {
    let mut line = String::new();
    for (at, cell) in cells.iter().enumerate() {
        line +=
            &widths.get(at).map_or_else(|| (*cell).to_owned(), |&width| pad(&cut(cell, Some(width)), width));
        line.push(' ');
    }
    line.trim_end().to_owned()
}

fn processes(table: &ProcessTable) -> String {
    let count = table.rows.len() + table.others as usize;
    let source = match table.source.as_str() {
        "kernel log" => "as the OOM killer listed them",
        _ => "still running shortly after the kill, from /proc",
    };
    let mut lines = vec![format!(
        "{}, {source}",
        units::plural(count as u64, "process").replace("processs", "processes")
    )];
    lines.push(columns(&["PID", "COMM", "RSS", "SHARE", "SWAP", "ADJ"], PROCESS_WIDTHS));
    // The largest processes, and all victims.
    let shown: Vec<usize> = (0..table.rows.len())
        .filter(|&at| at < PROCESSES || table.rows[at].victim)
        .take(PROCESSES + VICTIMS)
        .collect();
    for row in shown.iter().map(|&at| &table.rows[at]) {
        lines.push(columns(
            &[
                &row.pid.to_string(),
                &row.comm,
                &units::bytes(row.rss_bytes),
                &row.share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
                &units::bytes(row.swap_bytes),
                &row.oom_score_adj.to_string(),
                if row.victim { "← victim" } else { "" },
            ],
            PROCESS_WIDTHS,
        ));
    }
    let rest = count - shown.len();
    if rest > 0 {
        let left = (0..table.rows.len()).filter(|at| !shown.contains(at)).map(|at| table.rows[at].rss_bytes);
        let bytes = left.fold(table.others_rss_bytes, u64::saturating_add);
        lines.push(format!("and {rest} more with {} together", units::bytes(bytes)));
    }
    lines.join("\n")
}

fn stack(event: &Event) -> String {
    let Detail::Oom(kill) = &event.detail else { return String::new() };
    let known = if kill.user_stack.is_empty() { &kill.kernel_stack } else { &kill.user_stack };
    if known.is_empty() {
        return String::new();
    }
    let kind = if kill.user_stack.is_empty() { "kernel" } else { "user" };
    let frames: Vec<String> =
        known.iter().take(FRAMES).map(|frame| frame.display_name().into_owned()).collect();
    let more = if known.len() > FRAMES { " ← …" } else { "" };
    format!("of the trigger ({kind}): {}{more}", frames.join(" ← "))
}

fn losses(event: &Event, incident: &OomIncident) -> String {
    if incident.recovered {
        return "recovered: podopsy did not record it; the facts are from the kernel's log and counters and the runtime"
            .to_owned();
    }
    super::losses(&event.losses)
}

#[cfg(test)]
mod tests {
    use podopsy_model::profile::Frame;

    use super::super::oom::tests::event;
    use super::*;

    fn printed(event: &Event, width: Option<usize>) -> String {
        let mut out = Vec::new();
        print(&mut out, Terminal { width, colour: false }, event).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn forty_processes_fit_a_terminal_of_100_by_40() {
        let text = printed(&event("3f2a-28908", 5), Some(100));
        assert!(text.lines().count() <= 40, "{}\n{text}", text.lines().count());
        for line in text.lines() {
            assert!(console::measure_text_width(line) <= 100, "{line}");
        }
        for part in [
            "OOM 3f2a-28908 of shop/orders/api",
            "verdict      silent child kill: PID 1 lives on",
            "whose limit  container: 64.0 MiB of 64.0 MiB (observed: kernel log, constraint memcg)",
            "victim       leak[1202], rss 40.3 MiB (anon 40.0 MiB,",
            "trigger      worker-7[1207] thread 1209 asked for memory, and is not the victim",
            "4.0 MiB → 63.0 MiB in 59 s; anon 97 %",
            "+1.0 MiB/s",
            "growth       remember_request took 94 % of the page faults itself (/bin/leaker)",
            " 94 % remember_request ← handle_request ← serve_until_killed ← main",
            "40 processes, as the OOM killer listed them",
            "← victim",
            "and 32 more with 32.0 MiB together",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[test]
    fn on_a_narrow_terminal_nothing_is_cut() {
        let text = printed(&event("3f2a-28908", 5), Some(40));
        assert!(text.lines().all(|line| console::measure_text_width(line) <= 40), "{text}");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let all = words(&text).join(" ");
        assert!(all.contains("40 processes, as the OOM killer listed them"), "{text}");
        assert!(all.contains("and 32 more with 32.0 MiB together"), "{text}");
    }

    #[test]
    fn unknown_facts_are_left_out() {
        let mut one = event("3f2a-1", 5);
        if let Some(incident) = &mut one.incident {
            (incident.curve, incident.processes, incident.runtime, incident.trigger) =
                (None, None, None, None);
            incident.levels.clear();
            incident.recovered = true;
        }
        let text = printed(&one, None);
        assert!(
            !text.contains("memory  ") && !text.contains("levels") && !text.contains("runtime  "),
            "{text}"
        );
        assert!(text.contains("recovered: podopsy did not record it"), "{text}");
    }

    #[test]
    fn a_frame_without_a_name_has_its_file_and_offset() {
        let mut one = event("3f2a-1", 5);
        if let Detail::Oom(kill) = &mut one.detail {
            let frame = |module: Option<&str>| Frame {
                module: module.map(Into::into),
                offset: 0x4c9,
                ..Frame::default()
            };
            kill.user_stack = [Some("/usr/lib/libfoo.so.1"), Some("[anonymous]"), None].map(frame).into();
        }
        let text = printed(&one, None);
        assert!(text.contains("libfoo.so.1+0x4c9 ← [anonymous]+0x4c9 ← [no mapping]+0x4c9"), "{text}");
    }

    #[test]
    fn a_cgroup_inside_the_container_is_named_and_is_not_called_the_container() {
        let mut one = event("3f2a-1", 5);
        let incident = one.incident.as_mut().unwrap();
        let nested = |path: &str, limit: Option<u64>| LevelState {
            of: Level::InsideContainer,
            path: path.into(),
            limit_bytes: limit,
            ..incident.levels[0].clone()
        };
        let (inner, docker) =
            (nested("/k/pod1/c1/docker/inner", Some(20 << 20)), nested("/k/pod1/c1/docker", None));
        incident.limit.of = Level::InsideContainer;
        incident.limit.path = Some(inner.path.clone());
        (incident.limit.limit_bytes, incident.limit.usage_bytes) = (Some(20 << 20), Some(20 << 20));
        incident.levels.splice(0..0, [inner, docker]);
        let text = printed(&one, None);
        assert!(
            text.contains(
                "whose limit  a cgroup inside the container, …/inner: 20.0 MiB of 20.0 MiB (observed: kernel log, constraint \
                 memcg)\n             /k/pod1/c1/docker/inner\n             the Kubernetes container's own limit is 64.0 MiB\n"
            ),
            "{text}"
        );
        let of = |word: &str| text.lines().filter(|line| line.trim_start().starts_with(word)).count();
        assert_eq!((of("nested "), of("container  ")), (2, 2), "the level and the image: {text}");
    }

    #[test]
    fn a_hostile_comm_stays_on_its_line() {
        let mut one = event("3f2a-1", 5);
        if let Some(incident) = &mut one.incident {
            incident.victims[0].task.comm = "x\u{202e}\x1b[2J".into();
        }
        assert!(printed(&one, Some(100)).contains("x\\u{202e}\\x1b[2J[1202]"));
    }
}
