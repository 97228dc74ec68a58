//! Adds several of podopsy's pprof files up to one: a time range of the always-on profile.
//!
//! Files, functions and locations of the parts are kept, each once, and the values of equal stacks are added up.
//! Nothing is symbolized again. The result is bounded: a sum that would be too large is refused, so that the caller can
//! ask for less.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::{Read, Write};

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use pprof::protos::{self, Message};

/// Bytes of one part, unpacked. A busy minute of a container has some 100 KB.
const PART_MAX: u64 = 16 << 20;
/// Distinct stacks, and frames of all of them: 16 MB.
const STACKS_MAX: usize = 65_536;
const FRAMES_MAX: usize = 2 << 20;

/// Mapping id, address, and (function id, line) of each function at the address.
type LocationKey = (u64, u64, Vec<(u64, i64)>);
/// Key, text and number of a label.
type Label = (i64, i64, i64);

/// The sum of the parts so far.
#[derive(Default)]
pub struct ProfileMerger {
    texts: Interner<String>,
    mappings: Vec<protos::Mapping>,
    mapping_ids: HashMap<(i64, i64), u64>,
    functions: Interner<(i64, i64)>,
    locations: Interner<LocationKey>,
    stacks: HashMap<(Vec<u64>, Vec<Label>), Vec<i64>>,
    frames: usize,
    /// The header of the first part. All parts must have the same types of values and the same period.
    header: Option<ProfileHeader>,
    begin_ns: i64,
    end_ns: i64,
    parts: u64,
}

struct ProfileHeader {
    types: Vec<(String, String)>,
    period_type: Option<(String, String)>,
    period: i64,
    default_type: String,
}

/// Distinct values in order of first use, each with its index.
struct Interner<T> {
    ids: HashMap<T, u64>,
    all: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Interner { ids: HashMap::new(), all: Vec::new() }
    }
}

impl<T: Clone + Eq + Hash> Interner<T> {
    fn id(&mut self, value: T) -> u64 {
        if let Some(&id) = self.ids.get(&value) {
            return id;
        }
        let id = self.all.len() as u64;
        self.all.push(value.clone());
        self.ids.insert(value, id);
        id
    }
}

/// A part's texts by their index in the sum.
struct PartTexts(Vec<i64>);

impl PartTexts {
    fn id(&self, id: i64) -> i64 {
        usize::try_from(id).ok().and_then(|id| self.0.get(id)).copied().unwrap_or(0)
    }
}

impl ProfileHeader {
    fn from_part(part: &protos::Profile) -> Self {
        let text = |id: i64| {
            usize::try_from(id).ok().and_then(|id| part.string_table.get(id)).cloned().unwrap_or_default()
        };
        let value_type = |value: &protos::ValueType| (text(value.ty), text(value.unit));
        ProfileHeader {
            types: part.sample_type.iter().map(value_type).collect(),
            period_type: part.period_type.as_ref().map(value_type),
            period: part.period,
            default_type: text(part.default_sample_type),
        }
    }
}

impl ProfileMerger {
    /// Adds a gzipped part. Returns false, and adds nothing, if it is not a profile; fails if the sum would be too
    /// large.
    pub fn add(&mut self, packed: &[u8]) -> anyhow::Result<bool> {
        let Ok(part) = unpack(packed) else { return Ok(false) };
        self.add_part(&part).map(|()| true)
    }

    fn add_part(&mut self, part: &protos::Profile) -> anyhow::Result<()> {
        self.check_header(part)?;
        let texts = part.string_table.iter().map(|text| self.texts.id(text.clone()) as i64).collect();
        let texts = PartTexts(texts);
        let locations = self.add_locations(part, &texts);
        for sample in &part.sample {
            self.add_sample(sample, &texts, &locations)?;
        }
        self.begin_ns = self.begin_ns.min(part.time_nanos);
        self.end_ns = self.end_ns.max(part.time_nanos.saturating_add(part.duration_nanos));
        self.parts += 1;
        Ok(())
    }

