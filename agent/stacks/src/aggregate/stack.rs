//! A stack as it is counted: one slice of numbers, `[head, kernel…, user…, python…]`, which is the key of a map.

use podopsy_wire::{End, FrameWord, PythonEnd};

use super::RawSample;
use crate::symbolize::{ProgramImage, UserAddress};

/// The first number of a stack: how many of its addresses are of the kernel and of user space (at most 127 each), and
/// how the user part and Python's part ended.
pub(super) fn head(sample: &RawSample<'_>) -> u64 {
    sample.kernel.len() as u64
        | (sample.user.len() as u64) << 8
        | (sample.end as u64) << 16
        | (sample.python_end as u64) << 24
        | u64::from(sample.end_frame) << 32
}

/// The fields of a head.
pub(super) struct StackParts {
    pub kernel: usize,
    pub user: usize,
    pub end: End,
    pub python_end: PythonEnd,
    pub end_frame: usize,
}

pub(super) fn parts(head: u64) -> StackParts {
    let byte = |shift: u32| (head >> shift) as usize & 0xff;
    StackParts {
        kernel: byte(0),
        user: byte(8),
        end: End::ALL.get(byte(16)).copied().unwrap_or(End::Complete),
        python_end: PythonEnd::ALL.get(byte(24)).copied().unwrap_or_default(),
        end_frame: (head >> 32) as usize,
    }
}

/// Splits the numbers after the head into the kernel's, the user's and Python's part.
pub(super) fn split<'a>(parts: &StackParts, addresses: &'a [u64]) -> [&'a [u64]; 3] {
    let (kernel, rest) = addresses.split_at(parts.kernel.min(addresses.len()));
    let (user, python) = rest.split_at(parts.user.min(rest.len()));
    [kernel, user, python]
}

/// The kernel's and the user's addresses of a stack.
fn native_parts(stack: &[u64]) -> [&[u64]; 2] {
    let Some((&head, addresses)) = stack.split_first() else { return [&[]; 2] };
    let [kernel, user, _] = split(&parts(head), addresses);
    [kernel, user]
}

/// The kernel's addresses, each with whether it is a return address: all but the innermost are.
pub(super) fn kernel_addresses(stack: &[u64]) -> impl Iterator<Item = (u64, bool)> {
    native_parts(stack)[0].iter().enumerate().map(|(depth, &address)| (address, depth > 0))
}

/// The user's frames. A file is the same one in every process.
pub(super) fn user_addresses(
    (pid, image): (u32, ProgramImage),
    stack: &[u64],
) -> impl Iterator<Item = UserAddress> {
    let at = move |(depth, &address): (usize, &u64)| match FrameWord::from_word(address) {
        FrameWord::File { .. } => {
            UserAddress { pid: 0, image: ProgramImage::UNKNOWN, address, is_return: false }
        }
        _ => UserAddress { pid, image, address, is_return: depth > 0 },
    };
    native_parts(stack)[1].iter().enumerate().map(at)
}
