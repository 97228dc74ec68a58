//! `cargo xtask bench`: figures, measured on this machine, now. Not part of any test: another load gives others.

mod agent;
pub mod dns;

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// What the DNS probe costs, and whether it counts to the last query, at the highest rate of dnsperf (as root)
    Dns(dns::Options),
}

/// The command.
pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Dns(options) => dns::run(options),
    }
}
