//! Follows the code of described libraries as if it were not described, and compares the rules with their call frame
//! information.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use object::LittleEndian as LE;
use podopsy_wire::{FP_SAME, KIND_NONE, KIND_PLT, KIND_REGISTER, KIND_STOP, KIND_UNSUPPORTED, Rule};

use super::*;
use crate::elf::{header, layout, sections};
use crate::names::tests::functions_of;
use crate::unwind::file;
use crate::unwind::rows::TimeBudget;

/// Bytes of code, by the result of the comparison.
#[derive(Debug, Default)]
struct CodeComparison {
    described: u64,
    followed: u64,
    same: u64,
    /// Both rules seem right: one is relative to the stack pointer, the other to the frame pointer.
    other_base: u64,
    different: u64,
    causes: BTreeMap<String, u64>,
}

fn compare(path: &str) -> CodeComparison {
    let file = File::open(path).expect(path);
    let described = file::rows(&file).expect(path);
    let (layout, table) = (layout(&file).unwrap(), sections(&file));
    let entry = header(&file).unwrap().e_entry.get(LE);
    let code = UndescribedCode::find(&file, &layout, &table, &[], entry).expect(path);
    let (runs, is_complete) = paths::follow(&code, &mut TimeBudget::new(), MAX_ROWS);
    assert!(is_complete && !code.is_cut, "{path}");
    let mut found: Vec<Option<Rule>> = Vec::new();
    for run in runs {
        found.resize(found.len().max(run.end as usize), None);
        found[run.offset as usize..run.end as usize].fill(run.rule);
    }
    let mut comparison = CodeComparison::default();
    for gap in &code.gaps {
        for offset in gap.offset..gap.offset + gap.bytes.len() as u64 {
            let expected = described.at(u32::try_from(offset).unwrap());
            if [KIND_NONE, KIND_UNSUPPORTED].contains(&expected.kind) {
                continue;
            }
            comparison.described += 1;
            let Some(found) = found.get(offset as usize).copied().flatten() else { continue };
            comparison.followed += 1;
            // Just after it was popped, the caller's frame pointer is both in its register and in its slot.
            let popped = Rule { fp: expected.fp, fp_offset: expected.fp_offset, ..found } == expected
                && found.fp == FP_SAME
                && i32::from(expected.fp_offset) < -found.cfa_offset;
            let plt = expected.kind == KIND_PLT && found.kind == KIND_REGISTER;
            if found == expected || popped || plt {
                comparison.same += 1;
            } else if found.kind == KIND_REGISTER
                && expected.kind == KIND_REGISTER
                && found.base != expected.base
            {
                comparison.other_base += 1;
            } else {
                comparison.different += 1;
                let short = |rule: &Rule| (rule.kind, rule.base, rule.cfa_offset, rule.fp, rule.fp_offset);
                let cause = match (found.kind, expected.kind) {
                    (KIND_REGISTER, KIND_REGISTER) if found.cfa_offset == expected.cfa_offset => {
                        "the frame pointer"
                    }
                    (KIND_REGISTER, KIND_REGISTER) => "the frame's address",
                    (KIND_STOP, _) => "outermost",
                    (_, KIND_STOP) => "not outermost",
                    _ => "another kind",
                };
                let count = comparison.causes.entry(cause.to_owned()).or_default();
                *count += 1;
                if *count % 400 == 1 {
                    eprintln!("{path} {offset:#x}: {cause}: {:?}, but {:?}", short(&found), short(&expected));
                }
            }
        }
    }
    comparison
}

#[test]
fn rules_from_code_agree_with_call_frame_information() {
    for path in ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libm.so.6", "/usr/bin/bash"] {
        let comparison = compare(path);
        eprintln!("{path}: {comparison:?}");
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        assert!(percent(comparison.followed, comparison.described) > 90.0, "{path}: {comparison:?}");
        // Some code is not called at all, and some handwritten code takes its return address off the stack.
        assert!(percent(comparison.different, comparison.followed) < 1.0, "{path}: {comparison:?}");
    }
}

