//! Samples (a task, its kernel stack and its user stack) and requests for unwind tables.

use podopsy_wire::{
    End, FRAMES_MAX, FileKey, FrameWord, PYTHON_FRAMES_MAX, PythonEnd, Sample, TableRequest, Task,
};

use super::read::{self, BadRecord};

/// A sample as the kernel side took it; frames innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    pub task: Task,
    /// Addresses.
    pub kernel: Vec<u64>,
    /// Words of [`podopsy_wire::FrameWord`].
    pub user: Vec<u64>,
    /// The file of the user frame that has no number.
    pub file: FileKey,
    /// [`Sample::image`].
    pub image: u64,
    /// Why the user stack ended.
    pub end: End,
    /// The user frame that `end` is about, counted from the innermost.
    pub end_frame: u32,
    pub python: Python,
}

/// Python's frames, from the interpreter's own list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Python {
    pub end: PythonEnd,
    /// The interpreter's file: [`podopsy_wire::Table::python`].
    pub number: u32,
    /// Added to an address in that file's code it gives the offset in the file.
    pub to_offset: u64,
    /// Innermost first: the code object's address, and the position in the code with [`podopsy_wire::PYTHON_ENTRY`].
    pub frames: Vec<(u64, u64)>,
}

/// Reads a [`Sample`] and the stacks that follow it.
pub fn sample(bytes: &[u8]) -> Result<Stack, BadRecord> {
    let bad = || BadRecord { record: "oncpu", len: bytes.len() };
    let (head, mut rest) = read::head::<Sample>("oncpu", bytes)?;
    let end = End::ALL.get(head.end as usize).copied().ok_or_else(bad)?;
    let python_end = PythonEnd::ALL.get(head.python_end as usize).copied().ok_or_else(bad)?;
    let kernel = addresses(&mut rest, head.kernel_len).ok_or_else(bad)?;
    let mut user = addresses(&mut rest, head.user_len).ok_or_else(bad)?;
    if end == End::FramePointers {
        user.iter_mut().for_each(|word| *word = FrameWord::address(*word));
    }
    let frames = python_frames(&mut rest, head.python_len).ok_or_else(bad)?;
    if !rest.is_empty() {
        return Err(bad());
    }
    let python = Python { end: python_end, number: head.python, to_offset: head.python_to_offset, frames };
    let Sample { task, end_frame, file, image, .. } = head;
    Ok(Stack { task, kernel, user, file, image, end, end_frame, python })
}

/// Reads a [`TableRequest`].
pub fn table_request(bytes: &[u8]) -> Result<TableRequest, BadRecord> {
    read::whole("table request", bytes)
}

/// Takes a stack off the front of `rest`. `len` is in bytes; a negative errno means that there is no stack. None: the
/// length is not possible.
fn addresses(rest: &mut &[u8], len: i32) -> Option<Vec<u64>> {
    let Ok(len) = usize::try_from(len) else { return Some(Vec::new()) };
    if len > FRAMES_MAX * 8 {
        return None;
    }
    words(rest, len)
}

/// Takes Python's frames off the front of `rest`: `len` bytes, two words for each frame. None: the length is not
/// possible.
fn python_frames(rest: &mut &[u8], len: u32) -> Option<Vec<(u64, u64)>> {
    let len = len as usize;
    if !len.is_multiple_of(16) || len > PYTHON_FRAMES_MAX * 16 {
        return None;
    }
    let words = words(rest, len)?;
    Some(words.as_chunks().0.iter().map(|&[code, position]| (code, position)).collect())
}

