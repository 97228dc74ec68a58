//! `cargo xtask bench`: measures costs on this machine. Not part of any test: figures depend on the machine's load.

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
    /// Measure what the DNS probe costs, and check that it counts every query, at the highest rate of dnsperf (as root)
    Dns(dns::Options),
    /// Compare a CPU profile with its peers on the same load: CPU, memory, complete stacks (as root)
    Profile(profile::Options),
    /// Check for an hour that the agent does not grow, beside a node's worth of containers: CPU, memory, disk (as root)
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
