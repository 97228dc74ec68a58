//! Events, one line each, as a table or as JSON.

use std::io::{self, Write};

use podopsy_model::dns::rcode_name;
use podopsy_model::event::{OomKill, OomTask, Protocol};
use podopsy_model::{Detail, DnsTransaction, Event, EventKind, KnownBy, Outcome, PodRef};

use super::table::{NARROW, cut, fixed, wrap};
use super::units;
use crate::args::ListFormat;
use crate::terminal::{Colour, Terminal, visible};

const HEADER: [&str; 7] = ["TIME", "KIND", "NODE", "POD", "CONTAINER", "PROCESS", "DETAIL"];
/// The place of the node among the columns.
const NODE: usize = 2;
const NODE_WIDTH: usize = 18;

/// Prints events as they come. Flushes each line, so that a reader sees it at once.
#[derive(Debug)]
pub struct EventPrinter {
    format: ListFormat,
    terminal: Terminal,
    /// Of all columns but the last.
    widths: Vec<usize>,
    /// There is a column for the node: the events are from several.
    has_nodes: bool,
    header_printed: bool,
    /// Print the date too: the events are from the history.
    dated: bool,
}

impl EventPrinter {
    pub fn new(format: ListFormat, terminal: Terminal) -> Self {
        let names = match terminal.width {
            Some(0..120) => [18, 10, 14],
            Some(120..160) => [26, 14, 18],
            _ => [36, 18, 22],
        };
        let terminal = match format {
            ListFormat::Wide => Terminal { width: None, ..terminal },
            _ => terminal,
        };
        EventPrinter {
            format,
            terminal,
            widths: vec![13, 15, names[0], names[1], names[2]],
            has_nodes: false,
            header_printed: false,
            dated: false,
        }
    }

    /// For past events, which may be from another day.
    pub fn dated(format: ListFormat, terminal: Terminal) -> Self {
        let mut lines = Self::new(format, terminal);
        lines.widths[0] = units::date(jiff::Timestamp::UNIX_EPOCH).len();
        EventPrinter { dated: true, ..lines }
    }

    /// Adds a column with the node.
    pub fn with_nodes(mut self) -> Self {
        self.widths.insert(NODE, NODE_WIDTH);
        EventPrinter { has_nodes: true, ..self }
    }

    pub fn without_header(self) -> Self {
        EventPrinter { header_printed: true, ..self }
    }

    pub fn print(&mut self, out: &mut impl Write, event: &Event) -> io::Result<()> {
        if self.format == ListFormat::Json {
            serde_json::to_writer(&mut *out, event)?;
            writeln!(out)?;
            return out.flush();
        }
        if !self.header_printed {
            self.header_printed = true;
            let header = self.row(HEADER);
            writeln!(out, "{}", self.terminal.paint(Colour::Bold, &header))?;
        }
        let line = self.row([
            &if self.dated { units::date(event.time) } else { units::clock(event.time) },
            event.kind.as_str(),
            &event.node,
            &pod(event),
            event.container.as_ref().map_or("-", |container| container.name.as_str()),
            &format!("{}[{}]", event.process.comm, event.process.pid),
            &detail(event),
        ]);
        // Colour codes would count as width, so they are inserted last. The kind's column comes before any free text, so
        // the first match is the kind.
        let line = match event.kind {
            EventKind::OomKill => line.replacen("oom.kill", &self.terminal.paint(Colour::Red, "oom.kill"), 1),
            EventKind::DnsFailure => {
                line.replacen("dns.failure", &self.terminal.paint(Colour::Yellow, "dns.failure"), 1)
            }
            EventKind::Sigkill => {
                line.replacen("process.sigkill", &self.terminal.paint(Colour::Red, "process.sigkill"), 1)
            }
            EventKind::OomIncident | EventKind::DnsAnswer | EventKind::DnsLookup => line,
        };
        writeln!(out, "{line}")?;
        out.flush()
    }

    fn row(&self, cells: [&str; 7]) -> String {
        if let Some(width) = self.terminal.width.filter(|&width| width < NARROW) {
            let [time, kind, _, pod, container, process, detail] = cells;
            let container = if container == "-" { String::new() } else { format!("/{container}") };
            return narrow(width, &format!("{time} {kind}"), [&format!("{pod}{container}"), process], detail);
        }
        let mut cells = cells.to_vec();
        if !self.has_nodes {
            cells.remove(NODE);
        }
        fixed(&cells, &self.widths, self.terminal.width)
    }
}

