//! `cargo xtask bench`: figures, measured on this machine, now. Not part of any test: another load gives others.

mod agent;
pub mod dns;
mod load;
mod measure;
pub mod profile;
pub mod soak;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// What the DNS probe costs, and whether it counts to the last query, at the highest rate of dnsperf (as root)
    Dns(dns::Options),
    /// What a CPU profile costs, beside its peers on the same load: CPU, memory, whole stacks (as root)
    Profile(profile::Options),
    /// Whether the agent stays as it is for an hour, beside a node's worth of containers: CPU, memory, disk (as root)
    Soak(soak::Options),
}

/// The command.
pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Dns(options) => dns::run(options),
        Bench::Profile(options) => profile::run(options),
        Bench::Soak(options) => soak::run(options),
    }
}