/// Builds undescribed.c, and returns the file.
fn build(folder: &Path, name: &str, compiler: &str, flags: &[&str]) -> File {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/victims/native/undescribed.c");
    let path = folder.join(name);
    let mut command = Command::new(compiler);
    command.args(flags).arg("-o").arg(&path).arg(source);
    let done = command.output().unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    File::open(path).unwrap()
}

const NO_TABLES: [&str; 2] = ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];

/// The functions of undescribed.c. A compiler may have inlined some.
const FUNCTIONS: [&str; 8] = [
    "main",
    "called",
    "passed",
    "from_constants",
    "from_constants_too",
    "from_variables",
    "calls_at_its_end",
    "switches",
];

/// Compares the rules of a program without tables with those of the same program with tables, at each byte of its own
/// functions. The code is the same, at the same place. Returns how many bytes agree, and how many do not.
fn compare_builds(described: &File, undescribed: &File) -> (u64, u64) {
    let functions = functions_of(described);
    let functions = functions.iter().filter(|(name, ..)| FUNCTIONS.contains(&name.as_str()));
    let (expected, found) = (file::rows(described).unwrap(), file::rows(undescribed).unwrap());
    let (mut same, mut different) = (0, 0);
    for (name, offset, size) in functions {
        for at in (*offset..offset + size).map(|at| u32::try_from(at).unwrap()) {
            let (expected, found) = (expected.at(at), found.at(at));
            assert_eq!(expected.kind, KIND_REGISTER, "{name} is described");
            // Behind `pop %rbp` the table may still have the slot, which holds the same value.
            let has_frame = (found.kind, found.base, found.cfa_offset)
                == (KIND_REGISTER, expected.base, expected.cfa_offset);
            if has_frame {
                same += 1;
            } else {
                eprintln!("{name} at {at:#x}: {found:?}, but {expected:?}");
                different += 1;
            }
        }
    }
    (same, different)
}

#[test]
#[ignore = "needs g++ and binutils: cargo xtask setup test"]
fn a_small_program_without_tables_has_the_rules_that_its_tables_had() {
    let folder = tempfile::tempdir().unwrap();
    for level in ["-O1", "-O2", "-Os"] {
        for kind in [&["-no-pie"][..], &["-pie", "-fPIE"], &["-static", "-no-pie"], &["-static-pie", "-fPIE"]]
        {
            let flags = [&[level], kind].concat();
            let tables = [&flags[..], &["-fasynchronous-unwind-tables"]].concat();
            let described = build(folder.path(), "described", "gcc", &tables);
            let no_tables = [&flags[..], &NO_TABLES, &["-s"]].concat();
            let undescribed = build(folder.path(), "undescribed", "gcc", &no_tables);
            let (same, different) = compare_builds(&described, &undescribed);
            assert!(same > 300 && different == 0, "{flags:?}: {same} and {different}");
        }
    }
}

/// Code at address 0x1000, where one function begins.
fn code(bytes: &[u8]) -> UndescribedCode {
    let mut starts = FunctionStarts::default();
    starts.sure.push(0x1000);
    let gap = CodeGap { offset: 0x1000, address: 0x1000, bytes: bytes.to_vec() };
    UndescribedCode { gaps: vec![gap], starts, entry: 0, is_cut: false }
}

/// The rule at each byte, if there is one.
fn rules(bytes: &[u8]) -> Vec<Option<Rule>> {
    let (runs, is_complete) = paths::follow(&code(bytes), &mut TimeBudget::new(), MAX_ROWS);
    assert!(is_complete);
    let mut found = vec![None; bytes.len()];
    for run in runs {
        found[run.offset as usize - 0x1000..run.end as usize - 0x1000].fill(run.rule);
    }
    found
}

