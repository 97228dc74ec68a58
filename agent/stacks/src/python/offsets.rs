//! Where each CPython keeps what is read: by its own word since 3.13, by its published headers before.
//!
//! 3.13 and later begin `_PyRuntime` with a table of offsets, made for debuggers (`Include/internal/pycore_runtime.h`,
//! `_Py_DebugOffsets`). 3.10 to 3.12 have none: theirs are those of the release's headers on 64-bit machines, which do
//! not change between the patches of a release. A build with other structures (`--with-trace-refs`) shows as code
//! objects that are not of the type for code.

use podopsy_wire::{ABSENT, INSTRUCTION_INDEX, INSTRUCTION_POINTER, PythonLayout};

/// Where a code object and the texts of it keep what is read by user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CodeLayout {
    pub object_type: usize,
    pub file_name: usize,
    /// The qualified name since 3.11.
    pub name: usize,
    pub first_line: usize,
    pub line_table: usize,
    /// Where the instructions begin, that frames point into.
    pub instructions: u32,
    /// `co_linetable` is a location table (3.11); else pairs of distances (PEP 626).
    pub has_locations: bool,
    pub bytes_size: usize,
    pub bytes_data: usize,
    pub text_length: usize,
    pub text_state: usize,
    /// Where an ASCII text begins, and any other.
    pub text_ascii: usize,
    pub text_other: usize,
    /// An entry frame stands for the call from C, and is no function's own (3.12).
    pub entry_is_shim: bool,
}

/// `FRAME_OWNED_BY_CSTACK` (3.12, 3.13).
const OWNED_BY_C: u32 = 3;

/// The offsets of a release; `runtime`: the first bytes of `_PyRuntime` in the file.
pub(super) fn offsets(version: (u8, u8), runtime: &[u8]) -> Result<(PythonLayout, CodeLayout), &'static str> {
    match version {
        (3, 10) => Ok(python_3_10()),
        (3, 11) => Ok(python_3_11()),
        (3, 12) => Ok(python_3_12()),
        (3, 13) => python_3_13(runtime).ok_or("python_offsets"),
        _ => Err("python_version"),
    }
}

fn python_3_10() -> (PythonLayout, CodeLayout) {
    let (layout, code) = python_3_11();
    let layout = PythonLayout {
        interpreters: 32,
        interpreter_threads: 8,
        thread_id: 176,
        thread_frame: 24,
        indirect_frame: ABSENT,
        indirect_previous: ABSENT,
        // Up to f_lasti.
        frame_bytes: 104,
        frame_code: 32,
        frame_previous: 24,
        frame_instruction: 96,
        instruction_is: INSTRUCTION_INDEX,
        // Each frame has a call of the interpreter of its own.
        frame_marker: 0,
        marker_mask: 0,
        marker_value: 0,
        ..layout
    };
    let code = CodeLayout {
        file_name: 104,
        name: 112,
        first_line: 40,
        line_table: 120,
        instructions: 0,
        has_locations: false,
        ..code
    };
    (layout, code)
}

fn python_3_11() -> (PythonLayout, CodeLayout) {
    let layout = PythonLayout {
        runtime: 0,
        interpreters: 40,
        interpreter_next: 0,
        interpreter_threads: 16,
        thread_next: 8,
        thread_id: 152,
        thread_frame: 56,
        indirect_frame: 8,
        // Up to the owner; behind it are the function's locals.
        frame_bytes: 72,
        frame_code: 32,
        frame_previous: 48,
        frame_instruction: 56,
        instruction_is: INSTRUCTION_POINTER,
        // is_entry
        frame_marker: 68,
        marker_mask: 0xff,
        marker_value: 1,
        indirect_previous: 16,
    };
    let code = CodeLayout {
        object_type: 8,
        file_name: 112,
        name: 128,
        first_line: 72,
        line_table: 136,
        instructions: 184,
        has_locations: true,
        bytes_size: 16,
        bytes_data: 32,
        text_length: 16,
        text_state: 32,
        text_ascii: 48,
        text_other: 72,
        entry_is_shim: false,
    };
    (layout, code)
}

