//! A bundle: evidence in one file, a gzipped tar archive.
//!
//! | entry | holds |
//! |---|---|
//! | `README.txt` | what the file is, and what is private in it |
//! | `manifest.json` | [`Manifest`] |
//! | `events.jsonl`, `memory.jsonl`, `incidents.jsonl`, `pods.jsonl`, `gaps.jsonl` | records as the agent's API has them, one a line |
//! | `cpu.pb.gz` | the CPU profile, for `go tool pprof` |
//! | `autopsies/ID.txt` | what `podopsy oom show ID` prints |
//!
//! A bundle that is read may be hostile. Its size, unpacked too, its entries and its lines have bounds; each string is escaped
//! and cut, because renderers rely on the model's strings being printable; nothing is unpacked to a disk.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use podopsy_model::text::{escape_bytes, visible};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Manifest, PodEvidence, redact};
use crate::args::Redaction;
use crate::render;
use crate::terminal::Terminal;

/// The version of the format that is written, and the newest that is read. Later versions of podopsy may add entries without
/// another number.
pub const VERSION: u32 = 1;

/// Bounds of a bundle that is read.
const UNPACKED_MAX: u64 = 128 << 20;
const ENTRIES_MAX: usize = 4096;
const LINE_MAX: u64 = 4 << 20;
const RECORDS_MAX: usize = 50_000;
const STRING_MAX: usize = 2048;
/// 8 PiB, or a quarter of a year in ns. Numbers that are no quantities may be larger.
const NUMBER_MAX: u64 = 1 << 53;
const WIDE: [&str; 3] = ["id", "offset", "function_start"];

/// Why a file cannot be read as a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot read {path}: {error}")]
    Io { path: String, error: std::io::Error },
    #[error("{path} is no podopsy bundle: {reason}")]
    Invalid { path: String, reason: String },
    #[error(
        "{path} has version {found} of the format, and this podopsy reads version {VERSION}: use a newer podopsy"
    )]
    Version { path: String, found: u32 },
    #[error("{path} has more than {bound}: refused")]
    TooLarge { path: String, bound: String },
}

/// Writes a bundle. `redactions` are made first.
pub fn write(evidence: &PodEvidence, redactions: &[Redaction], out: impl Write) -> anyhow::Result<()> {
    let evidence = &redact::redacted(evidence, redactions)?;
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    let time = evidence.manifest.until.as_second().max(0) as u64;
    let mut put = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(time);
        archive.append_data(&mut header, name, content)
    };
    put("README.txt", readme(&evidence.manifest).as_bytes())?;
    put("manifest.json", &serde_json::to_vec_pretty(&evidence.manifest)?)?;
    put("events.jsonl", &lines(&evidence.sources.events)?)?;
    put("memory.jsonl", &lines(&evidence.sources.memory)?)?;
    put("incidents.jsonl", &lines(&evidence.sources.incidents)?)?;
    put("pods.jsonl", &lines(&evidence.sources.pods)?)?;
    put("gaps.jsonl", &lines(&evidence.gaps)?)?;
    if let Some(cpu) = &evidence.cpu {
        put("cpu.pb.gz", cpu)?;
    }
    for event in &evidence.sources.events {
        let Some(incident) = &event.incident else { continue };
        let is_name = |id: &str| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if is_name(&incident.id) && incident.id.len() < 64 {
            let mut text = Vec::new();
            render::autopsy::print(&mut text, Terminal::PLAIN, event)?;
            put(&format!("autopsies/{}.txt", incident.id), &text)?;
        }
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}

fn readme(manifest: &Manifest) -> String {
    let redacted = match manifest.redacted[..] {
        [] => "Nothing was redacted.".to_owned(),
        _ => {
            let classes = serde_json::to_string(&manifest.redacted).unwrap_or_default();
            format!("Numbers stand for what was redacted: {classes}.")
        }
    };
    format!(
        "Evidence about {} from {} to {}, gathered by podopsy {}.\n\n\
         Read it with: podopsy report --from FILE -w report.html, podopsy timeline --from FILE, podopsy oom show --from FILE.\n\n\
         Privacy: it holds names of namespaces, pods, containers, images, labels, nodes, cgroups, processes, program files and \
         functions, and DNS names and addresses that were asked for. It holds no content of memory, of files, of environment \
         variables or of packets. {redacted}\n",
        manifest.subject, manifest.from, manifest.until, manifest.podopsy
    )
}

fn lines(records: &[impl Serialize]) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    for record in records {
        serde_json::to_writer(&mut out, record)?;
        out.push(b'\n');
    }
    Ok(out)
}

/// Opens and reads a bundle.
pub fn open(path: &Path) -> Result<PodEvidence, BundleError> {
    let name = escape_bytes(path.as_os_str().as_encoded_bytes());
    let file = File::open(path).map_err(|error| BundleError::Io { path: name.clone(), error })?;
    Input { name }.read(file)
}

