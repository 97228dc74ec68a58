//! Frames made of what was found, or of the reason why nothing was.

use std::sync::Arc;

use podopsy_model::profile::{Frame, file_name};
use podopsy_worker::{Symbol, SymbolFunction};

use crate::StackLossReason;

/// A frame with the reason in place of its function's name.
pub(super) fn gave_up(at: Frame, reason: &str) -> Arc<[Frame]> {
    let file = at.module.as_deref().map_or("a file", file_name);
    let function = Some(format!("[symbols: gave up on {file}: {reason}]").into());
    Arc::from([Frame { function, ..at }])
}

/// Frames whose names come from a file with the right build id, of which it is not known whether it is the right file.
pub(super) fn mark_by_build_id(frames: &[Frame]) -> Arc<[Frame]> {
    let mark = |frame: &Frame| {
        let function = frame.function.as_ref().map(|name| format!("{name} [by build id]").into());
        Frame { function, ..frame.clone() }
    };
    frames.iter().map(mark).collect()
}

/// The frame that stands for one that cannot be located.
pub(super) fn unlocated(reason: StackLossReason) -> Arc<[Frame]> {
    let text = match reason {
        StackLossReason::FileOutOfReach => "[unknown: the file could not be opened]",
        StackLossReason::ProgramReplaced => "[unknown: the process has started another program since]",
        StackLossReason::ProcessUnknown => "[unknown: the process ended before its mappings were read]",
        _ => "[unwind: address in no mapping]",
    };
    Arc::from([Frame { function: Some(text.into()), ..Frame::default() }])
}

/// A frame without a function.
pub(super) fn unnamed(module: Option<&str>, offset: u64) -> Arc<[Frame]> {
    Arc::from([Frame { module: module.map(Arc::from), offset, ..Frame::default() }])
}

/// A symbol's functions as frames, all at the location of `at`.
pub(super) fn to_frames(symbol: Symbol, at: &Frame) -> Arc<[Frame]> {
    let last = symbol.functions.len().saturating_sub(1);
    let frame = |(index, function): (usize, SymbolFunction)| Frame {
        function: (!function.name.is_empty()).then(|| function.name.into()),
        source: function.source.map(|source| (source.file.into(), source.line)),
        inlined: index < last,
        ..at.clone()
    };
    let frames: Arc<[Frame]> = symbol.functions.into_iter().enumerate().map(frame).collect();
    if frames.is_empty() { Arc::from([at.clone()]) } else { frames }
}
