//! The newest events of all agents, in time order and in bounded memory.
//!
//! Each agent is asked for pages, the newest first. What is found goes into one heap, which keeps the newest `max` events of
//! all nodes. As soon as it is full, an agent is asked only for events that are newer than the oldest in it, so that most
//! agents of a large cluster have one small page to send.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use podopsy_client::{AgentClient, ClientError, EventList, HistoryGap, QueryParameters};
use podopsy_model::{CgroupRef, ContainerRef, Event, KnownBy, Owner, PodRef};
use podopsy_system::sync::lock;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::agents::{Agent, NodeFailure};
use crate::ask::{Answers, Fleet};
use crate::untrusted;

/// What the events of a heap may take as JSON.
const HEAP_BYTES_MAX: usize = 64 << 20;
/// Events in an agent's first page, and in the largest.
const FIRST_PAGE: usize = 20;
const PAGE_MAX: usize = 400;
/// Gaps of one agent that are kept.
const GAPS_MAX: usize = 16;

/// Which events are wanted.
#[derive(Clone)]
pub struct EventQuery {
    /// Conditions that the agents check.
    pub parameters: QueryParameters,
    pub from: Timestamp,
    /// At most this many, the newest of all nodes.
    pub max: usize,
    /// Only events whose JSON has this text: an id.
    pub contains: Option<String>,
    /// A condition on the owner that agents do not know, or that an agent may have ignored.
    pub matches: Arc<dyn Fn(&Owner) -> bool + Send + Sync>,
}

/// What was found.
#[derive(Debug)]
pub struct FleetEvents {
    /// Oldest first. Each names its node as the API server does.
    pub list: EventList,
    pub gaps: Vec<(String, HistoryGap)>,
    /// The nodes that answered, and their agents' versions.
    pub answered: Vec<(Agent, String)>,
    pub failures: Vec<NodeFailure>,
}

/// What is read of an event before it is known to be wanted.
#[derive(Deserialize)]
struct EventHead {
    time: Timestamp,
    pod: Option<PodRef>,
    container: Option<ContainerRef>,
    #[serde(default)]
    known_by: KnownBy,
    #[serde(default)]
    cgroup: CgroupRef,
}

#[derive(Deserialize)]
struct RawPage {
    events: Vec<Box<RawValue>>,
    next: Option<String>,
    #[serde(default)]
    unreadable: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    time: Timestamp,
    node: Arc<str>,
    json: Box<str>,
}

/// The newest entries, bounded by number and by size.
struct Heap {
    entries: BinaryHeap<Reverse<Entry>>,
    bytes: usize,
    max: usize,
    max_bytes: usize,
    has_dropped: bool,
}

impl Heap {
    fn new(max: usize, max_bytes: usize) -> Heap {
        Heap { entries: BinaryHeap::new(), bytes: 0, max, max_bytes, has_dropped: false }
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.json.len();
        self.entries.push(Reverse(entry));
        while self.entries.len() > self.max || self.bytes > self.max_bytes {
            let Some(Reverse(oldest)) = self.entries.pop() else { return };
            self.bytes -= oldest.json.len();
            self.has_dropped = true;
        }
    }

    /// Events older than this are dropped.
    fn threshold(&self) -> Option<Timestamp> {
        let is_full = self.has_dropped || self.entries.len() >= self.max;
        self.entries.peek().filter(|_| is_full).map(|Reverse(oldest)| oldest.time)
    }
}

impl Fleet {
    /// The newest events of all agents that match, and the gaps in their histories.
    pub async fn events(&self, query: EventQuery) -> FleetEvents {
        let heap = Arc::new(Mutex::new(Heap::new(query.max, HEAP_BYTES_MAX)));
        let query = Arc::new(query);
        let shared = heap.clone();
        let answers =
            self.ask(move |agent, client| read_agent(agent, client, query.clone(), shared.clone())).await;
        let heap = std::mem::replace(&mut *lock(&heap), Heap::new(0, 0));
        collect(answers, heap)
    }
}

/// What one agent's history has beside the events.
struct AgentHistory {
    gaps: Vec<HistoryGap>,
    unreadable: u64,
}

