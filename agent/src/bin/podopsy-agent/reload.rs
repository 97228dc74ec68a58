//! SIGHUP: reads the configuration again and applies the settings that can change while the agent runs.

use std::ffi::OsString;

use podopsy_agent::budget;
use podopsy_agent::config::{self, Setting};
use podopsy_agent::service::{Outputs, destinations_changed_by};
use tokio::sync::watch;

use super::args::AgentArgs;

/// The settings that SIGHUP applies, in addition to those of exports ([`destinations_changed_by`]).
const RELOADABLE: [&str; 5] = ["store-bytes", "store-age", "cpu-budget", "memory-budget", "events-budget"];

/// Applies the settings that can change, and logs those that cannot. An invalid configuration changes nothing.
pub fn reload(
    settings: &mut [Setting],
    argv: &[OsString],
    outputs: &Outputs,
    budgets: &watch::Sender<budget::BudgetLimits>,
) {
    let loaded = match config::load::<AgentArgs>(argv) {
        Ok(loaded) => loaded,
        Err(error) => {
            return tracing::warn!("cannot reload, nothing is changed: {}", error.to_string().trim_end());
        }
    };
    let reconfigured = match outputs.reconfigure_exports(&loaded.args.exports) {
        Ok(destinations) => destinations,
        Err(error) => return tracing::warn!("cannot reload, nothing is changed: {error:#}"),
    };
    outputs.set_limits(loaded.args.store_limits());
    // An error means that the task that enforces the budgets has ended; then nothing is shed any more.
    let _ = budgets.send(loaded.args.budgets());
    let is_applied = |setting: &Setting| {
        let name = setting.name.as_str();
        let is_reconfigured = |destinations: &[&str]| {
            destinations.is_empty() || destinations.iter().any(|name| reconfigured.contains(name))
        };
        RELOADABLE.contains(&name) || destinations_changed_by(name).is_some_and(is_reconfigured)
    };
    let changed = config::changed(settings, &loaded.settings).into_iter().cloned();
    let (applied, pending): (Vec<Setting>, Vec<Setting>) = changed.partition(is_applied);
    for new in &applied {
        settings.iter_mut().filter(|old| old.name == new.name).for_each(|old| *old = new.clone());
    }
    let names =
        |settings: &[Setting]| settings.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", ");
    tracing::info!(
        "read the configuration again; changed: {}",
        if applied.is_empty() { "nothing".to_owned() } else { names(&applied) }
    );
    if !pending.is_empty() {
        tracing::warn!("cannot apply without a restart of the agent: {}", names(&pending));
    }
}
