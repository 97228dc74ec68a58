//! Profiles that were written before, by podopsy or by any other program.
//!
//! Must not know: processes, pods, how a profile is made or rendered. A file is whoever's sent it: every size is bounded
//! before memory is taken for it, and what is over a bound is refused with the bound, never cut off in silence.

pub mod pprof;
pub mod wire;

use std::sync::Arc;

use podopsy_model::Owner;
use podopsy_model::profile::{Frame, Profile, Sample};

/// A profile as far as comparing needs it: stacks of functions, and one value each.
#[derive(Debug, Default)]
pub struct Imported {
    /// What the values are: `cpu` in `nanoseconds`.
    pub kind: String,
    pub unit: String,
    /// Names, escaped; a frame without a function is `module+0xaddress`.
    pub functions: Vec<Arc<str>>,
    /// Innermost first, as numbers of [`Imported::functions`], one stack after the other.
    frames: Vec<u32>,
    stacks: Vec<Stack>,
}

#[derive(Clone, Copy, Debug)]
struct Stack {
    /// In [`Imported::frames`].
    start: usize,
    end: usize,
    value: u64,
}

impl Imported {
    /// Stacks, innermost first, with their values.
    pub fn stacks(&self) -> impl Iterator<Item = (&[u32], u64)> {
        self.stacks.iter().map(|stack| (&self.frames[stack.start..stack.end], stack.value))
    }

    /// As a profile of so many samples: functions by name alone, of nobody in particular.
    pub fn profile(&self, of: Profile) -> Profile {
        let frame = |&number: &u32| Frame {
            function: self.functions.get(number as usize).cloned(),
            ..Frame::default()
        };
        let (nobody, nothing) = (Arc::new(Owner::default()), Arc::<str>::from(""));
        let sample = |(stack, count): (&[u32], u64)| Sample {
            stack: stack.iter().map(frame).collect(),
            count,
            pid: 0,
            tid: 0,
            thread: nothing.clone(),
            comm: nothing.clone(),
            owner: nobody.clone(),
        };
        Profile { samples: self.stacks().map(sample).collect(), ..of }
    }

    pub fn total(&self) -> u64 {
        self.stacks.iter().fold(0, |sum, stack| sum.saturating_add(stack.value))
    }
}

/// Stacks of names, innermost first.
#[cfg(test)]
pub(crate) fn example(stacks: &[(&[&str], u64)]) -> Imported {
    let mut imported = Imported { kind: "cpu".into(), unit: "nanoseconds".into(), ..Imported::default() };
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
        imported.stacks.push(Stack { start, end: imported.frames.len(), value: *value });
    }
    imported
}
