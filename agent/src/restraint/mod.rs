//! What the agent gives up of itself, so that whoever takes it over by a hostile file or name has little to go on with.
//!
//! Two steps. [`begin`], before there is a second thread: no new privileges, no bounding and no ambient set: nothing that it
//! could start would ever hold more than it does. [`finish`], once probes are attached and files are open: on every thread,
//! capabilities but those that are needed later ([`capabilities::keep`] has the list and the reasons, [`trial`] what this
//! kernel wants beyond it), and a filter of system
//! calls ([`filter`] has the list). What cannot be had is said, and costs that step alone: a node without its recorder is
//! worse than a recorder with a right too many.
//!
//! Must not know: pods, events, what a probe does.

mod capabilities;
mod filter;
mod threads;
mod trial;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use capabilities::keep;
pub use capabilities::{Kept, Needs};
use podopsy_doctor::capability::{Capabilities, Capability, in_initial_user_namespace};

/// Before there is a second thread: they would each have to do it. What could not be done, in words.
pub fn begin() -> Vec<String> {
    let mut failed = Vec::new();
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        failed.push(format!("no-new-privs: {error}"));
    }
    // Without CAP_SETPCAP the bounding set stays; with no-new-privs nobody can draw on it.
    if let Err(error) = capabilities::drop_bounding_and_ambient() {
        failed.push(format!("{error:#}"));
    }
    failed
}

/// What is held from now on.
#[derive(Debug)]
pub struct Restrained {
    pub kept: Vec<Kept>,
    /// The filter of system calls is on every thread.
    pub filtered: bool,
    /// What could not be done, in words.
    pub failed: Vec<String>,
}

/// What [`finish`] will leave of what is held.
pub fn kept(needs: &Needs) -> Vec<Kept> {
    let held = Capabilities::effective();
    let mut kept = keep(held, needs);
    let has_it = kept.iter().any(|kept| kept.capability == Capability::SysAdmin);
    if needs.samples && held.has(Capability::SysAdmin) && !has_it && !trial::opens_perf_events(&kept) {
        let why = "this kernel opens perf events for nothing less: kernel.perf_event_paranoid is above 2";
        kept.push(Kept { capability: Capability::SysAdmin, why });
    }
    kept
}

/// After probes are attached and files are open. Returns when every thread is so.
pub fn finish(needs: &Needs) -> Restrained {
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
    Restrained { kept, filtered, failed }
}

impl Restrained {
    /// In the log: what is held and why, and what is not as it should be.
    pub fn log(&self, begun: &[String]) {
        let held: Vec<String> = self.kept.iter().map(Kept::to_string).collect();
        let held = if held.is_empty() { "no capability".to_owned() } else { held.join("; ") };
        let calls = if self.filtered { filter::WORDS } else { "system calls are not filtered" };
        tracing::info!("holds from now on: {held}; {calls}");
        for what in begun.iter().chain(&self.failed) {
            tracing::warn!("could not give up {what}");
        }
        if !in_initial_user_namespace() {
            tracing::debug!("capabilities are those of a user namespace");
        }
    }
}

/// Whether a folder can be written without CAP_DAC_OVERRIDE, as far as its owner and mode tell.
pub fn own_folder(folder: &Path) -> bool {
    let is_own =
        |found: Metadata| found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o300 == 0o300;
    folder.metadata().is_ok_and(is_own)
}
