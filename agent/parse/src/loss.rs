//! The reasons why stacks lack frames, in one list, and the counters by reason.
//!
//! Must not depend on: files, processes, tables. The names are part of the output (profiles, metrics): keep them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Defines the enum with the name of each reason's counter, so that every name is written once.
macro_rules! loss_reasons {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// Why an address has no name, a file no unwind table, a row no rule, or a sample no Python function.
        ///
        /// One count is one address, file, entry, function or sample, as the variant says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum StackLossReason {
            $($(#[$doc])+ $variant,)+
        }

        impl StackLossReason {
            /// All of them, in the order of this list.
            pub const ALL: &[StackLossReason] = &[$(StackLossReason::$variant,)+];

            /// The name of the counter in profiles and metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(StackLossReason::$variant => $name,)+
                }
            }
        }
    };
}

loss_reasons! {
    /// The file system did not answer when the file was opened, or when another file of the container was.
    FileSystemNoAnswer = "file_system_no_answer",
    /// No opener could be started, or it was lost.
    OpenerUnavailable = "opener_unavailable",
    /// The mapping is of a device, a FIFO or something else that is not a regular file.
    FileNotRegular = "file_not_regular",
    /// The file is larger than the largest that podopsy reads.
    FileTooLarge = "file_too_large",
    /// The file could not be opened: the process ended, or a permission is missing.
    FileOutOfReach = "file_out_of_reach",
    /// Another file stands at the path of the mapping now.
    FileReplaced = "file_replaced",

    /// The file was written to after its segments were read, so its symbols cannot be trusted.
    FileChanged = "file_changed",
    /// The file's descriptor was closed before its symbols were read.
    FileEvicted = "file_evicted",
    /// The file's entry was removed from the table of files before the address was looked up.
    FileForgotten = "file_forgotten",
    /// A mapped file is not an ELF file of this kind of machine (64 bits, little-endian).
    FileNotElf = "file_not_elf",
    /// The file has neither symbols nor debug information, and no debug file of the host belongs to it.
    FileWithoutSymbols = "file_without_symbols",
    /// A descriptor was closed because too many files are held open.
    FilesEvicted = "files_evicted",
    /// A file's entry was removed because the table of files is full.
    FileEntriesForgotten = "files_forgotten",
    /// A symbol table is larger than its bound; it was left out.
    SymbolsTooLarge = "symbols_too_large",
    /// The debug information is larger than its bound; it was left out.
    DebugInfoTooLarge = "debug_info_too_large",
    /// A section of debug information is compressed in an unknown way, is damaged, or would be too large.
    DebugInfoPacked = "debug_info_packed",
    /// The packed symbol table of a stripped program (`.gnu_debugdata`) is damaged, or needs too much memory.
    MiniDebugInfoDamaged = "mini_debug_info_damaged",
    /// The offset lies in no loaded segment of the file.
    OffsetOutsideSegments = "offset_outside_segments",
    /// The file has symbols, but none for the address.
    SymbolNotFound = "symbol_not_found",
    /// The names of the file's addresses take more memory than one answer may.
    NamesTooLarge = "names_too_large",
    /// Parsing the file took more CPU time than it may.
    ParserTooSlow = "parser_too_slow",
    /// Reading the file took too long: its file system does not answer, or the machine is very busy.
    ParserNoAnswer = "parser_no_answer",
    /// Parsing the file needed more memory than it may.
    ParserOutOfMemory = "parser_out_of_memory",
    /// The parsing worker died of the file.
    ParserDied = "parser_died",
    /// Each of several parsing workers was killed from outside while it read the file.
    ParserKilled = "parser_killed",
    /// The files of the container took more CPU time than they may.
    ParserOverBudget = "parser_over_budget",
    /// No parsing worker could be started.
    ParserUnavailable = "parser_unavailable",
    /// A perf map could not be read.
    PerfMapUnreadable = "perf_map_unreadable",
    /// A perf map is larger than its bound; its beginning was not read.
    PerfMapTruncated = "perf_map_truncated",
    /// No file with the build id is held open.
    BuildIdUnknown = "build_id_unknown",
    /// The process had ended before its mappings could be read.
    MappingsProcessGone = "process_gone",
    /// The address is of a process whose mappings were never read.
    ProcessUnknown = "process_unknown",
    /// The address is of a program that its process had replaced by another one (exec) before the mappings were read.
    ProgramReplaced = "program_replaced",
    /// A process's entry was removed because the table of processes is full.
    ProcessesForgotten = "processes_forgotten",
    /// Another process had the pid before.
    PidReused = "pid_reused",
    /// The process has more executable mappings than are kept.
    MappingsTruncated = "mappings_truncated",
    /// The address lies in no executable mapping of its process.
    NoMapping = "no_mapping",
    /// The address lies in code made at run time, and no perf map names it.
    AnonymousCode = "anonymous_code",
    /// The vDSO's image could not be read.
    VdsoUnreadable = "vdso_unreadable",
    /// The kernel hides its addresses (`kptr_restrict`, or CAP_SYSLOG is missing).
    KernelAddressesHidden = "kernel_addresses_hidden",
    /// The kernel address lies in no function of `/proc/kallsyms`.
    KernelSymbolNotFound = "kernel_symbol_not_found",
    /// A sample was counted without its stack because there are too many distinct stacks.
    StacksEvicted = "stacks_evicted",

    /// The file is not an ELF file.
    NotElf = "unwind_not_elf",
    /// The ELF file is for another machine than this one.
    OtherMachine = "unwind_other_machine",
    /// The file has no call frame information, and its code could not be followed.
    NoInformation = "unwind_no_information",
    /// A section with call frame information is larger than its bound.
    SectionTooLarge = "unwind_too_large",
    /// A section with call frame information could not be read.
    SectionUnreadable = "unwind_unreadable",
    /// A compressed section could not be decompressed.
    SectionCompressed = "unwind_packed",
    /// One entry of call frame information is damaged.
    EntryDamaged = "unwind_entry_damaged",
    /// One entry describes a function that lies in no loaded segment.
    EntryNotLoaded = "unwind_not_loaded",
    /// The file has more rows than fit; the rest is left out.
    TooManyRows = "unwind_too_many_rows",
    /// The file has more distinct rules than fit; one count is one row without its rule.
    TooManyRules = "unwind_too_many_rules",
    /// Reading the file took more CPU time than it may; the rest is left out.
    TooSlow = "unwind_too_slow",
    /// The file has more code without call frame information than is followed.
    UndescribedTooLarge = "unwind_undescribed_too_large",
    /// The vDSO could not be copied.
    Vdso = "unwind_vdso",
    /// The process had ended before its file could be opened.
    ProcessGone = "unwind_process_gone",
    /// Another file was mapped at the address when the file was opened.
    MappedFileReplaced = "unwind_file_replaced",
    /// The queue of table requests was full.
    RequestQueueFull = "unwind_queue",
    /// The thread that builds tables panicked.
    BuilderPanicked = "unwind_builder_panicked",
    /// The table does not fit into the kernel memory for tables.
    NoTableMemory = "unwind_no_room",
    /// The table's rules do not fit into the kernel side's rules.
    RulesFull = "unwind_rules_full",
    /// A table was evicted to make space for another.
    TableEvicted = "unwind_evicted",
    /// A file was removed from the kernel side's map of files to make space for others.
    FilesForgotten = "unwind_files_forgotten",

    /// The interpreter's version is not one that podopsy can read.
    PythonVersion = "python_version",
    /// The interpreter's own table of offsets is damaged.
    PythonOffsets = "python_offsets",
    /// The interpreter lacks a symbol that is needed.
    PythonSymbols = "python_symbols",
    /// More interpreters than the kernel side can know.
    PythonInterpretersFull = "python_interpreters_full",
    /// podopsy may not read the process's memory.
    PythonMemoryNotPermitted = "python_memory_not_permitted",
    /// The process had ended before its memory could be read.
    PythonProcessGone = "python_process_gone",
    /// The memory at an address could not be read.
    PythonMemoryUnreadable = "python_memory_unreadable",
    /// The object at the address is not a code object.
    PythonNotCode = "python_not_code",
    /// The object that should be a function's name or file is not a string.
    PythonNotText = "python_not_text",
    /// A call of the interpreter has no frame.
    PythonNoFrame = "python_no_frame",
    /// A function has no table of lines.
    PythonNoLines = "python_no_lines",
    /// The profile's budget for decoding tables of lines is used up.
    PythonLinesOverBudget = "python_lines_over_budget",
    /// More functions than are kept.
    PythonFunctionsFull = "python_functions_full",
    /// A sample's thread is unknown to the interpreter.
    PythonNoThread = "python_no_thread",
    /// A sample's interpreter has more threads than are searched.
    PythonManyThreads = "python_many_threads",
    /// A sample's Python frames could not be read in the kernel.
    PythonUnreadable = "python_unreadable",
    /// A sample has more Python frames than fit.
    PythonTooDeep = "python_too_deep",
    /// A sample's Python calls and its native calls of the interpreter could not be matched.
    PythonCallsUnmatched = "python_calls_unmatched",
}

/// Loss counters by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackLosses(BTreeMap<StackLossReason, u64>);

impl StackLosses {
    pub fn add(&mut self, reason: StackLossReason, count: u64) {
        *self.0.entry(reason).or_default() += count;
    }

    pub fn add_all(&mut self, other: &StackLosses) {
        for (&reason, &count) in &other.0 {
            self.add(reason, count);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The counters by name; a reason that never occurred has none.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let occurred = self.0.iter().filter(|(_, count)| **count > 0);
        occurred.map(|(reason, count)| (reason.as_str().to_owned(), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let names: HashSet<&str> = StackLossReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), StackLossReason::ALL.len());
    }

    #[test]
    fn counters_have_the_names_of_their_reasons() {
        let mut losses = StackLosses::default();
        losses.add(StackLossReason::TooSlow, 2);
        losses.add(StackLossReason::TooSlow, 1);
        losses.add(StackLossReason::NotElf, 0);
        assert_eq!(losses.by_name(), BTreeMap::from([("unwind_too_slow".to_owned(), 3)]));
    }
}
