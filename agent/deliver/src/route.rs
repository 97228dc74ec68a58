//! How a destination is reached now: that may change while things wait for it, by another configuration, or because
//! certificates are exchanged under programs that run.
//!
//! Must not know: what is sent there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::task::spawn_blocking;

use super::grpc::Grpc;
use super::header::Headers;
use super::{Settings, trust};

/// Settings, and what was made of them.
pub struct Route {
    pub(super) client: reqwest::Client,
    /// None: batches are posted.
    pub(super) grpc: Option<Grpc>,
    pub(super) headers: Headers,
    pub(super) settings: Settings,
    /// Certificates' files as they were last looked at.
    seen: Mutex<Vec<Option<Mark>>>,
}

/// What is another when a file has other content: inode, size, seconds and nanoseconds of its last change.
type Mark = (u64, u64, i64, i64);

impl Route {
    /// Reads certificates, as they are now; an error says what of the settings cannot be. Whether the destination is there
    /// shows later.
    pub fn new(destination: &str, settings: Settings) -> anyhow::Result<Route> {
        Route::made_of(settings).with_context(|| format!("destination {destination}"))
    }

    fn made_of(settings: Settings) -> anyhow::Result<Route> {
        // Before they are read: what changes meanwhile is seen the next time.
        let seen = Mutex::new(marks(&settings));
        let client = trust::client(&settings)?;
        let headers = Headers::new(&settings.headers)?;
        let grpc = settings.method.map(|method| Grpc::new(client.clone(), &settings, method)).transpose()?;
        Ok(Route { client, grpc, headers, settings, seen })
    }

    /// The same with certificates as they are now; None: they are what they were, or cannot be used, which is said once.
    pub(super) async fn renewed(self: &Arc<Self>, destination: &'static str) -> Option<Route> {
        files(&self.settings).next()?;
        let route = self.clone();
        spawn_blocking(move || route.look_again(destination)).await.ok().flatten()
    }

    fn look_again(&self, destination: &str) -> Option<Route> {
        let now = marks(&self.settings);
        let before =
            std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), now.clone());
        if before == now {
            return None;
        }
        match Route::made_of(self.settings.clone()) {
            Ok(route) => {
                tracing::info!(destination, "certificates have changed, and are read again");
                Some(route)
            }
            Err(error) => {
                tracing::warn!(destination, "certificates have changed, and the old ones stay: {error:#}");
                None
            }
        }
    }
}

fn files(settings: &Settings) -> impl Iterator<Item = &Path> {
    [&settings.certificate_authority, &settings.identity].into_iter().flatten().map(AsRef::as_ref)
}

fn marks(settings: &Settings) -> Vec<Option<Mark>> {
    let mark = |path: &Path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    };
    files(settings).map(mark).collect()
}
