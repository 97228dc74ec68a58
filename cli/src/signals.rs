//! Ctrl-C and SIGTERM: the first asks a command to finish, the second ends it at once.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// From now on signals no longer kill; what is returned resolves at the first one.
///
/// Called when a command has something to finish: until then a signal ends podopsy as it ends any program.
pub fn stop() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let first = Arc::new(Notify::new());
    let waiter = first.clone();
    tokio::spawn(async move {
        let mut signalled = async || {
            tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            }
        };
        signalled().await;
        first.notify_one();
        // What is being written may take its time, or hang: the second signal means it.
        std::process::exit(signalled().await);
    });
    Ok(async move { waiter.notified().await })
}
