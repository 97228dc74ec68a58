//! What is stored, as a row: columns to find it by, and a body to give back.

use std::io::{Read, Write};

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use podopsy_model::memory::Steps;
use podopsy_model::{Detail, Event, Kind, Losses, Owner};

/// A body that is shorter is not worth compressing.
const COMPRESS_FROM: usize = 400;
/// Of a body that says it is longer something is wrong.
const BODY_MAX: u64 = 16 << 20;

/// What is asked for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shelf {
    Events = 1,
    Incidents = 2,
    Memory = 3,
    Profiles = 4,
}

/// What has a part of the room of its own: who can make many of one cannot push out another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Share {
    /// OOM kills, other SIGKILLs: few, and the ones that matter.
    Kills = 1,
    Dns = 2,
    Memory = 3,
    Profiles = 4,
    /// Of pods: a name that does not resolve begins one every few minutes.
    Incidents = 5,
}

impl Share {
    pub const ALL: [Share; 5] = [Share::Kills, Share::Dns, Share::Memory, Share::Profiles, Share::Incidents];

    /// Where an event belongs.
    pub fn of(kind: Kind) -> Share {
        match kind {
            Kind::OomKill | Kind::OomIncident | Kind::Sigkill => Share::Kills,
            Kind::DnsFailure | Kind::DnsAnswer | Kind::DnsLookup => Share::Dns,
        }
    }

    /// Of the store's room, in hundredths. It may take what others leave free, and gives it back first.
    pub fn percent(self) -> u64 {
        match self {
            Share::Kills => 25,
            Share::Incidents => 5,
            Share::Dns => 30,
            Share::Memory => 15,
            Share::Profiles => 25,
        }
    }

    /// Whether it leaves by age, too. Who asks after a pod that dies once a week asks for kills of last week.
    pub fn ages(self) -> bool {
        self != Share::Kills
    }
}

/// A container's memory over a while; put in again as it grows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryRecord {
    #[serde(flatten)]
    pub owner: Owner,
    #[serde(flatten)]
    pub steps: Steps,
}

/// How much a profile has, and what it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileFacts {
    /// On each CPU, in a second.
    pub frequency_hz: u64,
    pub samples: u64,
    /// Those with a user stack, and of them those whose stack is complete.
    pub user_stacks: u64,
    pub complete: u64,
    /// The others, by reason.
    pub incomplete: Losses,
    /// Lost on the whole node in this while, by counter name.
    pub lost: Losses,
}

impl ProfileFacts {
    /// Adds another's numbers but for what was lost: that is the node's, and each container of a minute has it.
    pub fn add(&mut self, one: &ProfileFacts) {
        self.frequency_hz = one.frequency_hz;
        self.samples += one.samples;
        self.user_stacks += one.user_stacks;
        self.complete += one.complete;
        for (reason, count) in &one.incomplete {
            *self.incomplete.entry(reason.clone()).or_default() += count;
        }
    }
}

/// What one container's CPUs did in a while.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileRecord {
    pub owner: Owner,
    pub begin: Timestamp,
    pub end: Timestamp,
    /// A pprof profile, compressed as pprof files are.
    pub pprof: Vec<u8>,
    pub facts: ProfileFacts,
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub shelf: Shelf,
    pub share: Share,
    pub kind: &'static str,
    pub begin_ns: i64,
    pub end_ns: i64,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub pod_uid: Option<String>,
    pub container: Option<String>,
    pub container_id: Option<String>,
    pub labels: Option<String>,
    /// What may come again, under one name: it is stored once.
    pub key: Option<String>,
    /// It is what the kernel's log has of it: what was seen with one's own eyes stays.
    pub hearsay: bool,
    pub facts: Option<String>,
    pub body: Vec<u8>,
}

/// Nanoseconds of 1970 to 2262.
pub(super) fn ns(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(if time < Timestamp::UNIX_EPOCH { 0 } else { i64::MAX })
}

