//! Queries in flight and what becomes of them: as `probe-ebpf/src/dns.rs`, with the same records and counts.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use podopsy_wire::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_OTHER, ANSWER_REFUSED,
    ANSWER_SERVFAIL, ANSWER_TRUNCATED, DNS_CONTAINERS_MAX, DNS_LATENCY_BUCKETS, DNS_MESSAGE_MAX,
    DNS_QUESTION_MAX, DnsCounters, DnsKey, DnsPending, DnsRecord, STATE_TIMED_OUT, STATE_WAITING, Task,
    WHY_ANSWER, WHY_SAMPLE, WHY_SLOW,
};

use super::parse::{Ends, TCP};
use super::{Counters, Lost};

/// As many as the kernel side keeps.
pub const PENDING_MAX: usize = 16_384;
/// How long an answer may come after its timeout and still be called late.
const LATE_NS: u64 = 30_000_000_000;
const HEADER: usize = 12;

/// What is to be told of answers.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub answers: bool,
    /// 0: no answer is slow.
    pub slow_ns: u64,
    /// One success in so many; 0: none.
    pub sample: u32,
    /// Token bucket of each container: what a record has to wait for (0: nothing), and how many may come at once.
    pub interval_ns: u64,
    pub burst: u64,
    pub timeout_ns: u64,
}

/// The fixed header, RFC 1035 §4.1.1.
struct Header {
    id: u16,
    flags: u16,
    questions: u16,
    answers: u16,
}

impl Header {
    fn read(message: &[u8]) -> Option<Header> {
        let head: &[u8; HEADER] = message.first_chunk()?;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        Some(Header { id: word(0), flags: word(2), questions: word(4), answers: word(6) })
    }

    fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }

    fn rcode(&self) -> u16 {
        self.flags & 0x000f
    }
}

/// A message as it passed.
#[derive(Clone, Copy, Debug)]
pub struct Passed<'a> {
    pub ends: Ends,
    pub is_outgoing: bool,
    /// What the network says its length is; `bytes` is its beginning.
    pub size: u32,
    pub bytes: &'a [u8],
    pub time_ns: u64,
}

/// The queries that wait, and those whose answer would be late.
pub struct Table {
    settings: Settings,
    pending: HashMap<DnsKey, DnsPending>,
    /// Keys and `first_sent_ns`, oldest first; some have gone.
    order: VecDeque<(DnsKey, u64)>,
    counters: Counters,
    /// Makes a client's end the number that the kernel's socket cookie is elsewhere; nobody outside can make two the same.
    hasher: RandomState,
    successes: u64,
}

impl Table {
    pub fn new(settings: Settings, counters: Counters) -> Table {
        Table {
            settings,
            pending: HashMap::new(),
            order: VecDeque::new(),
            counters,
            hasher: RandomState::new(),
            successes: 0,
        }
    }

    /// Takes a message; the record that is due, if one is. Only queries go to a server and only responses come from one:
    /// what a server in this network sends and gets is the other end of the same messages.
    pub fn see(
        &mut self,
        passed: &Passed<'_>,
        asker: impl FnOnce() -> Task,
        lost: &mut Lost,
    ) -> Option<Box<DnsRecord>> {
        let Some(header) = Header::read(passed.bytes) else {
            lost.short += 1;
            return None;
        };
        let key = self.key(&passed.ends, header.id);
        match (passed.is_outgoing, header.is_response()) {
            (true, false) => {
                self.query(key, &header, passed, asker, lost);
                None
            }
            (false, true) => self.answer(key, &header, passed, lost),
            _ => None,
        }
    }

    fn key(&self, ends: &Ends, id: u16) -> DnsKey {
        let (words, _) = ends.server.address.as_chunks::<4>();
        DnsKey {
            cookie: self.cookie(ends),
            server: [0, 1, 2, 3].map(|word| u32::from_ne_bytes(words[word])),
            port: ends.server.port,
            id,
            protocol: ends.protocol,
        }
    }

