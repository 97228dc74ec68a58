//! Several pprof files of ours into one: what a window of the always-on profile comes to.
//!
//! Nothing is named anew: files, functions and places are those of the parts, each once, and values of equal stacks are
//! added up. Bounded: what would be too large is refused, so that whoever asks can ask for less.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::{Read, Write};

use anyhow::{Context, bail};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use pprof::protos::{self, Message};

/// Of one part, unpacked; a busy minute of a container has some 100 KB.
const PART_MAX: u64 = 16 << 20;
/// Distinct stacks, and frames of all of them: 16 MB.
const STACKS_MAX: usize = 65_536;
const FRAMES_MAX: usize = 2 << 20;

/// A place: file, address, and the functions there, with their lines.
type Place = (u64, u64, Vec<(u64, i64)>);
/// A label: key, text, number.
type Label = (i64, i64, i64);

/// The sum so far.
#[derive(Default)]
pub struct Merged {
    texts: Ids<String>,
    mappings: Vec<protos::Mapping>,
    mapping_ids: HashMap<(i64, i64), u64>,
    functions: Ids<(i64, i64)>,
    places: Ids<Place>,
    stacks: HashMap<(Vec<u64>, Vec<Label>), Vec<i64>>,
    frames: usize,
    /// Of the first part: all have the same.
    head: Option<Head>,
    begin_ns: i64,
    end_ns: i64,
    parts: u64,
}

struct Head {
    types: Vec<(String, String)>,
    period_type: Option<(String, String)>,
    period: i64,
    default_type: String,
}

/// Values in the order in which they came first, and the number of each.
struct Ids<T> {
    ids: HashMap<T, u64>,
    all: Vec<T>,
}

impl<T> Default for Ids<T> {
    fn default() -> Self {
        Ids { ids: HashMap::new(), all: Vec::new() }
    }
}

impl<T: Clone + Eq + Hash> Ids<T> {
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

impl Merged {
    /// Adds a part; false: it is no profile, and nothing is added. An error: the sum would be too large.
    pub fn add(&mut self, packed: &[u8]) -> anyhow::Result<bool> {
        let Ok(part) = unpack(packed) else { return Ok(false) };
        self.take(&part).map(|()| true)
    }

    fn take(&mut self, part: &protos::Profile) -> anyhow::Result<()> {
        let text = |id: i64| {
            usize::try_from(id).ok().and_then(|id| part.string_table.get(id)).cloned().unwrap_or_default()
        };
        let kind = |kind: &protos::ValueType| (text(kind.ty), text(kind.unit));
        let head = Head {
            types: part.sample_type.iter().map(kind).collect(),
            period_type: part.period_type.as_ref().map(kind),
            period: part.period,
            default_type: text(part.default_sample_type),
        };
        match &self.head {
            Some(first) if (&first.types, first.period) != (&head.types, head.period) => {
                bail!("profiles of different kinds or frequencies cannot be added up: ask for a shorter time")
            }
            Some(_) => {}
            None => {
                // The format wants the empty string first.
                self.texts.id(String::new());
                (self.begin_ns, self.end_ns) = (i64::MAX, i64::MIN);
                self.head = Some(head);
            }
        }
        let texts: Vec<i64> =
            part.string_table.iter().map(|text| self.texts.id(text.clone()) as i64).collect();
        let text = |id: i64| usize::try_from(id).ok().and_then(|id| texts.get(id)).copied().unwrap_or(0);
        let mut mappings = HashMap::from([(0, 0)]);
        for mapping in &part.mapping {
            let key = (text(mapping.filename), text(mapping.build_id));
            let next = self.mappings.len() as u64 + 1;
            let id = *self.mapping_ids.entry(key).or_insert(next);
            if id == next {
                let (filename, build_id) = key;
                self.mappings.push(protos::Mapping { id, filename, build_id, ..mapping.clone() });
            }
            mappings.insert(mapping.id, id);
        }
        let function = |function: &protos::Function| {
            (function.id, self.functions.id((text(function.name), text(function.filename))) + 1)
        };
        let functions: HashMap<u64, u64> = part.function.iter().map(function).collect();
        let mut places = HashMap::new();
        for location in &part.location {
            let line =
                |line: &protos::Line| (functions.get(&line.function_id).copied().unwrap_or(0), line.line);
            let lines = location.line.iter().map(line).collect();
            let mapping = mappings.get(&location.mapping_id).copied().unwrap_or(0);
            places.insert(location.id, self.places.id((mapping, location.address, lines)) + 1);
        }
        for sample in &part.sample {
            let stack: Vec<u64> =
                sample.location_id.iter().filter_map(|id| places.get(id)).copied().collect();
            let labels: Vec<Label> =
                sample.label.iter().map(|label| (text(label.key), text(label.str), label.num)).collect();
            let (count, frames) = (self.stacks.len(), stack.len());
            let values = self.stacks.entry((stack, labels)).or_insert_with(|| {
                self.frames += frames;
                vec![0; sample.value.len()]
            });
            values.iter_mut().zip(&sample.value).for_each(|(sum, value)| *sum = sum.saturating_add(*value));
            if count >= STACKS_MAX || self.frames > FRAMES_MAX {
                bail!(
                    "it has more than {STACKS_MAX} different stacks: ask for less time, or for one container"
                );
            }
        }
        self.begin_ns = self.begin_ns.min(part.time_nanos);
        self.end_ns = self.end_ns.max(part.time_nanos.saturating_add(part.duration_nanos));
        self.parts += 1;
        Ok(())
    }

