//! speedscope's own format: what <https://www.speedscope.app> reads, from a file, without sending it anywhere.
//!
//! Must not know: pprof, SVG, folded stacks.
//!
//! Format: <https://www.speedscope.app/file-format-schema.json>. Each process of a container is a profile of its own in
//! the file's menu, the one with most samples first; its threads are counted together.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use serde::Serialize;

use super::{frame_name, owner_name, period, title};
use podopsy_model::profile::{Frame, Profile, Sample, Sampling};

/// Writes `profile`; weights are CPU nanoseconds or page faults (samples × period), as in pprof.
pub fn write(profile: &Profile, mut out: impl Write) -> anyhow::Result<()> {
    serde_json::to_writer(&mut out, &file(profile))?;
    out.flush()?;
    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: String,
    name: String,
    active_profile_index: usize,
    shared: Shared,
    profiles: Vec<Sampled>,
}

#[derive(Serialize)]
struct Shared {
    frames: Vec<Named>,
}

#[derive(Serialize)]
struct Named {
    name: String,
    /// Source file; without one, the module.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    /// Outermost first; numbers of [`Shared::frames`].
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

fn file(profile: &Profile) -> File {
    let period = period(profile.sampling);
    let mut frames = Frames::default();
    let mut of_process: HashMap<String, usize> = HashMap::new();
    let mut profiles: Vec<Sampled> = Vec::new();
    for sample in &profile.samples {
        let name = format!("{} {}", owner_name(&sample.owner), sample.comm);
        let index = *of_process.entry(name.clone()).or_insert_with(|| {
            profiles.push(Sampled::new(name, profile.sampling));
            profiles.len() - 1
        });
        profiles[index].add(frames.stack(sample), sample.count.saturating_mul(period));
    }
    // Names last, so that equal ones do not change places between runs.
    profiles.sort_by(|a, b| b.end_value.cmp(&a.end_value).then_with(|| a.name.cmp(&b.name)));
    if profiles.is_empty() {
        // speedscope refuses a file without a profile, and an idle pod is an answer.
        profiles.push(Sampled::new("(no samples)".to_owned(), profile.sampling));
    }
    File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: format!("podopsy {}", env!("CARGO_PKG_VERSION")),
        name: title(profile),
        active_profile_index: 0,
        shared: Shared { frames: frames.all },
        profiles,
    }
}

impl Sampled {
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

type Place = (String, Option<Arc<str>>, Option<u32>);

#[derive(Default)]
struct Frames {
    all: Vec<Named>,
    /// By name, file and line.
    known: HashMap<Place, usize>,
}

impl Frames {
    fn stack(&mut self, sample: &Sample) -> Vec<usize> {
        sample.stack.iter().rev().map(|frame| self.id(frame)).collect()
    }

    fn id(&mut self, frame: &Frame) -> usize {
        let (file, line) = match &frame.source {
            Some((file, line)) => (Some(Arc::clone(file)), Some(*line)),
            None => (frame.module.clone(), None),
        };
        let name = frame_name(frame).into_owned();
        *self.known.entry((name.clone(), file.clone(), line)).or_insert_with(|| {
            self.all.push(Named { name, file, line });
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

    /// What speedscope's schema demands of a file with sampled profiles, by hand.
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
    fn it_is_as_the_schema_demands_with_stacks_from_the_outermost_frame_on() {
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
    fn without_samples_there_is_an_empty_profile() {
        let file = read(&Profile { samples: Vec::new(), ..example::profile() });
        check(&file);
        assert_eq!(file["profiles"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn growth_is_counted_in_page_faults() {
        let file = read(&Profile { sampling: Sampling::Growth { every: 16 }, ..example::profile() });
        check(&file);
        assert_eq!(
            (&file["profiles"][0]["unit"], &file["profiles"][0]["weights"][0]),
            (&"none".into(), &(30 * 16).into())
        );
    }
}
