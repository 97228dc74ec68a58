//! Profiles: stacks with their counts and owners.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::owner::Owner;

/// The module of a Python function's frame.
pub const PYTHON_MODULE: &str = "[python]";
/// The module that is shown for a frame without a known mapping.
pub const NO_MAPPING: &str = "[no mapping]";

/// The last component of a module's path. A module that is not a path (`[kernel]`) is returned unchanged.
pub fn file_name(module: &str) -> &str {
    module.rsplit('/').next().unwrap_or(module)
}

/// The name of a frame without a function: `file+0xoffset`.
pub fn unnamed_frame(module: &str, offset: u64) -> String {
    format!("{}+{offset:#x}", file_name(module))
}

/// One frame of a stack, symbolized as far as possible.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Frame {
    /// Demangled function name; null: no symbol; module and offset are still known. Shared, like module names,
    /// because a profile contains the same frame thousands of times.
    pub function: Option<Arc<str>>,
    /// File name of the mapping in the process's own mount namespace (`/usr/bin/python3.11`), `[kernel]`, `[vdso]`, or
    /// `[anonymous]` for code made at run time, `[python]` for a function of the program's own; null: no mapping.
    pub module: Option<Arc<str>>,
    /// The module's build id, hex; null: it has none, or the file could not be read.
    pub build_id: Option<Arc<str>>,
    /// Offset in the module's file, or the absolute address (kernel, `[anonymous]`, no mapping). For a return address it is
    /// the last byte of the call instruction, which is what is symbolized.
    pub offset: u64,
    /// Offset in the module's file where the function begins; null: it has a name, or its start is not known either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function_start: Option<u64>,
    /// Source file and line, if debug information has them.
    pub source: Option<(Arc<str>, u32)>,
    /// True for a function inlined into the frame that follows it.
    #[serde(default)]
    pub inlined: bool,
}

impl Frame {
    /// The name that a frame is shown with. A frame without a function is shown by module and offset, never hidden; all
    /// addresses of one function by the offset where it begins, if that is known.
    pub fn display_name(&self) -> Cow<'_, str> {
        match &self.function {
            Some(function) => Cow::Borrowed(function),
            None => {
                Cow::Owned(unnamed_frame(self.module.as_deref().unwrap_or(NO_MAPPING), self.shown_offset()))
            }
        }
    }

    /// The offset that stands for a function without a name.
    pub fn shown_offset(&self) -> u64 {
        self.function_start.unwrap_or(self.offset)
    }
}

/// A file or area that frames lie in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    pub name: Arc<str>,
    pub build_id: Option<Arc<str>>,
    /// Virtual address range and file offset of the executable mapping (of the first process seen with it).
    pub start: u64,
    pub end: u64,
    pub file_offset: u64,
}

/// Samples with the same stack, thread and owner.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Innermost first: kernel frames, then user frames.
    pub stack: Vec<Frame>,
    pub count: u64,
    pub pid: u32,
    pub tid: u32,
    /// Thread name (`comm`).
    pub thread: Arc<str>,
    /// Process name (`comm` of the leader) if known, else that of the thread.
    pub comm: Arc<str>,
    pub owner: Arc<Owner>,
}

/// How many user stacks of an owner are complete.
#[derive(Clone, Debug)]
pub struct Completeness {
    pub owner: Arc<Owner>,
    /// Samples that have a user stack.
    pub samples: u64,
    /// Those whose stack reaches its outermost frame.
    pub complete: u64,
    /// Samples with an incomplete stack, by reason.
    pub incomplete: BTreeMap<String, u64>,
}

impl Completeness {
    /// Creates an empty count.
    pub fn new(owner: Arc<Owner>) -> Self {
        Self { owner, samples: 0, complete: 0, incomplete: BTreeMap::new() }
    }
}

/// The size of the unwind tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnwindCost {
    /// The number of files with a table, and of distinct tables.
    pub files: usize,
    pub tables: usize,
    pub rows: usize,
    pub rules: usize,
    /// Kernel memory allocated for them, and how much of it they use.
    pub kernel_bytes: usize,
    pub used_bytes: usize,
}

/// What is sampled on each CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// CPU time, at this frequency.
    Cpu { frequency_hz: u64 },
    /// Memory that is touched for the first time: one page fault of every `every`. A huge page is one fault.
    Growth { every: u64 },
}

impl fmt::Display for Sampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sampling::Cpu { frequency_hz } => write!(f, "at {frequency_hz} Hz"),
            Sampling::Growth { every } => write!(f, "of one page fault in {every}"),
        }
    }
}

/// A finished profile.
#[derive(Clone, Debug)]
pub struct Profile {
    pub start: Timestamp,
    pub duration: Duration,
    pub sampling: Sampling,
    pub node: String,
    pub samples: Vec<Sample>,
    pub mappings: Vec<Mapping>,
    /// Why user stacks are incomplete, or samples are missing, by counter name.
    pub losses: BTreeMap<String, u64>,
    /// The completeness of stacks for each owner.
    pub quality: Vec<Completeness>,
    pub unwind: UnwindCost,
}

impl Profile {
    /// A profile without samples. Nothing was lost.
    pub fn empty(start: Timestamp, duration: Duration, sampling: Sampling, node: &str) -> Profile {
        Profile {
            start,
            duration,
            sampling,
            node: node.to_owned(),
            samples: Vec::new(),
            mappings: Vec::new(),
            losses: BTreeMap::new(),
            quality: Vec::new(),
            unwind: UnwindCost::default(),
        }
    }

    /// The number of samples with a user stack, and of those whose stack is complete.
    pub fn complete(&self) -> (u64, u64) {
        let sum = |count: fn(&Completeness) -> u64| self.quality.iter().map(count).sum();
        (sum(|quality| quality.samples), sum(|quality| quality.complete))
    }

    /// The number of all samples.
    pub fn total(&self) -> u64 {
        self.samples.iter().map(|sample| sample.count).sum()
    }
}
