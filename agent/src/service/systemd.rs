//! Reports the agent's state to systemd, if the agent runs as a unit with `Type=notify`. Otherwise it does nothing.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::Context;
use sd_notify::NotifyState;

/// Sends the unit's notifications.
pub struct SystemdNotifier {
    /// None: the agent is no such unit. The socket stays open, because the restrained agent cannot make another one.
    socket: Option<UnixDatagram>,
    /// The interval of watchdog notifications: half of systemd's timeout.
    watchdog: Option<Duration>,
    last: Instant,
}

impl SystemdNotifier {
    /// Connects to systemd's socket. Call this before the agent restrains itself.
    pub fn connect() -> SystemdNotifier {
        let socket = connect().unwrap_or_else(|error| {
            tracing::warn!("cannot notify systemd: {error:#}");
            None
        });
        let watchdog = sd_notify::watchdog_enabled().map(|within| within / 2);
        SystemdNotifier { socket, watchdog, last: Instant::now() }
    }

    /// Reports that the agent is ready. Call this when the probes are attached.
    pub fn ready(&mut self) {
        self.notify(&[NotifyState::Ready]);
        self.last = Instant::now();
    }

    /// Call this from the main loop: if the loop is stuck, the watchdog gets no notification.
    pub fn tick(&mut self) {
        if self.watchdog.is_some_and(|every| self.last.elapsed() >= every) {
            self.last = Instant::now();
            self.notify(&[NotifyState::Watchdog]);
        }
    }

    pub fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.notify(&[NotifyState::Reloading, now]);
        }
    }

    pub fn reloaded(&self) {
        self.notify(&[NotifyState::Ready]);
    }

    pub fn stopping(&self) {
        self.notify(&[NotifyState::Stopping]);
    }

    fn notify(&self, states: &[NotifyState]) {
        let Some(socket) = &self.socket else { return };
        let lines: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = socket.send(lines.as_bytes()) {
            tracing::warn!("cannot notify systemd: {error}");
        }
    }
}

fn connect() -> anyhow::Result<Option<UnixDatagram>> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
    let connected = || -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(&path)?;
        Ok(socket)
    };
    let shown = path.display();
    Ok(Some(connected().with_context(|| format!("connect to {shown} (NOTIFY_SOCKET)"))?))
}
