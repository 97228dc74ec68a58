//! Reads wire records out of bytes, with a length check. A record of the wrong length is an error, never a panic.

use bytemuck::AnyBitPattern;

/// A record that does not have the shape that its probe writes. It is a bug in podopsy; it is counted and reported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record of the kind `{record}` with {len} bytes is too short, too long or inconsistent")]
pub struct BadRecord {
    /// The kind of record: `oom`, `dns`, …
    pub record: &'static str,
    pub len: usize,
}

/// Reads a record of exactly the size of `T`.
pub fn whole<T: AnyBitPattern>(record: &'static str, bytes: &[u8]) -> Result<T, BadRecord> {
    bytemuck::try_pod_read_unaligned(bytes).map_err(|_| BadRecord { record, len: bytes.len() })
}

/// Reads the head of a record; returns it with the bytes that follow it.
pub fn head<'a, T: AnyBitPattern>(record: &'static str, bytes: &'a [u8]) -> Result<(T, &'a [u8]), BadRecord> {
    let bad = BadRecord { record, len: bytes.len() };
    let (head, rest) = bytes.split_at_checked(size_of::<T>()).ok_or(bad)?;
    Ok((whole(record, head)?, rest))
}

#[cfg(test)]
mod tests {
    use podopsy_wire::{Exec, TableRequest};

    use super::*;

    #[test]
    fn a_record_that_is_too_short_or_too_long_is_an_error() {
        let bytes = [1u8; size_of::<TableRequest>() + 1];
        let size = size_of::<TableRequest>();
        for len in [0, 1, size - 1, size + 1] {
            let error = whole::<TableRequest>("table request", &bytes[..len]).unwrap_err();
            assert_eq!(error, BadRecord { record: "table request", len });
        }
        assert!(whole::<TableRequest>("table request", &bytes[..size]).is_ok());
        assert!(whole::<TableRequest>("table request", &bytes[1..]).is_ok(), "at any alignment");
    }

    #[test]
    fn the_bytes_after_the_head_are_returned() {
        let (exec, rest) = head::<Exec>("exec", &[7, 0, 0, 0, 1, 2]).unwrap();
        assert_eq!((exec.pid, rest), (u32::from_le(7), &[1, 2][..]));
        assert_eq!(head::<Exec>("exec", &[7, 0, 0]).unwrap_err().len, 3);
    }
}
