//! Once a minute: what was sampled of every container, with its owner, into the store.
//!
//! A task of its own, since naming an owner may wait for the container runtime. Must not know: how anything is sampled,
//! stored or shown.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use podopsy_pods::Pods;
use podopsy_recorder::Scraper;
use podopsy_store::{Keeper, MemoryRecord};

/// How long the end may take: what is not kept then is a minute at most.
const END_WITHIN: Duration = Duration::from_secs(3);

/// The running task.
pub struct Keep {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Keep {
    pub fn start(every: Duration, scraper: Scraper, pods: Arc<Pods>, keeper: Keeper) -> Keep {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            // The first look says that there is someone who keeps it.
            scraper.memory_records();
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let last = tokio::select! {
                    _ = ticks.tick() => false,
                    _ = &mut stopped => true,
                };
                for (id, steps) in scraper.memory_records() {
                    let mut owner = pods.owner_of_cgroup(id).await;
                    // Of a stretch the name may come later: it stays the same one.
                    owner.cgroup.id = id;
                    keeper.put_memory(&MemoryRecord { owner, steps });
                }
                if last {
                    return;
                }
            }
        });
        Keep { stop, task }
    }

    /// Keeps what is there, and ends.
    pub async fn end(mut self) {
        let _ = self.stop.send(());
        if tokio::time::timeout(END_WITHIN, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}
