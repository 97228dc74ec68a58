//! Self-restraint: the agent drops the capabilities and system calls that recording does not need. An attacker who takes
//! it over through a hostile file or name then gains little.
//!
//! There are two steps. [`begin`] runs while there is a single thread. It sets no-new-privs and empties the bounding and
//! ambient sets, so that no program that the agent could start ever holds more than the agent.
//!
//! [`finish`] runs once probes are attached and files are open. On every thread it drops the capabilities that are not
//! needed later ([`capabilities::keep`] has the list and the reasons, [`trial`] what this kernel requires beyond it), and it
//! installs a filter of system calls ([`filter`] has the list). A step that fails is reported, and the agent goes on: a node
//! without its recorder is worse than a recorder with a capability too many.
//!
//! This module must not depend on pods, events or the probes' contents.

mod capabilities;
mod filter;
mod threads;
mod trial;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use capabilities::keep;
pub use capabilities::{KeptCapability, Needs};
use podopsy_doctor::capability::{Capabilities, Capability, in_initial_user_namespace};

/// Must run before there is a second thread, because each thread would have to do it. Returns the failures.
pub fn begin() -> Vec<String> {
    let mut failed = Vec::new();
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        failed.push(format!("no-new-privs: {error}"));
    }
    // Without CAP_SETPCAP the bounding set stays. With no-new-privs no program can gain capabilities from it.
    if let Err(error) = capabilities::drop_bounding_and_ambient() {
        failed.push(format!("{error:#}"));
    }
    failed
}

/// The result of [`finish`].
#[derive(Debug)]
pub struct Restraint {
    /// The capabilities that the agent still has.
    pub kept: Vec<KeptCapability>,
    /// Whether the filter of system calls is installed on every thread.
    pub filtered: bool,
    /// What failed, for the log.
    pub failed: Vec<String>,
}

/// The capabilities that [`finish`] will keep.
pub fn kept(needs: &Needs) -> Vec<KeptCapability> {
    let held = Capabilities::effective();
    let mut kept = keep(held, needs);
    let has_it = kept.iter().any(|kept| kept.capability == Capability::SysAdmin);
    if needs.samples && held.has(Capability::SysAdmin) && !has_it && !trial::opens_perf_events(&kept) {
        let why = "this kernel requires it to open perf events: kernel.perf_event_paranoid is above 2";
        kept.push(KeptCapability { capability: Capability::SysAdmin, why });
    }
    kept
}

/// Must run after probes are attached and files are open. Returns when every thread is restrained.
pub fn finish(needs: &Needs) -> Restraint {
    let mut failed = Vec::new();
    let kept = kept(needs);
    if let Err(error) = threads::narrow(capabilities::bits(&kept)) {
        failed.push(format!("capabilities: {error:#}"));
    }
    let filtered = match filter::install() {
        Ok(()) => true,
        Err(error) => {
            failed.push(format!("the filter of system calls: {error:#}"));
            false
        }
    };
    Restraint { kept, filtered, failed }
}

impl Restraint {
    /// Logs the capabilities that are kept, with the reasons, and the failures of both steps.
    pub fn log(&self, begin_failures: &[String]) {
        let held: Vec<String> = self.kept.iter().map(KeptCapability::to_string).collect();
        let held = if held.is_empty() { "no capability".to_owned() } else { held.join("; ") };
        let calls = if self.filtered { filter::SUMMARY } else { "system calls are not filtered" };
        tracing::info!("holds from now on: {held}; {calls}");
        for what in begin_failures.iter().chain(&self.failed) {
            tracing::warn!("could not give up {what}");
        }
        if !in_initial_user_namespace() {
            tracing::debug!("the capabilities are those of a user namespace");
        }
    }
}

/// Whether a folder can be written without CAP_DAC_OVERRIDE, judged by its owner and mode.
pub fn own_folder(folder: &Path) -> bool {
    let is_own =
        |found: Metadata| found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o300 == 0o300;
    folder.metadata().is_ok_and(is_own)
}
