//! Replaces names in evidence by numbers. Equal names have equal numbers, so that records still belong together.
//!
//! It works on the JSON of the records, and by default it replaces: only strings of fields in [`PLAIN`] stay. A field that a
//! later version adds is redacted until someone decides that it is plain.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use podopsy_model::profile::{Profile, Sampling};
use podopsy_profiles::export::Format;
use podopsy_profiles::import;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Manifest, PodEvidence};
use crate::args::Redaction;
use crate::timeline::Sources;

/// Fields whose strings podopsy or the kernel chose: enums, times, units, reasons. And names of functions.
const PLAIN: &[&str] = &[
    "asked_at",
    "by",
    "constraint",
    "created_at",
    "finished_at",
    "from",
    "function",
    "how",
    "kind",
    "known_by",
    "lost",
    "losses",
    "of",
    "opcode",
    "outcome",
    "outcomes",
    "protocol",
    "qos",
    "reason",
    "result",
    "start",
    "start_time",
    "started_at",
    "state",
    "tcp_failure",
    "time",
    "type",
    "until",
    "verdict",
    "verdicts",
    "incomplete",
];
/// Fields of processes and program files.
const ARGS: &[&str] = &["comm", "thread", "module", "build_id", "file", "source"];
/// Sentences that may quote names: they can be made of the other fields again.
const SENTENCES: &[&str] = &["advice", "malformed"];

/// The evidence without what the redactions name.
pub fn redacted(evidence: &PodEvidence, redactions: &[Redaction]) -> anyhow::Result<PodEvidence> {
    if redactions.is_empty() {
        return Ok(evidence.clone());
    }
    let mut names = Redactor {
        names: redactions.contains(&Redaction::Names),
        args: redactions.contains(&Redaction::Args),
        numbers: BTreeMap::new(),
    };
    let sources = &evidence.sources;
    let mut redacted: Vec<Redaction> = [&evidence.manifest.redacted[..], redactions].concat();
    redacted.sort();
    redacted.dedup();
    let mut manifest = Manifest { redacted, ..evidence.manifest.clone() };
    if names.names {
        manifest.node = names.replace("node", &manifest.node);
        manifest.subject = "redacted pods".to_owned();
        manifest.incident = manifest.incident.filter(|id| is_incident(id));
    }
    Ok(PodEvidence {
        sources: Sources {
            events: names.records(&sources.events)?,
            memory: names.records(&sources.memory)?,
            incidents: names.records(&sources.incidents)?,
            pods: names.records(&sources.pods)?,
        },
        gaps: evidence.gaps.clone(),
        cpu: evidence.cpu.as_deref().map(|cpu| profile(cpu, &manifest)).transpose()?,
        manifest,
    })
}

/// The profile with its functions alone: no labels, no files.
fn profile(pprof: &[u8], manifest: &Manifest) -> anyhow::Result<Vec<u8>> {
    let facts = manifest.cpu.clone().unwrap_or_default();
    let duration = facts.until.duration_since(facts.from).try_into().unwrap_or_default();
    let sampling = Sampling::Cpu { frequency_hz: facts.frequency_hz };
    let base = Profile::empty(facts.from, duration, sampling, &manifest.node);
    let read = import::pprof::read(pprof, Some("samples"))?;
    let profile = read.to_functions(Profile { losses: facts.lost, ..base });
    let mut out = Vec::new();
    Format::Pprof.write(&profile, &mut out)?;
    Ok(out)
}

struct Redactor {
    names: bool,
    args: bool,
    /// Each string that was replaced.
    numbers: BTreeMap<String, String>,
}

impl Redactor {
    fn records<T: Serialize + DeserializeOwned>(&mut self, records: &[T]) -> serde_json::Result<Vec<T>> {
        let mut redacted = Vec::with_capacity(records.len());
        for record in records {
            let mut value = serde_json::to_value(record)?;
            self.visit("", &mut value);
            redacted.push(serde_json::from_value(value)?);
        }
        Ok(redacted)
    }

    /// `field` is the name of the field that the value is in, also of the elements of a list.
    fn visit(&mut self, field: &str, value: &mut Value) {
        match value {
            Value::String(_) if SENTENCES.contains(&field) => *value = Value::Null,
            Value::String(text) if self.is_redacted(field, text) => *text = self.replace(field, text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.visit(field, value)),
            Value::Object(map) if field == "labels" && self.names => map.clear(),
            Value::Object(map) => map.iter_mut().for_each(|(field, value)| self.visit(field, value)),
            _ => {}
        }
    }

    fn is_redacted(&self, field: &str, text: &str) -> bool {
        if PLAIN.contains(&field) || text.is_empty() {
            return false;
        }
        // The table of processes has its source, too, which is a fixed text.
        if ARGS.contains(&field) {
            return self.args && !["kernel log", "/proc", "memory.stat"].contains(&text);
        }
        self.names && !is_incident(text)
    }

    fn replace(&mut self, field: &str, text: &str) -> String {
        let number = self.numbers.len() + 1;
        let new = || match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
            // The documentation's addresses, RFC 5737.
            (Ok(address), _) => format!("192.0.2.{}:{}", number % 256, address.port()),
            (_, Ok(_)) => format!("192.0.2.{}", number % 256),
            _ => format!("{}-{number}", field.trim_end_matches('s')),
        };
        self.numbers.entry(text.to_owned()).or_insert_with(new).clone()
    }
}

/// Whether it is the id of an OOM incident or of a SIGKILL, which has no names in it.
fn is_incident(text: &str) -> bool {
    let mut parts = text.split('-');
    let is_boot =
        parts.next().is_some_and(|boot| boot.len() == 4 && boot.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let is_number = |part: &str| {
        let digits = part.trim_start_matches(['t', 'k']);
        !digits.is_empty() && digits.len() < 20 && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let rest: Vec<&str> = parts.collect();
    is_boot && (1..=2).contains(&rest.len()) && rest.iter().all(|part| is_number(part))
}