    /// Keeps the header of the first part, and refuses a later part with another one.
    fn check_header(&mut self, part: &protos::Profile) -> anyhow::Result<()> {
        let header = ProfileHeader::from_part(part);
        match &self.header {
            Some(first) if (&first.types, first.period) != (&header.types, header.period) => {
                bail!("profiles of different kinds or frequencies cannot be added up: ask for a shorter time")
            }
            Some(_) => {}
            None => {
                // The format requires the empty string first.
                self.texts.id(String::new());
                (self.begin_ns, self.end_ns) = (i64::MAX, i64::MIN);
                self.header = Some(header);
            }
        }
        Ok(())
    }

    /// Adds a part's mappings, functions and locations. Returns the part's location ids with those of the sum.
    fn add_locations(&mut self, part: &protos::Profile, texts: &PartTexts) -> HashMap<u64, u64> {
        let mut mappings = HashMap::from([(0, 0)]);
        for mapping in &part.mapping {
            let key = (texts.id(mapping.filename), texts.id(mapping.build_id));
            let next = self.mappings.len() as u64 + 1;
            let id = *self.mapping_ids.entry(key).or_insert(next);
            if id == next {
                let (filename, build_id) = key;
                self.mappings.push(protos::Mapping { id, filename, build_id, ..mapping.clone() });
            }
            mappings.insert(mapping.id, id);
        }
        let function = |function: &protos::Function| {
            let key = (texts.id(function.name), texts.id(function.filename));
            (function.id, self.functions.id(key) + 1)
        };
        let functions: HashMap<u64, u64> = part.function.iter().map(function).collect();
        let mut locations = HashMap::new();
        for location in &part.location {
            let line =
                |line: &protos::Line| (functions.get(&line.function_id).copied().unwrap_or(0), line.line);
            let lines = location.line.iter().map(line).collect();
            let mapping = mappings.get(&location.mapping_id).copied().unwrap_or(0);
            locations.insert(location.id, self.locations.id((mapping, location.address, lines)) + 1);
        }
        locations
    }

    fn add_sample(
        &mut self,
        sample: &protos::Sample,
        texts: &PartTexts,
        locations: &HashMap<u64, u64>,
    ) -> anyhow::Result<()> {
        let stack: Vec<u64> = sample.location_id.iter().filter_map(|id| locations.get(id)).copied().collect();
        let labels: Vec<Label> =
            sample.label.iter().map(|label| (texts.id(label.key), texts.id(label.str), label.num)).collect();
        let (count, frames) = (self.stacks.len(), stack.len());
        let values = self.stacks.entry((stack, labels)).or_insert_with(|| {
            self.frames += frames;
            vec![0; sample.value.len()]
        });
        for (sum, value) in values.iter_mut().zip(&sample.value) {
            *sum = sum.saturating_add(*value);
        }
        if count >= STACKS_MAX || self.frames > FRAMES_MAX {
            bail!("it has more than {STACKS_MAX} different stacks: ask for less time, or for one container");
        }
        Ok(())
    }

    /// The number of parts that were added.
    pub fn parts(&self) -> u64 {
        self.parts
    }

    /// Returns the sum as a gzipped pprof file with `comments`, such as its losses.
    pub fn finish(mut self, comments: &[String]) -> anyhow::Result<Vec<u8>> {
        let header = self.header.take().context("nothing to add up")?;
        let mut text = |text: &str| self.texts.id(text.to_owned()) as i64;
        let mut value_type =
            |(ty, unit): &(String, String)| protos::ValueType { ty: text(ty), unit: text(unit) };
        let sample_type = header.types.iter().map(&mut value_type).collect();
        let period_type = header.period_type.as_ref().map(&mut value_type);
        let default_sample_type = text(&header.default_type);
        let comment = comments.iter().map(|comment| text(comment)).collect();
        let merged = protos::Profile {
            sample_type,
            sample: encode_samples(self.stacks),
            mapping: self.mappings,
            location: encode_locations(&self.locations),
            function: encode_functions(&self.functions),
            string_table: self.texts.all,
            drop_frames: 0,
            keep_frames: 0,
            time_nanos: self.begin_ns,
            duration_nanos: self.end_ns.saturating_sub(self.begin_ns),
            period_type,
            period: header.period,
            comment,
            default_sample_type,
        };
        let mut out = GzEncoder::new(Vec::new(), Compression::default());
        out.write_all(&merged.encode_to_vec())?;
        Ok(out.finish()?)
    }
}

