//! The code of libraries that are described, followed as if they were not, against what is said of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use object::LittleEndian as LE;
use podopsy_wire::{FP_SAME, KIND_NONE, KIND_PLT, KIND_REGISTER, KIND_STOP, KIND_UNSUPPORTED, Rule};

use super::*;
use crate::symbolize::elf::{header, layout, sections};
use crate::unwind::file;
use crate::unwind::rows::Budget;

/// Bytes of code, by what came of them.
#[derive(Debug, Default)]
struct Verdict {
    described: u64,
    followed: u64,
    same: u64,
    /// Both true, as it seems: one counts from the stack pointer, the other from the frame pointer.
    other_base: u64,
    different: u64,
    causes: BTreeMap<String, u64>,
}

fn follow(path: &str) -> Verdict {
    let file = File::open(path).expect(path);
    let said = file::rows(&file).expect(path);
    let (layout, table) = (layout(&file).unwrap(), sections(&file));
    let entry = header(&file).unwrap().e_entry.get(LE);
    let code = Code::new(&file, &layout, &table, &[], entry).expect(path);
    let (runs, is_whole) = paths::follow(&code, &mut Budget::new(), MAX_ROWS);
    assert!(is_whole && !code.is_cut, "{path}");
    let mut found: Vec<Option<Rule>> = Vec::new();
    for run in runs {
        found.resize(found.len().max(run.end as usize), None);
        found[run.offset as usize..run.end as usize].fill(run.rule);
    }
    let mut verdict = Verdict::default();
    for gap in &code.gaps {
        for offset in gap.offset..gap.offset + gap.bytes.len() as u64 {
            let expected = said.at(u32::try_from(offset).unwrap());
            if [KIND_NONE, KIND_UNSUPPORTED].contains(&expected.kind) {
                continue;
            }
            verdict.described += 1;
            let Some(found) = found.get(offset as usize).copied().flatten() else { continue };
            verdict.followed += 1;
            // Once it is popped, the caller's frame pointer is in its register and, for a moment, in its slot.
            let popped = Rule { fp: expected.fp, fp_offset: expected.fp_offset, ..found } == expected
                && found.fp == FP_SAME
                && i32::from(expected.fp_offset) < -found.cfa_offset;
            let plt = expected.kind == KIND_PLT && found.kind == KIND_REGISTER;
            if found == expected || popped || plt {
                verdict.same += 1;
            } else if found.kind == KIND_REGISTER
                && expected.kind == KIND_REGISTER
                && found.base != expected.base
            {
                verdict.other_base += 1;
            } else {
                verdict.different += 1;
                let short = |rule: &Rule| (rule.kind, rule.base, rule.cfa_offset, rule.fp, rule.fp_offset);
                let what = match (found.kind, expected.kind) {
                    (KIND_REGISTER, KIND_REGISTER) if found.cfa_offset == expected.cfa_offset => {
                        "the frame pointer"
                    }
                    (KIND_REGISTER, KIND_REGISTER) => "the frame's address",
                    (KIND_STOP, _) => "outermost",
                    (_, KIND_STOP) => "not outermost",
                    _ => "another kind",
                };
                let count = verdict.causes.entry(what.to_owned()).or_default();
                *count += 1;
                if *count % 400 == 1 {
                    eprintln!("{path} {offset:#x}: {what}: {:?}, but {:?}", short(&found), short(&expected));
                }
            }
        }
    }
    verdict
}

#[test]
fn code_is_followed_as_its_call_frame_information_says() {
    for path in ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libm.so.6", "/usr/bin/bash"] {
        let verdict = follow(path);
        eprintln!("{path}: {verdict:?}");
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        assert!(percent(verdict.followed, verdict.described) > 90.0, "{path}: {verdict:?}");
        // Some of it nobody calls, and hand-written code takes its return address off the stack.
        assert!(percent(verdict.different, verdict.followed) < 1.0, "{path}: {verdict:?}");
    }
}

/// Bytes at address 0x1000, with a function at their beginning.
fn code(bytes: &[u8]) -> Code {
    let mut starts = Starts::default();
    starts.sure.push(0x1000);
    let gap = Gap { offset: 0x1000, address: 0x1000, bytes: bytes.to_vec() };
    Code { gaps: vec![gap], starts, entry: 0, is_cut: false }
}

/// The rule at each of the bytes, if there is one.
fn rules(bytes: &[u8]) -> Vec<Option<Rule>> {
    let (runs, is_whole) = paths::follow(&code(bytes), &mut Budget::new(), MAX_ROWS);
    assert!(is_whole);
    let mut found = vec![None; bytes.len()];
    for run in runs {
        found[run.offset as usize - 0x1000..run.end as usize - 0x1000].fill(run.rule);
    }
    found
}

/// Above the stack pointer (7) or the frame pointer (6).
fn frame(rule: Option<Rule>) -> Option<(u8, i32, i16)> {
    rule.map(|rule| (rule.base, rule.cfa_offset, if rule.fp == FP_SAME { 0 } else { rule.fp_offset }))
}

#[test]
fn a_function_that_makes_room_of_unknown_size_is_followed_by_its_frame_pointer() {
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
fn what_a_switch_jumps_to_has_the_frame_of_the_switch() {
    let found = rules(&[
        0x53, // push %rbx
        0xff, 0xe0, // jmp *%rax
        0x90, // nop: a case
        0x5b, // pop %rbx
        0xc3, // ret
        0x31, 0xc0, // xor %eax, %eax: another
        0xeb, 0xfa, // jmp to the pop
    ]);
    assert_eq!(
        [1, 3, 4, 5, 6].map(|at| frame(found[at]).map(|frame| frame.1)),
        [16, 16, 16, 8, 16].map(Some)
    );
}

#[test]
fn where_the_frame_is_not_known_there_is_no_rule() {
    // mov %rdi, %rsp; ret: another stack.
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
fn a_thread_begins_where_the_frame_pointer_is_cleared() {
    // xor %ebp, %ebp; pop %rdi; call *%r9; hlt: musl's clone.
    let found = rules(&[0x31, 0xed, 0x5f, 0x41, 0xff, 0xd1, 0xf4]);
    assert_eq!([2, 3].map(|at| found[at].map(|rule| rule.kind)), [Some(KIND_STOP); 2]);
}

#[test]
fn code_that_is_made_to_take_time_or_room_is_given_up() {
    for instruction in [
        [0xff, 0xe0], // jmp *%rax: what is behind each may be what it jumps to
        [0x74, 0x80], // je: another path each
        [0x53, 0x53], // push %rbx: another rule each
    ] {
        let code = code(&instruction.repeat(1 << 20));
        let (runs, is_whole) = paths::follow(&code, &mut Budget::of(Duration::from_millis(500)), MAX_ROWS);
        assert!(
            !is_whole && !runs.is_empty() && runs.len() <= 257 << 10,
            "{instruction:x?}: {} runs",
            runs.len()
        );
    }
}