    fn cookie(&self, ends: &Ends) -> u64 {
        self.hasher.hash_one((ends.client, ends.protocol))
    }

    fn query(
        &mut self,
        key: DnsKey,
        header: &Header,
        passed: &Passed<'_>,
        asker: impl FnOnce() -> Task,
        lost: &mut Lost,
    ) {
        let now = passed.time_ns;
        if let Some(pending) = self.pending.get_mut(&key) {
            if pending.state == STATE_WAITING {
                pending.sends = pending.sends.saturating_add(1);
                pending.last_sent_ns = now;
                let cgroup = pending.asker.cgroup_id;
                self.count(cgroup, now, lost, |counters| counters.resends += 1);
                return;
            }
            // Its timeout has been told: this is a new try, and a new transaction.
            self.pending.remove(&key);
        }
        let asker = asker();
        lost.askers += u64::from(asker.pid == 0);
        self.count(asker.cgroup_id, now, lost, |counters| counters.queries += 1);
        self.make_room(lost);
        let question = passed.bytes.get(HEADER..).unwrap_or_default();
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
        self.pending.insert(key, pending);
        self.order.push_back((key, now));
    }

    fn make_room(&mut self, lost: &mut Lost) {
        if self.order.len() >= 2 * PENDING_MAX {
            let pending = &self.pending;
            self.order
                .retain(|(key, sent)| pending.get(key).is_some_and(|found| found.first_sent_ns == *sent));
        }
        while self.pending.len() >= PENDING_MAX {
            let Some((oldest, sent)) = self.order.pop_front() else { return };
            if self.pending.get(&oldest).is_some_and(|found| found.first_sent_ns == sent) {
                self.pending.remove(&oldest);
                lost.evicted += 1;
            }
        }
    }

    fn answer(
        &mut self,
        key: DnsKey,
        header: &Header,
        passed: &Passed<'_>,
        lost: &mut Lost,
    ) -> Option<Box<DnsRecord>> {
        let pending = self.pending.remove(&key)?;
        let now = passed.time_ns;
        let latency_ns = now.saturating_sub(pending.first_sent_ns);
        let (protocol, question_len) = (key.protocol, pending.question_len as usize);
        // Of a datagram only what is here counts; a segment may end before its message does.
        let size = if protocol == TCP { passed.size as usize } else { passed.bytes.len() };
        // As in the kernel: a success that has room for what it must hold. Anything else is judged by its bytes.
        let plain = pending.state == STATE_WAITING
            && header.rcode() == 0
            && header.answers > 0
            && header.questions == 1
            && !header.is_truncated()
            && question_len > 0
            && size >= HEADER + question_len + 12;
        let Settings { answers, slow_ns, sample, .. } = self.settings;
        let mut why = 0;
        if slow_ns != 0 && latency_ns >= slow_ns {
            why |= WHY_SLOW;
        }
        if plain && sample != 0 {
            self.successes += 1;
            if self.successes.is_multiple_of(sample.into()) {
                why |= WHY_SAMPLE;
            }
        }
        if answers {
            why |= WHY_ANSWER;
        }
        let is_due = !plain || why != 0;
        let class = class(header);
        let Settings { interval_ns, burst, .. } = self.settings;
        let may_ship = self.count(pending.asker.cgroup_id, now, lost, |counters| {
            if pending.state == STATE_WAITING {
                counters.answers[class] += 1;
                counters.latency[bucket(latency_ns)] += 1;
                counters.latency_us += latency_ns / 1000;
            } else {
                counters.late += 1;
            }
            // A bucket of their own: successes that someone wants to see must not cost a failure.
            let paid = if plain { &mut counters.paid_answers_ns } else { &mut counters.paid_failures_ns };
            let may = !is_due || take_token(paid, now, interval_ns, burst);
            counters.throttled += u64::from(!may);
            may
        });
        lost.throttled += u64::from(may_ship == Some(false));
        if !is_due || may_ship == Some(false) {
            return None;
        }
        let len = passed.bytes.len().min(DNS_MESSAGE_MAX);
        let mut record = Box::new(DnsRecord {
            key,
            pending,
            time_ns: now,
            message_size: passed.size,
            message_len: len as u32,
            why,
            unused: 0,
            message: [0; DNS_MESSAGE_MAX],
        });
        record.message[..len].copy_from_slice(&passed.bytes[..len]);
        Some(record)
    }

