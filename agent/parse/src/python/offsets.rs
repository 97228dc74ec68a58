//! The layouts of CPython's structures for each release that podopsy reads.
//!
//! 3.13 and later begin `_PyRuntime` with a table of offsets for debuggers (`Include/internal/pycore_runtime.h`,
//! `_Py_DebugOffsets`). 3.10 to 3.12 have no such table: their offsets are those of the release's headers on 64-bit
//! machines, which do not change between the patch releases. In a build with other structures (`--with-trace-refs`) the
//! code objects do not have the type for code, and are counted as such.

use podopsy_wire::{ABSENT, INSTRUCTION_INDEX, INSTRUCTION_POINTER, PythonLayout};

use serde::{Deserialize, Serialize};

use crate::StackLossReason;

/// Offsets in a code object and in its `str` and `bytes` objects, for reading from user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeLayout {
    pub object_type: usize,
    pub file_name: usize,
    /// The qualified name since 3.11.
    pub name: usize,
    pub first_line: usize,
    pub line_table: usize,
    /// Where the instructions begin. Frames point into them.
    pub instructions: u32,
    /// True if `co_linetable` is a location table (3.11); otherwise it holds pairs of distances (PEP 626).
    pub has_locations: bool,
    pub bytes_size: usize,
    pub bytes_data: usize,
    pub text_length: usize,
    pub text_state: usize,
    /// Where the characters of an ASCII text begin.
    pub text_ascii: usize,
    /// Where the characters of any other text begin.
    pub text_other: usize,
    /// True if an entry frame stands for the call from C and belongs to no function (3.12).
    pub entry_is_shim: bool,
}

/// `FRAME_OWNED_BY_CSTACK` (3.12, 3.13).
const OWNED_BY_C: u32 = 3;

/// The layouts of a release, for the kernel side and for user space. `runtime` holds the first [`DEBUG_OFFSETS_LEN`] bytes
/// of `_PyRuntime` in the file.
pub fn layouts_for_version(
    version: (u8, u8),
    runtime: &[u8],
) -> Result<(PythonLayout, CodeLayout), StackLossReason> {
    match version {
        (3, 10) => Ok(python_3_10()),
        (3, 11) => Ok(python_3_11()),
        (3, 12) => Ok(python_3_12()),
        (3, 13) => python_3_13(runtime).ok_or(StackLossReason::PythonOffsets),
        _ => Err(StackLossReason::PythonVersion),
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
        // Up to `f_lasti`.
        frame_bytes: 104,
        frame_code: 32,
        frame_previous: 24,
        frame_instruction: 96,
        instruction_is: INSTRUCTION_INDEX,
        // In 3.10 each frame is a call of the interpreter of its own, so every frame is an entry.
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
        // Up to the owner; the function's locals follow it.
        frame_bytes: 72,
        frame_code: 32,
        frame_previous: 48,
        frame_instruction: 56,
        instruction_is: INSTRUCTION_POINTER,
        // `is_entry`.
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

/// The bytes of `_PyRuntime` that are read.
pub(super) const DEBUG_OFFSETS_LEN: usize = 584;

/// No structure of an interpreter is this large.
const MAX_OFFSET: u64 = 1 << 20;

fn python_3_13(runtime: &[u8]) -> Option<(PythonLayout, CodeLayout)> {
    if !runtime.starts_with(b"xdebugpy") {
        return None;
    }
    // An offset in a structure that the kernel side walks.
    let offset = |at: usize| {
        let word = u64::from_le_bytes(runtime.get(at..at + 8)?.try_into().ok()?);
        (word < MAX_OFFSET).then_some(word as u32)
    };
    // An offset in an object whose first bytes are read in user space.
    let object_offset = |at: usize| offset(at).filter(|offset| *offset < 512).map(|offset| offset as usize);
    let (layout, code) = python_3_12();
    let layout = PythonLayout {
        interpreters: offset(40)?,
        interpreter_next: offset(64)?,
        interpreter_threads: offset(72)?,
        thread_next: offset(168)?,
        thread_frame: offset(184)?,
        thread_id: offset(192)?,
        indirect_frame: ABSENT,
        indirect_previous: ABSENT,
        frame_previous: offset(232)?,
        frame_code: offset(240)?,
        frame_instruction: offset(248)?,
        frame_marker: offset(264)?,
        ..layout
    };
    let frame_offsets =
        [layout.frame_previous, layout.frame_code, layout.frame_instruction, layout.frame_marker];
    if frame_offsets.iter().any(|at| *at >= layout.frame_bytes) {
        return None;
    }
    let text_ascii = object_offset(560)?;
    let code = CodeLayout {
        file_name: object_offset(280)?,
        name: object_offset(296)?,
        line_table: object_offset(304)?,
        first_line: object_offset(312)?,
        instructions: offset(344)?,
        object_type: object_offset(360)?,
        bytes_size: object_offset(520)?,
        bytes_data: object_offset(528)?,
        text_state: object_offset(544)?,
        text_length: object_offset(552)?,
        text_ascii,
        // The length and the place of the UTF-8 form lie between: two words.
        text_other: text_ascii + 16,
        ..code
    };
    Some((layout, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_releases_have_layouts() {
        for minor in 10..=12 {
            assert!(layouts_for_version((3, minor), &[]).is_ok());
        }
        assert_eq!(layouts_for_version((3, 9), &[]).err(), Some(StackLossReason::PythonVersion));
        assert_eq!(layouts_for_version((3, 14), &[]).err(), Some(StackLossReason::PythonVersion));
    }

    #[test]
    fn offsets_outside_a_frame_are_rejected() {
        let mut runtime = vec![0; DEBUG_OFFSETS_LEN];
        assert_eq!(layouts_for_version((3, 13), &runtime).err(), Some(StackLossReason::PythonOffsets));
        runtime[..8].copy_from_slice(b"xdebugpy");
        runtime[232] = 8;
        runtime[248] = 56;
        runtime[264] = 70;
        let (layout, _) = layouts_for_version((3, 13), &runtime).unwrap();
        assert_eq!((layout.frame_instruction, layout.frame_marker), (56, 70));
        runtime[264] = 72;
        assert_eq!(layouts_for_version((3, 13), &runtime).err(), Some(StackLossReason::PythonOffsets));
        runtime[264..272].fill(0xff);
        assert_eq!(layouts_for_version((3, 13), &runtime).err(), Some(StackLossReason::PythonOffsets));
    }
}
