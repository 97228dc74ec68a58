//! A stack as it is counted: `[head, kernel…, user…, python…]`, so that one slice is the key.

use podopsy_wire::{End, PythonEnd};

use super::RawSample;
use crate::symbolize::UserAddress;

/// A stack's first word: how many of its addresses are the kernel's and the user's, at most 127 each, and how both the
/// user part and Python's ended.
pub(super) fn head(sample: &RawSample<'_>) -> u64 {
    sample.kernel.len() as u64
        | (sample.user.len() as u64) << 8
        | (sample.end as u64) << 16
        | (sample.python_end as u64) << 24
        | u64::from(sample.end_frame) << 32
}

/// What a head says.
pub(super) struct Parts {
    pub kernel: usize,
    pub user: usize,
    pub end: End,
    pub python_end: PythonEnd,
    pub end_frame: usize,
}

pub(super) fn parts(head: u64) -> Parts {
    let byte = |shift: u32| (head >> shift) as usize & 0xff;
    Parts {
        kernel: byte(0),
        user: byte(8),
        end: End::ALL.get(byte(16)).copied().unwrap_or(End::Complete),
        python_end: PythonEnd::ALL.get(byte(24)).copied().unwrap_or_default(),
        end_frame: (head >> 32) as usize,
    }
}

/// The three parts of a stack behind its head.
pub(super) fn split<'a>(parts: &Parts, addresses: &'a [u64]) -> [&'a [u64]; 3] {
    let (kernel, rest) = addresses.split_at(parts.kernel.min(addresses.len()));
    let (user, python) = rest.split_at(parts.user.min(rest.len()));
    [kernel, user, python]
}

fn halves(stack: &[u64]) -> [&[u64]; 2] {
    let Some((&head, addresses)) = stack.split_first() else { return [&[]; 2] };
    let [kernel, user, _] = split(&parts(head), addresses);
    [kernel, user]
}

/// Each with whether it is where a call will return to: the innermost is where it stood.
pub(super) fn kernel_addresses(stack: &[u64]) -> impl Iterator<Item = (u64, bool)> {
    halves(stack)[0].iter().enumerate().map(|(depth, &address)| (address, depth > 0))
}

pub(super) fn user_addresses(pid: u32, stack: &[u64]) -> impl Iterator<Item = UserAddress> {
    let at = move |(depth, &address): (usize, &u64)| UserAddress { pid, address, is_return: depth > 0 };
    halves(stack)[1].iter().enumerate().map(at)
}
