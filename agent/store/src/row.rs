//! Turns what is stored into a row: columns that queries filter by, and a body that is returned to the reader.

use std::io::{Read, Write};

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use podopsy_model::memory::MemorySteps;
use podopsy_model::{Detail, Event, EventKind, Losses, Owner};

/// A body that is shorter is not worth compressing.
const COMPRESS_FROM: usize = 400;
/// The largest uncompressed body. A larger one is damaged.
const BODY_MAX: u64 = 16 << 20;

/// The kind of records that one query reads. Stored in the column `shelf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Collection {
    Events = 1,
    Incidents = 2,
    Memory = 3,
    Profiles = 4,
}

/// A class of records with its own part of the store's capacity, so that a flood of one class cannot evict another.
/// Stored in the column `share`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Share {
    /// OOM kills and other SIGKILLs: few records, and the most important ones.
    Kills = 1,
    Dns = 2,
    Memory = 3,
    Profiles = 4,
    /// Pod incidents: one name that does not resolve can cause one every few minutes.
    Incidents = 5,
}

impl Share {
    pub const ALL: [Share; 5] = [Share::Kills, Share::Dns, Share::Memory, Share::Profiles, Share::Incidents];

    /// The share that an event of this kind belongs to.
    pub fn of(kind: EventKind) -> Share {
        match kind {
            EventKind::OomKill | EventKind::OomIncident | EventKind::Sigkill => Share::Kills,
            EventKind::DnsFailure | EventKind::DnsAnswer | EventKind::DnsLookup => Share::Dns,
        }
    }

    /// The share's quota, in percent of the store's capacity. A share may use space that others leave free; its records
    /// are then the first to be deleted.
    pub fn percent(self) -> u64 {
        match self {
            Share::Kills => 25,
            Share::Incidents => 5,
            Share::Dns => 29,
            Share::Memory => 16,
            Share::Profiles => 25,
        }
    }

    /// Whether its records are also deleted by age. Kills are not: a pod that dies once a week is investigated with last
    /// week's kills.
    pub fn expires(self) -> bool {
        self != Share::Kills
    }
}

/// A container's memory over up to ten minutes. It is stored again, under the same key, as it grows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryRecord {
    #[serde(flatten)]
    pub owner: Owner,
    #[serde(flatten)]
    pub steps: MemorySteps,
}

/// The counts of a profile: its samples, how complete their stacks are, and what was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileFacts {
    /// Samples per second on each CPU.
    pub frequency_hz: u64,
    pub samples: u64,
    /// Samples with a user stack, and those of them whose stack is complete.
    pub user_stacks: u64,
    pub complete: u64,
    /// Samples whose user stack is incomplete, by reason.
    pub incomplete: Losses,
    /// Losses on the whole node during the profile, by counter name.
    pub lost: Losses,
}

impl ProfileFacts {
    /// Adds another profile's counts, except `lost`: those losses are the node's, and every container's profile of the
    /// same minute carries them.
    pub fn add(&mut self, other: &ProfileFacts) {
        self.frequency_hz = other.frequency_hz;
        self.samples += other.samples;
        self.user_stacks += other.user_stacks;
        self.complete += other.complete;
        for (reason, count) in &other.incomplete {
            *self.incomplete.entry(reason.clone()).or_default() += count;
        }
    }
}

/// A CPU profile of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileRecord {
    pub owner: Owner,
    pub begin: Timestamp,
    pub end: Timestamp,
    /// The profile in pprof format, gzip-compressed like a pprof file.
    pub pprof: Vec<u8>,
    pub facts: ProfileFacts,
}

#[derive(Clone, Debug)]
pub(super) struct StoreRow {
    pub shelf: Collection,
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
    /// Identifies a record that can be written more than once; the file holds one record for each key.
    pub key: Option<String>,
    /// The record was recovered from the kernel's log. It never replaces a record that a probe observed.
    pub from_log: bool,
    pub facts: Option<String>,
    pub body: Vec<u8>,
}

/// Nanoseconds since the epoch, limited to the years 1970 to 2262.
pub(super) fn ns(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(if time < Timestamp::UNIX_EPOCH { 0 } else { i64::MAX })
}