/// Some lines for an event: when and what; and indented below it to whom, and the details.
pub fn narrow(width: usize, what: &str, [pod, process]: [&str; 2], detail: &str) -> String {
    let below = |text: &str| wrap(&visible(text), Some(width));
    let who = format!("{pod} {process}");
    format!("{}\n{}\n{}", cut(&visible(what), Some(width)), below(who.trim_end()), below(detail))
}

/// `namespace/name`, `(host)` or `(unknown)`.
pub fn pod(event: &Event) -> String {
    owner(event.pod.as_ref(), event.known_by)
}

/// Like [`pod`], for an owner.
pub fn owner(pod: Option<&PodRef>, known_by: KnownBy) -> String {
    match (pod, known_by) {
        (Some(pod), _) => format!("{}/{}", pod.namespace, pod.name),
        (None, KnownBy::Host) => "(host)".to_owned(),
        (None, _) => "(unknown)".to_owned(),
    }
}

fn detail(event: &Event) -> String {
    if let Some(incident) = &event.incident {
        return super::oom::summary(incident);
    }
    match &event.detail {
        Detail::Oom(kill) => oom(kill),
        Detail::Dns(transaction) => dns(transaction),
        Detail::Sigkill(sigkill) => super::sigkill::line(sigkill),
        Detail::Lookup(lookup) => super::dns::describe(lookup),
    }
}

fn oom(kill: &OomKill) -> String {
    let task = |task: &OomTask| format!("{}[{}]", task.comm, task.pid);
    let mut text = format!("victim {}", task(&kill.victim));
    if let Some(rss) = kill.rss {
        // The kernel's own sum (get_mm_rss); swap is not resident memory.
        let resident = rss.anon_bytes.saturating_add(rss.file_bytes).saturating_add(rss.shmem_bytes);
        text += &format!(" rss {}", units::bytes(resident));
    }
    if kill.trigger.pid == kill.victim.pid {
        text += ", trigger same";
    } else {
        text += &format!(", trigger {}", task(&kill.trigger));
    }
    if let Some(limit) = &kill.limit {
        text += &format!(", limit {}", super::oom::limit_hit(limit));
    }
    if kill.already_dying {
        text += ", was dying already";
    }
    if kill.recovered {
        text += " (from the kernel's log)";
    }
    text
}

