//! Records → events: the owner, the times and the losses are put to what the probe saw.

use std::sync::{Arc, Mutex};

use podopsy_wire::Task;
use tokio::sync::{mpsc, oneshot};

use super::stacks::Named;
use crate::clock;
use crate::decode::OomDecoded;
use crate::model::event::{OomTask, Rss};
use crate::model::{Detail, DnsTransaction, Event, Kind, Losses, OomKill, Outcome, Owner, ProcessRef, text};
use crate::pods::Pods;

/// A decoded record that waits for its owner.
pub enum Record {
    Oom(Box<OomDecoded>, Option<oneshot::Receiver<Named>>),
    Dns { asker: Task, time_ns: u64, transaction: DnsTransaction },
}

/// Attributes records one after the other, in the order in which they happened.
pub struct Attribution {
    pub node: String,
    pub pods: Arc<Pods>,
    /// The newest losses of all stages.
    pub losses: Arc<Mutex<Losses>>,
}

impl Attribution {
    /// Runs until the records end or nobody listens to the events.
    pub async fn run(self, mut records: mpsc::Receiver<Record>, events: mpsc::Sender<Event>) {
        while let Some(record) = records.recv().await {
            let event = match record {
                Record::Oom(kill, stacks) => self.oom(*kill, stacks).await,
                Record::Dns { asker, time_ns, transaction } => self.dns(&asker, time_ns, transaction).await,
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    }

    async fn oom(&self, kill: OomDecoded, stacks: Option<oneshot::Receiver<Named>>) -> Event {
        let owner = self.owner(&kill.victim).await;
        let trigger_owner = self.owner(&kill.trigger).await;
        let named = match stacks {
            Some(answer) => answer.await.unwrap_or_default(),
            None => Named::default(),
        };
        let page = page_size();
        let detail = OomKill {
            victim: oom_task(&kill.victim),
            trigger: oom_task(&kill.trigger),
            trigger_cgroup: trigger_owner.cgroup,
            rss: kill.rss_pages.map(|[file, anon, swap, shmem]| Rss {
                anon_bytes: anon.saturating_mul(page),
                file_bytes: file.saturating_mul(page),
                shmem_bytes: shmem.saturating_mul(page),
                swap_bytes: swap.saturating_mul(page),
            }),
            oom_score_adj: kill.oom_score_adj,
            kernel_stack: named.kernel,
            user_stack: named.user,
        };
        self.event(kill.time_ns, Kind::OomKill, owner, &kill.victim, Detail::Oom(detail))
    }

    async fn dns(&self, asker: &Task, time_ns: u64, transaction: DnsTransaction) -> Event {
        let owner = self.owner(asker).await;
        let kind = match transaction.outcome {
            Outcome::Noerror => Kind::DnsAnswer,
            _ => Kind::DnsFailure,
        };
        self.event(time_ns, kind, owner, asker, Detail::Dns(transaction))
    }

    /// By cgroup; by process only where this kernel gave no cgroup, and then only while it lives.
    async fn owner(&self, task: &Task) -> Owner {
        if task.cgroup_id == 0 && task.pid != 0 {
            return self.pods.owner_of_pid(task.pid).await.unwrap_or_default();
        }
        self.pods.owner_of_cgroup(task.cgroup_id).await
    }

    fn event(&self, time_ns: u64, kind: Kind, owner: Owner, task: &Task, detail: Detail) -> Event {
        let process = ProcessRef {
            pid: task.pid,
            comm: text::from_kernel(&task.comm),
            start_time: clock::start(task.start_ns),
        };
        let losses = self.losses.lock().map(|losses| losses.clone()).unwrap_or_default();
        Event::new(clock::wall(time_ns), kind, &self.node, owner, process, detail, losses)
    }
}

fn oom_task(task: &Task) -> OomTask {
    OomTask { pid: task.pid, tid: task.tid, comm: text::from_kernel(&task.comm) }
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}
