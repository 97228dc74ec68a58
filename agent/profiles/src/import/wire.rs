//! Reads the wire format of protocol buffers in place: numbers and slices, without copies.
//!
//! prost is not used because it makes a structure of every message, and an empty message takes two bytes: a file of
//! 100 MB could allocate 4 GB before a bound is checked. Must not depend on: profiles.
//!
//! Format: <https://protobuf.dev/programming-guides/encoding/>.

/// The bytes are not a protocol buffer, or end in the middle of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> WireValue<'a> {
    pub fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            WireValue::Bytes(bytes) => Ok(bytes),
            WireValue::Number(_) => Err(WireError),
        }
    }

    pub fn number(self) -> Result<u64, WireError> {
        match self {
            WireValue::Number(number) => Ok(number),
            WireValue::Bytes(_) => Err(WireError),
        }
    }

    /// The numbers of a repeated field: all of a packed field, or the one of an unpacked field.
    pub fn numbers(self) -> impl Iterator<Item = Result<u64, WireError>> {
        let (one, mut rest) = match self {
            WireValue::Number(number) => (Some(Ok(number)), &[][..]),
            WireValue::Bytes(bytes) => (None, bytes),
        };
        one.into_iter().chain(std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let number = varint(&mut rest);
            if number.is_err() {
                rest = &[];
            }
            Some(number)
        }))
    }
}

/// The fields of a message with their numbers, in order. After an error there are no more.
#[derive(Clone, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, WireValue<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, WireValue<'a>), WireError> {
        let tag = varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => WireValue::Number(varint(&mut self.0)?),
            1 => WireValue::Number(fixed::<8>(self.take(8)?)),
            2 => {
                let len = varint(&mut self.0)?;
                WireValue::Bytes(self.take(len)?)
            }
            5 => WireValue::Number(fixed::<4>(self.take(4)?)),
            // Groups (types 3 and 4) are deprecated since 2008; no profile uses them.
            _ => return Err(WireError),
        };
        Ok((tag >> 3, value))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], WireError> {
        let len = usize::try_from(len).map_err(|_| WireError)?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or(WireError)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> u64 {
    bytes.iter().take(N).rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, WireError> {
    let mut number = 0_u64;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Ok(number);
        }
    }
    Err(WireError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_type_are_read() {
        // 1: varint 300; 2: fixed64 1; 3: "ab"; 4: fixed32 2.
        let bytes = [8, 0xac, 2, 0x11, 1, 0, 0, 0, 0, 0, 0, 0, 0x1a, 2, b'a', b'b', 0x25, 2, 0, 0, 0];
        let fields: Vec<_> = Fields(&bytes).map(Result::unwrap).collect();
        let expected = [
            (1, WireValue::Number(300)),
            (2, WireValue::Number(1)),
            (3, WireValue::Bytes(b"ab")),
            (4, WireValue::Number(2)),
        ];
        assert_eq!(fields, expected);
        let packed: Vec<_> = WireValue::Bytes(&[1, 0xac, 2]).numbers().map(Result::unwrap).collect();
        assert_eq!(packed, [1, 300]);
    }

    #[test]
    fn truncated_bytes_end_in_one_error() {
        for bytes in [
            &[0x80][..],
            &[8],
            &[0x1a, 200, 1],
            &[0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x0b],
        ] {
            let fields: Vec<_> = Fields(bytes).take(3).collect();
            assert_eq!(fields, [Err(WireError)], "{bytes:?}");
        }
        let numbers: Vec<_> = WireValue::Bytes(&[1, 0x80]).numbers().take(5).collect();
        assert_eq!(numbers, [Ok(1), Err(WireError)]);
    }
}