    /// How many were added.
    pub fn parts(&self) -> u64 {
        self.parts
    }

    /// The sum as a gzipped pprof file; `comments` say what it lacks.
    pub fn finish(mut self, comments: &[String]) -> anyhow::Result<Vec<u8>> {
        let head = self.head.take().context("nothing to add up")?;
        let mut text = |text: &str| self.texts.id(text.to_owned()) as i64;
        let mut kind = |(ty, unit): &(String, String)| protos::ValueType { ty: text(ty), unit: text(unit) };
        let sample_type = head.types.iter().map(&mut kind).collect();
        let period_type = head.period_type.as_ref().map(&mut kind);
        let default_sample_type = text(&head.default_type);
        let comment = comments.iter().map(|comment| text(comment)).collect();
        let label =
            |(key, str, num): &Label| protos::Label { key: *key, str: *str, num: *num, ..Default::default() };
        let mut samples: Vec<_> = self.stacks.into_iter().collect();
        // Most first, and in one order whatever the hash was.
        samples.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let sample = |((stack, labels), value): ((Vec<u64>, Vec<Label>), Vec<i64>)| protos::Sample {
            location_id: stack,
            value,
            label: labels.iter().map(label).collect(),
        };
        let function = |(at, &(name, filename)): (usize, &(i64, i64))| protos::Function {
            id: at as u64 + 1,
            name,
            system_name: name,
            filename,
            start_line: 0,
        };
        let location = |(at, (mapping_id, address, lines)): (usize, &Place)| protos::Location {
            id: at as u64 + 1,
            mapping_id: *mapping_id,
            address: *address,
            line: lines.iter().map(|&(function_id, line)| protos::Line { function_id, line }).collect(),
            is_folded: false,
        };
        let merged = protos::Profile {
            sample_type,
            sample: samples.into_iter().map(sample).collect(),
            mapping: self.mappings,
            location: self.places.all.iter().enumerate().map(location).collect(),
            function: self.functions.all.iter().enumerate().map(function).collect(),
            string_table: self.texts.all,
            drop_frames: 0,
            keep_frames: 0,
            time_nanos: self.begin_ns,
            duration_nanos: self.end_ns.saturating_sub(self.begin_ns),
            period_type,
            period: head.period,
            comment,
            default_sample_type,
        };
        let mut out = GzEncoder::new(Vec::new(), Compression::default());
        out.write_all(&merged.encode_to_vec())?;
        Ok(out.finish()?)
    }
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

    /// What every function comes to, with what called it.
    fn sums(packed: &[u8]) -> Vec<(Vec<Arc<str>>, u64)> {
        let read = import::pprof::read(packed, Some("samples")).unwrap();
        let name = |id: &u32| read.functions[*id as usize].clone();
        let mut sums: Vec<_> =
            read.stacks().map(|(stack, value)| (stack.iter().map(name).collect(), value)).collect();
        sums.sort();
        sums
    }

    #[test]
    fn equal_stacks_are_added_up_and_nothing_else_changes() {
        let one = packed();
        let mut merged = Merged::default();
        (0..3).for_each(|_| assert!(merged.add(&one).unwrap()));
        assert_eq!(merged.parts(), 3);
        let all = merged.finish(&["lost: nothing".into()]).unwrap();
        let three: Vec<_> = sums(&one).into_iter().map(|(stack, value)| (stack, 3 * value)).collect();
        assert_eq!(sums(&all), three);
        assert!(all.len() < one.len() * 2, "{} of {}", all.len(), one.len());
    }

    #[test]
    fn what_is_no_profile_or_another_kind_of_one_is_refused() {
        let mut merged = Merged::default();
        assert!(!merged.add(b"\x1f\x8bnot really").unwrap());
        merged.add(&packed()).unwrap();
        let mut other = example::profile();
        other.sampling = podopsy_model::profile::Sampling::Cpu { frequency_hz: 7 };
        let mut out = Vec::new();
        crate::export::pprof::write(&other, &mut out).unwrap();
        let error = merged.add(&out).unwrap_err().to_string();
        assert!(error.contains("frequencies") && error.contains("shorter time"), "{error}");
        assert!(Merged::default().finish(&[]).is_err());
    }

    #[test]
    fn too_many_stacks_are_refused_and_not_cut_off() {
        let mut merged = Merged::default();
        let mut part = protos::Profile { string_table: vec![String::new()], ..Default::default() };
        part.sample = (0..=STACKS_MAX as i64)
            .map(|num| protos::Sample {
                location_id: Vec::new(),
                value: vec![1],
                label: vec![protos::Label { num, ..Default::default() }],
            })
            .collect();
        let error = merged.take(&part).unwrap_err().to_string();
        assert!(error.contains("less time"), "{error}");
    }
}