fn python_3_12() -> (PythonLayout, CodeLayout) {
    let (layout, code) = python_3_11();
    let layout = PythonLayout {
        interpreter_threads: 72,
        thread_id: 136,
        indirect_frame: 0,
        indirect_previous: 8,
        frame_code: 0,
        frame_previous: 8,
        frame_marker: 70,
        marker_value: OWNED_BY_C,
        ..layout
    };
    let code = CodeLayout {
        first_line: 68,
        instructions: 192,
        text_ascii: 40,
        text_other: 56,
        entry_is_shim: true,
        ..code
    };
    (layout, code)
}

/// As many bytes of `_PyRuntime` as are looked at.
pub(super) const DEBUG_OFFSETS: usize = 584;

/// No structure of an interpreter is as large.
const MAX_OFFSET: u64 = 1 << 20;

fn python_3_13(runtime: &[u8]) -> Option<(PythonLayout, CodeLayout)> {
    if !runtime.starts_with(b"xdebugpy") {
        return None;
    }
    let wide = |at: usize| {
        let word = u64::from_le_bytes(runtime.get(at..at + 8)?.try_into().ok()?);
        (word < MAX_OFFSET).then_some(word as u32)
    };
    let near = |at: usize| wide(at).filter(|offset| *offset < 512).map(|offset| offset as usize);
    let (layout, code) = python_3_12();
    let layout = PythonLayout {
        interpreters: wide(40)?,
        interpreter_next: wide(64)?,
        interpreter_threads: wide(72)?,
        thread_next: wide(168)?,
        thread_frame: wide(184)?,
        thread_id: wide(192)?,
        indirect_frame: ABSENT,
        indirect_previous: ABSENT,
        frame_previous: wide(232)?,
        frame_code: wide(240)?,
        frame_instruction: wide(248)?,
        frame_marker: wide(264)?,
        ..layout
    };
    let inside = [layout.frame_previous, layout.frame_code, layout.frame_instruction, layout.frame_marker];
    if inside.iter().any(|at| *at >= layout.frame_bytes) {
        return None;
    }
    let text_ascii = near(560)?;
    let code = CodeLayout {
        file_name: near(280)?,
        name: near(296)?,
        line_table: near(304)?,
        first_line: near(312)?,
        instructions: wide(344)?,
        object_type: near(360)?,
        bytes_size: near(520)?,
        bytes_data: near(528)?,
        text_state: near(544)?,
        text_length: near(552)?,
        text_ascii,
        // Two words, the UTF-8 form's length and place, are between.
        text_other: text_ascii + 16,
        ..code
    };
    Some((layout, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_walked() {
        for minor in 10..=12 {
            assert!(offsets((3, minor), &[]).is_ok());
        }
        assert_eq!(offsets((3, 9), &[]).err(), Some("python_version"));
        assert_eq!(offsets((3, 14), &[]).err(), Some("python_version"));
    }

    #[test]
    fn offsets_that_lead_out_of_a_frame_are_refused() {
        let mut runtime = vec![0; DEBUG_OFFSETS];
        assert_eq!(offsets((3, 13), &runtime).err(), Some("python_offsets"));
        runtime[..8].copy_from_slice(b"xdebugpy");
        runtime[232] = 8;
        runtime[248] = 56;
        runtime[264] = 70;
        let (layout, _) = offsets((3, 13), &runtime).unwrap();
        assert_eq!((layout.frame_instruction, layout.frame_marker), (56, 70));
        runtime[264] = 72;
        assert_eq!(offsets((3, 13), &runtime).err(), Some("python_offsets"));
        runtime[264..272].fill(0xff);
        assert_eq!(offsets((3, 13), &runtime).err(), Some("python_offsets"));
    }
}
