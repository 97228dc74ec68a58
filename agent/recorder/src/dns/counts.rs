//! Each container's DNS counts: those of the kernel side, those that only user space knows (timeouts), and the bound on the
//! events of both.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use podopsy_decode::dns::answer_outcome;
use podopsy_wire::{DNS_CONTAINERS_MAX, DnsCounters, TokenBucket};

use podopsy_model::dns::{DnsCounts, Latencies, NotVisible};
use podopsy_model::{KnownBy, Outcome, Owner};
use podopsy_packets::SharedCounters;
use podopsy_pods::Pods;
use podopsy_probes::{KernelCounts, Rate};
use podopsy_system::sync::lock;

/// Cgroups remembered, those that the kernel side has no place for any more included.
const ACCOUNTS_MAX: usize = 2 * DNS_CONTAINERS_MAX as usize;
/// How often to ask for the owner of an unknown cgroup: each attempt reads the whole tree.
const ATTEMPTS_MAX: u8 = 3;

/// Shared by the reader, which adds, and by metrics, which read.
pub(crate) type SharedCounts = Arc<Mutex<ContainerCounts>>;

/// Owners that are known from inside a pod, by the number that stands for their memory cgroup.
pub(crate) type InsideOwners = Arc<Mutex<HashMap<u64, Owner>>>;

/// Where queries are counted.
pub(crate) enum CounterSource {
    Kernel(KernelCounts),
    /// The packet socket's thread, and the owners that are known inside the pod.
    PacketSocket(SharedCounters, Option<InsideOwners>),
}

impl CounterSource {
    fn entries(&self) -> Vec<(u64, DnsCounters)> {
        match self {
            CounterSource::Kernel(kernel) => kernel.entries(),
            CounterSource::PacketSocket(counters, _) => {
                lock(counters).iter().map(|(id, of)| (*id, *of)).collect()
            }
        }
    }

    fn remove(&mut self, id: u64) -> bool {
        match self {
            CounterSource::Kernel(kernel) => kernel.remove(id),
            CounterSource::PacketSocket(counters, _) => lock(counters).remove(&id).is_some(),
        }
    }

    fn owner(&self, id: u64) -> Option<Owner> {
        match self {
            CounterSource::PacketSocket(_, Some(owners)) => lock(owners).get(&id).cloned(),
            _ => None,
        }
    }
}

/// The counts of all containers.
pub(crate) struct ContainerCounts {
    source: CounterSource,
    rate: Rate,
    accounts: HashMap<u64, Account>,
    /// Events of timeouts that were dropped by the bound.
    throttled: u64,
    forgotten: u64,
    /// Calls of `look` so far: the clock of `Account::changed`.
    looks: u64,
}

#[derive(Default)]
struct Account {
    /// Counts of entries that the cgroup no longer has.
    before: DnsCounts,
    /// What its entry held at the last look.
    now: Option<DnsCounters>,
    timeouts: u64,
    unreachable: u64,
    abandoned: u64,
    /// Queries that were not sent, because no TCP connection could be made. Each has an outcome.
    unsent: u64,
    throttled: u64,
    /// Events that were left out to keep to a budget.
    shed: u64,
    /// Queries that user space removed to make place for those of other cgroups.
    untracked: u64,
    /// The token buckets of timeouts and of answers: see [`TokenBucket`].
    paid_ns: u64,
    paid_answered_ns: u64,
    changed: u64,
    /// The last known owner: counts outlive what the pods crate remembers of dead containers.
    owner: Option<Box<Owner>>,
    /// The owner cannot become more precise.
    is_settled: bool,
    /// Failed attempts to find the owner.
    attempts: u8,
}

impl std::fmt::Debug for ContainerCounts {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "ContainerCounts of {} cgroups", self.accounts.len())
    }
}

impl ContainerCounts {
    pub fn new(source: CounterSource, rate: Rate) -> ContainerCounts {
        ContainerCounts { source, rate, accounts: HashMap::new(), throttled: 0, forgotten: 0, looks: 0 }
    }

    /// Reads and returns the counts of the source, and removes idle entries if few are free.
    pub fn look(&mut self) -> Vec<(u64, DnsCounters)> {
        self.looks += 1;
        let mut entries = self.source.entries();
        let scarce = entries.len() > DNS_CONTAINERS_MAX as usize / 4 * 3;
        for &(id, counters) in &entries {
            let looks = self.looks;
            let account = self.account(id);
            if account.now.is_some_and(|now| now.since_ns != counters.since_ns) {
                account.close();
            }
            if account.now != Some(counters) {
                (account.now, account.changed) = (Some(counters), looks);
            }
        }
        if scarce {
            let removed = self.remove_idle();
            entries.retain(|(id, _)| !removed.contains(id));
        }
        entries
    }