pub(super) fn time(ns: i64) -> Timestamp {
    Timestamp::from_nanosecond(ns.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Row {
    pub fn of_event(event: &Event) -> anyhow::Result<Row> {
        let share = Share::of(event.kind);
        let owner = Owner {
            pod: event.pod.clone(),
            container: event.container.clone(),
            cgroup: event.cgroup.clone(),
            known_by: event.known_by,
        };
        let body = pack(&serde_json::to_vec(event).context("write an event as JSON")?)?;
        let mut row =
            Row::new(Shelf::Events, share, event.kind.as_str(), (event.time, event.time), &owner, body);
        (row.key, row.hearsay) = match (&event.incident, &event.detail) {
            (Some(incident), _) => (Some(format!("oom/{}", incident.id)), incident.recovered),
            (None, Detail::Oom(kill)) => {
                let key = kill.incident.as_ref().map(|id| format!("kill/{id}/{}", kill.victim.tid));
                (key, kill.recovered)
            }
            (None, Detail::Sigkill(sigkill)) => (Some(format!("sigkill/{}", sigkill.id)), false),
            (None, _) => (None, false),
        };
        Ok(row)
    }

    pub fn of_memory(memory: &MemoryRecord) -> anyhow::Result<Row> {
        let Steps { from, until, step, .. } = &memory.steps;
        ensure!(!step.is_empty(), "a history without a sample");
        let json = serde_json::to_vec(memory).context("write a container's memory as JSON")?;
        // Columns of numbers: worth the time, since there are few of them a minute and they take the most room.
        let body = compress(&json, Compression::best())?;
        let mut row = Row::new(Shelf::Memory, Share::Memory, "memory", (*from, *until), &memory.owner, body);
        row.key = Some(format!("memory/{}/{}", memory.owner.cgroup.id, row.begin_ns));
        Ok(row)
    }

    pub fn of_profile(profile: ProfileRecord) -> Row {
        let span = (profile.begin, profile.end);
        let mut row =
            Row::new(Shelf::Profiles, Share::Profiles, "profile", span, &profile.owner, profile.pprof);
        row.facts = serde_json::to_string(&profile.facts).ok();
        row
    }

    /// An incident of one pod; told again as it goes on.
    pub fn of_incident(
        id: &str,
        span: (Timestamp, Timestamp),
        owner: &Owner,
        body: &impl Serialize,
    ) -> anyhow::Result<Row> {
        let body = pack(&serde_json::to_vec(body).context("write an incident as JSON")?)?;
        let mut row = Row::new(Shelf::Incidents, Share::Incidents, "incident", span, owner, body);
        row.key = Some(format!("incident/{id}"));
        Ok(row)
    }

    fn new(
        shelf: Shelf,
        share: Share,
        kind: &'static str,
        span: (Timestamp, Timestamp),
        owner: &Owner,
        body: Vec<u8>,
    ) -> Row {
        let (pod, container) = (owner.pod.as_ref(), owner.container.as_ref());
        Row {
            shelf,
            share,
            kind,
            begin_ns: ns(span.0),
            end_ns: ns(span.1),
            namespace: pod.map(|pod| pod.namespace.clone()),
            pod: pod.map(|pod| pod.name.clone()),
            pod_uid: pod.map(|pod| pod.uid.clone()),
            container: container.map(|container| container.name.clone()),
            container_id: container.map(|container| container.id.clone()),
            labels: pod.filter(|pod| !pod.labels.is_empty()).map(|pod| {
                // Between line ends, which escaped text has none of: one label is found by one search.
                pod.labels.iter().fold("\n".to_owned(), |all, (key, value)| all + &label(key, value) + "\n")
            }),
            key: None,
            hearsay: false,
            facts: None,
            body,
        }
    }

    /// What it takes, roughly: its columns, its entries in the indices, and its body.
    pub fn bytes(&self) -> usize {
        let texts = [&self.namespace, &self.pod, &self.pod_uid, &self.container, &self.container_id];
        let texts: usize =
            texts.into_iter().chain([&self.labels, &self.key, &self.facts]).flatten().map(String::len).sum();
        160 + 2 * texts + self.body.len()
    }
}

/// A label as it stands in its column.
pub(super) fn label(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

/// `{` and JSON, or zlib's first byte and the same compressed.
fn pack(json: &[u8]) -> anyhow::Result<Vec<u8>> {
    if json.len() < COMPRESS_FROM {
        return Ok(json.to_vec());
    }
    // Level 1 of zlib-rs packs with fixed codes, whatever the text.
    compress(json, Compression::new(3))
}

fn compress(json: &[u8], level: Compression) -> anyhow::Result<Vec<u8>> {
    let mut out = ZlibEncoder::new(Vec::with_capacity(json.len() / 2), level);
    out.write_all(json).context("compress")?;
    out.finish().context("compress")
}

/// The JSON of a body.
pub(super) fn unpack(body: &[u8]) -> anyhow::Result<Vec<u8>> {
    if body.first() == Some(&b'{') {
        return Ok(body.to_vec());
    }
    let mut json = Vec::new();
    ZlibDecoder::new(body).take(BODY_MAX + 1).read_to_end(&mut json).context("decompress")?;
    ensure!(json.len() as u64 <= BODY_MAX, "longer than {BODY_MAX} bytes");
    Ok(json)
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(&unpack(body)?).context("read it as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Limits;
    use podopsy_model::testing::owner;

    /// 200 containers of 24 h have to fit beside everything else: a stretch of ten minutes for each of them is written once
    /// a minute, and 28,800 of them are there at a time.
    #[test]
    fn a_day_of_two_hundred_containers_fits_into_its_share() {
        let now = Timestamp::now();
        let noise = |seed: u64| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = 100 << 20;
            // A container that is busy: every number differs from the one before it.
            let next = move |_| {
                bytes += random.u64(..2048) * 4096;
                bytes
            };
            (0..60).map(next).collect::<Vec<u64>>()
        };
        let steps = Steps {
            from: now,
            until: now,
            step_seconds: 10,
            step: (0..60).collect(),
            samples: vec![10; 60],
            current_min_bytes: noise(1),
            current_max_bytes: noise(2),
            current_bytes: noise(3),
            anon_bytes: noise(4),
            file_bytes: noise(5),
            shmem_bytes: vec![0; 60],
            kernel_bytes: noise(6),
            waited_ms: vec![0; 60],
            limit_bytes: Some(1 << 30),
        };
        let mut whose = owner(
            "finance",
            "pricing-7d9c5b6f4-x2x7p",
            &[("app", "pricing"), ("pod-template-hash", "7d9c5b6f4")],
        );
        whose.cgroup = podopsy_model::CgroupRef {
            id: 77,
            path: Some(format!("/kubepods/burstable/pod{:036}/{:064}", 1, 2)),
        };
        let row = Row::of_memory(&MemoryRecord { owner: whose, steps }).unwrap();
        let room = Limits::default().bytes * Share::Memory.percent() / 100;
        let day = row.bytes() as u64 * 200 * 24 * 6;
        eprintln!("{} bytes a stretch, {} MiB a day, of {} MiB", row.bytes(), day >> 20, room >> 20);
        assert!(day < room, "{} bytes a stretch: {day} of {room}", row.bytes());
    }
}
