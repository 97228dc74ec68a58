//! Lookups as they happen, one line each, and the summary at the end.

use std::collections::BTreeMap;
use std::io::{self, Write};

use podopsy_model::dns::NotVisible;
use podopsy_model::event::{Protocol, QueryFacts};
use podopsy_model::lookup::{LookupResult, LookupTransaction, NameKnownBy};
use podopsy_model::{DnsCounts, Event, Lookup, TcpFailure};
use podopsy_recorder::dns::lookups::summary::{LookupSummary, Percentiles};

use super::event::{narrow, owner, pod};
use super::table::{NARROW, TextTable, fixed, prose, wrap};
use super::units;
use crate::args::ListFormat;
use crate::terminal::{Colour, Terminal, visible};

const HEADER: [&str; 4] = ["TIME", "POD", "PROCESS", "LOOKUP"];

/// Prints lookups as they are reported. Flushes each line, so that a reader sees it at once.
#[derive(Debug)]
pub struct LookupPrinter {
    format: ListFormat,
    terminal: Terminal,
    queries: bool,
    header_printed: bool,
}

impl LookupPrinter {
    pub fn new(format: ListFormat, terminal: Terminal, queries: bool) -> Self {
        let width = if format == ListFormat::Wide { None } else { terminal.width };
        LookupPrinter { format, terminal: Terminal { width, ..terminal }, queries, header_printed: false }
    }

    pub fn print(&mut self, out: &mut impl Write, event: &Event, lookup: &Lookup) -> io::Result<()> {
        if self.format == ListFormat::Json {
            serde_json::to_writer(&mut *out, event)?;
            writeln!(out)?;
            return out.flush();
        }
        if !self.header_printed {
            self.header_printed = true;
            writeln!(out, "{}", self.terminal.paint(Colour::Bold, &self.row(HEADER)))?;
        }
        let process = format!("{}[{}]", event.process.comm, event.process.pid);
        let cells = [&units::clock(lookup.start), &pod(event), &process, &describe(lookup)];
        let line = self.row(cells.map(String::as_str));
        let line = if lookup.result.is_failure() { self.terminal.paint(Colour::Yellow, &line) } else { line };
        writeln!(out, "{line}")?;
        if let Some(diagnosis) = &lookup.diagnosis {
            self.print_below(out, &format!("diagnosis: {}", diagnosis.text))?;
        }
        if self.queries {
            lookup.transactions.iter().try_for_each(|step| self.print_below(out, &query(step)))?;
            let more = (lookup.queries as usize).saturating_sub(lookup.transactions.len());
            if more > 0 {
                self.print_below(out, &format!("… and {more} more"))?;
            }
        }
        out.flush()
    }

    fn row(&self, cells: [&str; 4]) -> String {
        let widths = match self.terminal.width {
            Some(width) if width < NARROW => {
                let [time, pod, process, lookup] = cells;
                return narrow(width, time, [pod, process], lookup);
            }
            Some(0..120) => [13, 22, 14],
            Some(120..160) => [13, 30, 18],
            _ => [13, 36, 22],
        };
        fixed(&cells, &widths, self.terminal.width)
    }

    /// What belongs to a lookup, indented below it.
    fn print_below(&self, out: &mut impl Write, text: &str) -> io::Result<()> {
        match self.terminal.width.filter(|&width| width < NARROW) {
            Some(width) => writeln!(out, "{}", wrap(&visible(text), Some(width))),
            None => writeln!(out, "{:15}{}", "", visible(text)),
        }
    }
}

/// `api.example.com (A, AAAA) → answered after 3.2 ms, 8 queries, 6 of them search-path misses (10.96.0.10:53)`.
pub fn describe(lookup: &Lookup) -> String {
    let inferred = match lookup.name_known_by {
        NameKnownBy::Inferred => ", name inferred",
        NameKnownBy::ResolvConf | NameKnownBy::Query => "",
    };
    let misses = match lookup.search_path_misses.queries {
        0 => String::new(),
        1 => ", 1 of them a search-path miss".to_owned(),
        misses => format!(", {misses} of them search-path misses"),
    };
    let again = lookup.sends.saturating_sub(lookup.queries);
    let again = if again > 0 { format!(", {again} sent again") } else { String::new() };
    let resolvers: Vec<String> = lookup.resolvers.iter().map(ToString::to_string).collect();
    let noun = if lookup.queries == 1 { "query" } else { "queries" };
    format!(
        "{} ({}{inferred}) → {} after {}, {} {noun}{misses}{again} ({})",
        lookup.name,
        lookup.types.join(", "),
        lookup.result.as_str(),
        units::nanoseconds(lookup.wait_ns),
        lookup.queries,
        resolvers.join(", ")
    )
}

