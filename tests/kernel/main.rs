//! The kernel tests, one module for each subject: `cargo xtask test` and `cargo xtask vm` run each test in a process of its own,
//! here and on Debian's other kernels. They need root.

/// The full name of a test of the calling module, by which this program runs it (`--exact`).
macro_rules! full_name {
    ($test:expr) => {
        concat!(module_path!(), "::", $test).split_once("::").expect("a module of this program").1
    };
}

mod alerts;
mod autopsy;
mod budget;
mod clients;
mod daemonset;
mod dns;
mod dns_counts;
mod dns_diagnosis;
mod dns_nat;
mod dns_outcomes;
mod dns_socket;
mod dns_tcp;
mod dying;
mod ephemeral;
mod exports;
mod frames;
mod growth;
mod growth_candidates;
mod harness;
mod heaps;
mod history;
mod hostile;
mod hostile_dns;
mod hostile_dns_tables;
mod inside;
mod kernel_side;
mod killed;
mod kubernetes_events;
mod latency;
mod lookups;
mod losses;
mod metrics;
mod network;
mod node_oom;
mod oncpu;
mod oom;
mod oom_kinds;
mod opening;
mod pods;
mod profile;
mod python;
mod restraint;
mod runtime_reader;
mod sandboxes;
mod sigkill;
mod situations;
mod store;
mod storm;
mod support;
mod systemd;
mod top;
mod worker_kills;
