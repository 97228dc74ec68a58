//! Writes pprof's profile.proto, gzipped: the format that `go tool pprof`, Pyroscope, Parca and Grafana read.
//!
//! Must not depend on: SVG, folded stacks, where frames come from.
//!
//! Format: <https://github.com/google/pprof/blob/main/proto/profile.proto>. The types come from the `pprof` crate,
//! which has its own version of prost. They are encoded through the `Message` trait that this crate exports, and never
//! mix with the prost of CRI.

use std::collections::HashMap;
use std::hash::Hash;
use std::io::Write;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use pprof::protos::{self, Message};

use super::{completeness_lines, loss_lines, sample_value};
use podopsy_model::profile::{Frame, Profile, Sample, Sampling};

/// Writes `profile` as gzipped profile.proto. The values of a sample are its count, and CPU nanoseconds or page faults
/// (count × period).
pub fn write(profile: &Profile, out: impl Write) -> anyhow::Result<()> {
    let mut encoder = GzEncoder::new(out, Compression::default());
    encoder.write_all(&encode(profile).encode_to_vec())?;
    encoder.finish()?.flush()?;
    Ok(())
}

fn encode(profile: &Profile) -> protos::Profile {
    let mut tables = PprofTables::new();
    let (name, unit) = match profile.sampling {
        Sampling::Cpu { .. } => ("cpu", "nanoseconds"),
        Sampling::Growth { .. } => ("page_faults", "count"),
    };
    let period = i64::try_from(sample_value(profile.sampling)).unwrap_or(i64::MAX);
    for mapping in &profile.mappings {
        let id = tables.mapping(&mapping.name, mapping.build_id.as_ref());
        let known = &mut tables.mappings[id as usize - 1];
        // Two files may have the same name and build id. The first stands for both.
        if known.memory_limit == 0 {
            (known.memory_start, known.memory_limit) = (mapping.start, mapping.end);
            known.file_offset = mapping.file_offset;
        }
    }
    let sample = profile.samples.iter().map(|sample| tables.sample(sample, period, &profile.node)).collect();
    let count = tables.value_type("samples", "count");
    let value = tables.value_type(name, unit);
    let comment = comments(profile).iter().map(|comment| tables.text(comment)).collect();
    protos::Profile {
        sample_type: vec![count, value.clone()],
        sample,
        mapping: tables.mappings,
        location: tables.locations,
        function: tables.functions,
        string_table: tables.texts,
        drop_frames: 0,
        keep_frames: 0,
        time_nanos: i64::try_from(profile.start.as_nanosecond()).unwrap_or(0),
        duration_nanos: i64::try_from(profile.duration.as_nanos()).unwrap_or(i64::MAX),
        // The second value is count × period, in the same unit.
        period_type: Some(value.clone()),
        period,
        comment,
        default_sample_type: value.ty,
    }
}

/// The number of samples, the share of frames with a name, completeness and losses.
fn comments(profile: &Profile) -> Vec<String> {
    let frames = || profile.samples.iter().flat_map(|sample| &sample.stack);
    let named = frames().filter(|frame| frame.function.is_some()).count();
    let mut comments = vec![
        format!("podopsy: {} samples {} on {}", profile.total(), profile.sampling, profile.node),
        format!("frames with a name: {named} of {}", frames().count()),
    ];
    comments.extend(completeness_lines(profile));
    comments.extend(loss_lines(profile));
    comments
}

/// Mapping id, address, and (function id, line) of each frame at the address.
type LocationKey = (u64, u64, Vec<(u64, i64)>);

/// The tables that samples refer to. An id is the index + 1, because 0 means "none".
struct PprofTables {
    texts: Vec<String>,
    text_ids: HashMap<Arc<str>, i64>,
    mappings: Vec<protos::Mapping>,
    mapping_ids: HashMap<(Arc<str>, Option<Arc<str>>), u64>,
    functions: Vec<protos::Function>,
    function_ids: HashMap<(i64, i64), u64>,
    locations: Vec<protos::Location>,
    location_ids: HashMap<LocationKey, u64>,
}

/// The id of `key`; on first use `new` makes its entry.
fn intern<K: Eq + Hash, T>(
    ids: &mut HashMap<K, u64>,
    all: &mut Vec<T>,
    key: K,
    new: impl FnOnce(u64) -> T,
) -> u64 {
    *ids.entry(key).or_insert_with(|| {
        let id = all.len() as u64 + 1;
        all.push(new(id));
        id
    })
}

