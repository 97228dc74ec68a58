//! Places Python's frames among the native ones: each native call of the interpreter runs the Python frames up to an entry
//! frame.
//!
//! Must not depend on: processes, memory. Both stacks are innermost first.

use podopsy_wire::PythonEnd;

use super::functions::{PackedFrame, PythonFunctions};
use crate::StackLossReason;
use podopsy_model::profile::{Frame, file_name};

/// The function that runs Python's functions. The compiler may have added a suffix to its name (`.cold`).
const INTERPRETER: &str = "_PyEval_EvalFrameDefault";

/// True for a native frame that is a call of the interpreter.
pub(crate) fn is_interpreter_frame(frame: &Frame) -> bool {
    frame
        .function
        .as_deref()
        .and_then(|name| name.strip_prefix(INTERPRETER))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The Python part of a sample, and what has to be known of its native part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PythonStack<'a> {
    pub frames: &'a [PackedFrame],
    /// How the walk over the Python frames ended.
    pub end: PythonEnd,
    /// Calls of the interpreter in the native stack.
    pub native_calls: usize,
    pub is_native_complete: bool,
    /// The interpreter itself was running: the innermost native frame is one of its calls.
    pub runs_interpreter: bool,
    /// The stack leads through a module that switches between Python stacks (greenlet).
    pub switches_stacks: bool,
}

/// The module of greenlets. gevent and eventlet are built on it.
const GREENLET: &str = "_greenlet.";

/// True for a native frame of the module that switches between Python stacks. Such a stack has its outer native frames from
/// other greenlets.
pub(crate) fn is_switching_frame(frame: &Frame) -> bool {
    frame.module.as_deref().is_some_and(|module| file_name(module).starts_with(GREENLET))
}

/// The Python frames of each native call of the interpreter, from the innermost call on.
pub(crate) struct CallFrames(std::vec::IntoIter<Vec<Frame>>);

impl CallFrames {
    /// Divides the Python frames between the native calls. Also returns the reason if some of them are missing.
    pub fn new(
        functions: &mut PythonFunctions,
        stack: &PythonStack<'_>,
    ) -> (CallFrames, Option<StackLossReason>) {
        // `PythonEnd::None`: the unwinder had no reason to walk Python's frames here.
        if stack.native_calls == 0 || stack.end == PythonEnd::None {
            return (CallFrames(Vec::new().into_iter()), None);
        }
        let mut calls = split_at_entries(functions, stack);
        let loss = match incomplete_walk(stack.end) {
            Some((reason, text)) => {
                push_explanation(&mut calls, stack.frames, text);
                Some(reason)
            }
            None if stack.is_native_complete => match_outermost(&mut calls, stack),
            None => None,
        };
        (CallFrames(calls.into_iter()), loss)
    }

    /// The Python frames of the next call, innermost first.
    pub fn next(&mut self) -> Vec<Frame> {
        self.0.next().unwrap_or_default()
    }
}

/// Why a walk over Python's frames ended early: the reason, and the text of the frame that stands for the rest.
fn incomplete_walk(end: PythonEnd) -> Option<(StackLossReason, &'static str)> {
    match end {
        PythonEnd::Complete | PythonEnd::None => None,
        PythonEnd::NoThread => {
            Some((StackLossReason::PythonNoThread, "[python: the runtime knows no such thread]"))
        }
        PythonEnd::ManyThreads => {
            Some((StackLossReason::PythonManyThreads, "[python: more than 256 threads]"))
        }
        PythonEnd::Unreadable => Some((StackLossReason::PythonUnreadable, "[python: frames not readable]")),
        PythonEnd::Truncated => Some((StackLossReason::PythonTooDeep, "[python: deeper than 128 frames]")),
    }
}

