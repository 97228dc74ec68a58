//! What a worker is asked, and what it answers. It never sees a pid, a pod or a path.

use std::time::Duration;

use podopsy_helper::FileStat;
use podopsy_parse::StackLossReason;
use podopsy_parse::elf::Layout;
use podopsy_parse::names::{DebugLink, FoundNames, NameQuery};
use podopsy_parse::perf_map::PerfMapNames;
use podopsy_parse::python::Interpreter;
use podopsy_parse::unwind::{FileRows, UnwindDigest};
use serde::{Deserialize, Serialize};

/// A job, and its bounds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JobOrder {
    pub job: Job,
    /// The CPU time that it may use.
    pub cpu: Duration,
    /// The first file must still be this one, or the answer is [`Answer::Changed`].
    pub unchanged: Option<FileStat>,
}

/// A job. The files that it is about are passed as descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// One file. Answer: [`Answer::Described`].
    Describe,
    /// The file, and its debug file if there is one. Answer: [`Answer::Names`].
    Names(NameQuery),
    /// A perf map. Answer: [`Answer::PerfMap`].
    PerfMap { addresses: Vec<u64> },
    /// One file, of which no section may have more than `max_bytes`. Answer: [`Answer::Unwind`].
    FindUnwind { max_bytes: u64, key: [u64; 2] },
    /// No file: the rows of the file of the last [`Job::FindUnwind`]. Answer: [`Answer::Rows`].
    ReadRows,
    /// Ends in the way that a test wants to see.
    #[cfg(feature = "testing")]
    Misbehave(crate::testing::Misbehaviour),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Described(Option<FileDescription>),
    Names(Result<FoundNames, StackLossReason>),
    PerfMap(Result<PerfMapNames, StackLossReason>),
    Unwind(Result<FoundUnwind, StackLossReason>),
    Rows(Result<FileRows, StackLossReason>),
    /// The file was written to since it was opened.
    Changed,
    /// The parser panicked, or a file could not be taken over.
    Panicked,
}

/// The kind of a job: a file that is bad for one kind may be good for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    Describe,
    /// Names, with debug information.
    DebugInfo,
    /// Names from symbol tables alone.
    Symbols,
    PerfMap,
    Unwind,
}

impl Job {
    pub fn kind(&self) -> JobKind {
        match self {
            Job::Describe => JobKind::Describe,
            Job::Names(query) if query.debug_info => JobKind::DebugInfo,
            Job::Names(_) => JobKind::Symbols,
            Job::PerfMap { .. } => JobKind::PerfMap,
            Job::FindUnwind { .. } | Job::ReadRows => JobKind::Unwind,
            #[cfg(feature = "testing")]
            Job::Misbehave(_) => JobKind::Symbols,
        }
    }
}

/// What an ELF file says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDescription {
    pub layout: Layout,
    /// Names the separate debug file.
    pub debug_link: Option<DebugLink>,
}

/// A file's unwind information, of which the rows can be read next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FoundUnwind {
    /// Files with the same digest have the same rows. An error is the reason why there are none.
    pub digest: Result<UnwindDigest, StackLossReason>,
    /// The file is a Python interpreter. An error is the reason why its functions will be missing.
    pub python: Result<Option<Interpreter>, StackLossReason>,
}