    /// Queries that have just become timeouts; an answer to them is late from now on.
    pub fn sweep(&mut self, now_ns: u64) -> Vec<(DnsKey, DnsPending)> {
        let timeout_ns = self.settings.timeout_ns;
        let mut ended = Vec::new();
        self.pending.retain(|key, pending| {
            let age = now_ns.saturating_sub(pending.last_sent_ns);
            if pending.state == STATE_WAITING && age >= timeout_ns {
                ended.push((*key, *pending));
                pending.state = STATE_TIMED_OUT;
            }
            pending.state == STATE_WAITING || age <= timeout_ns.saturating_add(LATE_NS)
        });
        ended.sort_unstable_by_key(|(_, pending)| pending.first_sent_ns);
        ended
    }

    /// Frames were lost: the answers of all that wait may have been among them. To call their silence a timeout would be
    /// a guess, so they are counted, and no more is said of them.
    pub fn doubt(&mut self, lost: &mut Lost) {
        let before = self.pending.len();
        self.pending.retain(|_, pending| pending.state != STATE_WAITING);
        lost.evicted += (before - self.pending.len()) as u64;
    }

    /// Queries that wait for this server at this socket, which the network says cannot be reached.
    pub fn unreachable(&mut self, ends: &Ends) -> Vec<(DnsKey, DnsPending)> {
        let wanted = self.key(ends, 0);
        let found = self
            .pending
            .iter()
            .filter(|(key, pending)| pending.state == STATE_WAITING && DnsKey { id: 0, ..**key } == wanted);
        let ended: Vec<_> = found.map(|(key, pending)| (*key, *pending)).collect();
        for (key, _) in &ended {
            self.pending.remove(key);
        }
        ended
    }

    /// Does it to the counters of a container; None: there is no place for them.
    fn count<T>(
        &self,
        cgroup: u64,
        now: u64,
        lost: &mut Lost,
        add: impl FnOnce(&mut DnsCounters) -> T,
    ) -> Option<T> {
        let mut counters = self.counters.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if counters.len() >= DNS_CONTAINERS_MAX as usize && !counters.contains_key(&cgroup) {
            lost.uncounted += 1;
            return None;
        }
        let counters =
            counters.entry(cgroup).or_insert(DnsCounters { since_ns: now.max(1), ..DnsCounters::EMPTY });
        Some(add(counters))
    }
}

/// The bucket is the time by which what was shipped is paid for.
fn take_token(paid_ns: &mut u64, now: u64, interval_ns: u64, burst: u64) -> bool {
    if interval_ns == 0 {
        return true;
    }
    let due = (*paid_ns).max(now).saturating_add(interval_ns);
    let may = due <= now.saturating_add(interval_ns.saturating_mul(burst));
    if may {
        *paid_ns = due;
    }
    may
}

fn class(header: &Header) -> usize {
    if header.is_truncated() {
        return ANSWER_TRUNCATED;
    }
    match header.rcode() {
        0 if header.answers == 0 => ANSWER_NODATA,
        0 => ANSWER_NOERROR,
        1 => ANSWER_FORMERR,
        2 => ANSWER_SERVFAIL,
        3 => ANSWER_NXDOMAIN,
        5 => ANSWER_REFUSED,
        _ => ANSWER_OTHER,
    }
}

fn bucket(latency_ns: u64) -> usize {
    let us = latency_ns / 1000;
    (64 - us.leading_zeros() as usize).min(DNS_LATENCY_BUCKETS - 1)
}
