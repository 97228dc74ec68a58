//! The HTTP client, headers and certificates for one destination.
//!
//! They can change while items wait: by a new configuration, or because certificate files are replaced while the agent
//! runs. This module must not depend on what is sent.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use podopsy_system::sync::lock;
use tokio::task::spawn_blocking;

use super::grpc::Grpc;
use super::header::RequestHeaders;
use super::{DestinationSettings, http_client};

/// A destination's settings, and the clients that were built from them.
pub struct DestinationClient {
    pub(super) http: reqwest::Client,
    /// None: batches are sent by POST.
    pub(super) grpc: Option<Grpc>,
    pub(super) headers: RequestHeaders,
    pub(super) settings: DestinationSettings,
    /// The certificate files as they were at the last check.
    stamps: Mutex<Vec<Option<FileStamp>>>,
}

/// Inode, size, and seconds and nanoseconds of the last change. It differs if a file was replaced or rewritten.
type FileStamp = (u64, u64, i64, i64);

impl DestinationClient {
    /// Reads the certificate files. Fails if the settings are invalid; whether the destination can be reached shows later.
    pub fn new(destination: &str, settings: DestinationSettings) -> anyhow::Result<DestinationClient> {
        DestinationClient::build(settings).with_context(|| format!("destination {destination}"))
    }

    fn build(settings: DestinationSettings) -> anyhow::Result<DestinationClient> {
        // Taken before the files are read, so that a change in between is noticed at the next check.
        let stamps = Mutex::new(file_stamps(&settings));
        let http = http_client::build(&settings)?;
        let headers = RequestHeaders::new(&settings.headers)?;
        let grpc = settings.method.map(|method| Grpc::new(http.clone(), &settings, method)).transpose()?;
        Ok(DestinationClient { http, grpc, headers, settings, stamps })
    }

    /// The same client with the certificates as they are now. None: they have not changed, or the new ones are not usable,
    /// which is logged once.
    pub(super) async fn renewed(self: &Arc<Self>, destination: &'static str) -> Option<DestinationClient> {
        certificate_files(&self.settings).next()?;
        let client = self.clone();
        spawn_blocking(move || client.rebuild_if_changed(destination)).await.ok().flatten()
    }

    fn rebuild_if_changed(&self, destination: &str) -> Option<DestinationClient> {
        let now = file_stamps(&self.settings);
        let before = std::mem::replace(&mut *lock(&self.stamps), now.clone());
        if before == now {
            return None;
        }
        match DestinationClient::build(self.settings.clone()) {
            Ok(client) => {
                tracing::info!(destination, "read the changed certificates again");
                Some(client)
            }
            Err(error) => {
                tracing::warn!(
                    destination,
                    "cannot use the changed certificates, keeping the old: {error:#}"
                );
                None
            }
        }
    }
}

fn certificate_files(settings: &DestinationSettings) -> impl Iterator<Item = &Path> {
    [&settings.certificate_authority, &settings.identity].into_iter().flatten().map(AsRef::as_ref)
}

fn file_stamps(settings: &DestinationSettings) -> Vec<Option<FileStamp>> {
    let stamp = |path: &Path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    };
    certificate_files(settings).map(stamp).collect()
}
