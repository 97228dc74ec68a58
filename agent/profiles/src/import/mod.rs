//! Reads profiles from files, written by podopsy or by any other program.
//!
//! A file is untrusted: every size is checked before memory is allocated for it. A file over a bound is refused with an
//! error that names the bound, and never truncated silently. Must not depend on: processes, pods, how a profile is
//! recorded or rendered.

mod drop_frames;
mod function_name;
mod labels;
pub mod pprof;
pub mod wire;

use std::sync::Arc;

use labels::SampleLabels;
use podopsy_model::Owner;
use podopsy_model::profile::{Frame, Profile, Sample};

/// A type of values, such as `cpu` in `nanoseconds`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    pub kind: String,
    pub unit: String,
}

/// A profile of one kind of values: stacks of functions with what their labels say, and one value for each.
#[derive(Debug, Default)]
pub struct ImportedProfile {
    /// The type of the values and its unit, such as `cpu` in `nanoseconds`.
    pub kind: String,
    pub unit: String,
    /// Function names, escaped; a frame without a function is `module+0xaddress`.
    pub functions: Vec<Arc<str>>,
    /// The frames of all stacks, one stack after the other, innermost first: indices into
    /// [`ImportedProfile::functions`].
    frames: Vec<u32>,
    /// The file of each frame, as an index into [`ImportedProfile::module_names`].
    modules: Vec<u32>,
    /// The first one is empty: the file does not say.
    module_names: Vec<Arc<str>>,
    labels: Vec<SampleLabels>,
    stacks: Vec<ImportedStack>,
}

#[derive(Clone, Copy, Debug)]
struct ImportedStack {
    /// Range in [`ImportedProfile::frames`].
    start: usize,
    end: usize,
    /// Index into [`ImportedProfile::labels`].
    labels: u32,
    value: u64,
}

impl ImportedProfile {
    /// The stacks, innermost frame first, with their values.
    pub fn stacks(&self) -> impl Iterator<Item = (&[u32], u64)> {
        self.stacks.iter().map(|stack| (&self.frames[stack.start..stack.end], stack.value))
    }

    /// Converts to a profile whose values are sample counts. Frames have a function and a module, and samples what their labels
    /// say of their process, container and pod. All other fields come from `base`.
    pub fn to_profile(&self, base: Profile) -> Profile {
        let unlabelled = SampleLabels::default();
        let sample = |stack: &ImportedStack| {
            let labels = self.labels.get(stack.labels as usize).unwrap_or(&unlabelled);
            Sample {
                stack: (stack.start..stack.end).map(|at| self.frame(at)).collect(),
                count: stack.value,
                pid: labels.pid,
                tid: labels.tid,
                thread: labels.thread.clone(),
                comm: labels.comm.clone(),
                owner: labels.owner.clone(),
            }
        };
        Profile { samples: self.stacks.iter().map(sample).collect(), ..base }
    }

    /// Like [`Self::to_profile`], with the functions alone: no module, no process, no owner.
    pub fn to_functions(&self, base: Profile) -> Profile {
        let bare = |sample: Sample| Sample {
            stack: sample.stack.iter().map(|frame| Frame { module: None, ..frame.clone() }).collect(),
            pid: 0,
            tid: 0,
            thread: Arc::default(),
            comm: Arc::default(),
            owner: Arc::new(Owner::default()),
            ..sample
        };
        let profile = self.to_profile(base);
        Profile { samples: profile.samples.into_iter().map(bare).collect(), ..profile }
    }

    fn frame(&self, at: usize) -> Frame {
        let function = self.frames.get(at).and_then(|&number| self.functions.get(number as usize));
        let module = self.modules.get(at).and_then(|&number| self.module_names.get(number as usize));
        let module = module.filter(|name| !name.is_empty()).cloned();
        Frame { function: function.cloned(), module, ..Frame::default() }
    }

    /// Multiplies all values.
    pub fn scale(&mut self, factor: u64) {
        for stack in &mut self.stacks {
            stack.value = stack.value.saturating_mul(factor);
        }
    }

    /// For each of [`ImportedProfile::functions`]: the sum of the values in which it is the innermost one, and of those in which it
    /// is at all. A recursion counts once.
    pub fn sums(&self) -> Vec<(u64, u64)> {
        // By index, and not by name: a profile has millions of frames, but only thousands of functions.
        let mut sums = vec![(0_u64, 0_u64); self.functions.len()];
        let mut last_stack = vec![usize::MAX; self.functions.len()];
        for (index, (stack, value)) in self.stacks().enumerate() {
            if let Some(&innermost) = stack.first() {
                let own = &mut sums[innermost as usize].0;
                *own = own.saturating_add(value);
            }
            for &function in stack {
                if std::mem::replace(&mut last_stack[function as usize], index) != index {
                    let sum = &mut sums[function as usize].1;
                    *sum = sum.saturating_add(value);
                }
            }
        }
        sums
    }

    /// The sum of all values.
    pub fn total(&self) -> u64 {
        self.stacks.iter().fold(0, |sum, stack| sum.saturating_add(stack.value))
    }
}

#[cfg(test)]
mod foreign_tests;

/// A profile of stacks of names, innermost first.
#[cfg(test)]
pub(crate) fn example(stacks: &[(&[&str], u64)]) -> ImportedProfile {
    let mut imported =
        ImportedProfile { kind: "cpu".into(), unit: "nanoseconds".into(), ..ImportedProfile::default() };
    for (stack, value) in stacks {
        let start = imported.frames.len();
        for name in *stack {
            let known = imported.functions.iter().position(|function| **function == **name);
            let number = known.unwrap_or_else(|| {
                imported.functions.push((*name).into());
                imported.functions.len() - 1
            });
            imported.frames.push(u32::try_from(number).unwrap());
        }
        imported.stacks.push(ImportedStack { start, end: imported.frames.len(), labels: 0, value: *value });
    }
    imported
}
