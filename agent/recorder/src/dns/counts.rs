//! Each container's DNS counts: the kernel side's, what only user space knows (timeouts), and the bound on both's events.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use podopsy_wire::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_OTHER, ANSWER_REFUSED,
    ANSWER_SERVFAIL, ANSWER_TRUNCATED, DNS_CONTAINERS_MAX, DnsCounters,
};

use podopsy_model::dns::{DnsCounts, Latencies, NotVisible};
use podopsy_model::{KnownBy, Outcome, Owner};
use podopsy_packets as packets;
use podopsy_pods::Pods;
use podopsy_probes::{KernelCounts, Rate};

/// Cgroups remembered, those that the kernel side has no place for any more included.
const ACCOUNTS_MAX: usize = 2 * DNS_CONTAINERS_MAX as usize;
/// How often to ask for the owner of a cgroup that nobody knows: each time the whole tree is read.
const VAIN_MAX: u8 = 3;

/// Shared by the collector, which adds, and by whoever asks.
pub type Shared = Arc<Mutex<Counts>>;

/// Owners that are known from inside a pod, by what stands for their memory cgroup.
pub type Owners = Arc<Mutex<HashMap<u64, Owner>>>;

/// Where counts are made.
pub enum Places {
    Kernel(KernelCounts),
    /// By the packet socket's thread.
    Here(packets::Counters, Option<Owners>),
}

impl Places {
    fn entries(&self) -> Vec<(u64, DnsCounters)> {
        match self {
            Places::Kernel(kernel) => kernel.entries(),
            Places::Here(here, _) => {
                here.lock().map(|here| here.iter().map(|(id, of)| (*id, *of)).collect()).unwrap_or_default()
            }
        }
    }

    fn remove(&mut self, id: u64) -> bool {
        match self {
            Places::Kernel(kernel) => kernel.remove(id),
            Places::Here(here, _) => here.lock().is_ok_and(|mut here| here.remove(&id).is_some()),
        }
    }

    fn owner(&self, id: u64) -> Option<Owner> {
        match self {
            Places::Here(_, Some(owners)) => owners.lock().ok()?.get(&id).cloned(),
            _ => None,
        }
    }
}

/// All containers' counts.
pub struct Counts {
    places: Places,
    rate: Rate,
    accounts: HashMap<u64, Account>,
    /// Events that timeouts were due and were not made.
    throttled: u64,
    forgotten: u64,
    /// Looks so far: the clock of `Account::changed`.
    looks: u64,
}

#[derive(Default)]
struct Account {
    /// What was counted in places that the cgroup has no more.
    before: DnsCounts,
    /// What its place held when it was last looked at.
    now: Option<DnsCounters>,
    timeouts: u64,
    unreachable: u64,
    throttled: u64,
    /// The token bucket, as in `probe-ebpf/src/dns_counts.rs`.
    paid_ns: u64,
    changed: u64,
    /// As it was known last: counts outlive what the room of pods remembers of the dead.
    owner: Option<Box<Owner>>,
    /// There is nothing more to learn.
    settled: bool,
    /// Times that nobody knew it.
    vain: u8,
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "Counts of {} cgroups", self.accounts.len())
    }
}

impl Counts {
    pub fn new(places: Places, rate: Rate) -> Counts {
        Counts { places, rate, accounts: HashMap::new(), throttled: 0, forgotten: 0, looks: 0 }
    }

    /// Takes over what the kernel side has counted, and makes room for new cgroups if it is scarce.
    pub fn look(&mut self) {
        self.looks += 1;
        let entries = self.places.entries();
        let scarce = entries.len() > DNS_CONTAINERS_MAX as usize / 4 * 3;
        for (id, counters) in entries {
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
            self.make_room();
        }
    }

    /// Takes those out that have been idle the longest, a quarter of all; their counts stay.
    fn make_room(&mut self) {
        let mut idle: Vec<(u64, u64)> = self
            .accounts
            .iter()
            .filter(|(_, account)| account.now.is_some() && account.changed < self.looks)
            .map(|(id, account)| (account.changed, *id))
            .collect();
        idle.sort_unstable();
        for (_, id) in idle.into_iter().take(DNS_CONTAINERS_MAX as usize / 4) {
            if self.places.remove(id)
                && let Some(account) = self.accounts.get_mut(&id)
            {
                account.close();
            }
        }
    }

