//! The sections of the document.

use jiff::Timestamp;
use maud::{Markup, html};

use super::chart::{self, Width};
use super::flame::Drawing;
use super::{Autopsy, DnsSummary, Entry, Fact, Knowledge, Report, Table};

/// Bounds of what is shown; the rest is counted.
const ENTRIES_MAX: usize = 400;
const CHARTS_MAX: usize = 8;
const ROWS_MAX: usize = 100;
const AUTOPSIES_MAX: usize = 12;
const NOTES_MAX: usize = 40;
/// Characters of a text, and bytes of all raw facts.
const TEXT_MAX: usize = 600;
const FIELD_MAX: usize = 4000;
const FACTS_BYTES_MAX: usize = 400 << 10;
const FACT_BYTES_MAX: usize = 100 << 10;

/// Divides each bound: a document of hostile names can be too large with the usual ones.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub divisor: usize,
}

impl Bounds {
    fn of(self, max: usize) -> usize {
        (max / self.divisor).max(1)
    }

    fn cut(self, text: &str, max: usize) -> String {
        cut(text, self.of(max))
    }
}

pub fn date(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Cuts a text that is too long.
pub fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

fn badge(how: Knowledge) -> Markup {
    html! { span.how.(how.as_str()) { (how.as_str()) } }
}

fn left_out(count: usize, what: &str) -> Markup {
    html! { @if count > 0 { p.note { (count) " more " (what) " are not in this file." } } }
}

pub fn verdict(report: &Report, bounds: Bounds) -> Markup {
    html! {
        section #verdict aria-labelledby="verdict-title" {
            h2 #verdict-title { "Verdict" }
            p.verdict { (bounds.cut(&report.verdict.text, TEXT_MAX)) " " (badge(report.verdict.how)) }
            details {
                summary { "What observed, inferred and correlated mean" }
                dl {
                    dt { (badge(Knowledge::Observed)) }
                    dd { "The kernel or the container runtime reported it, for this very event." }
                    dt { (badge(Knowledge::Inferred)) }
                    dd { "It follows from what was observed, provided that nothing else happened at the same moment." }
                    dt { (badge(Knowledge::Correlated)) }
                    dd { "It lines up in time. It is not a claim that one caused the other." }
                }
            }
        }
    }
}

pub fn timeline(report: &Report, bounds: Bounds) -> Markup {
    let skipped = report.timeline.len().saturating_sub(bounds.of(ENTRIES_MAX));
    html! {
        section #timeline aria-labelledby="timeline-title" {
            h2 #timeline-title { "Timeline" }
            @if report.timeline.is_empty() { p { "No entry: nothing was recorded in this time." } }
            @else {
                div.scroll tabindex="0" role="region" aria-label="Timeline" {
                    // On a phone the rows are no longer laid out as a table: the roles keep it one for screen readers.
                    table role="table" {
                        thead role="rowgroup" { tr role="row" { @for name in ["Time", "What", "Where", "Facts", "Known"] { th scope="col" role="columnheader" { (name) } } } }
                        tbody role="rowgroup" { @for entry in &report.timeline[skipped..] { (row(entry, bounds)) } }
                    }
                }
            }
            (left_out(skipped, "entries (older ones)"))
        }
    }
}

fn row(entry: &Entry, bounds: Bounds) -> Markup {
    html! {
        tr.kill[entry.is_kill] role="row" {
            td role="cell" { time { (date(entry.time)) } @if let Some(until) = entry.until.filter(|until| until.as_second() > entry.time.as_second()) { br; "to " (until.strftime("%H:%M:%SZ")) } }
            td role="cell" { (entry.kind) }
            td role="cell" { bdi { (bounds.cut(&entry.subject, TEXT_MAX)) } }
            td.facts role="cell" {
                (bounds.cut(&entry.text, TEXT_MAX))
                @if let Some(id) = &entry.id { " " a href={ "#oom-" (id) } { (id) } }
                @if let Some(correlated) = &entry.correlated { br; span.correlation { (badge(Knowledge::Correlated)) " " (bounds.cut(correlated, TEXT_MAX)) } }
            }
            td role="cell" { (badge(entry.how)) }
        }
    }
}

pub fn memory(report: &Report, bounds: Bounds) -> Markup {
    html! {
        section #memory aria-labelledby="memory-title" {
            h2 #memory-title { "Memory" }
            @if report.memory.is_empty() { p { "No memory curve: the agent has no samples of these containers in this time." } }
            @for (at, chart) in report.memory.iter().take(bounds.of(CHARTS_MAX)).enumerate() {
                figure {
                    figcaption { h3 { bdi { (chart.container) } } }
                    (chart::memory(chart, at, Width::Wide))
                    (chart::memory(chart, at, Width::Phone))
                    ul.legend {
                        li { span.key.curve {} "memory in use" }
                        @if chart.limit_bytes.is_some() { li { span.key.limit {} "limit" } }
                        @if !chart.kills.is_empty() { li { span.key.kill {} "kill" } }
                        @if !chart.failures.is_empty() { li { span.key.failure {} "failed lookups" } }
                    }
                    details { summary { "The same as a table" } (table(&chart::as_table(chart))) }
                }
            }
            (left_out(report.memory.len().saturating_sub(bounds.of(CHARTS_MAX)), "containers"))
        }
    }
}

