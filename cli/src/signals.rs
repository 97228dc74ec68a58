//! Ctrl-C and SIGTERM: the first signal asks a command to finish, the second ends podopsy at once.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Catches the signals from now on; the returned future resolves at the first one.
///
/// A command calls this when it has something to finish; until then a signal ends podopsy like any program.
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
        // Writing the results may take long or hang: the second signal does not wait for it.
        std::process::exit(signalled().await);
    });
    Ok(async move { waiter.notified().await })
}