    /// A query that nobody answered; true: it may become an event.
    pub fn unanswered(&mut self, cgroup_id: u64, outcome: Outcome, now_ns: u64) -> bool {
        let interval = u64::from(self.rate.interval_us()) * 1000;
        let room = interval * u64::from(self.rate.burst.max(1));
        let looks = self.looks;
        let account = self.account(cgroup_id);
        account.changed = looks;
        match outcome {
            Outcome::Unreachable => account.unreachable += 1,
            _ => account.timeouts += 1,
        }
        let due = account.paid_ns.max(now_ns).saturating_add(interval);
        if due <= now_ns.saturating_add(room) {
            account.paid_ns = due;
            return true;
        }
        account.throttled += 1;
        self.throttled += 1;
        false
    }

    fn account(&mut self, id: u64) -> &mut Account {
        if self.accounts.len() >= ACCOUNTS_MAX && !self.accounts.contains_key(&id) {
            // The kernel side's places are fewer: there is one without.
            let idle =
                self.accounts.iter().min_by_key(|(_, account)| (account.now.is_some(), account.changed));
            if let Some(id) = idle.map(|(id, _)| *id) {
                self.accounts.remove(&id);
                self.forgotten += 1;
            }
        }
        self.accounts.entry(id).or_default()
    }

    /// Events of timeouts that were not made, for the sum of losses.
    pub fn throttled(&self) -> u64 {
        self.throttled
    }

    /// What was lost here, by counter name.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let lost = (self.forgotten > 0).then(|| ("dns_counts_forgotten".to_owned(), self.forgotten));
        lost.into_iter().collect()
    }

    /// With the owners that need not be asked for.
    fn totals(&self) -> Vec<(u64, DnsCounts, Option<Owner>)> {
        let owner = |id: u64, account: &Account| match &account.owner {
            Some(owner) if account.settled => Some((**owner).clone()),
            // Queries whose asker had no cgroup to be read: there is nobody to ask for.
            _ if id == 0 => Some(Owner::default()),
            _ => self.places.owner(id),
        };
        self.accounts.iter().map(|(&id, account)| (id, account.total(), owner(id, account))).collect()
    }

    /// Takes over what the room of pods says of a cgroup, and gives the best that is known.
    fn learn(&mut self, id: u64, said: Owner) -> Owner {
        let Some(account) = self.accounts.get_mut(&id) else { return said };
        match (said.known_by, &account.owner) {
            // It is dead, and forgotten there.
            (KnownBy::Unknown, Some(owner)) => {
                account.settled = true;
                return (**owner).clone();
            }
            (KnownBy::Unknown, None) => {
                account.vain += 1;
                account.settled = account.vain >= VAIN_MAX;
                if account.settled {
                    account.owner = Some(Box::new(said.clone()));
                }
            }
            // A container's names may get better yet.
            (known_by, _) => {
                account.settled = matches!(known_by, KnownBy::Cri | KnownBy::Host);
                account.owner = Some(Box::new(said.clone()));
            }
        }
        said
    }
}

impl Account {
    /// The place is gone: what it held is kept.
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
        for (outcome, count) in [(Outcome::Timeout, self.timeouts), (Outcome::Unreachable, self.unreachable)]
        {
            if count > 0 {
                *total.outcomes.entry(outcome).or_default() += count;
            }
        }
        total.events_dropped += self.throttled;
        total
    }
}

/// The kernel side's words.
fn read(counters: &DnsCounters) -> DnsCounts {
    let answers = &counters.answers;
    let outcomes = [
        (Outcome::Noerror, answers[ANSWER_NOERROR]),
        (Outcome::Nodata, answers[ANSWER_NODATA]),
        (Outcome::Truncated, answers[ANSWER_TRUNCATED]),
        (Outcome::Formerr, answers[ANSWER_FORMERR]),
        (Outcome::Servfail, answers[ANSWER_SERVFAIL]),
        (Outcome::Nxdomain, answers[ANSWER_NXDOMAIN]),
        (Outcome::Refused, answers[ANSWER_REFUSED]),
        (Outcome::Other, answers[ANSWER_OTHER]),
        (Outcome::Late, counters.late),
    ];
    DnsCounts {
        owner: Owner::default(),
        queries: counters.queries,
        resends: counters.resends,
        outcomes: outcomes.into_iter().filter(|(_, count)| *count > 0).collect(),
        latency: Latencies { buckets: counters.latency.to_vec(), sum_us: counters.latency_us },
        events_dropped: counters.throttled + counters.ring_full,
        not_visible: NotVisible { tls: counters.tls, https: counters.https },
    }
}

