//! One HTML file about what happened to some pods. It needs no network, and opens in any browser.
//!
//! | module | writes |
//! |---|---|
//! | [`page`] | the document: its head, its Content-Security-Policy, its order |
//! | [`sections`] | the verdict, the timeline, tables, autopsies, raw facts |
//! | [`chart`] | the memory curve and the histogram, as SVG |
//! | [`flame`] | the data of the flame graphs, which `assets/report.js` draws |
//!
//! Names are hostile. Each value is escaped by the templates, the script runs by its hash alone, and what could reorder or
//! hide text is escaped in the whole document ([`podopsy_model::text::visible`]). Each section has a bound, so that the file
//! stays below [`BYTES_MAX`]. Must not depend on: the source of the data, clocks, files.
#![forbid(unsafe_code)]

#[cfg(test)]
mod browser_tests;
mod chart;
mod flame;
mod page;
mod sections;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use page::write;

/// No report is larger.
pub const BYTES_MAX: usize = 2 << 20;

/// How a statement is known, as the glossary defines it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Knowledge {
    #[default]
    Observed,
    Inferred,
    Correlated,
}

impl Knowledge {
    pub fn as_str(self) -> &'static str {
        match self {
            Knowledge::Observed => "observed",
            Knowledge::Inferred => "inferred",
            Knowledge::Correlated => "correlated",
        }
    }
}

/// Everything that is in a report.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub heading: Heading,
    /// What happened, in one sentence.
    pub verdict: Statement,
    pub timeline: Vec<Entry>,
    pub memory: Vec<MemoryChart>,
    pub flames: Vec<FlameGraph>,
    pub dns: DnsSummary,
    pub autopsies: Vec<Autopsy>,
    pub facts: Vec<Fact>,
    pub losses: BTreeMap<String, u64>,
    /// What is missing: gaps in the history, records that were not read.
    pub notes: Vec<String>,
}

/// What the report is about, and where it comes from.
#[derive(Clone, Debug, Default)]
pub struct Heading {
    /// The pods, such as `shop/cart`.
    pub subject: String,
    pub node: String,
    /// The agent or the bundle that was read.
    pub source: String,
    pub from: Timestamp,
    pub until: Timestamp,
    pub written: Timestamp,
    /// Of the program that wrote it.
    pub version: String,
}

#[derive(Clone, Debug, Default)]
pub struct Statement {
    pub text: String,
    pub how: Knowledge,
}

/// One line of the timeline.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub time: Timestamp,
    pub until: Option<Timestamp>,
    pub kind: String,
    /// Drawn in the colour of kills.
    pub is_kill: bool,
    pub how: Knowledge,
    /// The pod and the container.
    pub subject: String,
    /// The id of its autopsy.
    pub id: Option<String>,
    pub text: String,
    /// What lines up with it in time.
    pub correlated: Option<String>,
}

/// The memory of a container over time.
#[derive(Clone, Debug, Default)]
pub struct MemoryChart {
    pub container: String,
    /// A curve for each instance of the container, oldest first.
    pub instances: Vec<Vec<(Timestamp, u64)>>,
    pub limit_bytes: Option<u64>,
    /// The time and the label of each kill.
    pub kills: Vec<(Timestamp, String)>,
    /// When lookups of the pod failed.
    pub failures: Vec<(Timestamp, Timestamp)>,
}

/// Stacks, to be drawn as a flame graph.
#[derive(Clone, Debug, Default)]
pub struct FlameGraph {
    pub title: String,
    /// What a value counts, in the plural: `samples`.
    pub unit: String,
    /// Where it comes from, and how complete it is.
    pub note: String,
    /// Outermost frame first, with the value.
    pub stacks: Vec<(Vec<String>, u64)>,
}

/// DNS queries that the history has.
#[derive(Clone, Debug, Default)]
pub struct DnsSummary {
    pub rows: Vec<DnsRow>,
    /// The latency of each query, ns.
    pub latencies: Vec<u64>,
    /// What is not in it.
    pub note: String,
}

/// Queries for one name and type with one outcome.
#[derive(Clone, Debug, Default)]
pub struct DnsRow {
    pub name: String,
    pub qtype: String,
    pub outcome: String,
    pub server: String,
    pub count: u64,
    pub median_ns: u64,
    pub last: Timestamp,
}

/// All that is known about one kill.
#[derive(Clone, Debug, Default)]
pub struct Autopsy {
    pub id: String,
    pub title: String,
    pub time: Timestamp,
    pub how: Knowledge,
    /// Name and text, which may have several lines.
    pub fields: Vec<(String, String)>,
    pub tables: Vec<Table>,
}

#[derive(Clone, Debug, Default)]
pub struct Table {
    pub caption: String,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// A record as the history has it.
#[derive(Clone, Debug, Default)]
pub struct Fact {
    pub title: String,
    pub json: String,
}