fn query(step: &LookupTransaction) -> String {
    let protocol = if step.protocol == Protocol::Tcp { "tcp" } else { "udp" };
    let sends = if step.sends > 1 { format!(", {} sends", step.sends) } else { String::new() };
    let facts = facts(&step.facts);
    format!(
        "+{} {} {} → {} after {} ({} {protocol}{sends}{facts})",
        units::nanoseconds(step.sent_after_ns),
        step.name,
        step.qtype,
        step.outcome.as_str(),
        units::nanoseconds(step.latency_ns),
        step.server
    )
}

/// What else is known of a query, after what stands in its brackets.
pub fn facts(facts: &QueryFacts) -> String {
    let mut text = String::new();
    if let Some(failure) = facts.tcp_failure {
        text += match (facts.after_truncated, failure) {
            (true, TcpFailure::Refused) => "; truncated over UDP, then TCP was refused",
            (false, TcpFailure::Refused) => "; TCP was refused",
            (true, TcpFailure::Unanswered) => "; truncated over UDP, then TCP was not answered",
            (false, TcpFailure::Unanswered) => "; TCP was not answered",
            (true, TcpFailure::Reset) => "; truncated over UDP, then TCP was reset",
            (false, TcpFailure::Reset) => "; TCP was reset",
            (_, TcpFailure::Unreachable) => "; the server cannot be reached by TCP",
        };
    }
    if let Some(address) = facts.answered_from {
        text += &format!("; an answer came from another address, {}", address.ip());
    }
    if facts.superseded {
        text += "; another answer came first";
    } else if facts.socket_closed {
        text += "; the client closed its socket";
    }
    text
}

/// Prints the counts of encrypted DNS and of queries that were not reported; nothing if both are zero.
pub fn not_shown(out: &mut impl Write, terminal: Terminal, counts: &[DnsCounts]) -> io::Result<()> {
    for sentence in counts.iter().flat_map(sentences) {
        writeln!(out)?;
        prose(out, terminal, &sentence)?;
    }
    Ok(())
}

fn sentences(of: &DnsCounts) -> Vec<String> {
    let mut out = Vec::new();
    let NotVisible { tls, https } = of.not_visible;
    let owner = owner(of.owner.pod.as_ref(), of.owner.known_by);
    if tls + https > 0 {
        let (tls, https) = (units::plural(tls, "connection"), units::plural(https, "connection"));
        out.push(format!(
            "{owner}: {tls} by DNS over TLS and {https} by DNS over HTTPS; the queries in them are encrypted"
        ));
    }
    if of.not_dns > 0 {
        let messages = units::plural(of.not_dns, "message");
        out.push(format!("{owner}: {messages} to DNS servers' ports are not DNS, like those of a tunnel"));
    }
    if of.untracked > 0 {
        out.push(format!(
            "{owner}: {} of {} queries have no outcome: too many were in flight at a time",
            of.untracked, of.queries
        ));
    }
    if of.unnamed > 0 {
        out.push(format!(
            "{owner}: {} of {} queries were followed by the address in their packets: too many threads sent",
            of.unnamed, of.queries
        ));
    }
    if of.events_dropped > 0 {
        out.push(format!(
            "{owner}: {} of {} were dropped and are only counted; -o json has the counts",
            of.events_dropped,
            units::plural(of.queries, "outcome")
        ));
    }
    out
}

