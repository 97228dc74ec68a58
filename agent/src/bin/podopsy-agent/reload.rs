//! SIGHUP: the configuration is read again.

use std::ffi::OsString;

use podopsy_agent::budget;
use podopsy_agent::config::{self, Setting};
use podopsy_agent::service::{Out, changes};
use tokio::sync::watch;

use super::args::Args;

/// What SIGHUP can change, but for how exports are reached (`service::changes`).
const RELOADED: [&str; 5] = ["store-bytes", "store-age", "cpu-budget", "memory-budget", "events-budget"];

/// Takes over what can be changed while it runs, and says what cannot; a file that is wrong changes nothing.
pub fn reload(
    settings: &mut [Setting],
    argv: &[OsString],
    out: &Out,
    budgets: &watch::Sender<budget::Limits>,
) {
    let loaded = match config::load::<Args>(argv) {
        Ok(loaded) => loaded,
        Err(error) => return tracing::warn!("nothing is changed: {}", error.to_string().trim_end()),
    };
    let reached = match out.reroute(&loaded.args.exports) {
        Ok(destinations) => destinations,
        Err(error) => return tracing::warn!("nothing is changed: {error:#}"),
    };
    out.set_limits(loaded.args.store_limits());
    // Whoever keeps to them may be gone; then nothing is left out any more.
    let _ = budgets.send(loaded.args.budgets());
    let is_taken = |one: &Setting| {
        let name = one.name.as_str();
        let is_reached = |of: &[&str]| of.is_empty() || of.iter().any(|one| reached.contains(one));
        RELOADED.contains(&name) || changes(name).is_some_and(is_reached)
    };
    let changed = config::changed(settings, &loaded.settings).into_iter().cloned();
    let (taken, left): (Vec<Setting>, Vec<Setting>) = changed.partition(is_taken);
    for one in &taken {
        settings.iter_mut().filter(|old| old.name == one.name).for_each(|old| *old = one.clone());
    }
    let names = |all: &[Setting]| all.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", ");
    tracing::info!(
        "read the configuration again; changed: {}",
        if taken.is_empty() { "nothing".to_owned() } else { names(&taken) }
    );
    if !left.is_empty() {
        tracing::warn!("changed in the configuration, and not here: {}: restart the agent", names(&left));
    }
}