fn dns(transaction: &DnsTransaction) -> String {
    let question = match (&transaction.name, &transaction.qtype) {
        (Some(name), Some(qtype)) => match &transaction.facts.opcode {
            Some(opcode) => format!("{opcode} {name} {qtype}"),
            None => format!("{name} {qtype}"),
        },
        (None, _) if transaction.facts.opcode.is_some() => {
            transaction.facts.opcode.clone().unwrap_or_default()
        }
        (None, _) if transaction.facts.tcp_failure.is_some() => "(not asked)".to_owned(),
        (Some(name), None) => name.clone(),
        (None, _) => "(unreadable)".to_owned(),
    };
    let protocol = match transaction.protocol {
        Protocol::Udp => "udp",
        Protocol::Tcp => "tcp",
    };
    let outcome = match (&transaction.malformed, transaction.outcome, transaction.rcode) {
        (Some(why), ..) => format!("malformed: {why}"),
        (None, Outcome::Other, Some(rcode)) => match rcode_name(rcode) {
            Some(name) => format!("{} (rcode {rcode})", name.to_ascii_lowercase()),
            None => format!("rcode {rcode}"),
        },
        (None, outcome, _) => outcome.as_str().to_owned(),
    };
    let sends = if transaction.sends > 1 { format!(", {} sends", transaction.sends) } else { String::new() };
    let slow = if transaction.slow { ", slow" } else { "" };
    let facts = super::dns::facts(&transaction.facts);
    format!(
        "{question} → {outcome} after {} ({} {protocol}{sends}{slow}{facts})",
        units::nanoseconds(transaction.latency_ns),
        transaction.server
    )
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;
    use podopsy_model::event::{ProcessRef, Rss};
    use podopsy_model::{CgroupRef, ContainerRef, Owner, PodRef};

    use super::*;

    fn owner() -> Owner {
        Owner {
            pod: Some(PodRef {
                namespace: "finance".into(),
                name: "checkout-api".into(),
                uid: "u".into(),
                labels: Default::default(),
            }),
            container: Some(ContainerRef {
                name: "api".into(),
                id: "3f2a".into(),
                image: "i".into(),
                attempt: 0,
            }),
            cgroup: CgroupRef { id: 7, path: None },
            known_by: KnownBy::Cri,
        }
    }

    fn event(kind: EventKind, owner: Owner, detail: Detail) -> Event {
        let process = ProcessRef { pid: 123, comm: "leak".into(), start_time: None };
        let time = "2026-03-01T03:04:05.678Z".parse().unwrap();
        Event::new(time, kind, "n1", owner, process, detail, Default::default())
    }

    fn kill(trigger: u32) -> Detail {
        let task = |pid| OomTask { pid, tid: pid, comm: "leak".into() };
        Detail::Oom(OomKill {
            victim: task(123),
            trigger: task(trigger),
            trigger_cgroup: CgroupRef::default(),
            rss: Some(Rss { anon_bytes: 65_000_000, file_bytes: 116_570, shmem_bytes: 0, swap_bytes: 9 }),
            oom_score_adj: None,
            kernel_stack: Vec::new(),
            user_stack: Vec::new(),
            incident: None,
            limit: None,
            already_dying: false,
            recovered: false,
        })
    }

    fn timeout() -> Detail {
        Detail::Dns(DnsTransaction {
            name: Some("payments.finance.svc.cluster.local.".into()),
            qtype: Some("A".into()),
            server: "10.0.0.1:53".parse().unwrap(),
            protocol: Protocol::Udp,
            id: 1,
            latency_ns: 5_000_000_000,
            outcome: Outcome::Timeout,
            rcode: None,
            sends: 2,
            malformed: None,
            slow: false,
            answer_dropped: false,
            facts: Default::default(),
        })
    }

    fn printed(format: ListFormat, terminal: Terminal, events: &[Event]) -> String {
        let mut out = Vec::new();
        let mut lines = EventPrinter::new(format, terminal);
        for event in events {
            lines.print(&mut out, event).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_in_a_file_are_not_cut() {
        let host = Owner { known_by: KnownBy::Host, ..Owner::default() };
        let events =
            [event(EventKind::OomKill, owner(), kill(123)), event(EventKind::DnsFailure, host, timeout())];
        assert_eq!(
            printed(ListFormat::Table, Terminal::PLAIN, &events),
            "\
TIME           KIND             POD                                   CONTAINER           PROCESS                 DETAIL
03:04:05.678Z  oom.kill         finance/checkout-api                  api                 leak[123]               victim leak[123] rss 62.1 MiB, trigger same
03:04:05.678Z  dns.failure      (host)                                -                   leak[123]               payments.finance.svc.cluster.local. A → timeout after 5.0 s (10.0.0.1:53 udp, 2 sends)
"
        );
    }

    #[test]
    fn lines_are_cut_on_a_terminal_but_not_with_wide() {
        let events = [event(EventKind::OomKill, owner(), kill(5))];
        let terminal = Terminal { width: Some(110), colour: true };
        assert_eq!(
            printed(ListFormat::Table, terminal, &events).lines().nth(1).unwrap(),
            "03:04:05.678Z  \x1b[31moom.kill\x1b[0m         finance/c…kout-api  api         leak[123]       victim leak[123] rss 62.1 MiB…"
        );
        assert!(printed(ListFormat::Wide, terminal, &events).ends_with("rss 62.1 MiB, trigger leak[5]\n"));
    }

    #[test]
    fn on_a_narrow_terminal_an_event_has_some_lines_that_fit() {
        let events = [event(EventKind::DnsFailure, owner(), timeout())];
        let text = printed(ListFormat::Table, Terminal { width: Some(40), colour: false }, &events);
        assert_eq!(
            text.lines().skip(3).collect::<Vec<_>>(),
            [
                "03:04:05.678Z dns.failure",
                "  finance/checkout-api/api leak[123]",
                "  payments.finance.svc.cluster.local. A",
                "  → timeout after 5.0 s (10.0.0.1:53",
                "  udp, 2 sends)",
            ]
        );
        assert!(text.lines().all(|line| measure_text_width(line) <= 40), "{text}");
    }

    #[test]
    fn json_is_one_object_per_line_without_a_header() {
        let events =
            [event(EventKind::OomKill, owner(), kill(5)), event(EventKind::DnsFailure, owner(), timeout())];
        let text = printed(ListFormat::Json, Terminal { width: Some(20), colour: true }, &events);
        let read: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, events);
        assert!(
            text.starts_with(r#"{"schema":1,"time":"2026-03-01T03:04:05.678Z","kind":"oom.kill","#),
            "{text}"
        );
    }

    #[test]
    fn a_malformed_query_shows_the_reason() {
        let Detail::Dns(mut transaction) = timeout() else { unreachable!() };
        transaction.name = None;
        transaction.malformed = Some("a pointer loop".into());
        transaction.sends = 1;
        assert_eq!(
            dns(&transaction),
            "(unreadable) → malformed: a pointer loop after 5.0 s (10.0.0.1:53 udp)"
        );
    }
}