async fn read_agent(
    agent: Agent,
    client: AgentClient,
    query: Arc<EventQuery>,
    heap: Arc<Mutex<Heap>>,
) -> Result<AgentHistory, ClientError> {
    let node: Arc<str> = agent.node.as_str().into();
    let (mut items, mut cursor, mut unreadable) = (FIRST_PAGE, None::<String>, 0);
    // An event that is given again and again must not drive out all others: an agent may give `max` in all.
    let mut left = query.max;
    while left > 0 {
        let threshold = lock(&heap).threshold();
        let mut parameters = query.parameters.clone();
        let from = threshold.unwrap_or(Timestamp::MIN).max(query.from);
        parameters.extend([
            ("from", from.to_string()),
            ("order", "newest".to_owned()),
            ("limit", items.min(left).to_string()),
        ]);
        parameters.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: RawPage = client.json("/api/v1/events", &parameters).await?;
        unreadable += page.unreadable;
        let read = page.events.len();
        left = left.saturating_sub(read.max(1));
        unreadable += push_page(page.events, &node, &query, &heap);
        items = (items * 4).min(PAGE_MAX);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let mut gaps = client.gaps(query.from).await?;
    gaps.drain(..gaps.len().saturating_sub(GAPS_MAX));
    Ok(AgentHistory { gaps, unreadable })
}

/// Keeps what matches. Returns how many records are no events.
fn push_page(events: Vec<Box<RawValue>>, node: &Arc<str>, query: &EventQuery, heap: &Mutex<Heap>) -> u64 {
    let mut unreadable = 0;
    let mut found = Vec::with_capacity(events.len());
    for json in events {
        if query.contains.as_ref().is_some_and(|text| !json.get().contains(text.as_str())) {
            continue;
        }
        let Ok(head) = serde_json::from_str::<EventHead>(json.get()) else {
            unreadable += 1;
            continue;
        };
        let EventHead { time, pod, container, known_by, cgroup } = head;
        if time >= query.from && (query.matches)(&Owner { pod, container, cgroup, known_by }) {
            found.push(Entry { time, node: node.clone(), json: Box::<str>::from(json) });
        }
    }
    let mut heap = lock(heap);
    found.into_iter().for_each(|entry| heap.push(entry));
    unreadable
}

fn collect(answers: Answers<AgentHistory>, heap: Heap) -> FleetEvents {
    let mut list = EventList { more: heap.has_dropped, ..EventList::default() };
    // Sorted backwards, so the newest come first.
    let mut entries = heap.entries.into_sorted_vec();
    while let Some(Reverse(entry)) = entries.pop() {
        match untrusted::parse::<Event>(entry.json.as_bytes()) {
            Ok(event) => list.events.push(Event { node: entry.node.to_string(), ..event }),
            // Such as a kind of event that a later version has.
            Err(_) => list.unreadable += 1,
        }
    }
    let (mut gaps, mut answered) = (Vec::new(), Vec::new());
    for answer in answers.answers {
        list.unreadable += answer.value.unreadable;
        gaps.extend(answer.value.gaps.into_iter().map(|gap| (answer.agent.node.clone(), gap)));
        answered.push((answer.agent, answer.version));
    }
    gaps.sort_by_key(|(_, gap)| gap.until);
    FleetEvents { list, gaps, answered, failures: answers.failures }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(second: i64, node: &str, bytes: usize) -> Entry {
        let time = Timestamp::from_second(second).unwrap();
        Entry { time, node: node.into(), json: "x".repeat(bytes).into() }
    }

    #[test]
    fn a_heap_keeps_the_newest_by_number_and_by_size() {
        let mut heap = Heap::new(3, 100);
        for second in [5, 1, 9] {
            heap.push(entry(second, "a", 10));
        }
        assert_eq!((heap.threshold(), heap.has_dropped), (Some(Timestamp::from_second(1).unwrap()), false));
        heap.push(entry(7, "b", 10));
        heap.push(entry(2, "b", 10));
        assert!(heap.has_dropped);
        assert_eq!(heap.threshold(), Some(Timestamp::from_second(5).unwrap()));
        heap.push(entry(8, "b", 85));
        let kept: Vec<i64> = heap.entries.into_sorted_vec().iter().map(|e| e.0.time.as_second()).collect();
        assert_eq!(kept, [9, 8]);
    }

    #[test]
    fn an_agent_cannot_name_another_node_and_records_that_are_none_are_counted() {
        let event = podopsy_model::testing::dns(Timestamp::now(), Owner::default(), "a.test");
        let json =
            serde_json::to_string(&event).unwrap().replace(r#""node":"n""#, r#""node":"other","later":{}"#);
        let raw = |text: String| RawValue::from_string(text).unwrap();
        let later = json.replace("dns.failure", "a.later.kind");
        let heap = Mutex::new(Heap::new(10, 1 << 20));
        let query = EventQuery {
            parameters: Vec::new(),
            from: Timestamp::UNIX_EPOCH,
            max: 10,
            contains: Some("a.test".into()),
            matches: Arc::new(|_| true),
        };
        let unreadable = push_page(
            vec![raw(json), raw(later), raw(r#"{"a.test":7}"#.into()), raw("7".into())],
            &"n1".into(),
            &query,
            &heap,
        );
        let found =
            collect(Answers { answers: Vec::new(), failures: Vec::new() }, heap.into_inner().unwrap());
        assert_eq!((unreadable, found.list.unreadable, found.list.events.len()), (1, 1, 1));
        assert_eq!(found.list.events[0].node, "n1");
    }
}
