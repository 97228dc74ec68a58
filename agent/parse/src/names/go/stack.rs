//! Reads how far the stack of each function has grown at each of its addresses. Go's garbage collector unwinds by this
//! table, and the linker makes `.debug_frame` from it, which `strip` removes.
//!
//! All of it is read into memory at once. Must not depend on: rules, unwind tables.

use std::fs::File;

use super::image::FileImage;
use super::table::GoTable;
use crate::StackLossReason;
use crate::elf::{Layout, read_at};

/// The largest table that is read. That of kubelet has 25 MB.
const MAX_BYTES: u64 = 64 << 20;
const MAX_STEPS: usize = 16 << 20;
/// Functions without a caller. Go's own flag for them (`abi.FuncFlagTopFrame`) is not used, because functions that can
/// be unwound have it too: a signal's trampoline leads to the code that it interrupted, and `cgocallback` to the
/// goroutine that called C.
const OUTERMOST: [&[u8]; 3] = [b"runtime.rt0_go", b"runtime.mstart", b"runtime.goexit"];

/// The code that a signal handler returns to.
const SIGNAL_RETURN: [&[u8]; 2] = [b"runtime.sigreturn", b"runtime.sigreturn__sigaction"];
/// Functions that switch to another stack to call Go code there, which saves the frame pointer that they kept. Other
/// functions that switch call C code (`asmcgocall`, and those that call the vDSO).
const SWITCHES_TO_GO: [&[u8]; 4] =
    [b"runtime.systemstack", b"runtime.mcall", b"runtime.morestack", b"runtime.cgocallback"];
/// Functions that switch, in programs of versions that do not flag them.
const SWITCHES_TO_C: [&[u8]; 5] =
    [b"runtime.asmcgocall", b"runtime.nanotime1", b"runtime.walltime1", b"runtime.walltime", b"time.now"];
/// The bit of a function that writes the stack pointer (`abi.FuncFlagSPWrite`).
const WRITES_STACK_POINTER: u8 = 2;
/// Bytes of a name that are compared.
const MAX_NAME: usize = 40;

/// What is special about a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum GoFunctionKind {
    #[default]
    Plain,
    /// It has no caller.
    Outermost,
    /// A signal handler returns to it.
    SignalReturn,
    /// It switches to another stack. Its caller is at the frame pointer.
    Switches {
        /// The frame pointer is saved by the Go code that it calls.
        calls_go: bool,
        /// The scheduler's stack begins in it: where there is no frame pointer, it has no caller.
        is_scheduler: bool,
    },
}

impl GoFunctionKind {
    fn of(name: &[u8], flags: u8) -> GoFunctionKind {
        let name = name.strip_suffix(b".abi0").unwrap_or(name);
        let calls_go = SWITCHES_TO_GO.contains(&name);
        match name {
            _ if OUTERMOST.contains(&name) => GoFunctionKind::Outermost,
            _ if SIGNAL_RETURN.contains(&name) => GoFunctionKind::SignalReturn,
            _ if calls_go || flags & WRITES_STACK_POINTER != 0 || SWITCHES_TO_C.contains(&name) => {
                GoFunctionKind::Switches { calls_go, is_scheduler: name == b"runtime.mcall" }
            }
            _ => GoFunctionKind::Plain,
        }
    }
}

/// The stack of a function. Addresses are virtual addresses of the file.
#[derive(Debug, Default)]
pub(crate) struct GoStack {
    pub start: u64,
    pub end: u64,
    pub kind: GoFunctionKind,
    /// (address, bytes): from this address on, so many bytes lie between the stack pointer and the return address.
    pub steps: Vec<(u64, u32)>,
}

/// Passes every function to `each`, in order, until `each` returns false.
pub(crate) fn read_stacks(
    file: &File,
    layout: &Layout,
    mut each: impl FnMut(&GoStack) -> bool,
) -> Result<(), StackLossReason> {
    let Some(table) = GoTable::find(&FileImage::new(file, layout), file) else {
        return Err(StackLossReason::NoInformation);
    };
    let range = table.range();
    let size = range.end - range.start;
    if size > MAX_BYTES {
        return Err(StackLossReason::SectionTooLarge);
    }
    let offset = layout.offset_of(range.start).ok_or(StackLossReason::SectionUnreadable)?;
    let bytes = usize::try_from(size).ok().and_then(|size| read_at(file, offset, size).ok());
    let bytes = bytes.ok_or(StackLossReason::SectionUnreadable)?;
    let image = FileImage::Memory(range.start, &bytes);
    let (mut stack, mut left) = (GoStack::default(), MAX_STEPS);
    for index in 0..table.functions {
        if read(&table, &image, index, &mut stack, &mut left).is_none() {
            // Only this function is skipped, unless the steps are used up.
            if left == 0 {
                return Err(StackLossReason::TooSlow);
            }
            continue;
        }
        if !each(&stack) {
            break;
        }
    }
    Ok(())
}

fn read(
    table: &GoTable,
    image: &FileImage<'_>,
    index: u64,
    stack: &mut GoStack,
    left: &mut usize,
) -> Option<()> {
    let (start, place) = table.entry(image, index)?;
    let (end, _) = table.entry(image, index + 1)?;
    let shape = table.version.function_layout();
    let bytes = image.within(table.range(), table.pcln.checked_add(place)?, shape.len)?;
    // After the name follow the arguments, deferreturn, and then the offset in `pctab`.
    let steps = u32::from_le_bytes(bytes.get(shape.name + 12..shape.name + 16)?.try_into().ok()?);
    (start < end && steps != 0).then_some(())?;
    (stack.start, stack.end) = (start, end);
    let name = u32::from_le_bytes(bytes.get(shape.name..shape.name + 4)?.try_into().ok()?);
    let name = table.text(image, table.names, name, MAX_NAME);
    // The last bytes are the number of a special function, the flags (since 1.17), and the number of FUNCDATA entries.
    let flags = bytes.get(shape.len - 3).copied().unwrap_or(0);
    stack.kind = name.map_or(GoFunctionKind::Plain, |name| GoFunctionKind::of(&name, flags));
    stack.steps.clear();
    let mut stream = image.stream(table.range(), table.pcs.checked_add(u64::from(steps))?);
    let (mut at, mut value) = (start, -1_i32);
    while at < end {
        *left = left.checked_sub(1)?;
        let change = stream.varint()?;
        if change == 0 && at > start {
            break;
        }
        value = value.wrapping_add((change >> 1) as i32 ^ -((change & 1) as i32));
        let into = at;
        at = at.checked_add(u64::from(stream.varint()?).checked_mul(table.quantum)?)?;
        if at > into {
            stack.steps.push((into, u32::try_from(value).ok()?));
        } else if at > start {
            return None;
        }
    }
    Some(())
}
