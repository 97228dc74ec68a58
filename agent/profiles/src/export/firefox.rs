//! Writes the Firefox Profiler's processed format. <https://profiler.firefox.com> reads such a file in the browser.
//!
//! Must not depend on: pprof, SVG, folded stacks.
//!
//! The format is made for samples with times, but podopsy's profiles have counted stacks. Each stack becomes one sample
//! whose weight is its count, and a thread's samples follow each other, most frequent first. So lengths are true, but
//! the order is not that of time. Modules are written as subcategories, because the crate's frames have no field for
//! them.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::time::Duration;

use fxprof_processed_profile::{
    CategoryColor, CategoryHandle, CategoryPairHandle, CpuDelta, Frame as FirefoxFrame, FrameFlags,
    FrameInfo, ProcessHandle, Profile as FirefoxProfile, ReferenceTimestamp, SamplingInterval, ThreadHandle,
    Timestamp, WeightType,
};

use super::{is_kernel, owner_path, sample_value, title};
use podopsy_model::profile::{Frame, Profile, Sample, Sampling, file_name};

/// Threads with a track of their own; a browser cannot handle many more. The other threads share one track, so that
/// sums stay true.
const MAX_TRACKS: usize = 256;
/// Modules with a subcategory of their own. The crate panics at 65,536.
const MAX_MODULES: usize = 4096;

/// Writes `profile`; weights are samples.
pub fn write(profile: &Profile, mut out: impl Write) -> anyhow::Result<()> {
    serde_json::to_writer(&mut out, &tracks(profile))?;
    out.flush()?;
    Ok(())
}

fn tracks(profile: &Profile) -> FirefoxProfile {
    let start = Duration::from_millis(u64::try_from(profile.start.as_millisecond()).unwrap_or(0));
    let every = match profile.sampling {
        Sampling::Cpu { .. } => sample_value(profile.sampling),
        // Page faults have no duration. One millisecond each makes the track readable.
        Sampling::Growth { .. } => 1_000_000,
    };
    let mut writer = FirefoxWriter::new(FirefoxProfile::new(
        &title(profile),
        ReferenceTimestamp::from_duration_since_unix_epoch(start),
        SamplingInterval::from_nanos(every.max(1)),
    ));
    // The threads with most samples get tracks.
    let mut counts: HashMap<(u32, u32), u64> = HashMap::new();
    for sample in &profile.samples {
        *counts.entry((sample.pid, sample.tid)).or_default() += sample.count;
    }
    let mut threads: Vec<((u32, u32), u64)> = counts.into_iter().collect();
    threads.sort_by_key(|&(thread, count)| (std::cmp::Reverse(count), thread));
    let shared: Vec<_> = threads.drain(threads.len().min(MAX_TRACKS)..).map(|(thread, _)| thread).collect();
    let shared_track = (!shared.is_empty()).then(|| writer.add_shared_track(shared.len()));
    let own: HashSet<(u32, u32)> = threads.into_iter().map(|(thread, _)| thread).collect();
    for sample in &profile.samples {
        let track = match shared_track {
            Some(shared) if !own.contains(&(sample.pid, sample.tid)) => shared,
            _ => writer.track(sample),
        };
        writer.add_sample(track, sample, every);
    }
    // The file contains the names: the site must not look for symbols.
    writer.tracks.set_symbolicated(true);
    writer.tracks
}

struct FirefoxWriter {
    tracks: FirefoxProfile,
    user: CategoryHandle,
    kernel: CategoryHandle,
    modules: HashMap<(bool, String), CategoryPairHandle>,
    processes: HashMap<(u32, String), ProcessHandle>,
    threads: HashMap<(u32, u32, String), ThreadHandle>,
    /// Where each track ends so far, in nanoseconds.
    ends: HashMap<ThreadHandle, u64>,
}

impl FirefoxWriter {
    fn new(mut tracks: FirefoxProfile) -> Self {
        tracks.set_os_name("Linux");
        let user = tracks.add_category("User", CategoryColor::Yellow);
        let kernel = tracks.add_category("Kernel", CategoryColor::Orange);
        Self {
            tracks,
            user,
            kernel,
            modules: HashMap::new(),
            processes: HashMap::new(),
            threads: HashMap::new(),
            ends: HashMap::new(),
        }
    }

    /// The track for all threads without one of their own.
    fn add_shared_track(&mut self, threads: usize) -> ThreadHandle {
        let zero = Timestamp::from_nanos_since_reference(0);
        let process = self.tracks.add_process(&format!("{threads} threads with fewer samples"), 0, zero);
        let thread = self.tracks.add_thread(process, 0, zero, true);
        self.tracks.set_thread_samples_weight_type(thread, WeightType::Samples);
        thread
    }

    /// The track of a sample's thread, added on first use.
    fn track(&mut self, sample: &Sample) -> ThreadHandle {
        let name = format!("{} {}", owner_path(&sample.owner), sample.comm);
        let key = (sample.pid, sample.tid, format!("{name} {}", sample.thread));
        if let Some(&thread) = self.threads.get(&key) {
            return thread;
        }
        let zero = Timestamp::from_nanos_since_reference(0);
        let process = match self.processes.get(&(sample.pid, name.clone())) {
            Some(&process) => process,
            None => {
                let process = self.tracks.add_process(&name, sample.pid, zero);
                self.processes.insert((sample.pid, name), process);
                process
            }
        };
        let thread = self.tracks.add_thread(process, sample.tid, zero, sample.pid == sample.tid);
        self.tracks.set_thread_name(thread, &sample.thread);
        self.tracks.set_thread_samples_weight_type(thread, WeightType::Samples);
        self.threads.insert(key, thread);
        thread
    }