/// Prints the summary: tables by pod, by failing name and by resolver.
pub fn summary(out: &mut impl Write, terminal: Terminal, summary: &LookupSummary) -> io::Result<()> {
    if !summary.pods.is_empty() {
        let mut table = TextTable::new(&[
            "POD",
            "LOOKUPS",
            "FAILED",
            "WAIT P50",
            "P90",
            "P99",
            "QUERIES",
            "MISSES",
            "BY OUTCOME",
        ]);
        for of in &summary.pods {
            let [p50, p90, p99] = percentiles(&of.wait);
            let failed: u64 = of.failed.values().sum();
            table.row(vec![
                of.pod.clone(),
                of.lookups.to_string(),
                failed.to_string(),
                p50,
                p90,
                p99,
                of.queries.to_string(),
                of.search_path_misses.to_string(),
                outcomes(&of.failed),
            ]);
        }
        writeln!(out)?;
        table.print(out, terminal)?;
    }
    if !summary.names.is_empty() {
        let mut table = TextTable::new(&["FAILING NAME", "LOOKUPS", "FAILED"]);
        for of in &summary.names {
            table.row(vec![of.name.clone(), of.lookups.to_string(), outcomes(&of.failed)]);
        }
        writeln!(out)?;
        table.print(out, terminal)?;
    }
    if !summary.resolvers.is_empty() {
        let mut table = TextTable::new(&[
            "RESOLVER",
            "QUERIES",
            "ANSWERED",
            "TIMEOUTS",
            "UNREACHABLE",
            "LATE",
            "P50",
            "P99",
        ]);
        for of in &summary.resolvers {
            let [p50, _, p99] = percentiles(&of.latency);
            table.row(vec![
                of.resolver.clone(),
                of.queries.to_string(),
                of.answered.to_string(),
                of.timeouts.to_string(),
                of.unreachable.to_string(),
                of.late.to_string(),
                p50,
                p99,
            ]);
        }
        writeln!(out)?;
        table.print(out, terminal)?;
    }
    let advice: Vec<&String> = summary.pods.iter().filter_map(|of| of.advice.as_ref()).collect();
    if !advice.is_empty() {
        writeln!(out)?;
    }
    advice.into_iter().try_for_each(|line| prose(out, terminal, line))?;
    out.flush()
}

fn percentiles(of: &Percentiles) -> [String; 3] {
    [of.p50_ns, of.p90_ns, of.p99_ns].map(|ns| ns.map(units::nanoseconds).unwrap_or_default())
}

/// `3 nxdomain, 1 timeout`.
fn outcomes(of: &BTreeMap<&'static str, u64>) -> String {
    of.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect::<Vec<_>>().join(", ")
}

/// Selects the lookups to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupFilter {
    pub all: bool,
    pub failed: bool,
    /// Lookups that took at least this long.
    pub slow_over_ns: Option<u64>,
}

impl LookupFilter {
    pub fn matches(&self, lookup: &Lookup) -> bool {
        let slow = self.slow_over_ns.is_some_and(|over| lookup.wait_ns >= over);
        let failed = self.failed && lookup.result.is_failure() && lookup.result != LookupResult::Unseen;
        self.all || failed || slow
    }
}

#[cfg(test)]
mod tests {
    use podopsy_model::event::ProcessRef;
    use podopsy_model::lookup::{Diagnosis, DiagnosisVerdict, SearchPathMisses, SeenOutcomes};
    use podopsy_model::{Detail, EventKind, KnownBy, Outcome, Owner};
    use podopsy_recorder::dns::lookups::summary::LookupStatistics;

    use super::*;

    fn lookup(result: LookupResult, wait_ns: u64) -> Lookup {
        let step = LookupTransaction {
            name: "api.example.com".into(),
            qtype: "A".into(),
            server: "10.96.0.10:53".parse().unwrap(),
            protocol: Protocol::Udp,
            outcome: Outcome::Timeout,
            rcode: None,
            sent_after_ns: 2_000_000,
            latency_ns: wait_ns,
            sends: 2,
            answer_dropped: false,
            facts: Default::default(),
        };
        Lookup {
            name: "api.example.com".into(),
            name_known_by: NameKnownBy::ResolvConf,
            types: vec!["A".into(), "AAAA".into()],
            result,
            wait_ns,
            start: "2026-03-01T03:04:05.678Z".parse().unwrap(),
            queries: 8,
            sends: 9,
            search_path_misses: SearchPathMisses { queries: 6, names: vec![] },
            resolvers: vec!["10.96.0.10:53".parse().unwrap()],
            transactions: vec![step],
            search: None,
            saw: SeenOutcomes::All,
            diagnosis: None,
            cut_short: false,
        }
    }

