//! Queries in flight and their answers, as `probe-ebpf/src/dns.rs` handles them, with the same records and counters.
//! Pure.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use podopsy_wire::{
    ANSWER_NODATA, AnswerRecords, DNS_CONTAINERS_MAX, DNS_HEADER_BYTES, DNS_MESSAGE_MAX, DNS_QUESTION_MAX,
    DnsCounters, DnsHeader, DnsKey, DnsPending, DnsRecord, Question, STATE_TIMED_OUT, STATE_WAITING, TYPE_A,
    TYPE_AAAA, Task, TokenBucket, WHY_ANSWER, WHY_BESIDE_A, WHY_SAMPLE, WHY_SLOW, answer_class,
    latency_bucket,
};

use super::parse::{Flow, TCP};
use super::{PacketLosses, SharedCounters};
use podopsy_system::sync;

/// As many queries as the kernel side keeps.
pub const PENDING_MAX: usize = 16_384;
/// How long after its timeout an answer is still reported as late.
const LATE_NS: u64 = 30_000_000_000;

/// How long a process's question for A records is remembered, for an AAAA answer without data.
const A_NAME_NS: u64 = 12_000_000_000;

/// Which answers become records.
#[derive(Clone, Copy, Debug)]
pub struct AnswerSettings {
    /// All answers.
    pub answers: bool,
    /// Answers that took this long; 0: no answer is slow.
    pub slow_ns: u64,
    /// One success in this many; 0: none.
    pub sample: u32,
    /// The rate of each container.
    pub bucket: TokenBucket,
    pub timeout_ns: u64,
}

/// A DNS message that was seen.
#[derive(Clone, Copy, Debug)]
pub struct SeenMessage<'a> {
    pub flow: Flow,
    pub is_outgoing: bool,
    /// Its length, by the UDP header or the TCP length prefix; `bytes` is its beginning.
    pub size: u32,
    pub bytes: &'a [u8],
    pub time_ns: u64,
}

/// The queries that wait for an answer, and those whose answer would be late.
pub struct QueryTable {
    settings: AnswerSettings,
    pending: HashMap<DnsKey, DnsPending>,
    /// Keys and `first_sent_ns`, oldest first; some are no longer in `pending`.
    order: VecDeque<(DnsKey, u64)>,
    counters: SharedCounters,
    /// The names whose A records processes asked for: pid and hash of the name, and when.
    a_names: HashMap<(u32, u32), u64>,
    /// Hashes a client's address to a number that stands for the socket cookie of the kernel side. The hash has a
    /// random key, so no one outside can make two clients collide.
    hasher: RandomState,
    successes: u64,
}

impl QueryTable {
    pub fn new(settings: AnswerSettings, counters: SharedCounters) -> QueryTable {
        QueryTable {
            settings,
            pending: HashMap::new(),
            order: VecDeque::new(),
            counters,
            a_names: HashMap::new(),
            hasher: RandomState::new(),
            successes: 0,
        }
    }

    /// Handles a message, and returns the record that is due, if any. Only queries go to a server and only responses
    /// come from one: what a server in this network receives and sends is the other end of the same messages.
    pub fn handle(
        &mut self,
        message: &SeenMessage<'_>,
        asker: impl FnOnce() -> Task,
        losses: &mut PacketLosses,
    ) -> Option<Box<DnsRecord>> {
        let Some(header) = DnsHeader::from_message(message.bytes) else {
            losses.short += 1;
            return None;
        };
        match (message.is_outgoing, header.is_response()) {
            (true, _) if !header.is_query() => {
                if !header.is_response() {
                    let cgroup = asker().cgroup_id;
                    self.count(cgroup, message.time_ns, losses, |counters| counters.not_dns += 1);
                }
                None
            }
            (true, false) => {
                self.add_query(&header, message, asker, losses);
                None
            }
            (false, true) => self.add_answer(&header, message, losses),
            _ => None,
        }
    }

    fn key(&self, flow: &Flow, id: u16) -> DnsKey {
        let (words, _) = flow.server.address.as_chunks::<4>();
        DnsKey {
            cookie: self.hasher.hash_one((flow.client, flow.protocol)),
            server: [0, 1, 2, 3].map(|word| u32::from_ne_bytes(words[word])),
            port: flow.server.port,
            id,
            protocol: flow.protocol,
        }
    }

