//! The data model that all crates share: events, owners, targets, profiles. Serde types without I/O.
//!
//! Strings that came from a container, the kernel or a packet have been escaped by [`text`] before they are stored in these
//! types, so that no renderer can be made to emit a control sequence.

pub mod bytes;
pub mod charged;
pub mod dns;
pub mod duration;
pub mod event;
pub mod growth;
pub mod heap;
pub mod incident;
pub mod lookup;
pub mod memory;
pub mod metric;
pub mod owner;
pub mod pod_incident;
pub mod probe;
pub mod profile;
#[cfg(test)]
mod schema_tests;
pub mod sigkill;
pub mod sigkill_verdict;
pub mod target;
pub mod target_match;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod verdict;
pub mod workload;

pub use dns::DnsCounts;
pub use event::{Detail, DnsTransaction, Event, EventKind, Losses, OomKill, Outcome, ProcessRef, TcpFailure};
pub use incident::OomIncident;
pub use lookup::Lookup;
pub use owner::{CgroupRef, ContainerRef, KnownBy, Owner, PodRef};
pub use pod_incident::PodIncident;
pub use sigkill::Sigkill;
pub use target::Target;
pub use target_match::{PodCandidate, TargetMatchError};
pub use workload::{Workload, WorkloadKind, workloads};
