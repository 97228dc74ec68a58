//! What a language's runtime knew of its heap when the kernel ended it, and what that says about the kill. Pure functions.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::incident::{Level, LimitHit};

/// The heap of the process that held most memory among those of the container whose runtime is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuntimeHeap {
    /// The virtual machine and its version, as it says: `OpenJDK 64-Bit Server VM 17.0.15+6`; `Node.js`, `Go (by its environment)`.
    pub runtime: String,
    pub pid: u32,
    /// How it is known: `hsperfdata` (the JVM's performance counters, read from its memory); `command line and environment`.
    pub source: String,
    /// The options of the command line and of `JAVA_TOOL_OPTIONS`, `NODE_OPTIONS`, `GOMEMLIMIT` and `GOGC` that set sizes, such as
    /// `-Xmx200m`; no others are kept.
    #[serde(default)]
    pub options: Vec<String>,
    /// The maximum that an option sets, where the runtime publishes no figures; null: none does.
    #[serde(default)]
    pub configured_max_bytes: Option<u64>,
    /// Null: the runtime publishes none.
    pub figures: Option<HeapFigures>,
    /// Why there are no figures; null: there are.
    pub why_not: Option<String>,
    /// What the figures say about the kill; null: nothing for sure.
    pub verdict: Option<HeapVerdict>,
}

/// The figures of one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapFigures {
    /// The last time that they were read before the kill.
    pub time: Timestamp,
    pub used_bytes: u64,
    /// What the runtime has reserved from the kernel for it; not all of it need be in memory.
    pub committed_bytes: u64,
    /// Null: not known.
    pub max_bytes: Option<u64>,
    /// Classes (JVM).
    pub metaspace_bytes: Option<u64>,
    pub threads: Option<u64>,
    /// Collections since the start, and the time in which they stopped the program.
    pub collections: u64,
    pub collection_seconds: f64,
    /// How often collections ran in the `trend_seconds` before, and the share of the time in which they stopped the program, 0..=1.
    pub recent_collections: u64,
    pub recent_collection_share: f64,
    /// By how much `committed_bytes` changed within them.
    pub committed_change_bytes: i64,
    /// How far back the earliest of the figures is; 0: there was only one.
    pub trend_seconds: f64,
}

/// What the heap had to do with the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HeapVerdict {
    /// The heap may grow to more than the limit leaves for it.
    LimitBelowMaximum,
    /// The heap is full, and collecting does not help.
    HeapLeak,
    /// Most of the memory is outside of the heap.
    OutsideOfHeap,
}

/// From this part of its maximum on, a heap is full.
const FULL: f64 = 0.85;
/// A heap of less than this part of the memory did not fill the limit.
const MINOR: f64 = 0.6;
/// From this share of stopped time on, collecting is in vain.
const IN_VAIN: f64 = 0.1;

impl RuntimeHeap {
    /// Judges the figures against the limit that was met. `held_bytes`: the process's memory without files, as the kernel counted
    /// it; None: not known.
    pub fn verdict(&self, limit: &LimitHit, held_bytes: Option<u64>) -> Option<HeapVerdict> {
        match &self.figures {
            Some(figures) => judge(figures, limit, held_bytes),
            None => self.is_configured_beyond(limit).then_some(HeapVerdict::LimitBelowMaximum),
        }
    }

    fn is_configured_beyond(&self, limit: &LimitHit) -> bool {
        let max = self.configured_max_bytes.zip(limit.limit_bytes);
        is_of_container(limit) && max.is_some_and(|(max, limit)| max >= limit)
    }

    /// The verdict in one line. None: there is none.
    pub fn advice(&self, limit: &LimitHit, held_bytes: Option<u64>) -> Option<String> {
        let (Some(figures), Some(limit)) = (&self.figures, limit.limit_bytes) else {
            return self.configured_advice(limit);
        };
        let max = figures.max_bytes.unwrap_or(figures.committed_bytes);
        let heap = format!("heap {} of {} MiB", mib(figures.used_bytes), mib(max));
        Some(match self.verdict? {
            HeapVerdict::LimitBelowMaximum => {
                let classes = figures.metaspace_bytes.filter(|_| max < limit).unwrap_or(0);
                let with = if classes > 0 {
                    format!(", with {} MiB of classes,", mib(classes))
                } else {
                    String::new()
                };
                format!(
                    "{heap}: at its maximum{with} it does not fit below the limit of {} MiB: the limit is too small for it",
                    mib(limit)
                )
            }
            HeapVerdict::HeapLeak => format!(
                "{heap} although {} collections stopped the program for {:.0} % of the last {:.0} s: a leak in the heap, or a heap that is too small",
                figures.recent_collections,
                figures.recent_collection_share * 100.0,
                figures.trend_seconds
            ),
            HeapVerdict::OutsideOfHeap => format!(
                "{heap}, {} MiB outside of it: native memory filled the limit of {} MiB, the heap does not leak",
                mib(held_bytes?.saturating_sub(figures.committed_bytes)),
                mib(limit)
            ),
        })
    }

    fn configured_advice(&self, limit: &LimitHit) -> Option<String> {
        self.verdict?;
        let (max, limit) = (self.configured_max_bytes?, limit.limit_bytes?);
        Some(format!(
            "{}: {} lets it grow to {} MiB, which does not fit below the limit of {} MiB",
            self.runtime,
            self.options.join(" "),
            mib(max),
            mib(limit)
        ))
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

/// The machine's memory, or a limit that others share, says nothing about one heap.
fn is_of_container(limit: &LimitHit) -> bool {
    matches!(limit.of, Level::Container | Level::Pod | Level::InsideContainer)
}

fn judge(figures: &HeapFigures, limit: &LimitHit, held_bytes: Option<u64>) -> Option<HeapVerdict> {
    let (limit_bytes, held) = (limit.limit_bytes.filter(|&bytes| bytes > 0)?, held_bytes?);
    if !is_of_container(limit) || held == 0 {
        return None;
    }
    if (figures.committed_bytes as f64) < MINOR * held as f64 {
        return Some(HeapVerdict::OutsideOfHeap);
    }
    let max = figures.max_bytes?;
    if max.saturating_add(figures.metaspace_bytes.unwrap_or(0)) >= limit_bytes {
        return Some(HeapVerdict::LimitBelowMaximum);
    }
    let is_full = figures.used_bytes as f64 >= FULL * max as f64;
    (is_full && figures.recent_collection_share >= IN_VAIN).then_some(HeapVerdict::HeapLeak)
}

#[cfg(test)]
#[path = "heap_tests.rs"]
mod tests;