    fn add_sample(&mut self, track: ThreadHandle, sample: &Sample, every: u64) {
        let mut stack = None;
        for frame in sample.stack.iter().rev() {
            let name = self.tracks.intern_string(&frame.display_name());
            let (frame, category_pair) = (FirefoxFrame::Label(name), self.category(frame));
            let frame = self
                .tracks
                .intern_frame(track, FrameInfo { frame, category_pair, flags: FrameFlags::empty() });
            stack = Some(self.tracks.intern_stack(track, stack, frame));
        }
        let end = self.ends.entry(track).or_default();
        let time = Timestamp::from_nanos_since_reference(*end);
        let took = sample.count.saturating_mul(every);
        *end = end.saturating_add(took);
        // Weights have 31 bits.
        let mut left = sample.count;
        while left > 0 {
            let weight = i32::try_from(left).unwrap_or(i32::MAX);
            self.tracks.add_sample(track, time, stack, CpuDelta::from_nanos(took), weight);
            left -= u64::from(weight.unsigned_abs());
        }
    }

    /// The subcategory of a frame's module, below `User` or `Kernel`.
    fn category(&mut self, frame: &Frame) -> CategoryPairHandle {
        let is_kernel = is_kernel(frame);
        let category = if is_kernel { self.kernel } else { self.user };
        let Some(module) = frame.module.as_deref() else { return category.into() };
        let module = file_name(module);
        if let Some(&known) = self.modules.get(&(is_kernel, module.to_owned())) {
            return known;
        }
        if self.modules.len() >= MAX_MODULES {
            return category.into();
        }
        let pair = self.tracks.add_subcategory(category, module);
        self.modules.insert((is_kernel, module.to_owned()), pair);
        pair
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::export::example;

    fn read(profile: &Profile) -> Value {
        let mut bytes = Vec::new();
        write(profile, &mut bytes).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn column<'a>(table: &'a Value, name: &str) -> &'a Vec<Value> {
        table[name].as_array().unwrap_or_else(|| panic!("no column {name} in {table}"))
    }

    /// A stack's names, innermost first, found as the site finds them: stack → frame → function → string.
    fn names(thread: &Value, mut stack: Option<u64>) -> Vec<String> {
        let (stacks, frames) = (&thread["stackTable"], &thread["frameTable"]);
        let mut names = Vec::new();
        while let Some(at) = stack {
            let frame = column(stacks, "frame")[at as usize].as_u64().unwrap() as usize;
            let function = column(frames, "func")[frame].as_u64().unwrap() as usize;
            let name = column(&thread["funcTable"], "name")[function].as_u64().unwrap() as usize;
            names.push(column(thread, "stringArray")[name].as_str().unwrap().to_owned());
            stack = column(stacks, "prefix")[at as usize].as_u64();
        }
        names
    }

    #[test]
    fn a_written_profile_has_the_stacks_threads_weights_and_modules() {
        let file = read(&example::profile());
        assert_eq!(file["meta"]["product"], "On-CPU: 2 workloads on node-1");
        assert_eq!(file["meta"]["symbolicated"], true);
        let threads = column(&file, "threads");
        let thread =
            threads.iter().find(|thread| thread["processName"] == "shop/checkout-0/api checkout").unwrap();
        assert_eq!(
            (&thread["name"], &thread["tid"], &thread["pid"]),
            (&"tokio-worker".into(), &"4243".into(), &"4242".into())
        );
        let samples = &thread["samples"];
        assert_eq!((&samples["weightType"], &samples["length"]), (&"samples".into(), &1.into()));
        assert_eq!(column(samples, "weight")[0], 30);
        assert_eq!(
            names(thread, column(samples, "stack")[0].as_u64()),
            ["schedule", "cart::price", "cart::total", "checkout+0x1500", "main"]
        );
        let categories = column(&file["meta"], "categories");
        assert_eq!(categories[2]["name"], "Kernel");
        assert!(column(&categories[1], "subcategories").contains(&"checkout".into()));
        assert!(column(&categories[2], "subcategories").contains(&"[kernel]".into()));
    }

    #[test]
    fn tracks_are_bounded_and_the_samples_of_all_threads_are_written() {
        let mut profile = example::profile();
        let one = profile.samples[0].clone();
        profile.samples = (0..5000).map(|pid| Sample { pid, tid: pid, count: 2, ..one.clone() }).collect();
        profile.samples[0].stack[0].module = Some(Arc::from("[other]"));
        let file = read(&profile);
        let threads = column(&file, "threads");
        assert_eq!(threads.len(), MAX_TRACKS + 1);
        let weights = threads.iter().flat_map(|thread| column(&thread["samples"], "weight"));
        assert_eq!(weights.map(|weight| weight.as_u64().unwrap()).sum::<u64>(), 10_000);
        assert!(threads.iter().any(|thread| thread["processName"] == "4744 threads with fewer samples"));
    }
}