impl PprofTables {
    fn new() -> Self {
        Self {
            // The format requires the empty string first.
            texts: vec![String::new()],
            text_ids: HashMap::from([(Arc::from(""), 0)]),
            mappings: Vec::new(),
            mapping_ids: HashMap::new(),
            functions: Vec::new(),
            function_ids: HashMap::new(),
            locations: Vec::new(),
            location_ids: HashMap::new(),
        }
    }

    fn text(&mut self, text: &str) -> i64 {
        if let Some(&id) = self.text_ids.get(text) {
            return id;
        }
        let id = self.texts.len() as i64;
        self.texts.push(text.to_string());
        self.text_ids.insert(text.into(), id);
        id
    }

    fn value_type(&mut self, ty: &str, unit: &str) -> protos::ValueType {
        protos::ValueType { ty: self.text(ty), unit: self.text(unit) }
    }

    fn mapping(&mut self, name: &Arc<str>, build_id: Option<&Arc<str>>) -> u64 {
        let (filename, id_text) = (self.text(name), self.text(build_id.map_or("", |id| id)));
        let new = |id| protos::Mapping { id, filename, build_id: id_text, ..Default::default() };
        intern(&mut self.mapping_ids, &mut self.mappings, (Arc::clone(name), build_id.cloned()), new)
    }

    fn function(&mut self, frame: &Frame) -> u64 {
        let name = self.text(&frame.display_name());
        let filename = self.text(frame.source.as_ref().map_or("", |(file, _)| file));
        let new = |id| protos::Function { id, name, system_name: name, filename, start_line: 0 };
        intern(&mut self.function_ids, &mut self.functions, (name, filename), new)
    }

    fn sample(&mut self, sample: &Sample, period: i64, node: &str) -> protos::Sample {
        // Inlined frames share the location of their enclosing function, innermost first, as the format requires.
        let location_id = sample
            .stack
            .split_inclusive(|frame| !frame.inlined)
            .map(|frames| self.location(frames))
            .collect();
        let count = i64::try_from(sample.count).unwrap_or(i64::MAX);
        protos::Sample {
            location_id,
            value: vec![count, count.saturating_mul(period)],
            label: self.labels(sample, node),
        }
    }

    fn location(&mut self, frames: &[Frame]) -> u64 {
        let outer = &frames[frames.len() - 1];
        let mapping_id =
            outer.module.as_ref().map_or(0, |module| self.mapping(module, outer.build_id.as_ref()));
        let mut address = outer.offset;
        if let Some(mapping) =
            mapping_id.checked_sub(1).and_then(|index| self.mappings.get_mut(index as usize))
        {
            mapping.has_functions |= frames.iter().any(|frame| frame.function.is_some());
            mapping.has_filenames |= frames.iter().any(|frame| frame.source.is_some());
            mapping.has_line_numbers = mapping.has_filenames;
            mapping.has_inline_frames |= frames.len() > 1;
            // Frames have file offsets, but the format requires addresses inside the mapping.
            let inside = address.wrapping_sub(mapping.file_offset);
            if inside < mapping.memory_limit.saturating_sub(mapping.memory_start) {
                address = mapping.memory_start + inside;
            }
        }
        let line = |frame: &Frame| frame.source.as_ref().map_or(0, |&(_, line)| i64::from(line));
        let lines: Vec<_> = frames.iter().map(|frame| (self.function(frame), line(frame))).collect();
        let line = lines.iter().map(|&(function_id, line)| protos::Line { function_id, line }).collect();
        let new = |id| protos::Location { id, mapping_id, address, line, is_folded: false };
        intern(&mut self.location_ids, &mut self.locations, (mapping_id, address, lines), new)
    }

    /// The labels of a sample: those that are known. A label with an unknown value is left out.
    fn labels(&mut self, sample: &Sample, node: &str) -> Vec<protos::Label> {
        let (pod, container) = (sample.owner.pod.as_ref(), sample.owner.container.as_ref());
        let texts = [
            ("comm", Some(&*sample.comm)),
            ("thread", Some(&*sample.thread)),
            ("container", container.map(|container| container.name.as_str())),
            ("container_id", container.map(|container| container.id.as_str())),
            ("image", container.map(|container| container.image.as_str())),
            ("pod", pod.map(|pod| pod.name.as_str())),
            ("namespace", pod.map(|pod| pod.namespace.as_str())),
            ("node", Some(node)),
        ];
        let mut labels = Vec::with_capacity(texts.len() + 2);
        for (key, number) in [("pid", sample.pid), ("tid", sample.tid)] {
            labels.push(protos::Label { key: self.text(key), num: i64::from(number), ..Default::default() });
        }
        for (key, value) in texts {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                labels.push(protos::Label {
                    key: self.text(key),
                    str: self.text(value),
                    ..Default::default()
                });
            }
        }
        labels
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::export::example;

