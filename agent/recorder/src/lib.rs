//! The pipeline from kernel records to events and profiles. One subject, one folder:
//!
//! | folder | subject |
//! |---|---|
//! | [`oom`] | kills: facts, incidents, what was missed while down |
//! | [`sigkill`] | SIGKILLs that were not from the OOM killer |
//! | [`dns`] | queries in flight, counts by container, lookups |
//! | [`growth`] | page faults of growth candidates: which code makes memory grow |
//! | [`cpu`] | on-CPU profiles, on demand and always on |
//! | [`memory`] | each container's memory over time |
//! | `heaps` | the heaps of JVMs over time |
//! | [`kernel_log`] | the kernel's log on OOM kills |
//! | [`incidents`] | what belongs together in one pod's events |
//!
//! ```text
//! rings ─ collect (one reader a probe) ─→ records ─ attribute (whose was it?) ─→ events
//! ```
//!
//! `pipeline` puts the stages together, `reader` says what a probe's reader does. Must not know: HTTP, SQL, formats,
//! rendering.

pub mod cpu;
pub mod dns;
pub mod growth;
pub mod incidents;
pub mod kernel_log;
pub mod memory;
pub mod oom;
pub mod options;
pub mod shed;
pub mod sigkill;

mod attribute;
mod collect;
mod confirm;
mod fair;
mod heaps;
mod pipeline;
mod reader;
mod recorder;
mod scrape;
mod totals;

pub use confirm::Confirmations;
pub use growth::sampling::GrowthMode;
pub use options::{DnsHook, DnsOptions, RecorderOptions};
pub use recorder::Recorder;
pub use scrape::{Scrape, Scraper};
