//! Reports the agent's state to systemd, if the agent runs as a unit with `Type=notify`. Otherwise it does nothing.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Sends the unit's notifications.
pub struct SystemdNotifier {
    /// The interval of watchdog notifications: half of systemd's timeout.
    watchdog: Option<Duration>,
    last: Instant,
}

impl SystemdNotifier {
    /// Reports that the agent is ready. Call this when the probes are attached.
    pub fn start() -> SystemdNotifier {
        let watchdog = sd_notify::watchdog_enabled().map(|within| within / 2);
        notify(&[NotifyState::Ready]);
        SystemdNotifier { watchdog, last: Instant::now() }
    }

    /// Call this from the main loop: if the loop is stuck, the watchdog gets no notification.
    pub fn tick(&mut self) {
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
        tracing::warn!("cannot notify systemd: {error}");
    }
}