    fn add_query(
        &mut self,
        header: &DnsHeader,
        message: &SeenMessage<'_>,
        asker: impl FnOnce() -> Task,
        losses: &mut PacketLosses,
    ) {
        let (key, now) = (self.key(&message.flow, header.id), message.time_ns);
        if let Some(pending) = self.pending.get_mut(&key) {
            if pending.state == STATE_WAITING {
                pending.sends = pending.sends.saturating_add(1);
                pending.last_sent_ns = now;
                let cgroup = pending.asker.cgroup_id;
                self.count(cgroup, now, losses, |counters| counters.resends += 1);
                return;
            }
            // Its timeout has been reported: this is a new attempt, and a new transaction.
            self.pending.remove(&key);
        }
        let asker = asker();
        losses.askers += u64::from(asker.pid == 0);
        self.count(asker.cgroup_id, now, losses, |counters| counters.queries += 1);
        self.evict_oldest(losses);
        let question = message.bytes.get(DNS_HEADER_BYTES..).unwrap_or_default();
        let len = question.len().min(DNS_QUESTION_MAX);
        let mut pending = DnsPending {
            asker,
            first_sent_ns: now,
            last_sent_ns: now,
            sends: 1,
            question_len: len as u32,
            flags: header.flags,
            questions: header.questions,
            ..DnsPending::EMPTY
        };
        pending.question[..len].copy_from_slice(&question[..len]);
        let Question { qtype, size, name_hash } = Question::from_bytes(&pending.question, len as u32);
        (pending.qtype, pending.question_size, pending.name_hash) = (qtype, size, name_hash);
        if qtype == TYPE_A {
            self.note_a_name((asker.pid, name_hash), now);
        }
        self.pending.insert(key, pending);
        self.order.push_back((key, now));
    }

    fn note_a_name(&mut self, name: (u32, u32), now: u64) {
        if self.a_names.len() >= PENDING_MAX {
            self.a_names.retain(|_, at| now.saturating_sub(*at) < A_NAME_NS);
        }
        if self.a_names.len() < PENDING_MAX {
            self.a_names.insert(name, now);
        }
    }

    fn is_beside_a(&self, pending: &DnsPending, now: u64) -> bool {
        let at = self.a_names.get(&(pending.asker.pid, pending.name_hash));
        pending.asker.pid != 0 && at.is_some_and(|at| now.saturating_sub(*at) < A_NAME_NS)
    }

    /// Evicts queries until a new one fits.
    fn evict_oldest(&mut self, losses: &mut PacketLosses) {
        if self.order.len() >= 2 * PENDING_MAX {
            let pending = &self.pending;
            self.order
                .retain(|(key, sent)| pending.get(key).is_some_and(|found| found.first_sent_ns == *sent));
        }
        while self.pending.len() >= PENDING_MAX {
            let Some((oldest, sent)) = self.order.pop_front() else { return };
            if self.pending.get(&oldest).is_some_and(|found| found.first_sent_ns == sent) {
                self.pending.remove(&oldest);
                losses.evicted += 1;
            }
        }
    }

    fn add_answer(
        &mut self,
        header: &DnsHeader,
        message: &SeenMessage<'_>,
        losses: &mut PacketLosses,
    ) -> Option<Box<DnsRecord>> {
        let (key, now) = (self.key(&message.flow, header.id), message.time_ns);
        let pending = self.pending.remove(&key)?;
        let latency_ns = now.saturating_sub(pending.first_sent_ns);
        // Of a datagram only the captured bytes count; a segment may end before its message does.
        let size = if key.protocol == TCP { message.size } else { message.bytes.len() as u32 };
        let records = AnswerRecords::from_message(message.bytes, pending.qtype);
        let class = answer_class(header, records);
        let is_plain = header.is_plain_success(class, pending.state, pending.question_len, size);
        let mut why = self.reasons(is_plain, latency_ns);
        let is_due = !is_plain || why != 0;
        if class == ANSWER_NODATA && pending.qtype == TYPE_AAAA && self.is_beside_a(&pending, now) {
            why |= WHY_BESIDE_A;
        }
        let bucket = self.settings.bucket;
        let may_ship = self.count(pending.asker.cgroup_id, now, losses, |counters| {
            if pending.state == STATE_WAITING {
                let latency_us = latency_ns / 1000;
                counters.answers[class] += 1;
                counters.latency[latency_bucket(latency_us)] += 1;
                counters.latency_us += latency_us;
            } else {
                counters.late += 1;
            }
            if !is_due {
                return true;
            }
            // Successes have a bucket of their own, so that they cannot displace failures.
            let paid = if is_plain { &mut counters.paid_answers_ns } else { &mut counters.paid_failures_ns };
            let Some(paid_until) = bucket.take(*paid, now, 1) else {
                counters.throttled += 1;
                return false;
            };
            *paid = paid_until;
            true
        });
        losses.throttled += u64::from(may_ship == Some(false));
        if !is_due || may_ship == Some(false) {
            return None;
        }
        Some(record(key, pending, message, why))
    }

