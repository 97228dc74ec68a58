//! Ends a cluster and removes everything that it made.
//!
//! It does not rely on any of the cluster's programs: after a `kill -9` of some or all of them, and of xtask itself, it
//! does the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::layout::Layout;
use super::state::State;
use super::{cgroups, kubectl};
use crate::sh;

/// Pods end within the agent's grace period of 15 s.
const WORKLOADS: &str = "daemonsets,deployments,statefulsets,replicasets,cronjobs,jobs,pods";
/// How long a program has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// The command: ends the cluster, if there is one.
pub fn run(layout: &Layout) -> Result<()> {
    if State::load(layout).is_none() && !layout.run.exists() && !layout.node.exists() {
        sh::progress("no cluster is running");
        return Ok(());
    }
    end(layout)
}

/// Ends whatever there is of a cluster. The logs stay.
pub fn end(layout: &Layout) -> Result<()> {
    sh::progress("taking the cluster down");
    let state = State::load(layout);
    if let Some(state) = &state {
        if state.is_whole() {
            end_workloads(layout);
        }
        for (name, process) in state.processes.iter().rev() {
            process.signal(Signal::SIGTERM);
            if !process.ends_within(GRACE) {
                sh::progress(format_args!("{name} does not end, killing it"));
                process.signal(Signal::SIGKILL);
            }
        }
    }
    // Shims, containers, and what was started just before a `kill -9`.
    cgroups::remove()?;
    unmount(&[&layout.node, &layout.run])?;
    let made: BTreeSet<PathBuf> = state.into_iter().flat_map(|state| state.made).collect();
    for folder in made.iter().rev() {
        // Fails, as it must, if something else has put files there.
        let _ = fs::remove_dir(folder);
    }
    // The state file last: until then, another `down` continues.
    for folder in [&layout.node, &layout.run] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
    }
    sh::progress("the cluster is down");
    Ok(())
}

/// Deletes what runs, so that pods end in order. What does not end in time is killed later.
fn end_workloads(layout: &Layout) {
    let deleted = kubectl::call(
        layout,
        &["delete", WORKLOADS, "--all", "--all-namespaces", "--grace-period=15", "--timeout=30s"],
    );
    if let Err(error) = deleted {
        sh::progress(format_args!("some pods did not end in order: {error:#}"));
    }
}

/// Unmounts what is mounted below the folders in this mount namespace. There should be nothing.
fn unmount(folders: &[&Path]) -> Result<()> {
    for mount in mounts_below(folders) {
        sh::progress(format_args!("unmounting {}", mount.display()));
        umount2(&mount, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", mount.display()))?;
    }
    let left = mounts_below(folders);
    ensure!(left.is_empty(), "still mounted: {left:?}");
    Ok(())
}

/// Mount points below the folders, the last mounted first.
fn mounts_below(folders: &[&Path]) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut found: Vec<_> =
        points.filter(|point| folders.iter().any(|folder| point.starts_with(folder))).collect();
    found.reverse();
    found
}