pub(super) fn time(ns: i64) -> Timestamp {
    Timestamp::from_nanosecond(ns.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl StoreRow {
    pub fn from_event(event: &Event) -> anyhow::Result<StoreRow> {
        let share = Share::of(event.kind);
        let owner = event.owner();
        let body = pack(&serde_json::to_vec(event).context("write an event as JSON")?)?;
        let mut row = StoreRow::new(
            Collection::Events,
            share,
            event.kind.as_str(),
            (event.time, event.time),
            &owner,
            body,
        );
        (row.key, row.from_log) = match (&event.incident, &event.detail) {
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

    pub fn from_memory(memory: &MemoryRecord) -> anyhow::Result<StoreRow> {
        let MemorySteps { from, until, step, .. } = &memory.steps;
        ensure!(!step.is_empty(), "the memory record has no sample");
        let json = serde_json::to_vec(memory).context("write a container's memory as JSON")?;
        // Best compression is worth its time here: there are few memory records a minute, and they take the most space.
        let body = compress(&json, Compression::best())?;
        let mut row =
            StoreRow::new(Collection::Memory, Share::Memory, "memory", (*from, *until), &memory.owner, body);
        row.key = Some(format!("memory/{}/{}", memory.owner.cgroup.id, row.begin_ns));
        Ok(row)
    }

    pub fn from_profile(profile: ProfileRecord) -> StoreRow {
        let span = (profile.begin, profile.end);
        let mut row = StoreRow::new(
            Collection::Profiles,
            Share::Profiles,
            "profile",
            span,
            &profile.owner,
            profile.pprof,
        );
        row.facts = serde_json::to_string(&profile.facts).ok();
        row
    }

    /// A pod incident. It is stored again, under the same key, each time that it changes.
    pub fn from_incident(
        id: &str,
        span: (Timestamp, Timestamp),
        owner: &Owner,
        body: &impl Serialize,
    ) -> anyhow::Result<StoreRow> {
        let body = pack(&serde_json::to_vec(body).context("write an incident as JSON")?)?;
        let mut row = StoreRow::new(Collection::Incidents, Share::Incidents, "incident", span, owner, body);
        row.key = Some(format!("incident/{id}"));
        Ok(row)
    }

    fn new(
        shelf: Collection,
        share: Share,
        kind: &'static str,
        span: (Timestamp, Timestamp),
        owner: &Owner,
        body: Vec<u8>,
    ) -> StoreRow {
        let (pod, container) = (owner.pod.as_ref(), owner.container.as_ref());
        StoreRow {
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
                // Each label stands between newlines, which escaped text cannot contain, so one substring search finds it.
                pod.labels.iter().fold("\n".to_owned(), |all, (key, value)| all + &label(key, value) + "\n")
            }),
            key: None,
            from_log: false,
            facts: None,
            body,
        }
    }

    /// Its approximate size in the file: columns, index entries and body.
    pub fn bytes(&self) -> usize {
        let texts = [&self.namespace, &self.pod, &self.pod_uid, &self.container, &self.container_id];
        let texts: usize =
            texts.into_iter().chain([&self.labels, &self.key, &self.facts]).flatten().map(String::len).sum();
        160 + 2 * texts + self.body.len()
    }
}

/// A label as the column `labels` holds it.
pub(super) fn label(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

/// Plain JSON (first byte `{`) if it is short, else zlib-compressed JSON (first byte as zlib defines).
fn pack(json: &[u8]) -> anyhow::Result<Vec<u8>> {
    if json.len() < COMPRESS_FROM {
        return Ok(json.to_vec());
    }
    // Level 1 of zlib-rs uses fixed Huffman codes for any text, so it compresses badly.
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
    ensure!(json.len() as u64 <= BODY_MAX, "the body is longer than {BODY_MAX} bytes");
    Ok(json)
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(&unpack(body)?).context("read it as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreLimits;
    use podopsy_model::memory::CpuSteps;
    use podopsy_model::testing::owner;

    /// The memory of 200 containers over 24 h has to fit beside everything else. Each container has one record for ten
    /// minutes, rewritten once a minute: 28,800 records at a time.
    #[test]
    fn a_day_of_two_hundred_containers_fits_into_its_share() {
        let now = Timestamp::now();
        let noise = |seed: u64| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = 100 << 20;
            // A busy container: each value differs from the one before it.
            let next = move |_| {
                bytes += random.u64(..2048) * 4096;
                bytes
            };
            (0..60).map(next).collect::<Vec<u64>>()
        };
        let steps = MemorySteps {
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
            cpu: Some(CpuSteps {
                used_ms: noise(7).iter().map(|bytes| bytes / 4096 % 2000).collect(),
                periods: vec![100; 60],
                throttled_periods: (0..60).collect(),
            }),
        };
        let mut owner = owner(
            "finance",
            "pricing-7d9c5b6f4-x2x7p",
            &[("app", "pricing"), ("pod-template-hash", "7d9c5b6f4")],
        );
        owner.cgroup = podopsy_model::CgroupRef {
            id: 77,
            path: Some(format!("/kubepods/burstable/pod{:036}/{:064}", 1, 2)),
        };
        let row = StoreRow::from_memory(&MemoryRecord { owner, steps }).unwrap();
        let quota = StoreLimits::default().bytes * Share::Memory.percent() / 100;
        let day = row.bytes() as u64 * 200 * 24 * 6;
        eprintln!("{} bytes a record, {} MiB a day, of {} MiB", row.bytes(), day >> 20, quota >> 20);
        assert!(day < quota, "{} bytes a record: {day} of {quota}", row.bytes());
    }
}