/// Takes `len` bytes of words off the front of `rest`. None: there are fewer, or the last word is not whole.
fn words(rest: &mut &[u8], len: usize) -> Option<Vec<u64>> {
    let (words, remainder) = rest.split_off(..len)?.as_chunks();
    remainder.is_empty().then(|| words.iter().copied().map(u64::from_ne_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kernel_len: i32, user_len: i32, addresses: &[u64]) -> Vec<u8> {
        let mut out = vec![0; 40];
        out[16..20].copy_from_slice(&77u32.to_ne_bytes());
        out.extend(kernel_len.to_ne_bytes());
        out.extend(user_len.to_ne_bytes());
        out.extend((End::NoRule as u32).to_ne_bytes());
        out.extend(1u32.to_ne_bytes());
        out.extend([0; 24]);
        out.extend(7u64.to_ne_bytes());
        out.extend([0; 16]);
        out.extend(0x7ffc_0000_u64.to_ne_bytes());
        out.extend(addresses.iter().flat_map(|a| a.to_ne_bytes()));
        out
    }

    #[test]
    fn both_stacks_are_read_in_order() {
        let stack = sample(&bytes(8, 16, &[1, 2, 3])).unwrap();
        assert_eq!((stack.end, stack.end_frame), (End::NoRule, 1));
        assert_eq!((stack.file.inode, stack.image), (7, 0x7ffc_0000));
        assert_eq!((stack.task.pid, stack.kernel, stack.user), (77, vec![1], vec![2, 3]));
    }

    #[test]
    fn a_negative_errno_means_that_there_is_no_stack() {
        let stack = sample(&bytes(-14, 8, &[9])).unwrap();
        assert_eq!((stack.kernel, stack.user), (vec![], vec![9]));
    }

    #[test]
    fn what_frame_pointers_find_is_not_taken_for_a_file() {
        let file = FrameWord::file(7, 1);
        let mut sampled = bytes(0, 16, &[0x1000, file]);
        assert_eq!(sample(&sampled).unwrap().user, [0x1000, file]);
        sampled[48..52].copy_from_slice(&(End::FramePointers as u32).to_ne_bytes());
        assert_eq!(sample(&sampled).unwrap().user, [0x1000, 0]);
    }

    #[test]
    fn python_frames_follow_the_stacks() {
        let mut sampled = bytes(0, 8, &[9, 0x1000, 4, 0x2000, 6]);
        sampled[56..60].copy_from_slice(&32u32.to_ne_bytes());
        sampled[60..64].copy_from_slice(&(PythonEnd::Truncated as u32).to_ne_bytes());
        let stack = sample(&sampled).unwrap();
        assert_eq!((stack.user, stack.python.end), (vec![9], PythonEnd::Truncated));
        assert_eq!(stack.python.frames, [(0x1000, 4), (0x2000, 6)]);
        for wrong in [8u32, 48, u32::MAX - 15] {
            sampled[56..60].copy_from_slice(&wrong.to_ne_bytes());
            assert!(sample(&sampled).is_err(), "{wrong}");
        }
        assert!(PythonEnd::ALL.iter().zip(0..).all(|(end, index)| *end as u32 == index));
    }

    #[test]
    fn a_request_has_file_address_and_process() {
        let mut bytes: Vec<u8> = [7u64, 4096].iter().flat_map(|n| n.to_ne_bytes()).collect();
        bytes.extend([8u32, 9].iter().flat_map(|n| n.to_ne_bytes()));
        bytes.extend(0x7f00_0000_1000_u64.to_ne_bytes());
        bytes.extend([42u32, 0].iter().flat_map(|n| n.to_ne_bytes()));
        let request = table_request(&bytes).unwrap();
        assert_eq!((request.key.inode, request.key.device, request.key.changed), (7, 8, 9));
        assert_eq!((request.address, request.pid), (0x7f00_0000_1000, 42));
        assert!(table_request(&bytes[..39]).is_err());
    }

    #[test]
    fn a_sample_with_impossible_lengths_is_refused() {
        assert!(sample(&bytes(16, 0, &[1])).is_err());
        assert!(sample(&bytes(8, 0, &[1, 2])).is_err(), "trailing bytes");
        assert!(sample(&bytes(7, 0, &[1])).is_err());
        assert!(sample(&bytes(i32::MAX, 0, &[1])).is_err());
        assert!(sample(&[0; 10]).is_err());
        let mut bad_end = bytes(0, 0, &[]);
        bad_end[48] = 200;
        assert!(sample(&bad_end).is_err());
    }
}
