//! Writes the memory samples of every container, with their owners, into the store once a minute.
//!
//! This is a separate task, because finding an owner may wait for the container runtime. It must not depend on how memory
//! is sampled, stored or rendered.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use podopsy_pods::Pods;
use podopsy_recorder::Scraper;
use podopsy_store::{MemoryRecord, StoreSender};

/// How long the end may take. At most one minute of samples is lost after that.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// The running task.
pub struct MemoryRecordTask {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl MemoryRecordTask {
    pub fn start(
        every: Duration,
        scraper: Scraper,
        pods: Arc<Pods>,
        keeper: StoreSender,
    ) -> MemoryRecordTask {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            // The first call makes the scraper keep samples for us from now on.
            scraper.memory_records();
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let is_last = tokio::select! {
                    _ = ticks.tick() => false,
                    _ = &mut stopped => true,
                };
                for (id, steps) in scraper.memory_records() {
                    let mut owner = pods.owner_of_cgroup(id).await;
                    // Set even if the owner is not known: a later record of the same cgroup can name it.
                    owner.cgroup.id = id;
                    keeper.put_memory(&MemoryRecord { owner, steps });
                }
                if is_last {
                    return;
                }
            }
        });
        MemoryRecordTask { stop, task }
    }

    /// Writes the samples that are left, and ends.
    pub async fn end(mut self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(END_TIMEOUT, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}