/// The counts as they are now, with their owners: one entry a container, and one for each cgroup that is no container's.
pub async fn attributed(counts: &Shared, pods: &Pods) -> Vec<DnsCounts> {
    let totals = match counts.lock() {
        Ok(mut counts) => {
            counts.look();
            counts.totals()
        }
        Err(_) => Vec::new(),
    };
    let mut containers: BTreeMap<String, DnsCounts> = BTreeMap::new();
    for (id, mut total, owner) in totals {
        total.owner = match owner {
            Some(owner) => owner,
            None => {
                let said = pods.owner_of_cgroup(id).await;
                match counts.lock() {
                    Ok(mut counts) => counts.learn(id, said),
                    Err(_) => said,
                }
            }
        };
        // Zero is every cgroup that was not known; others may have no name, and are not the same for that.
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
    use podopsy_pods::Options;

    /// Counts of these cgroups, as the packet socket's thread makes them.
    fn counts(ids: &[u64]) -> Shared {
        let here: HashMap<u64, DnsCounters> = ids.iter().map(|&id| (id, DnsCounters::EMPTY)).collect();
        let places = Places::Here(Arc::new(Mutex::new(here)), None);
        Arc::new(Mutex::new(Counts::new(places, Rate::default())))
    }

    #[tokio::test]
    async fn counts_keep_their_owner_when_the_room_of_pods_has_forgotten_it() {
        let folder = tempfile::tempdir().unwrap();
        let cgroups = folder.path().join("cgroup");
        std::fs::create_dir_all(cgroups.join("system.slice")).unwrap();
        std::fs::write(cgroups.join("cgroup.controllers"), "memory").unwrap();
        let options = Options {
            cri_socket: Some(folder.path().join("nobody.sock")),
            remember_dead: Duration::ZERO,
            proc_root: folder.path().join("proc"),
            cgroup_root: cgroups.clone(),
            log_pods: folder.path().join("logs"),
            ..Options::default()
        };
        let pods = Pods::start(options).await.unwrap();
        let id = std::fs::metadata(cgroups.join("system.slice")).unwrap().ino();
        let (counts, nobody) = (counts(&[id, 0, 987_654_321]), 987_654_321);
        let path = async || {
            let all = attributed(&counts, &pods).await;
            assert_eq!(all.len(), 3);
            all.into_iter().find(|one| one.owner.cgroup.id == id).and_then(|one| one.owner.cgroup.path)
        };
        assert_eq!(path().await.as_deref(), Some("/system.slice"));
        // One that dies has those looked at who died before; all are made before, or one might get the number again.
        let others: Vec<_> = (0..100).map(|n| cgroups.join(format!("other-{n}"))).collect();
        others.iter().for_each(|other| std::fs::create_dir(other).unwrap());
        std::fs::remove_dir(cgroups.join("system.slice")).unwrap();
        for other in others {
            std::fs::remove_dir(other).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            if pods.place(id).is_none() {
                break;
            }
        }
        assert!(pods.place(id).is_none(), "never forgotten");
        let before = pods.status().losses.get("cgroups_unknown").copied().unwrap_or(0);
        for _ in 0..10 {
            assert_eq!(path().await.as_deref(), Some("/system.slice"));
        }
        // Once before, and twice now: of the one that nobody knows. Of no cgroup at all nobody asks.
        assert_eq!((before, pods.status().losses["cgroups_unknown"]), (1, 3));
        let found = attributed(&counts, &pods).await;
        assert!(
            found.iter().any(|one| one.owner.cgroup.id == nobody && one.owner.known_by == KnownBy::Unknown)
        );
    }
}
