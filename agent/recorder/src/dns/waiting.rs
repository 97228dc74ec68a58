//! Records whose owner is being looked up.
//!
//! A lookup may wait for the container runtime. It delays the records of its own cgroup, which stay in order, and no
//! others.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use podopsy_model::Owner;
use podopsy_pods::Pods;
use podopsy_wire::Task;
use tokio::task::JoinSet;

use crate::attribute::DnsQuery;

/// Records that wait, in total and for one cgroup.
const WAITING_MAX: usize = 8192;
const CGROUP_WAITING_MAX: usize = 1024;

pub(crate) struct WaitingQueries {
    pods: Arc<Pods>,
    queues: HashMap<AskerKey, VecDeque<DnsQuery>>,
    lookups: JoinSet<(AskerKey, Owner)>,
    waiting: usize,
}

/// A cgroup id, or a pid where the kernel side gave no cgroup.
type AskerKey = (u64, u32);

/// What became of a new record.
pub(crate) enum Accepted {
    Known(Box<(DnsQuery, Owner)>),
    Waits,
    /// Too many records wait.
    Dropped,
}

impl WaitingQueries {
    pub fn new(pods: Arc<Pods>) -> WaitingQueries {
        WaitingQueries { pods, queues: HashMap::new(), lookups: JoinSet::new(), waiting: 0 }
    }

    /// Returns the record with its owner if the owner is known; else starts a lookup.
    pub fn accept(&mut self, query: DnsQuery) -> Accepted {
        let key = key(&query.asker);
        if let Some(queue) = self.queues.get_mut(&key) {
            if self.waiting >= WAITING_MAX || queue.len() >= CGROUP_WAITING_MAX {
                return Accepted::Dropped;
            }
            queue.push_back(query);
            self.waiting += 1;
            return Accepted::Waits;
        }
        if let Some(owner) = &query.owner {
            let owner = Owner::clone(owner);
            return Accepted::Known(Box::new((query, owner)));
        }
        let (cgroup, pid) = (query.asker.cgroup_id, query.asker.pid);
        let (owner, is_incomplete) = self.pods.owner_now(cgroup, pid);
        if !is_incomplete {
            return Accepted::Known(Box::new((query, owner)));
        }
        if self.waiting >= WAITING_MAX {
            return Accepted::Dropped;
        }
        let pods = self.pods.clone();
        self.lookups.spawn(async move { (key, pods.owner_of_task(cgroup, pid).await) });
        self.queues.insert(key, [query].into());
        self.waiting += 1;
        Accepted::Waits
    }

    pub fn is_empty(&self) -> bool {
        self.lookups.is_empty()
    }

    /// The records of the next cgroup whose owner was found. Cancel-safe; call only if records wait.
    pub async fn next(&mut self) -> (VecDeque<DnsQuery>, Owner) {
        match self.lookups.join_next().await {
            Some(Ok((key, owner))) => (self.take(&key), owner),
            _ => Default::default(),
        }
    }

    /// The records that still wait, with what is known of their owners now.
    pub fn take_all(&mut self) -> Vec<(VecDeque<DnsQuery>, Owner)> {
        self.lookups.abort_all();
        let keys: Vec<AskerKey> = self.queues.keys().copied().collect();
        keys.into_iter().map(|key| (self.take(&key), self.pods.owner_now(key.0, key.1).0)).collect()
    }

    fn take(&mut self, key: &AskerKey) -> VecDeque<DnsQuery> {
        let queue = self.queues.remove(key).unwrap_or_default();
        self.waiting -= queue.len();
        queue
    }
}

fn key(asker: &Task) -> AskerKey {
    match asker.cgroup_id {
        0 => (0, asker.pid),
        cgroup => (cgroup, 0),
    }
}
