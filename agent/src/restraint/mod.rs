//! Self-restraint: the agent drops the capabilities and system calls that recording does not need. An attacker who takes
//! it over through a hostile file or name then gains little.
//!
//! There are two steps. [`begin`] runs while there is a single thread. It sets no-new-privs and empties the bounding and
//! ambient sets, so that no program that the agent could start ever holds more than the agent. Then it starts the threads
//! that write files, which are restrained from their start ([`state`]).
//!
//! [`finish`] runs once probes are attached and files are open. On every other thread it drops the capabilities that are
//! not needed later ([`capabilities::keep`] has the list and the reasons, [`trial`] what this kernel requires beyond it),
//! and it installs a filter of system calls ([`filter`] has the list, [`files`] and [`sockets`] the parts about them). A step that fails is
//! reported, and the agent goes on: a node without its recorder is worse than a recorder with a capability too many.
//!
//! Code that runs in one thread can make another one run it, too. So what counts is what no thread may do: none can open a
//! file outside of the state folder for writing.
//!
//! This module must not depend on pods, events or the probes' contents.

mod capabilities;
mod files;
mod filter;
mod sockets;
mod state;
mod threads;
mod trial;

use capabilities::keep;
pub use capabilities::{KeptCapability, Needs};
use filter::Kind;
use podopsy_doctor::capability::{Capabilities, Capability, in_initial_user_namespace};
pub use state::{Confinement, WrittenFolders};
use threads::Goal;

/// The result of [`begin`].
#[derive(Debug)]
pub struct Begun {
    pub confinement: Confinement,
    /// What failed, for the log.
    pub failed: Vec<String>,
}

/// Must run before there is a second thread, because each thread would have to do it. From then on, files are written
/// through [`podopsy_system::state_thread`].
pub fn begin(folders: &WrittenFolders) -> Begun {
    let mut failed = Vec::new();
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        failed.push(format!("no-new-privs: {error}"));
    }
    // Without CAP_SETPCAP the bounding set stays. With no-new-privs no program can gain capabilities from it.
    if let Err(error) = capabilities::drop_bounding_and_ambient() {
        failed.push(format!("{error:#}"));
    }
    let (confinement, failures) = state::start(folders);
    failed.extend(failures);
    Begun { confinement, failed }
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
    let program = filter::program(Kind::Recording);
    let by_signal = program.as_ref().ok().copied().filter(|_| threads::counts_filters());
    let goal = Goal { keep: capabilities::bits(&kept), state: state::held() };
    let mut filtered = program.map(drop);
    match threads::narrow(goal, by_signal) {
        Ok(narrowed) => {
            if let Err(error) = narrowed.capabilities {
                failed.push(format!("capabilities: {error:#}"));
            }
            filtered = filtered.and(narrowed.filter);
        }
        Err(error) => {
            failed.push(format!("capabilities: {error:#}"));
            filtered = filtered.and(Err(anyhow::anyhow!("the threads could not be signalled")));
        }
    }
    if by_signal.is_none() && filtered.is_ok() {
        // Before Linux 5.9. The threads that write files have no filter of their own there.
        filtered = filter::program(Kind::Any).and_then(filter::install_everywhere);
    }
    if let Err(error) = &filtered {
        failed.push(format!("the filter of system calls: {error:#}"));
    }
    Restraint { kept, filtered: filtered.is_ok(), failed }
}

impl Restraint {
    /// Logs the capabilities that are kept, with the reasons, and the failures of both steps.
    pub fn log(&self, begun: &Begun) {
        let held: Vec<String> = self.kept.iter().map(KeptCapability::to_string).collect();
        let held = if held.is_empty() { "no capability".to_owned() } else { held.join("; ") };
        let calls = if self.filtered { filter::SUMMARY } else { "system calls are not filtered" };
        let files = match begun.confinement {
            Confinement::Landlock => "files are written in the state folder alone",
            Confinement::NotInThisKernel => {
                "files are written by separate threads, which this kernel cannot keep inside of the state folder: it has no \
                 Landlock"
            }
            Confinement::Failed => "files can be written",
        };
        tracing::info!("holds from now on: {held}; {calls}; {files}");
        for what in begun.failed.iter().chain(&self.failed) {
            tracing::warn!("could not give up {what}");
        }
        if !in_initial_user_namespace() {
            tracing::debug!("the capabilities are those of a user namespace");
        }
    }
}