/// The file that is read, for messages.
struct Input {
    name: String,
}

impl Input {
    fn invalid(&self, reason: impl ToString) -> BundleError {
        BundleError::Invalid { path: self.name.clone(), reason: visible(&reason.to_string()) }
    }

    fn too_large(&self, bound: impl ToString) -> BundleError {
        BundleError::TooLarge { path: self.name.clone(), bound: bound.to_string() }
    }

    fn read(&self, file: impl Read) -> Result<PodEvidence, BundleError> {
        // One byte more than the bound, so that a bundle that is too large differs from one that just fits.
        let mut unpacked = GzDecoder::new(BufReader::new(file)).take(UNPACKED_MAX + 1);
        let read = self.entries(&mut unpacked);
        if unpacked.limit() == 0 {
            return Err(self.too_large(format!("{} MiB unpacked", UNPACKED_MAX >> 20)));
        }
        read
    }

    fn entries(&self, unpacked: impl Read) -> Result<PodEvidence, BundleError> {
        let mut archive = tar::Archive::new(unpacked);
        let (mut evidence, mut manifest) = (PodEvidence::default(), None);
        for (number, entry) in archive.entries().map_err(|error| self.invalid(error))?.enumerate() {
            let mut entry = entry.map_err(|error| self.invalid(error))?;
            if number >= ENTRIES_MAX {
                return Err(self.too_large(format!("{ENTRIES_MAX} entries")));
            }
            let name = entry.path_bytes().into_owned();
            match &*name {
                b"manifest.json" => manifest = Some(self.manifest(&mut entry)?),
                b"events.jsonl" => evidence.sources.events = self.records(&mut entry)?,
                b"memory.jsonl" => evidence.sources.memory = self.records(&mut entry)?,
                b"incidents.jsonl" => evidence.sources.incidents = self.records(&mut entry)?,
                b"pods.jsonl" => evidence.sources.pods = self.records(&mut entry)?,
                b"gaps.jsonl" => evidence.gaps = self.records(&mut entry)?,
                b"cpu.pb.gz" => evidence.cpu = Some(self.bytes(&mut entry)?),
                _ => {}
            }
        }
        evidence.manifest = manifest.ok_or_else(|| self.invalid("it has no manifest.json"))?;
        Ok(evidence)
    }

    fn bytes(&self, entry: &mut impl Read) -> Result<Vec<u8>, BundleError> {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|error| self.invalid(error))?;
        Ok(bytes)
    }

    fn manifest(&self, entry: &mut impl Read) -> Result<Manifest, BundleError> {
        let mut bytes = Vec::new();
        entry.take(LINE_MAX).read_to_end(&mut bytes).map_err(|error| self.invalid(error))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| self.invalid(error))?;
        let found = value["version"].as_u64().and_then(|version| u32::try_from(version).ok());
        match found {
            None | Some(0) => Err(self.invalid("its manifest has no version")),
            Some(found) if found > VERSION => Err(BundleError::Version { path: self.name.clone(), found }),
            Some(_) => self.typed(value),
        }
    }

    /// One record a line.
    fn records<T: DeserializeOwned>(&self, entry: &mut impl Read) -> Result<Vec<T>, BundleError> {
        let mut records = Vec::new();
        let mut reader = BufReader::new(entry);
        loop {
            let mut line = Vec::new();
            let read = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line);
            if read.map_err(|error| self.invalid(error))? == 0 {
                return Ok(records);
            }
            if line.len() as u64 == LINE_MAX {
                return Err(self.too_large(format!("{} MiB in a line", LINE_MAX >> 20)));
            }
            if records.len() == RECORDS_MAX {
                return Err(self.too_large(format!("{RECORDS_MAX} records of a kind")));
            }
            records.push(self.typed(serde_json::from_slice(&line).map_err(|error| self.invalid(error))?)?);
        }
    }

    fn typed<T: DeserializeOwned>(&self, value: Value) -> Result<T, BundleError> {
        serde_json::from_value(harmless("", value)).map_err(|error| self.invalid(error))
    }
}

/// Escapes and cuts each string, also those that are keys, and bounds numbers, so that sums of some do not overflow. `field`
/// is the name of the field that the value is in.
fn harmless(field: &str, value: Value) -> Value {
    let text = |text: String| {
        let cut = text.char_indices().nth(STRING_MAX).map(|(at, _)| at);
        visible(&text[..cut.unwrap_or(text.len())])
    };
    match value {
        Value::String(string) => Value::String(text(string)),
        Value::Array(values) => {
            Value::Array(values.into_iter().map(|value| harmless(field, value)).collect())
        }
        Value::Object(map) => {
            let entry = |(key, value): (String, Value)| (text(key.clone()), harmless(&key, value));
            Value::Object(map.into_iter().map(entry).collect())
        }
        Value::Number(number) if !WIDE.contains(&field) && number.as_u64() > Some(NUMBER_MAX) => {
            NUMBER_MAX.into()
        }
        value => value,
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
