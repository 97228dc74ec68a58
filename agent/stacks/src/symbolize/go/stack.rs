//! How far each function's stack has grown at each of its addresses: what Go's garbage collector walks by, and what
//! `.debug_frame` is made of before `strip` takes it.
//!
//! Must not know: rules, tables for the kernel side. All of it is read at once, from memory.

use std::fs::File;

use super::super::elf::{Layout, read_at};
use super::find::Table;
use super::image::Image;
use crate::StackLossReason;

/// kubelet's tables have 25 MB.
const MAX_BYTES: u64 = 64 << 20;
const MAX_STEPS: usize = 16 << 20;
/// Whose caller is nobody. The flag that says so (`abi.FuncFlagTopFrame`) is on others, too, that are worth following: a
/// signal's trampoline leads to the code that it interrupted, and `cgocallback` to the goroutine that has called C.
const OUTERMOST: [&[u8]; 3] = [b"runtime.rt0_go", b"runtime.mstart", b"runtime.goexit"];

/// A function's stack. Addresses are the file's own.
#[derive(Debug, Default)]
pub(crate) struct Stack {
    pub start: u64,
    pub end: u64,
    pub is_outermost: bool,
    /// From this address on, so many bytes lie between the stack pointer and the return address.
    pub steps: Vec<(u64, u32)>,
}

/// Gives every function to `each`, in order, until that returns false. An error is the reason why they cannot be read.
pub(crate) fn stacks(
    file: &File,
    layout: &Layout,
    mut each: impl FnMut(&Stack) -> bool,
) -> Result<(), StackLossReason> {
    let Some(table) = Table::find(&Image::new(file, layout), file) else {
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
    let image = Image::Memory(range.start, &bytes);
    let (mut stack, mut left) = (Stack::default(), MAX_STEPS);
    for index in 0..table.functions {
        if read(&table, &image, index, &mut stack, &mut left).is_none() {
            // It costs this function alone.
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

fn read(table: &Table, image: &Image<'_>, index: u64, stack: &mut Stack, left: &mut usize) -> Option<()> {
    let (start, place) = table.entry(image, index)?;
    let (end, _) = table.entry(image, index + 1)?;
    let shape = table.version.function();
    let bytes = image.within(table.range(), table.pcln.checked_add(place)?, shape.len)?;
    // Behind the name: arguments, deferreturn, and then where in `pctab` this is.
    let steps = u32::from_le_bytes(bytes.get(shape.name + 12..shape.name + 16)?.try_into().ok()?);
    (start < end && steps != 0).then_some(())?;
    (stack.start, stack.end) = (start, end);
    let name = u32::from_le_bytes(bytes.get(shape.name..shape.name + 4)?.try_into().ok()?);
    let name = table.text(image, table.names, name, 16);
    stack.is_outermost = name.is_some_and(|name| OUTERMOST.contains(&name.as_slice()));
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