fn split_at_entries(functions: &mut PythonFunctions, stack: &PythonStack<'_>) -> Vec<Vec<Frame>> {
    let mut calls: Vec<Vec<Frame>> = stack
        .frames
        .split_inclusive(|packed| PythonFunctions::is_entry(*packed))
        .map(|call| call.iter().filter_map(|&packed| functions.frame(packed)).collect())
        .collect();
    // A call that has just begun links its frame a few machine instructions before it marks that frame as its entry.
    let is_unmarked = |packed: &&PackedFrame| {
        PythonFunctions::is_not_started(**packed) && !PythonFunctions::is_entry(**packed)
    };
    if calls.len() < stack.native_calls
        && stack.frames.first().filter(is_unmarked).is_some()
        && let Some(first) = calls.first_mut()
        && first.len() > 1
    {
        let frame = first.remove(0);
        calls.insert(0, vec![frame]);
    }
    calls
}

/// Adds the frame that explains where the rest of an incomplete walk is: in the last call, or in the call after it if the
/// last one has its entry.
fn push_explanation(calls: &mut Vec<Vec<Frame>>, frames: &[PackedFrame], text: &str) {
    let explanation = Frame { function: Some(text.into()), ..Frame::default() };
    match (calls.last_mut(), frames.last()) {
        (Some(call), Some(last)) if !PythonFunctions::is_entry(*last) => call.push(explanation),
        _ => calls.push(vec![explanation]),
    }
}

