//! Turns stacks of numbers into stacks of frames.

use std::collections::HashMap;
use std::sync::Arc;

use podopsy_wire::End;

use super::incomplete::missing_part;
use super::stack::{StackParts, kernel_addresses, parts, split, user_addresses};
use super::{Comm, marker_frame};
use crate::python::{CallFrames, PythonFunctions, PythonStack, is_interpreter_frame, is_switching_frame};
use crate::symbolize::{ProgramImage, Symbolizer, UserAddress};
use podopsy_model::profile::Frame;
use podopsy_model::text;

/// The functions at one address, innermost first.
type NamedFrame = Arc<[Frame]>;

/// Finds the frames of addresses and the texts of comms, each of them once.
pub(super) struct FrameNames<'a> {
    pub symbolizer: &'a mut Symbolizer,
    pub functions: &'a mut PythonFunctions,
    /// With whether the address leads to no code.
    pub user: HashMap<UserAddress, (Arc<[Frame]>, bool)>,
    pub texts: HashMap<Comm, Arc<str>>,
}

impl FrameNames<'_> {
    /// The frames of a stack `[head, kernel…, user…, python…]` that was sampled `count` times.
    pub fn frames(&mut self, program: (u32, ProgramImage), stack: &[u64], count: u64) -> Vec<Frame> {
        let Some((&head, addresses)) = stack.split_first() else { return vec![marker_frame("[no stack]")] };
        let parts = parts(head);
        let [.., python] = split(&parts, addresses);
        let StackParts { end, python_end, end_frame, .. } = parts;
        let mut frames = Vec::with_capacity(addresses.len());
        for (address, is_return) in kernel_addresses(stack) {
            frames.extend_from_slice(&self.symbolizer.kernel_frames(address, is_return));
        }
        let (native, stop) = self.native_frames(program, stack);
        let ended_in =
            native.get(end_frame).and_then(|named| named.last()).and_then(|frame| frame.module.clone());
        let is_interpreter = |named: &Arc<[Frame]>| named.last().is_some_and(is_interpreter_frame);
        let calls = native.iter().filter(|named| is_interpreter(named)).count();
        let python = PythonStack {
            frames: python,
            end: python_end,
            native_calls: calls,
            is_native_complete: end == End::Complete,
            runs_interpreter: native.first().is_some_and(is_interpreter),
            switches_stacks: native.iter().any(|named| named.last().is_some_and(is_switching_frame)),
        };
        let (mut call_frames, loss) = CallFrames::new(self.functions, &python);
        if let Some(reason) = loss {
            self.functions.count_loss(reason, count);
        }
        for named in &native {
            match named.split_last() {
                // Functions that were inlined into the interpreter are called by the Python function that it runs.
                Some((interpreter, inlined)) if is_interpreter(named) => {
                    let from = frames.len();
                    frames.extend_from_slice(inlined);
                    let python = call_frames.next();
                    if !python.is_empty()
                        && let Some(last) = frames[from..].last_mut()
                    {
                        last.inlined = false;
                    }
                    frames.extend(python);
                    frames.push(interpreter.clone());
                }
                _ => frames.extend_from_slice(named),
            }
        }
        match stop {
            Some(stop) => frames.extend_from_slice(&stop),
            None => {
                frames.extend(missing_part(end, ended_in.as_deref()).map(|text| marker_frame(&text)));
            }
        }
        if frames.is_empty() {
            frames.push(marker_frame("[no stack]"));
        }
        frames
    }

    /// The user frames, each with the functions that are inlined into it, up to the first address that leads to no code; and
    /// the frame that stands for that address and its callers.
    fn native_frames(
        &mut self,
        program: (u32, ProgramImage),
        stack: &[u64],
    ) -> (Vec<NamedFrame>, Option<NamedFrame>) {
        let mut native = Vec::new();
        for address in user_addresses(program, stack) {
            let named = self.user.entry(address).or_insert_with(|| {
                let frames = self.symbolizer.user_frames(address);
                (frames, self.symbolizer.locate(address).ends_stack())
            });
            if named.1 {
                return (native, Some(Arc::clone(&named.0)));
            }
            native.push(Arc::clone(&named.0));
        }
        (native, None)
    }

    pub fn text(&mut self, comm: &Comm) -> Arc<str> {
        Arc::clone(self.texts.entry(*comm).or_insert_with(|| text::from_kernel(comm).into()))
    }
}
