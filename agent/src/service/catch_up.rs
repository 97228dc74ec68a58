//! Saves how much of the store each destination has finished, and after a restart sends it the rest.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use podopsy_deliver::{CatchUp, DeliveryCheckpoint, EncodedEvent};
use podopsy_store::Reader;
use podopsy_system::small_file;

/// A file in the state folder: for each destination, the store's id up to which everything is finished.
const FILE: &str = "exports.json";
/// Events that were sent after the last save are sent again after a crash.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
/// The number of events that are read from the store at once.
const PAGE_EVENTS: usize = 100;
/// How long to wait before a store that cannot be read is read again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The checkpoints of all destinations of events, in memory and on disk.
pub struct ExportCheckpoints {
    dir: PathBuf,
    destinations: Vec<(&'static str, Arc<DeliveryCheckpoint>)>,
    /// The checkpoints as they were last saved. A destination that is not configured now keeps its checkpoint.
    saved_ids: BTreeMap<String, i64>,
    last_attempt: Instant,
    saving: Option<JoinHandle<()>>,
    /// Whether the last attempt to save failed.
    has_failed: Arc<AtomicBool>,
}

impl ExportCheckpoints {
    /// Loads the checkpoints of the previous run. From now on, those of `destinations` are saved.
    pub fn open(dir: &Path, destinations: Vec<(&'static str, Arc<DeliveryCheckpoint>)>) -> ExportCheckpoints {
        let saved_ids = read(dir).unwrap_or_else(|error| {
            let file = dir.join(FILE);
            tracing::warn!(
                "cannot read {}, no destination is sent the events that it has missed: {error:#}",
                file.display()
            );
            BTreeMap::new()
        });
        ExportCheckpoints {
            dir: dir.to_owned(),
            destinations,
            saved_ids,
            last_attempt: Instant::now(),
            saving: None,
            has_failed: Arc::new(AtomicBool::new(false)),
        }
    }

    /// The id up to which the previous run had finished everything for a destination.
    pub fn saved_id(&self, destination: &str) -> Option<i64> {
        self.saved_ids.get(destination).copied()
    }

    /// Call this once a second. Saves changes at an interval.
    pub fn tick(&mut self) {
        if self.last_attempt.elapsed() >= SAVE_INTERVAL
            && self.saving.as_ref().is_none_or(JoinHandle::is_finished)
        {
            self.last_attempt = Instant::now();
            self.save();
        }
    }

    /// Saves the final checkpoints.
    pub async fn close(mut self) {
        self.finish_saving().await;
        self.save();
        self.finish_saving().await;
    }

    async fn finish_saving(&mut self) {
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
    }

    fn save(&mut self) {
        let mut now = self.saved_ids.clone();
        for (name, checkpoint) in &self.destinations {
            now.extend(checkpoint.done().map(|done| ((*name).to_owned(), done)));
        }
        if now == self.saved_ids && !self.has_failed.load(Relaxed) {
            return;
        }
        self.saved_ids.clone_from(&now);
        let dir = self.dir.clone();
        let has_failed = self.has_failed.clone();
        self.saving = Some(spawn_blocking(move || {
            let written = serde_json::to_vec(&now)
                .map_err(io::Error::from)
                .and_then(|bytes| small_file::replace(&dir, FILE, &bytes));
            let is_logged = has_failed.swap(written.is_err(), Relaxed);
            if let (Err(error), false) = (written, is_logged) {
                let file = dir.join(FILE);
                tracing::warn!("cannot write {}, a restart will send events again: {error}", file.display());
            }
        }));
    }
}

fn read(dir: &Path) -> anyhow::Result<BTreeMap<String, i64>> {
    let bytes = small_file::read(dir, FILE)?;
    Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?.unwrap_or_default())
}

/// Sends a destination the events that the previous run had not sent. Start this before anything is offered to it.
pub async fn catch_up(name: &'static str, catch_up: CatchUp<Arc<EncodedEvent>>, reader: Reader) {
    catch_up.run(|last| read_page(name, reader.clone(), last)).await;
    tracing::debug!(destination = name, "has caught up with the store");
}

/// Reads the events after the id `last`. Retries until the store can be read.
async fn read_page(name: &'static str, reader: Reader, last: i64) -> Vec<(i64, Option<Arc<EncodedEvent>>)> {
    let mut is_logged = false;
    loop {
        let reader = reader.clone();
        let read = spawn_blocking(move || -> anyhow::Result<Vec<_>> {
            let events = reader.after(last, PAGE_EVENTS)?;
            let encode = |(id, event): (i64, Option<_>)| {
                (id, event.and_then(|event| EncodedEvent::new(event, Some(id)).ok()))
            };
            Ok(events.into_iter().map(encode).collect())
        });
        match read.await.map_err(anyhow::Error::from).flatten() {
            Ok(page) => return page,
            Err(error) if !std::mem::replace(&mut is_logged, true) => {
                tracing::warn!(
                    destination = name,
                    "cannot read unsent events from the store, retrying: {error:#}"
                );
            }
            Err(_) => {}
        }
        sleep(RETRY_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::service::Exports;
    use podopsy_deliver::loki::Loki;
    use podopsy_deliver::testing::hostile_server::{BUSY, Behavior, HostileServer, OK};
    use podopsy_deliver::testing::lookup;
    use podopsy_deliver::{DeliveryCounts, Destination, DestinationSettings, ExportHeader};
    use podopsy_store::{Store, StoreLimits, StoreReceiver};

    /// A run of the agent, reduced to the parts under test.
    struct Run {
        store: Store,
        stored_events: StoreReceiver,
        exports: Exports,
        checkpoints: ExportCheckpoints,
        server: HostileServer,
    }

    impl Run {
        async fn start(dir: &Path, acts: &'static [Behavior]) -> Run {
            let (store, stored_events) = Store::start(dir, "boot", StoreLimits::default()).unwrap();
            let server = HostileServer::start(acts).await;
            let settings = DestinationSettings {
                headers: vec![ExportHeader::parse("X-Scope-OrgID=shop").unwrap()],
                linger: Duration::from_millis(20),
                ..DestinationSettings::new(&server.url)
            };
            let mut exports = Exports::default();
            exports.events.push(Destination::start("loki", settings, Loki).unwrap());
            let checkpoints = ExportCheckpoints::open(dir, exports.checkpoints());
            exports.catch_up(&checkpoints, &store.reader());
            Run { store, stored_events, exports, checkpoints, server }
        }

        async fn report(&mut self, names: std::ops::Range<usize>) {
            for n in names {
                let mut event = lookup(&format!("{n:02}.example"), 1).event.clone();
                // The store deletes events that are a day old.
                event.time = jiff::Timestamp::now();
                self.store.put(event).unwrap();
                let stored = self.stored_events.recv().await.unwrap();
                self.exports.offer(&EncodedEvent::new(stored.event, stored.id).unwrap());
            }
        }

        /// Waits until each event has arrived; some may arrive twice.
        async fn until_arrived(&self, names: std::ops::Range<usize>) -> DeliveryCounts {
            let end = Instant::now() + Duration::from_secs(60);
            loop {
                let (counts, arrived) = (self.exports.stats()[0].counts(), self.arrived());
                if names.clone().all(|n| arrived.contains(&format!("{n:02}.example"))) && counts.waiting == 0
                {
                    return counts;
                }
                assert!(Instant::now() < end, "{counts:?} {arrived:?}");
                sleep(Duration::from_millis(10)).await;
            }
        }

        /// The names that arrived, in order.
        fn arrived(&self) -> Vec<String> {
            let bodies: Vec<Value> =
                self.server.accepted().iter().map(|body| serde_json::from_str(body).unwrap()).collect();
            let streams = bodies.iter().flat_map(|body| body["streams"].as_array().unwrap());
            let values = streams.flat_map(|stream| stream["values"].as_array().unwrap());
            values.map(|value| value[2]["dns_name"].as_str().unwrap().to_owned()).collect()
        }

        async fn end(self) {
            self.exports.close(Duration::from_millis(200), &[]).await;
            self.checkpoints.close().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn after_a_restart_a_destination_gets_the_unsent_events_before_the_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run::start(dir.path(), &[OK, BUSY]).await;
        assert_eq!(run.checkpoints.saved_id("loki"), None);
        run.report(0..1).await;
        run.until_arrived(0..1).await;
        run.report(1..20).await;
        run.end().await;

        let mut run = Run::start(dir.path(), &[BUSY, OK]).await;
        run.report(20..25).await;
        let counts = run.until_arrived(1..25).await;
        assert_eq!(counts.lost_sum(), 0, "{counts:?}");
        let arrived = run.arrived();
        let all: BTreeSet<String> = (1..25).map(|n| format!("{n:02}.example")).collect();
        assert_eq!(arrived.iter().cloned().collect::<BTreeSet<_>>(), all);
        assert_eq!(arrived[..19].iter().collect::<Vec<_>>(), all.iter().take(19).collect::<Vec<_>>());
        run.end().await;

        // The next run has nothing left to send.
        let run = Run::start(dir.path(), &[OK]).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(run.arrived(), Vec::<String>::new());
        run.end().await;
    }

    #[tokio::test]
    async fn an_invalid_checkpoint_file_is_replaced_and_missed_events_are_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let mut run = Run::start(dir.path(), &[OK]).await;
        assert_eq!(run.checkpoints.saved_id("loki"), None);
        run.report(0..1).await;
        run.until_arrived(0..1).await;
        run.end().await;
        assert!(read(dir.path()).unwrap()["loki"] > 0);
        std::fs::write(dir.path().join(FILE), r#"{"loki":7,"otlp_logs":9}"#).unwrap();
        let checkpoints = ExportCheckpoints::open(dir.path(), Vec::new());
        assert_eq!((checkpoints.saved_id("loki"), checkpoints.saved_id("otlp_logs")), (Some(7), Some(9)));
        checkpoints.close().await;
        assert_eq!(
            read(dir.path()).unwrap().len(),
            2,
            "a destination that is not configured keeps its checkpoint"
        );
    }
}