pub fn flames(graphs: &[Drawing]) -> Markup {
    html! {
        section #profiles aria-labelledby="profiles-title" {
            h2 #profiles-title { "Profiles" }
            @if graphs.is_empty() { p { "No profile: the agent has none of these containers in this time." } }
            @for (at, graph) in graphs.iter().enumerate() { (graph.markup(at)) }
        }
    }
}

pub fn dns(dns: &DnsSummary, bounds: Bounds) -> Markup {
    let rows = dns.rows.iter().take(bounds.of(ROWS_MAX)).map(|row| {
        vec![
            bounds.cut(&row.name, TEXT_MAX),
            row.qtype.clone(),
            row.outcome.clone(),
            row.count.to_string(),
            chart::nanoseconds(row.median_ns),
            row.server.clone(),
            date(row.last),
        ]
    });
    let header = ["Name", "Type", "Outcome", "Queries", "Median", "Server", "Last"];
    let outcomes = Table {
        caption: "Queries by name, type, outcome and server".to_owned(),
        header: header.map(str::to_owned).into(),
        rows: rows.collect(),
    };
    html! {
        section #dns aria-labelledby="dns-title" {
            h2 #dns-title { "DNS" }
            @if dns.rows.is_empty() { p { "No DNS query with a failure is in the history of this time." } }
            @else {
                (table(&outcomes))
                (left_out(dns.rows.len().saturating_sub(bounds.of(ROWS_MAX)), "rows"))
                h3 { "Latency" }
                (chart::histogram(&dns.latencies))
            }
            @if !dns.note.is_empty() { p.note { (dns.note) } }
        }
    }
}

pub fn autopsies(autopsies: &[Autopsy], bounds: Bounds) -> Markup {
    let skipped = autopsies.len().saturating_sub(bounds.of(AUTOPSIES_MAX));
    html! {
        @if !autopsies.is_empty() {
            section #autopsies aria-labelledby="autopsies-title" {
                h2 #autopsies-title { "Autopsies" }
                (left_out(skipped, "autopsies (older ones)"))
                @for one in autopsies[skipped..].iter().rev() {
                    article id={ "oom-" (one.id) } {
                        h3 { bdi { (one.title) } " " (badge(one.how)) }
                        dl.fields {
                            @for (name, text) in &one.fields { dt { (name) } dd { (bounds.cut(text, FIELD_MAX)) } }
                        }
                        @for part in &one.tables { (table(part)) }
                    }
                }
            }
        }
    }
}

pub fn losses(report: &Report, bounds: Bounds) -> Markup {
    let rows: Vec<Vec<String>> = report
        .losses
        .iter()
        .map(|(name, count)| vec![bounds.cut(name, TEXT_MAX), count.to_string()])
        .take(bounds.of(ROWS_MAX))
        .collect();
    let header = vec!["Counter".to_owned(), "Dropped records".to_owned()];
    html! {
        section #losses aria-labelledby="losses-title" {
            h2 #losses-title { "Losses" }
            @if rows.is_empty() { p { "Nothing was lost, as far as these records' counters say." } }
            @else { (table(&Table { caption: "Loss counters of the node, at the latest record".to_owned(), header, rows })) }
            @if !report.notes.is_empty() {
                h3 { "What is missing" }
                ul { @for note in report.notes.iter().take(bounds.of(NOTES_MAX)) { li { (bounds.cut(note, TEXT_MAX)) } } }
                (left_out(report.notes.len().saturating_sub(bounds.of(NOTES_MAX)), "notes"))
            }
        }
    }
}

/// The newest records that fit.
pub fn facts(facts: &[Fact], bounds: Bounds) -> Markup {
    let mut left = bounds.of(FACTS_BYTES_MAX);
    let mut shown: Vec<&Fact> = Vec::new();
    for fact in facts.iter().rev().filter(|fact| fact.json.len() <= FACT_BYTES_MAX) {
        // Quotes take six bytes each when they are escaped.
        let bytes = html! { (fact.json) }.into_string().len();
        if bytes > FACT_BYTES_MAX.min(left) {
            continue;
        }
        left -= bytes;
        shown.push(fact);
    }
    html! {
        section #facts aria-labelledby="facts-title" {
            h2 #facts-title { "Raw facts" }
            p { "The records behind this report as the history has them: kills first, the newest of each kind first." }
            (left_out(facts.len() - shown.len(), "records"))
            @for fact in shown {
                details { summary { (bounds.cut(&fact.title, TEXT_MAX)) } pre tabindex="0" { (fact.json) } }
            }
        }
    }
}

pub fn table(table: &Table) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(table.caption) {
            table {
                caption { (table.caption) }
                thead { tr { @for title in &table.header { th scope="col" { (title) } } } }
                tbody {
                    @for row in &table.rows {
                        tr { @for cell in row { td.number[is_number(cell)] { (cell) } } }
                    }
                }
            }
        }
    }
}

fn is_number(cell: &str) -> bool {
    cell.starts_with(|first: char| first.is_ascii_digit() || first == '-') && cell.len() < 12
}
