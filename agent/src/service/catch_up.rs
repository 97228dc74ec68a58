//! After a restart: how far each destination had come, and from there on what the store has.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use podopsy_deliver::written::Written;
use podopsy_deliver::{Progress, Resume};
use podopsy_store::Reader;
use podopsy_system::small_file;

/// In the state folder: destination → the number in the store up to which it needs nothing.
const FILE: &str = "exports.json";
/// What was sent since the file was written is sent again after a crash.
const EVERY: Duration = Duration::from_secs(10);
/// Events read at once.
const PAGE: usize = 100;
/// Until a store that cannot be read is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// How far destinations have come, in memory and on disk.
pub struct Cursors {
    dir: PathBuf,
    of: Vec<(&'static str, Arc<Progress>)>,
    /// As they were last saved. Whoever is no destination any more keeps its place.
    kept: BTreeMap<String, i64>,
    tried: Instant,
    saving: Option<JoinHandle<()>>,
    /// The last time they could not be.
    failed: Arc<AtomicBool>,
}

impl Cursors {
    /// Those of the run before, and from now on of these.
    pub fn open(dir: &Path, of: Vec<(&'static str, Arc<Progress>)>) -> Cursors {
        let kept = read(dir).unwrap_or_else(|error| {
            let file = dir.join(FILE);
            tracing::warn!("{}: {error:#}; no destination is sent what it has missed", file.display());
            BTreeMap::new()
        });
        let failed = Arc::new(AtomicBool::new(false));
        Cursors { dir: dir.to_owned(), of, kept, tried: Instant::now(), saving: None, failed }
    }

    /// How far the run before had come with a destination.
    pub fn before(&self, destination: &str) -> Option<i64> {
        self.kept.get(destination).copied()
    }

    /// Saves what has changed, from time to time.
    pub fn round(&mut self) {
        if self.tried.elapsed() >= EVERY && self.saving.as_ref().is_none_or(JoinHandle::is_finished) {
            self.tried = Instant::now();
            self.save();
        }
    }

    /// Saves the last word.
    pub async fn close(mut self) {
        self.saved().await;
        self.save();
        self.saved().await;
    }

    async fn saved(&mut self) {
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
    }

    fn save(&mut self) {
        let mut now = self.kept.clone();
        for (name, progress) in &self.of {
            now.extend(progress.done().map(|done| ((*name).to_owned(), done)));
        }
        if now == self.kept && !self.failed.load(Relaxed) {
            return;
        }
        self.kept.clone_from(&now);
        let (dir, failed) = (self.dir.clone(), self.failed.clone());
        self.saving = Some(spawn_blocking(move || {
            let written = serde_json::to_vec(&now)
                .map_err(io::Error::from)
                .and_then(|bytes| small_file::replace(&dir, FILE, &bytes));
            let said = failed.swap(written.is_err(), Relaxed);
            if let (Err(error), false) = (written, said) {
                let file = dir.join(FILE);
                tracing::warn!("{}: {error}; a restart will send again what it sent before", file.display());
            }
        }));
    }
}

fn read(dir: &Path) -> anyhow::Result<BTreeMap<String, i64>> {
    let bytes = small_file::read(dir, FILE)?;
    Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?.unwrap_or_default())
}

/// Sends a destination what it had not been sent when the run before ended. Call before anything is offered to it.
pub async fn catch_up(name: &'static str, resume: Resume<Arc<Written>>, reader: Reader) {
    resume.run(|last| page(name, reader.clone(), last)).await;
    tracing::debug!(destination = name, "has what the run before had not sent");
}

async fn page(name: &'static str, reader: Reader, last: i64) -> Vec<(i64, Option<Arc<Written>>)> {
    let mut said = false;
    loop {
        let reader = reader.clone();
        let read = spawn_blocking(move || -> anyhow::Result<Vec<_>> {
            let events = reader.after(last, PAGE)?;
            let written = |(id, event): (i64, Option<_>)| {
                (id, event.and_then(|event| Written::new(event, Some(id)).ok()))
            };
            Ok(events.into_iter().map(written).collect())
        });
        match read.await.map_err(anyhow::Error::from).flatten() {
            Ok(page) => return page,
            Err(error) if !std::mem::replace(&mut said, true) => {
                tracing::warn!(destination = name, "waits for what it was not sent: {error:#}");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::service::Exports;
    use podopsy_deliver::loki::Loki;
    use podopsy_deliver::testing::hostile::{Act, BUSY, OK, Server};
    use podopsy_deliver::testing::lookup;
    use podopsy_deliver::{Counts, Courier, Header, Settings};
    use podopsy_store::{Limits, Store, Told};

    /// A run of the agent, as far as it matters here.
    struct Run {
        store: Store,
        told: Told,
        exports: Exports,
        cursors: Cursors,
        server: Server,
    }

    impl Run {
        async fn start(dir: &Path, acts: &'static [Act]) -> Run {
            let (store, told) = Store::start(dir, "boot", Limits::default()).unwrap();
            let server = Server::start(acts).await;
            let settings = Settings {
                headers: vec![Header::parse("X-Scope-OrgID=shop").unwrap()],
                linger: Duration::from_millis(20),
                ..Settings::new(&server.url)
            };
            let mut exports = Exports::default();
            exports.events.push(Courier::start("loki", settings, Loki).unwrap());
            let cursors = Cursors::open(dir, exports.progress());
            exports.resume(&cursors, &store.reader());
            Run { store, told, exports, cursors, server }
        }

        async fn tell(&mut self, names: std::ops::Range<usize>) {
            for n in names {
                let mut event = lookup(&format!("{n:02}.example"), 1).event.clone();
                // What is a day old leaves the store.
                event.time = jiff::Timestamp::now();
                self.store.put(event).unwrap();
                let stored = self.told.recv().await.unwrap();
                self.exports.offer(&Written::new(stored.event, stored.id).unwrap());
            }
        }

        /// Each of them has arrived, some perhaps twice; what became of all.
        async fn until_arrived(&self, names: std::ops::Range<usize>) -> Counts {
            let end = Instant::now() + Duration::from_secs(60);
            loop {
                let (counts, arrived) = (self.exports.ledgers()[0].counts(), self.arrived());
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
                self.server.taken().iter().map(|body| serde_json::from_str(body).unwrap()).collect();
            let streams = bodies.iter().flat_map(|body| body["streams"].as_array().unwrap());
            let values = streams.flat_map(|stream| stream["values"].as_array().unwrap());
            values.map(|value| value[2]["dns_name"].as_str().unwrap().to_owned()).collect()
        }

        async fn end(self) {
            self.exports.close(Duration::from_millis(200), &[]).await;
            self.cursors.close().await;
        }
    }

    /// What a run could not send, the next one does; what is new meanwhile comes behind it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn after_a_restart_a_destination_gets_what_it_has_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run::start(dir.path(), &[OK, BUSY]).await;
        assert_eq!(run.cursors.before("loki"), None);
        run.tell(0..1).await;
        run.until_arrived(0..1).await;
        run.tell(1..20).await;
        run.end().await;

        let mut run = Run::start(dir.path(), &[BUSY, OK]).await;
        run.tell(20..25).await;
        let counts = run.until_arrived(1..25).await;
        assert_eq!(counts.lost_sum(), 0, "{counts:?}");
        let arrived = run.arrived();
        let all: BTreeSet<String> = (1..25).map(|n| format!("{n:02}.example")).collect();
        assert_eq!(arrived.iter().cloned().collect::<BTreeSet<_>>(), all);
        assert_eq!(arrived[..19].iter().collect::<Vec<_>>(), all.iter().take(19).collect::<Vec<_>>());
        run.end().await;

        // Nothing is left.
        let run = Run::start(dir.path(), &[OK]).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(run.arrived(), Vec::<String>::new());
        run.end().await;
    }

    #[tokio::test]
    async fn a_file_that_makes_no_sense_costs_what_was_missed_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let mut run = Run::start(dir.path(), &[OK]).await;
        assert_eq!(run.cursors.before("loki"), None);
        run.tell(0..1).await;
        run.until_arrived(0..1).await;
        run.end().await;
        assert!(read(dir.path()).unwrap()["loki"] > 0);
        std::fs::write(dir.path().join(FILE), r#"{"loki":7,"otlp_logs":9}"#).unwrap();
        let cursors = Cursors::open(dir.path(), Vec::new());
        assert_eq!((cursors.before("loki"), cursors.before("otlp_logs")), (Some(7), Some(9)));
        cursors.close().await;
        assert_eq!(read(dir.path()).unwrap().len(), 2, "whoever is no destination now keeps its place");
    }
}