/// The samples with the largest values first. Ties are sorted by stack, so that the order does not depend on the hash.
fn encode_samples(stacks: HashMap<(Vec<u64>, Vec<Label>), Vec<i64>>) -> Vec<protos::Sample> {
    let mut samples: Vec<_> = stacks.into_iter().collect();
    samples.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let label =
        |(key, str, num): &Label| protos::Label { key: *key, str: *str, num: *num, ..Default::default() };
    let sample = |((stack, labels), value): ((Vec<u64>, Vec<Label>), Vec<i64>)| protos::Sample {
        location_id: stack,
        value,
        label: labels.iter().map(label).collect(),
    };
    samples.into_iter().map(sample).collect()
}

fn encode_functions(functions: &Interner<(i64, i64)>) -> Vec<protos::Function> {
    let function = |(index, &(name, filename)): (usize, &(i64, i64))| protos::Function {
        id: index as u64 + 1,
        name,
        system_name: name,
        filename,
        start_line: 0,
    };
    functions.all.iter().enumerate().map(function).collect()
}

fn encode_locations(locations: &Interner<LocationKey>) -> Vec<protos::Location> {
    let location = |(index, (mapping_id, address, lines)): (usize, &LocationKey)| protos::Location {
        id: index as u64 + 1,
        mapping_id: *mapping_id,
        address: *address,
        line: lines.iter().map(|&(function_id, line)| protos::Line { function_id, line }).collect(),
        is_folded: false,
    };
    locations.all.iter().enumerate().map(location).collect()
}

fn unpack(packed: &[u8]) -> anyhow::Result<protos::Profile> {
    let mut bytes = Vec::new();
    GzDecoder::new(packed).take(PART_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > PART_MAX {
        bail!("a profile is larger than {PART_MAX} bytes");
    }
    Ok(protos::Profile::decode(bytes.as_slice())?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::export::example;
    use crate::import;

    fn packed() -> Vec<u8> {
        let mut out = Vec::new();
        crate::export::pprof::write(&example::profile(), &mut out).unwrap();
        out
    }

    /// Each stack by the names of its functions, with its value.
    fn sums(packed: &[u8]) -> Vec<(Vec<Arc<str>>, u64)> {
        let read = import::pprof::read(packed, Some("samples")).unwrap();
        let name = |id: &u32| read.functions[*id as usize].clone();
        let mut sums: Vec<_> =
            read.stacks().map(|(stack, value)| (stack.iter().map(name).collect(), value)).collect();
        sums.sort();
        sums
    }

    #[test]
    fn values_of_equal_stacks_are_added_up_and_nothing_else_changes() {
        let one = packed();
        let mut merged = ProfileMerger::default();
        for _ in 0..3 {
            assert!(merged.add(&one).unwrap());
        }
        assert_eq!(merged.parts(), 3);
        let all = merged.finish(&["lost: nothing".into()]).unwrap();
        let three: Vec<_> = sums(&one).into_iter().map(|(stack, value)| (stack, 3 * value)).collect();
        assert_eq!(sums(&all), three);
        assert!(all.len() < one.len() * 2, "{} of {}", all.len(), one.len());
    }

    #[test]
    fn a_file_that_is_not_a_profile_or_of_another_kind_is_refused() {
        let mut merged = ProfileMerger::default();
        assert!(!merged.add(b"\x1f\x8bnot really").unwrap());
        merged.add(&packed()).unwrap();
        let mut other = example::profile();
        other.sampling = podopsy_model::profile::Sampling::Cpu { frequency_hz: 7 };
        let mut out = Vec::new();
        crate::export::pprof::write(&other, &mut out).unwrap();
        let error = merged.add(&out).unwrap_err().to_string();
        assert!(error.contains("frequencies") && error.contains("shorter time"), "{error}");
        assert!(ProfileMerger::default().finish(&[]).is_err());
    }

    #[test]
    fn too_many_stacks_are_refused_and_never_truncated() {
        let mut merged = ProfileMerger::default();
        let mut part = protos::Profile { string_table: vec![String::new()], ..Default::default() };
        part.sample = (0..=STACKS_MAX as i64)
            .map(|num| protos::Sample {
                location_id: Vec::new(),
                value: vec![1],
                label: vec![protos::Label { num, ..Default::default() }],
            })
            .collect();
        let error = merged.add_part(&part).unwrap_err().to_string();
        assert!(error.contains("less time"), "{error}");
    }
}