    /// The `WHY_*` bits of an answer.
    fn reasons(&mut self, is_plain: bool, latency_ns: u64) -> u32 {
        let AnswerSettings { answers, slow_ns, sample, .. } = self.settings;
        let mut why = 0;
        if slow_ns != 0 && latency_ns >= slow_ns {
            why |= WHY_SLOW;
        }
        if is_plain && sample != 0 {
            self.successes += 1;
            if self.successes.is_multiple_of(sample.into()) {
                why |= WHY_SAMPLE;
            }
        }
        if answers {
            why |= WHY_ANSWER;
        }
        why
    }

    /// Returns the queries that have just timed out; an answer to them is late from now on.
    pub fn sweep(&mut self, now_ns: u64) -> Vec<(DnsKey, DnsPending)> {
        let timeout_ns = self.settings.timeout_ns;
        let mut timed_out = Vec::new();
        self.pending.retain(|key, pending| {
            let age = now_ns.saturating_sub(pending.last_sent_ns);
            if pending.state == STATE_WAITING && age >= timeout_ns {
                timed_out.push((*key, *pending));
                pending.state = STATE_TIMED_OUT;
            }
            pending.state == STATE_WAITING || age <= timeout_ns.saturating_add(LATE_NS)
        });
        timed_out.sort_unstable_by_key(|(_, pending)| pending.first_sent_ns);
        timed_out
    }

    /// Drops all queries that wait, after frames were lost: their answers may have been among these frames. Reporting a
    /// timeout would be a guess, so they are counted as evicted.
    pub fn drop_waiting(&mut self, losses: &mut PacketLosses) {
        let before = self.pending.len();
        self.pending.retain(|_, pending| pending.state != STATE_WAITING);
        losses.evicted += (before - self.pending.len()) as u64;
    }

    /// Takes out the queries of this client that wait for this server, after the network has reported the server as
    /// unreachable.
    pub fn unreachable(&mut self, flow: &Flow) -> Vec<(DnsKey, DnsPending)> {
        let wanted = self.key(flow, 0);
        let found = self
            .pending
            .iter()
            .filter(|(key, pending)| pending.state == STATE_WAITING && DnsKey { id: 0, ..**key } == wanted);
        let unreachable: Vec<_> = found.map(|(key, pending)| (*key, *pending)).collect();
        for (key, _) in &unreachable {
            self.pending.remove(key);
        }
        unreachable
    }

    /// Applies `update` to the counters of a container. None: there are counters for too many containers, which is
    /// counted.
    fn count<T>(
        &self,
        cgroup: u64,
        now: u64,
        losses: &mut PacketLosses,
        update: impl FnOnce(&mut DnsCounters) -> T,
    ) -> Option<T> {
        let mut counters = sync::lock(&self.counters);
        if counters.len() >= DNS_CONTAINERS_MAX as usize && !counters.contains_key(&cgroup) {
            losses.uncounted += 1;
            return None;
        }
        let counters =
            counters.entry(cgroup).or_insert(DnsCounters { since_ns: now.max(1), ..DnsCounters::EMPTY });
        Some(update(counters))
    }
}

/// The record of an answered query, as the kernel side writes it.
fn record(key: DnsKey, pending: DnsPending, message: &SeenMessage<'_>, why: u32) -> Box<DnsRecord> {
    let len = message.bytes.len().min(DNS_MESSAGE_MAX);
    let mut record = Box::new(DnsRecord {
        key,
        pending,
        time_ns: message.time_ns,
        message_size: message.size,
        message_len: len as u32,
        why,
        unused: 0,
        message: [0; DNS_MESSAGE_MAX],
    });
    record.message[..len].copy_from_slice(&message.bytes[..len]);
    record
}