/// Makes as many calls as there are native ones, where both stacks are complete.
fn match_outermost(calls: &mut Vec<Vec<Frame>>, stack: &PythonStack<'_>) -> Option<StackLossReason> {
    let native_calls = stack.native_calls;
    if calls.len() < native_calls {
        let without_frame = native_calls - calls.len();
        // A call that has just begun, or is just ending, has no frame. It is the innermost one, and nothing but the
        // interpreter runs in it.
        if without_frame == 1 && stack.runs_interpreter && !stack.switches_stacks {
            calls.insert(0, Vec::new());
            return None;
        }
        // The list of Python's frames ends before the native stack does. A greenlet's list ends with the greenlet, while the
        // native stack goes on with the code that switched to it. So the frames belong to the innermost calls.
        return (!stack.switches_stacks).then_some(StackLossReason::PythonCallsUnmatched);
    }
    if calls.len() > native_calls {
        // The native frames of some calls have another name, or none. Their Python frames go to the innermost native call.
        let surplus = calls.len() - native_calls;
        let matched = calls.split_off(surplus);
        let mut innermost: Vec<Frame> = std::mem::replace(calls, matched).into_iter().flatten().collect();
        if let Some(first) = calls.first_mut() {
            innermost.append(first);
            *first = innermost;
        }
        return Some(StackLossReason::PythonCallsUnmatched);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of an unreadable function: only the number of frames that each call gets can be seen.
    const PLAIN: PackedFrame = 1 << 32;
    const ENTRY: PackedFrame = 1 << 32 | 1 << 31;
    const NOT_STARTED: PackedFrame = 1 << 32 | 1 << 30;

    /// The number of frames of each native call, and the reason if some are missing.
    fn calls(
        frames: &[PackedFrame],
        end: PythonEnd,
        native_calls: usize,
        is_native_complete: bool,
    ) -> (Vec<usize>, Option<StackLossReason>) {
        let stack = PythonStack {
            frames,
            end,
            native_calls,
            is_native_complete,
            runs_interpreter: true,
            switches_stacks: false,
        };
        calls_of(&stack)
    }

    fn calls_of(stack: &PythonStack<'_>) -> (Vec<usize>, Option<StackLossReason>) {
        let mut functions = PythonFunctions::with_unreadable_function();
        let native_calls = stack.native_calls;
        let (mut calls, loss) = CallFrames::new(&mut functions, stack);
        ((0..native_calls).map(|_| calls.next().len()).collect(), loss)
    }

    #[test]
    fn each_call_of_the_interpreter_gets_the_frames_up_to_its_entry() {
        let frames = [PLAIN, PLAIN, ENTRY, ENTRY];
        assert_eq!(calls(&frames, PythonEnd::Complete, 2, true), (vec![3, 1], None));
        assert_eq!(calls(&frames, PythonEnd::None, 2, true), (vec![0, 0], None));
        assert_eq!(calls(&frames, PythonEnd::Complete, 0, true), (vec![], None));
    }

    #[test]
    fn a_call_that_has_just_begun_has_no_frame_yet() {
        assert_eq!(calls(&[PLAIN, ENTRY, ENTRY], PythonEnd::Complete, 3, true), (vec![0, 2, 1], None));
        // The new call has a frame that is not marked as its entry yet …
        assert_eq!(
            calls(&[NOT_STARTED, PLAIN, ENTRY, ENTRY], PythonEnd::Complete, 3, true),
            (vec![1, 2, 1], None)
        );
        // … or a Python function called it within the same call of the interpreter.
        assert_eq!(
            calls(&[NOT_STARTED, PLAIN, ENTRY, ENTRY], PythonEnd::Complete, 2, true),
            (vec![3, 1], None)
        );
    }

    #[test]
    fn a_list_of_python_frames_that_ends_early_belongs_to_the_innermost_calls() {
        let loss = Some(StackLossReason::PythonCallsUnmatched);
        assert_eq!(calls(&[PLAIN, ENTRY], PythonEnd::Complete, 3, true), (vec![2, 0, 0], loss));
        // In a function that the interpreter calls, its innermost call has begun.
        let greenlet = PythonStack {
            frames: &[PLAIN, ENTRY],
            end: PythonEnd::Complete,
            native_calls: 2,
            is_native_complete: true,
            runs_interpreter: false,
            switches_stacks: false,
        };
        assert_eq!(calls_of(&greenlet), (vec![2, 0], loss));
        // A greenlet's list ends with the greenlet.
        for native_calls in [2, 3] {
            let greenlet =
                PythonStack { native_calls, runs_interpreter: true, switches_stacks: true, ..greenlet };
            let expected = [2, 0, 0][..native_calls].to_vec();
            assert_eq!(calls_of(&greenlet), (expected, None));
        }
    }

    #[test]
    fn the_module_of_greenlets_is_recognised_by_its_file() {
        let of =
            |module: &str| is_switching_frame(&Frame { module: Some(module.into()), ..Frame::default() });
        assert!(of("/usr/lib/python3/dist-packages/greenlet/_greenlet.cpython-311-x86_64-linux-gnu.so"));
        assert!(!of("/usr/bin/python3.11") && !of("/lib/_greenlets.so"));
    }

    #[test]
    fn frames_of_an_unrecognised_call_go_to_the_innermost_native_call() {
        let loss = Some(StackLossReason::PythonCallsUnmatched);
        assert_eq!(calls(&[PLAIN, ENTRY, ENTRY, ENTRY], PythonEnd::Complete, 2, true), (vec![3, 1], loss));
    }

    #[test]
    fn an_incomplete_native_stack_is_matched_from_its_innermost_call() {
        assert_eq!(calls(&[PLAIN, ENTRY, ENTRY], PythonEnd::Complete, 1, false), (vec![2], None));
    }

    #[test]
    fn a_frame_explains_why_python_frames_are_missing() {
        assert_eq!(
            calls(&[], PythonEnd::NoThread, 2, true),
            (vec![1, 0], Some(StackLossReason::PythonNoThread))
        );
        assert_eq!(
            calls(&[ENTRY], PythonEnd::Unreadable, 3, true),
            (vec![1, 1, 0], Some(StackLossReason::PythonUnreadable))
        );
        assert_eq!(
            calls(&[ENTRY, PLAIN], PythonEnd::Truncated, 2, true),
            (vec![1, 2], Some(StackLossReason::PythonTooDeep))
        );
    }

    #[test]
    fn the_interpreter_is_recognised_by_its_name() {
        let is_interpreter =
            |name: &str| is_interpreter_frame(&Frame { function: Some(name.into()), ..Frame::default() });
        assert!(
            is_interpreter("_PyEval_EvalFrameDefault") && is_interpreter("_PyEval_EvalFrameDefault.cold")
        );
        assert!(!is_interpreter("_PyEval_EvalFrameDefaultish") && !is_interpreter("_PyEval_EvalFrame"));
    }
}