/// The base register, stack pointer (7) or frame pointer (6), the CFA's offset from it, and the saved frame pointer's offset.
fn frame(rule: Option<Rule>) -> Option<(u8, i32, i16)> {
    rule.map(|rule| (rule.base, rule.cfa_offset, if rule.fp == FP_SAME { 0 } else { rule.fp_offset }))
}

#[test]
fn a_frame_of_unknown_size_is_followed_by_its_frame_pointer() {
    let found = rules(&[
        0x55, // push %rbp
        0x48, 0x89, 0xe5, // mov %rsp, %rbp
        0x48, 0x29, 0xfc, // sub %rdi, %rsp
        0xc9, // leave
        0xc3, // ret
    ]);
    let frames = [0, 1, 4, 7, 8].map(|at| frame(found[at]));
    assert_eq!(frames, [(7, 8, 0), (7, 16, -16), (6, 16, -16), (6, 16, -16), (7, 8, 0)].map(Some));
}

#[test]
fn the_cases_of_a_switch_have_the_frame_of_the_switch() {
    let found = rules(&[
        0x53, // push %rbx
        0xff, 0xe0, // jmp *%rax
        0x90, // nop: a case
        0x5b, // pop %rbx
        0xc3, // ret
        0x31, 0xc0, // xor %eax, %eax: another case
        0xeb, 0xfa, // jmp to the pop
    ]);
    assert_eq!(
        [1, 3, 4, 5, 6].map(|at| frame(found[at]).map(|frame| frame.1)),
        [16, 16, 16, 8, 16].map(Some)
    );
}

#[test]
fn code_with_an_unknown_frame_has_no_rule() {
    // mov %rdi, %rsp; ret: another stack is in use.
    let found = rules(&[0x48, 0x89, 0xfc, 0xc3]);
    assert_eq!((frame(found[0]), frame(found[3])), (Some((7, 8, 0)), None));
    // pop %rdx; push %rdx; ret: for a moment the return address is in a register.
    let found = rules(&[0x5a, 0x52, 0xc3]);
    assert_eq!([0, 1, 2].map(|at| frame(found[at])), [Some((7, 8, 0)), None, Some((7, 8, 0))]);
    // mov $1, %ebp; nop; ret: the caller's frame pointer is lost.
    let found = rules(&[0xbd, 1, 0, 0, 0, 0x90, 0xc3]);
    assert_eq!((frame(found[0]), frame(found[5])), (Some((7, 8, 0)), None));
}

#[test]
fn code_that_begins_a_coroutine_on_its_stack_has_no_caller() {
    // push %rbp; jmp *%rbx; xor %rdi, %rdi: make_fcontext of Boost.
    let found = rules(&[0x55, 0xff, 0xe3, 0x48, 0x31, 0xff]);
    assert_eq!([0, 1, 2].map(|at| frame(found[at])), [Some((7, 8, 0)), None, None]);
}

#[test]
fn code_that_clears_the_frame_pointer_is_outermost() {
    // xor %ebp, %ebp; pop %rdi; call *%r9; hlt: musl's clone.
    let found = rules(&[0x31, 0xed, 0x5f, 0x41, 0xff, 0xd1, 0xf4]);
    assert_eq!([2, 3].map(|at| found[at].map(|rule| rule.kind)), [Some(KIND_STOP); 2]);
}

#[test]
fn code_that_is_made_to_use_up_time_or_memory_is_abandoned() {
    for instruction in [
        [0xff, 0xe0], // jmp *%rax: the code after each jump may be its target
        [0x74, 0x80], // je: each is another path
        [0x53, 0x53], // push %rbx: each has another rule
    ] {
        let code = code(&instruction.repeat(1 << 20));
        let (runs, is_complete) =
            paths::follow(&code, &mut TimeBudget::with_limit(Duration::from_millis(500)), MAX_ROWS);
        assert!(
            !is_complete && !runs.is_empty() && runs.len() <= 257 << 10,
            "{instruction:x?}: {} runs",
            runs.len()
        );
    }
}
