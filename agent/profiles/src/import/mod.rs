//! Reads profiles from files, written by podopsy or by any other program.
//!
//! A file is untrusted: every size is checked before memory is allocated for it. A file over a bound is refused with an
//! error that names the bound, and never truncated silently. Must not depend on: processes, pods, how a profile is
//! recorded or rendered.

mod drop_frames;
mod function_name;
pub mod pprof;
pub mod wire;

use std::sync::Arc;

use podopsy_model::Owner;
use podopsy_model::profile::{Frame, Profile, Sample};

/// A type of values, such as `cpu` in `nanoseconds`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    pub kind: String,
    pub unit: String,
}

/// A profile reduced to what a comparison needs: stacks of functions, and one value for each.
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
    stacks: Vec<ImportedStack>,
}

#[derive(Clone, Copy, Debug)]
struct ImportedStack {
    /// Range in [`ImportedProfile::frames`].
    start: usize,
    end: usize,
    value: u64,
}

impl ImportedProfile {
    /// The stacks, innermost frame first, with their values.
    pub fn stacks(&self) -> impl Iterator<Item = (&[u32], u64)> {
        self.stacks.iter().map(|stack| (&self.frames[stack.start..stack.end], stack.value))
    }

    /// Converts to a profile whose values are sample counts. Frames have a function only, and samples no owner and no
    /// process. All other fields come from `base`.
    pub fn to_profile(&self, base: Profile) -> Profile {
        let frame = |&number: &u32| Frame {
            function: self.functions.get(number as usize).cloned(),
            ..Frame::default()
        };
        let (unknown_owner, no_name) = (Arc::new(Owner::default()), Arc::<str>::from(""));
        let sample = |(stack, count): (&[u32], u64)| Sample {
            stack: stack.iter().map(frame).collect(),
            count,
            pid: 0,
            tid: 0,
            thread: no_name.clone(),
            comm: no_name.clone(),
            owner: unknown_owner.clone(),
        };
        Profile { samples: self.stacks().map(sample).collect(), ..base }
    }

    /// Multiplies all values.
    pub fn scale(&mut self, factor: u64) {
        for stack in &mut self.stacks {
            stack.value = stack.value.saturating_mul(factor);
        }
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
        imported.stacks.push(ImportedStack { start, end: imported.frames.len(), value: *value });
    }
    imported
}