    fn printed(lookup: Lookup, format: ListFormat, queries: bool) -> String {
        printed_on(None, lookup, format, queries)
    }

    fn printed_on(width: Option<usize>, lookup: Lookup, format: ListFormat, queries: bool) -> String {
        let owner = Owner { known_by: KnownBy::Host, ..Owner::default() };
        let process = ProcessRef { pid: 7, comm: "curl".into(), start_time: None };
        let detail = Detail::Lookup(Box::new(lookup.clone()));
        let event =
            Event::new(lookup.start, EventKind::DnsLookup, "n", owner, process, detail, Default::default());
        let mut out = Vec::new();
        let terminal = Terminal { width, colour: false };
        LookupPrinter::new(format, terminal, queries).print(&mut out, &event, &lookup).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_lookup_is_one_line_followed_by_its_queries() {
        let mut it = lookup(LookupResult::Timeout, 5_000_000_000);
        it.diagnosis = Some(Diagnosis {
            verdict: DiagnosisVerdict::Unanswered,
            text: "sent 2 times".into(),
            window_ns: None,
            counters: Default::default(),
        });
        let text = printed(it, ListFormat::Table, true);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("03:04:05.678Z  (host)"), "{text}");
        assert!(
            lines[1].ends_with(
                "api.example.com (A, AAAA) → timeout after 5.0 s, 8 queries, 6 of them search-path misses, 1 sent again (10.96.0.10:53)"
            ),
            "{text}"
        );
        assert_eq!(lines[2].trim(), "diagnosis: sent 2 times");
        assert_eq!(
            lines[3].trim(),
            "+2.0 ms api.example.com A → timeout after 5.0 s (10.96.0.10:53 udp, 2 sends)"
        );
        assert_eq!(lines[4].trim(), "… and 7 more");
    }

    #[test]
    fn on_a_narrow_terminal_a_lookup_takes_some_lines_that_fit() {
        let text =
            printed_on(Some(40), lookup(LookupResult::Timeout, 5_000_000_000), ListFormat::Table, true);
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("03:04")).collect();
        assert_eq!(
            lines,
            [
                "03:04:05.678Z",
                "  (host) curl[7]",
                "  api.example.com (A, AAAA) → timeout",
                "  after 5.0 s, 8 queries, 6 of them",
                "  search-path misses, 1 sent again",
                "  (10.96.0.10:53)",
                "  +2.0 ms api.example.com A → timeout",
                "  after 5.0 s (10.96.0.10:53 udp, 2",
                "  sends)",
                "  … and 7 more",
            ]
        );
    }

    #[test]
    fn json_is_the_event_itself() {
        let text = printed(lookup(LookupResult::Answered, 1), ListFormat::Json, true);
        let event: Event = serde_json::from_str(&text).unwrap();
        assert_eq!(event.kind, EventKind::DnsLookup);
        assert!(matches!(event.detail, Detail::Lookup(it) if it.result == LookupResult::Answered));
    }

    #[test]
    fn failed_and_slow_lookups_are_shown_and_others_only_on_request() {
        let default = LookupFilter { all: false, failed: true, slow_over_ns: Some(1000) };
        assert!(
            default.matches(&lookup(LookupResult::Nxdomain, 1))
                && default.matches(&lookup(LookupResult::Answered, 1000))
        );
        assert!(
            !default.matches(&lookup(LookupResult::Answered, 999))
                && !default.matches(&lookup(LookupResult::Unseen, 1))
        );
        assert!(LookupFilter { all: true, ..default }.matches(&lookup(LookupResult::Answered, 1)));
    }

    #[test]
    fn the_summary_has_pods_names_and_resolvers() {
        let mut tally = LookupStatistics::default();
        tally.add_lookup("shop/api", &lookup(LookupResult::Timeout, 5_000_000_000));
        let mut out = Vec::new();
        summary(&mut out, Terminal::PLAIN, &tally.summary(10)).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("shop/api  1        1       5.0 s"), "{text}");
        assert!(text.contains("api.example.com  1        1 timeout"), "{text}");
    }
}
