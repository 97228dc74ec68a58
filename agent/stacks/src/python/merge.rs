//! Python's frames among the native ones: each call of the interpreter runs those up to its entry frame.
//!
//! Must not know: processes, memory. Both stacks are innermost first.

use podopsy_wire::PythonEnd;

use super::codes::{Codes, Word};
use podopsy_model::profile::Frame;

/// The function that runs Python's functions; its name may have an end that the compiler added (`.cold`).
const INTERPRETER: &str = "_PyEval_EvalFrameDefault";

/// A frame of a call of the interpreter.
pub(crate) fn is_interpreter(frame: &Frame) -> bool {
    frame
        .function
        .as_deref()
        .and_then(|name| name.strip_prefix(INTERPRETER))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Hands out, for each native call of the interpreter from the innermost on, the Python frames that it runs.
pub(crate) struct Merge(std::vec::IntoIter<Vec<Frame>>);

impl Merge {
    /// `natives`: how many calls of the interpreter are in the native stack. `whole`: that stack is complete.
    /// Gives what is to be counted as lost, by counter name.
    pub fn new(
        codes: &mut Codes,
        words: &[Word],
        end: PythonEnd,
        natives: usize,
        whole: bool,
    ) -> (Merge, Option<&'static str>) {
        let none = Merge(Vec::new().into_iter());
        if natives == 0 {
            return (none, None);
        }
        let why = match end {
            PythonEnd::Complete => None,
            // The unwinder had no reason to call it: there is nothing that walks Python's frames here.
            PythonEnd::None => return (none, None),
            PythonEnd::NoThread => Some(("python_no_thread", "[python: the runtime knows no such thread]")),
            PythonEnd::ManyThreads => Some(("python_many_threads", "[python: more than 256 threads]")),
            PythonEnd::Unreadable => Some(("python_unreadable", "[python: frames not readable]")),
            PythonEnd::Truncated => Some(("python_too_deep", "[python: deeper than 128 frames]")),
        };
        let mut calls: Vec<Vec<Frame>> = words
            .split_inclusive(|word| Codes::is_entry(*word))
            .map(|call| call.iter().filter_map(|&word| codes.frame(word)).collect())
            .collect();
        // A call that has just begun marks its frame as its entry a few machine instructions after it shows the frame.
        let unmarked = |word: &&Word| Codes::is_new(**word) && !Codes::is_entry(**word);
        if calls.len() < natives
            && words.first().filter(unmarked).is_some()
            && let Some(first) = calls.first_mut()
            && first.len() > 1
        {
            let frame = first.remove(0);
            calls.insert(0, vec![frame]);
        }
        let mut lost = None;
        if let Some((name, text)) = why {
            lost = Some(name);
            // The rest of the last call, or the next, is what is not there.
            let says = Frame { function: Some(text.into()), ..Frame::default() };
            match (calls.last_mut(), words.last()) {
                (Some(call), Some(last)) if !Codes::is_entry(*last) => call.push(says),
                _ => calls.push(vec![says]),
            }
        } else if whole && calls.len() < natives {
            // Both end at the outermost: an innermost call has just begun, or just ended, and has no frame.
            let without = natives - calls.len();
            calls.splice(0..0, std::iter::repeat_n(Vec::new(), without));
            if without > 1 {
                lost = Some("python_calls_unmatched");
            }
        } else if whole && calls.len() > natives {
            // Calls whose native frame has another name, or none: theirs go to the innermost that is known.
            let over = calls.len() - natives;
            let rest = calls.split_off(over);
            let mut inner: Vec<Frame> = calls.into_iter().flatten().collect();
            calls = rest;
            if let Some(first) = calls.first_mut() {
                inner.append(first);
                *first = inner;
            }
            lost = Some("python_calls_unmatched");
        }
        (Merge(calls.into_iter()), lost)
    }

    /// The Python frames of the next call, innermost first.
    pub fn next(&mut self) -> Vec<Frame> {
        self.0.next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words without a function: only how many frames each call gets can be seen, by what stands for them.
    const PLAIN: Word = 1 << 32;
    const ENTRY: Word = 1 << 32 | 1 << 31;
    const NEW: Word = 1 << 32 | 1 << 30;

    fn calls(
        words: &[Word],
        end: PythonEnd,
        natives: usize,
        whole: bool,
    ) -> (Vec<usize>, Option<&'static str>) {
        let mut codes = Codes::with_a_function();
        let (mut merge, lost) = Merge::new(&mut codes, words, end, natives, whole);
        ((0..natives).map(|_| merge.next().len()).collect(), lost)
    }

    #[test]
    fn each_call_of_the_interpreter_gets_the_frames_up_to_its_entry() {
        let words = [PLAIN, PLAIN, ENTRY, ENTRY];
        assert_eq!(calls(&words, PythonEnd::Complete, 2, true), (vec![3, 1], None));
        assert_eq!(calls(&words, PythonEnd::None, 2, true), (vec![0, 0], None));
        assert_eq!(calls(&words, PythonEnd::Complete, 0, true), (vec![], None));
    }

    #[test]
    fn a_call_that_has_just_begun_has_no_frame_yet() {
        assert_eq!(calls(&[PLAIN, ENTRY, ENTRY], PythonEnd::Complete, 3, true), (vec![0, 2, 1], None));
        // It has one, without its mark …
        assert_eq!(calls(&[NEW, PLAIN, ENTRY, ENTRY], PythonEnd::Complete, 3, true), (vec![1, 2, 1], None));
        // … or was called by a Python function in the same call of the interpreter.
        assert_eq!(calls(&[NEW, PLAIN, ENTRY, ENTRY], PythonEnd::Complete, 2, true), (vec![3, 1], None));
        let lost = Some("python_calls_unmatched");
        assert_eq!(calls(&[ENTRY], PythonEnd::Complete, 3, true), (vec![0, 0, 1], lost));
    }

    #[test]
    fn frames_whose_call_was_not_recognised_are_not_dropped() {
        let lost = Some("python_calls_unmatched");
        assert_eq!(calls(&[PLAIN, ENTRY, ENTRY, ENTRY], PythonEnd::Complete, 2, true), (vec![3, 1], lost));
    }

    #[test]
    fn a_native_stack_that_is_cut_is_matched_from_its_innermost() {
        assert_eq!(calls(&[PLAIN, ENTRY, ENTRY], PythonEnd::Complete, 1, false), (vec![2], None));
    }

    #[test]
    fn what_is_missing_says_why() {
        assert_eq!(calls(&[], PythonEnd::NoThread, 2, true), (vec![1, 0], Some("python_no_thread")));
        assert_eq!(
            calls(&[ENTRY], PythonEnd::Unreadable, 3, true),
            (vec![1, 1, 0], Some("python_unreadable"))
        );
        assert_eq!(
            calls(&[ENTRY, PLAIN], PythonEnd::Truncated, 2, true),
            (vec![1, 2], Some("python_too_deep"))
        );
    }

    #[test]
    fn the_interpreter_is_known_by_its_name() {
        let named = |name: &str| is_interpreter(&Frame { function: Some(name.into()), ..Frame::default() });
        assert!(named("_PyEval_EvalFrameDefault") && named("_PyEval_EvalFrameDefault.cold"));
        assert!(!named("_PyEval_EvalFrameDefaultish") && !named("_PyEval_EvalFrame"));
    }
}