    /// Removes the entries that have been idle longest, a quarter of all, and returns their ids; their counts are kept here.
    fn remove_idle(&mut self) -> HashSet<u64> {
        let mut idle: Vec<(u64, u64)> = self
            .accounts
            .iter()
            .filter(|(_, account)| account.now.is_some() && account.changed < self.looks)
            .map(|(id, account)| (account.changed, *id))
            .collect();
        idle.sort_unstable();
        let mut removed = HashSet::new();
        for (_, id) in idle.into_iter().take(DNS_CONTAINERS_MAX as usize / 4) {
            if self.source.remove(id)
                && let Some(account) = self.accounts.get_mut(&id)
            {
                account.close();
                removed.insert(id);
            }
        }
        removed
    }

    /// Counts a query without an answer; true: it is within its container's bound of events. `price`: see
    /// [`podopsy_wire::token_price`].
    pub fn unanswered(&mut self, cgroup_id: u64, outcome: Outcome, now_ns: u64, price: u64) -> bool {
        let bucket = self.bucket();
        let looks = self.looks;
        let account = self.account(cgroup_id);
        account.changed = looks;
        match outcome {
            Outcome::Unreachable => account.unreachable += 1,
            Outcome::Abandoned => account.abandoned += 1,
            _ => account.timeouts += 1,
        }
        if let Some(paid_ns) = bucket.take(account.paid_ns, now_ns, price) {
            account.paid_ns = paid_ns;
            return true;
        }
        account.throttled += 1;
        self.throttled += 1;
        false
    }

    /// Counts a query that could not be sent.
    pub fn unsent_query(&mut self, cgroup_id: u64) {
        self.account(cgroup_id).unsent += 1;
    }

    /// Counts an event of this cgroup that was shed.
    pub fn shed_event(&mut self, cgroup_id: u64) {
        self.account(cgroup_id).shed += 1;
    }

    /// Counts queries of this cgroup whose outcome will not be seen.
    pub fn untracked(&mut self, cgroup_id: u64, count: u64) {
        self.account(cgroup_id).untracked += count;
    }

    /// Whether an answer that the kernel side shipped is within its container's bound at this price; counts it if not.
    pub fn may_queue_answered(&mut self, cgroup_id: u64, now_ns: u64, price: u64) -> bool {
        let bucket = self.bucket();
        let account = self.account(cgroup_id);
        if let Some(paid_ns) = bucket.take(account.paid_answered_ns, now_ns, price) {
            account.paid_answered_ns = paid_ns;
            return true;
        }
        account.throttled += 1;
        self.throttled += 1;
        false
    }

    fn bucket(&self) -> TokenBucket {
        TokenBucket::new(self.rate.interval_us(), self.rate.burst.max(1))
    }

    fn account(&mut self, id: u64) -> &mut Account {
        if self.accounts.len() >= ACCOUNTS_MAX && !self.accounts.contains_key(&id) {
            // The source has fewer entries than this: there is an account without one.
            let idle =
                self.accounts.iter().min_by_key(|(_, account)| (account.now.is_some(), account.changed));
            if let Some(id) = idle.map(|(id, _)| *id) {
                self.accounts.remove(&id);
                self.forgotten += 1;
            }
        }
        self.accounts.entry(id).or_default()
    }

    /// Losses, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let all = [("dns_counts_forgotten", self.forgotten), ("dns_throttled", self.throttled)];
        all.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)).collect()
    }

    /// The counts, with the owners that are known already.
    fn totals(&self) -> Vec<(u64, DnsCounts, Option<Owner>)> {
        let owner = |id: u64, account: &Account| match &account.owner {
            Some(owner) if account.is_settled => Some((**owner).clone()),
            // Queries whose asker had no readable cgroup: there is no owner to find.
            _ if id == 0 => Some(Owner::default()),
            _ => self.source.owner(id),
        };
        self.accounts.iter().map(|(&id, account)| (id, account.total(), owner(id, account))).collect()
    }

    /// Takes the owner that the pods crate found, and returns the best that is known.
    fn learn(&mut self, id: u64, found: Owner) -> Owner {
        let Some(account) = self.accounts.get_mut(&id) else { return found };
        match (found.known_by, &account.owner) {
            // The container is dead, and the pods crate has forgotten it.
            (KnownBy::Unknown, Some(owner)) => {
                account.is_settled = true;
                return (**owner).clone();
            }
            (KnownBy::Unknown, None) => {
                account.attempts += 1;
                account.is_settled = account.attempts >= ATTEMPTS_MAX;
                if account.is_settled {
                    account.owner = Some(Box::new(found.clone()));
                }
            }
            // The names of a container may still become more precise.
            (known_by, _) => {
                account.is_settled = matches!(known_by, KnownBy::Cri | KnownBy::Host);
                account.owner = Some(Box::new(found.clone()));
            }
        }
        found
    }
}

impl Account {
    /// The entry is gone: its counts are kept.
    fn close(&mut self) {
        if let Some(now) = self.now.take() {
            self.before.add(&read(&now));
        }
    }

