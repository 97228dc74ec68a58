//! Tells systemd how the agent is, where it is a unit with `Type=notify`; elsewhere all of this is nothing.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The unit that this is, if it is one.
pub struct Systemd {
    /// How often it wants a sign of life: half of what it waits for.
    watchdog: Option<Duration>,
    last: Instant,
}

impl Systemd {
    /// The probes are attached.
    pub fn start() -> Systemd {
        let watchdog = sd_notify::watchdog_enabled().map(|within| within / 2);
        notify(&[NotifyState::Ready]);
        Systemd { watchdog, last: Instant::now() }
    }

    /// A round of the pipeline: if it stands still, the watchdog goes without its sign.
    pub fn round(&mut self) {
        if self.watchdog.is_some_and(|every| self.last.elapsed() >= every) {
            self.last = Instant::now();
            notify(&[NotifyState::Watchdog]);
        }
    }

    pub fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
    }

    pub fn reloaded(&self) {
        notify(&[NotifyState::Ready]);
    }

    pub fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }
}

fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd does not hear: {error}");
    }
}