    fn round_trip() -> protos::Profile {
        let mut packed = Vec::new();
        write(&example::profile(), &mut packed).unwrap();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).unwrap();
        protos::Profile::decode(bytes.as_slice()).unwrap()
    }

    fn text(profile: &protos::Profile, id: i64) -> &str {
        &profile.string_table[usize::try_from(id).unwrap()]
    }

    #[test]
    fn values_period_and_times_are_written_in_nanoseconds() {
        let read = round_trip();
        let types: Vec<_> =
            read.sample_type.iter().map(|t| (text(&read, t.ty), text(&read, t.unit))).collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!(read.sample[0].value, [30, 30 * (1_000_000_000 / 99)]);
        assert_eq!(read.time_nanos, 1_800_000_000_000_000_000);
        assert_eq!(read.duration_nanos, 15_000_000_000);
        let comments: Vec<_> = read.comment.iter().map(|&id| text(&read, id)).collect();
        let expected =
            ["podopsy: 45 samples at 99 Hz on node-1", "frames with a name: 6 of 8", "loss ring_full: 2"];
        assert_eq!(comments, expected);
    }

    #[test]
    fn labels_name_the_pod_and_unknown_labels_are_left_out() {
        let read = round_trip();
        let labels = |index: usize| -> HashMap<&str, String> {
            let value = |label: &protos::Label| match label.str {
                0 => label.num.to_string(),
                id => text(&read, id).to_string(),
            };
            read.sample[index].label.iter().map(|label| (text(&read, label.key), value(label))).collect()
        };
        let checkout = labels(0);
        for (key, value) in [
            ("pid", "4242"),
            ("tid", "4243"),
            ("comm", "checkout"),
            ("thread", "tokio-worker"),
            ("container", "api"),
            ("container_id", example::CONTAINER_ID),
            ("image", "registry/checkout:1"),
            ("pod", "checkout-0"),
            ("namespace", "shop"),
            ("node", "node-1"),
        ] {
            assert_eq!(checkout[key], value);
        }
        let host = labels(2);
        assert_eq!(
            (host["pid"].as_str(), host.contains_key("pod"), host.contains_key("container")),
            ("1", false, false)
        );
    }

    #[test]
    fn inlined_functions_become_lines_of_one_location_innermost_first() {
        let read = round_trip();
        let locations: Vec<_> = read.sample[0]
            .location_id
            .iter()
            .map(|&id| &read.location[usize::try_from(id).unwrap() - 1])
            .collect();
        assert_eq!(locations.len(), 4);
        let lines = |location: &protos::Location| -> Vec<(String, i64)> {
            let name = |line: &protos::Line| {
                text(&read, read.function[usize::try_from(line.function_id).unwrap() - 1].name).to_string()
            };
            location.line.iter().map(|line| (name(line), line.line)).collect()
        };
        assert_eq!(lines(locations[1]), [("cart::price".to_string(), 7), ("cart::total".to_string(), 40)]);
        assert_eq!(lines(locations[2]), [("checkout+0x1500".to_string(), 0)]);
        // File offset 0x1234 in the mapping of 0x1000.. at 0x401000.
        assert_eq!(locations[1].address, 0x40_1234);
        let mapping = &read.mapping[usize::try_from(locations[1].mapping_id).unwrap() - 1];
        assert_eq!(
            (text(&read, mapping.filename), text(&read, mapping.build_id)),
            ("/app/checkout", "c0ffee")
        );
        assert!(mapping.has_functions && mapping.has_line_numbers && mapping.has_inline_frames);
        let mut texts = read.string_table.clone();
        texts.sort();
        texts.dedup();
        assert_eq!((texts.len(), read.string_table[0].as_str()), (read.string_table.len(), ""));
    }

    #[test]
    #[ignore = "needs go: apt-get install golang-go"]
    fn go_tool_pprof_reads_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&example::profile(), file.as_file()).unwrap();
        let run = |mode: &str| {
            let command = std::process::Command::new("go")
                .args(["tool", "pprof", mode])
                .arg(file.path())
                .output()
                .unwrap();
            assert!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
            String::from_utf8_lossy(&command.stdout).into_owned()
        };
        assert!(run("-tags").contains("checkout-0"));
        assert!(run("-top").contains("schedule"));
        assert!(run("-raw").contains("cart::price"));
    }
}