    fn total(&self) -> DnsCounts {
        let mut total = self.before.clone();
        if let Some(now) = &self.now {
            total.add(&read(now));
        }
        total.queries += self.unsent;
        let unanswered = [
            (Outcome::Timeout, self.timeouts),
            (Outcome::Unreachable, self.unreachable),
            (Outcome::Abandoned, self.abandoned),
        ];
        for (outcome, count) in unanswered {
            if count > 0 {
                *total.outcomes.entry(outcome).or_default() += count;
            }
        }
        total.events_dropped += self.throttled + self.shed;
        total.untracked += self.untracked;
        total
    }
}

/// The wire's counters as the model has them.
fn read(counters: &DnsCounters) -> DnsCounts {
    let answers = counters.answers.iter().enumerate().map(|(class, count)| (answer_outcome(class), *count));
    let outcomes = answers.chain([(Outcome::Late, counters.late)]);
    DnsCounts {
        owner: Owner::default(),
        queries: counters.queries,
        resends: counters.resends,
        untracked: counters.untracked,
        unnamed: counters.unnamed,
        not_dns: counters.not_dns,
        outcomes: outcomes.filter(|(_, count)| *count > 0).collect(),
        latency: Latencies { buckets: counters.latency.to_vec(), sum_us: counters.latency_us },
        events_dropped: counters.throttled + counters.ring_full,
        not_visible: NotVisible { tls: counters.tls, https: counters.https },
    }
}

/// The counts as they are now, with their owners: one entry a container, and one for each cgroup that is no container's.
pub async fn attributed(counts: &SharedCounts, pods: &Pods) -> Vec<DnsCounts> {
    let totals = {
        let mut counts = lock(counts);
        counts.look();
        counts.totals()
    };
    let mut containers: BTreeMap<String, DnsCounts> = BTreeMap::new();
    for (id, mut total, owner) in totals {
        total.owner = match owner {
            Some(owner) => owner,
            None => {
                let found = pods.owner_of_cgroup(id).await;
                lock(counts).learn(id, found)
            }
        };
        // Id 0 stands for every unknown cgroup. Others may have no name, and are still different cgroups.
        let key = match &total.owner.container {
            Some(container) => format!("container {}", container.id),
            None => format!("cgroup {id}"),
        };
        match containers.get_mut(&key) {
            Some(sum) => sum.add(&total),
            None => {
                containers.insert(key, total);
            }
        }
    }
    containers.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use super::*;
    use podopsy_pods::PodsOptions;

    /// Counts of these cgroups, as the packet socket's thread makes them.
    fn counts(ids: &[u64]) -> SharedCounts {
        let counters: HashMap<u64, DnsCounters> = ids.iter().map(|&id| (id, DnsCounters::EMPTY)).collect();
        let source = CounterSource::PacketSocket(Arc::new(Mutex::new(counters)), None);
        Arc::new(Mutex::new(ContainerCounts::new(source, Rate::default())))
    }

    #[tokio::test]
    async fn counts_keep_their_owner_after_the_pods_crate_has_forgotten_it() {
        let folder = tempfile::tempdir().unwrap();
        let cgroups = folder.path().join("cgroup");
        std::fs::create_dir_all(cgroups.join("system.slice")).unwrap();
        std::fs::write(cgroups.join("cgroup.controllers"), "memory").unwrap();
        let options = PodsOptions {
            cri_socket: Some(folder.path().join("absent.sock")),
            remember_dead: Duration::ZERO,
            proc_root: folder.path().join("proc"),
            cgroup_root: cgroups.clone(),
            log_pods: folder.path().join("logs"),
            ..PodsOptions::default()
        };
        let pods = Pods::start(options).await.unwrap();
        let id = std::fs::metadata(cgroups.join("system.slice")).unwrap().ino();
        let (counts, unknown) = (counts(&[id, 0, 987_654_321]), 987_654_321);
        let path = async || {
            let all = attributed(&counts, &pods).await;
            assert_eq!(all.len(), 3);
            all.into_iter().find(|one| one.owner.cgroup.id == id).and_then(|one| one.owner.cgroup.path)
        };
        assert_eq!(path().await.as_deref(), Some("/system.slice"));
        // The death of a cgroup triggers the cleanup of earlier ones. All are made first, so that no inode number is reused.
        let others: Vec<_> = (0..100).map(|n| cgroups.join(format!("other-{n}"))).collect();
        others.iter().for_each(|other| std::fs::create_dir(other).unwrap());
        std::fs::remove_dir(cgroups.join("system.slice")).unwrap();
        for other in others {
            std::fs::remove_dir(other).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            if pods.lineage(id).is_none() {
                break;
            }
        }
        assert!(pods.lineage(id).is_none(), "never forgotten");
        let before = pods.status().losses.get("cgroups_unknown").copied().unwrap_or(0);
        for _ in 0..10 {
            assert_eq!(path().await.as_deref(), Some("/system.slice"));
        }
        // Once before and twice now, for the unknown cgroup. Id 0 is never asked for.
        assert_eq!((before, pods.status().losses["cgroups_unknown"]), (1, 3));
        let found = attributed(&counts, &pods).await;
        assert!(
            found.iter().any(|one| one.owner.cgroup.id == unknown && one.owner.known_by == KnownBy::Unknown)
        );
    }
}
