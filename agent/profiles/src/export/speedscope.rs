//! Writes speedscope's own format. <https://www.speedscope.app> reads such a file without sending it anywhere.
//!
//! Must not depend on: pprof, SVG, folded stacks.
//!
//! Format: <https://www.speedscope.app/file-format-schema.json>. Each process of a container becomes a profile in the
//! file's menu, the one with most samples first. The threads of a process are counted together.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use serde::Serialize;

use super::{owner_path, sample_value, title};
use podopsy_model::profile::{Frame, Profile, Sample, Sampling};

/// Writes `profile`; weights are CPU nanoseconds or page faults (samples × period), as in pprof.
pub fn write(profile: &Profile, mut out: impl Write) -> anyhow::Result<()> {
    serde_json::to_writer(&mut out, &file(profile))?;
    out.flush()?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SpeedscopeFile {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: String,
    name: String,
    active_profile_index: usize,
    shared: SharedFrames,
    profiles: Vec<SampledProfile>,
}

#[derive(Serialize)]
struct SharedFrames {
    frames: Vec<SpeedscopeFrame>,
}

#[derive(Serialize)]
struct SpeedscopeFrame {
    name: String,
    /// The source file, or the module if the source is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SampledProfile {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    /// Outermost frame first; indices into [`SharedFrames::frames`].
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

fn file(profile: &Profile) -> SpeedscopeFile {
    let period = sample_value(profile.sampling);
    let mut frames = FrameTable::default();
    let mut by_process: HashMap<String, usize> = HashMap::new();
    let mut profiles: Vec<SampledProfile> = Vec::new();
    for sample in &profile.samples {
        let name = format!("{} {}", owner_path(&sample.owner), sample.comm);
        let index = *by_process.entry(name.clone()).or_insert_with(|| {
            profiles.push(SampledProfile::new(name, profile.sampling));
            profiles.len() - 1
        });
        profiles[index].add(frames.stack(sample), sample.count.saturating_mul(period));
    }
    // Profiles with equal values are sorted by name, so that the order is the same in each run.
    profiles.sort_by(|a, b| b.end_value.cmp(&a.end_value).then_with(|| a.name.cmp(&b.name)));
    if profiles.is_empty() {
        // speedscope rejects a file without a profile, and the profile of an idle pod may be empty.
        profiles.push(SampledProfile::new("(no samples)".to_owned(), profile.sampling));
    }
    SpeedscopeFile {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: format!("podopsy {}", env!("CARGO_PKG_VERSION")),
        name: title(profile),
        active_profile_index: 0,
        shared: SharedFrames { frames: frames.all },
        profiles,
    }
}

impl SampledProfile {
    fn new(name: String, sampling: Sampling) -> Self {
        let unit = match sampling {
            Sampling::Cpu { .. } => "nanoseconds",
            Sampling::Growth { .. } => "none",
        };
        Self {
            kind: "sampled",
            name,
            unit,
            start_value: 0,
            end_value: 0,
            samples: Vec::new(),
            weights: Vec::new(),
        }
    }

    fn add(&mut self, stack: Vec<usize>, weight: u64) {
        self.end_value = self.end_value.saturating_add(weight);
        self.samples.push(stack);
        self.weights.push(weight);
    }
}

/// Name, file and line.
type FrameKey = (String, Option<Arc<str>>, Option<u32>);

/// The distinct frames of all profiles.
#[derive(Default)]
struct FrameTable {
    all: Vec<SpeedscopeFrame>,
    indices: HashMap<FrameKey, usize>,
}

impl FrameTable {
    fn stack(&mut self, sample: &Sample) -> Vec<usize> {
        sample.stack.iter().rev().map(|frame| self.index(frame)).collect()
    }

    fn index(&mut self, frame: &Frame) -> usize {
        let (file, line) = match &frame.source {
            Some((file, line)) => (Some(Arc::clone(file)), Some(*line)),
            None => (frame.module.clone(), None),
        };
        let name = frame.display_name().into_owned();
        *self.indices.entry((name.clone(), file.clone(), line)).or_insert_with(|| {
            self.all.push(SpeedscopeFrame { name, file, line });
            self.all.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::export::example;

    fn read(profile: &Profile) -> Value {
        let mut bytes = Vec::new();
        write(profile, &mut bytes).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Checks what speedscope's schema demands of a file with sampled profiles.
    fn check(file: &Value) {
        assert_eq!(file["$schema"], "https://www.speedscope.app/file-format-schema.json");
        let frames = file["shared"]["frames"].as_array().unwrap();
        for frame in frames {
            assert!(frame["name"].is_string());
            assert!(frame.get("file").is_none_or(Value::is_string));
            assert!(frame.get("line").is_none_or(Value::is_u64));
            assert!(frame.as_object().unwrap().keys().all(|key| ["name", "file", "line"].contains(&&**key)));
        }
        let profiles = file["profiles"].as_array().unwrap();
        assert!((file["activeProfileIndex"].as_u64().unwrap() as usize) < profiles.len());
        for profile in profiles {
            assert_eq!(profile["type"], "sampled");
            assert!(["none", "nanoseconds"].contains(&profile["unit"].as_str().unwrap()));
            let (samples, weights) =
                (profile["samples"].as_array().unwrap(), profile["weights"].as_array().unwrap());
            assert_eq!(samples.len(), weights.len());
            let all = samples.iter().flat_map(|sample| sample.as_array().unwrap());
            assert!(all.map(|frame| frame.as_u64().unwrap() as usize).all(|frame| frame < frames.len()));
            let sum: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
            let (start, end) =
                (profile["startValue"].as_u64().unwrap(), profile["endValue"].as_u64().unwrap());
            assert_eq!(end - start, sum);
        }
    }

    #[test]
    fn the_file_follows_the_schema_and_stacks_begin_with_the_outermost_frame() {
        let file = read(&example::profile());
        check(&file);
        assert_eq!(file["name"], "On-CPU: 2 workloads on node-1");
        let first = &file["profiles"][0];
        assert_eq!(
            (&first["name"], &first["unit"]),
            (&"shop/checkout-0/api checkout".into(), &"nanoseconds".into())
        );
        assert_eq!(first["weights"][0], 30 * (1_000_000_000 / 99));
        let names: Vec<_> = first["samples"][0]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| file["shared"]["frames"][id.as_u64().unwrap() as usize].clone())
            .collect();
        let name = |index: usize| names[index]["name"].as_str().unwrap();
        assert_eq!(
            [name(0), name(1), name(2), name(3), name(4)],
            ["main", "checkout+0x1500", "cart::total", "cart::price", "schedule"]
        );
        assert_eq!((&names[3]["file"], &names[3]["line"]), (&"/src/cart.rs".into(), &7.into()));
        assert_eq!((&names[0]["file"], names[0].get("line")), (&"/app/checkout".into(), None));
    }

    #[test]
    fn a_profile_without_samples_is_written_as_an_empty_profile() {
        let file = read(&Profile { samples: Vec::new(), ..example::profile() });
        check(&file);
        assert_eq!(file["profiles"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_growth_profile_is_weighted_in_page_faults() {
        let file = read(&Profile { sampling: Sampling::Growth { every: 16 }, ..example::profile() });
        check(&file);
        assert_eq!(
            (&file["profiles"][0]["unit"], &file["profiles"][0]["weights"][0]),
            (&"none".into(), &(30 * 16).into())
        );
    }
}
