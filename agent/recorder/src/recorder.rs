//! A running recorder: what it reports of itself, and how it stops.

use std::sync::Arc;
use std::time::Duration;

use podopsy_model::{DnsCounts, Event, Losses};
use podopsy_pods::Pods;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::confirm::Confirmations;
use crate::options::RecorderOptions;
use crate::pipeline;
use crate::scrape::Scraper;
use crate::shed::Shed;

/// How long a stop waits for records under way to become events, and for the probes to detach: the kernel waits for a
/// grace period of RCU at each, which takes seconds on a slow machine. The manifest allows 15 seconds for the whole stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running recorder; probes detach when it is dropped.
#[derive(Debug)]
pub struct Recorder {
    pub(crate) scraper: Scraper,
    pub(crate) dns_hook: Option<String>,
    pub(crate) degraded: Vec<String>,
    pub(crate) attached: Vec<(&'static str, bool)>,
    pub(crate) confirmations: Arc<Confirmations>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) collect: JoinHandle<anyhow::Result<()>>,
}

impl Recorder {
    /// Loads and attaches the probes, and starts the pipeline. The error names the probe, and what to do.
    pub async fn start(
        options: RecorderOptions,
        pods: Arc<Pods>,
    ) -> anyhow::Result<(Recorder, mpsc::Receiver<Event>)> {
        pipeline::start(options, pods).await
    }

    /// How DNS is observed, in words, where the root cgroup is not used.
    pub fn dns_hook(&self) -> Option<&str> {
        self.dns_hook.as_deref()
    }

    /// What this kernel or this machine does not allow, in words: the rest is recorded.
    pub fn degraded(&self) -> &[String] {
        &self.degraded
    }

    /// The probes that were wanted, by name, and whether they are attached.
    pub fn attached(&self) -> &[(&'static str, bool)] {
        &self.attached
    }

    /// Losses of all stages since the start, by counter name.
    pub fn losses(&self) -> Losses {
        self.scraper.losses()
    }

    /// SIGKILLs that processes of one container (or of one cgroup of the host) sent each other: counted, not reported.
    pub fn own_kills(&self) -> u64 {
        self.scraper.own_kills()
    }

    /// What each container's DNS queries came to since the start, successes included, with their owners. Counts are exact,
    /// whether a query became an event or not; a timeout is counted when it is reported. Waits for the container runtime
    /// like any attribution. Empty if DNS is not recorded.
    pub async fn dns_counts(&self) -> Vec<DnsCounts> {
        self.scraper.dns_counts().await
    }

    /// The switches of what is left out; the budget sets them.
    pub fn shed(&self) -> Arc<Shed> {
        self.scraper.shed()
    }

    /// Where the store reports which events it has kept, so that a restart reports those again that it has not.
    pub fn confirmations(&self) -> Arc<Confirmations> {
        self.confirmations.clone()
    }

    /// The sums that metrics are made of. May outlive the recorder.
    pub fn scraper(&self) -> Scraper {
        self.scraper.clone()
    }

    /// Empties the rings, detaches, and returns the final losses. Go on receiving until the receiver ends: events of records
    /// that were under way follow.
    pub async fn stop(mut self) -> anyhow::Result<Losses> {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        match tokio::time::timeout(STOP_TIMEOUT, &mut self.collect).await {
            Ok(joined) => joined??,
            Err(_) => {
                self.collect.abort();
                anyhow::bail!("the recorder did not stop within {STOP_TIMEOUT:?}")
            }
        }
        Ok(self.losses())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Without a stop: the task owns the probes, so ending it detaches them.
        if self.stop.is_some() {
            self.collect.abort();
        }
    }
}
