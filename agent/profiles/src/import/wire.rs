//! Protocol buffers' wire format, read in place: numbers and slices, nothing is copied.
//!
//! Must not know: profiles. Why not prost: it makes a structure of every message, and an empty message has two bytes. A
//! file of 100 MB could ask for 4 GB before anyone can count.
//!
//! Format: <https://protobuf.dev/programming-guides/encoding/>.

/// What is no protocol buffer, or ends in the middle of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub fn bytes(self) -> Result<&'a [u8], Damaged> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Number(_) => Err(Damaged),
        }
    }

    pub fn number(self) -> Result<u64, Damaged> {
        match self {
            Value::Number(number) => Ok(number),
            Value::Bytes(_) => Err(Damaged),
        }
    }

    /// A repeated number: packed, or one of many fields.
    pub fn numbers(self) -> impl Iterator<Item = Result<u64, Damaged>> {
        let (one, mut rest) = match self {
            Value::Number(number) => (Some(Ok(number)), &[][..]),
            Value::Bytes(bytes) => (None, bytes),
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

/// A message's fields, in order.
#[derive(Clone, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Damaged>;

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
    fn field(&mut self) -> Result<(u64, Value<'a>), Damaged> {
        let tag = varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut self.0)?),
            1 => Value::Number(fixed::<8>(self.take(8)?)),
            2 => {
                let len = varint(&mut self.0)?;
                Value::Bytes(self.take(len)?)
            }
            5 => Value::Number(fixed::<4>(self.take(4)?)),
            // Groups are from before 2008, and no profile has any.
            _ => return Err(Damaged),
        };
        Ok((tag >> 3, value))
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], Damaged> {
        let len = usize::try_from(len).map_err(|_| Damaged)?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Damaged)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> u64 {
    bytes.iter().take(N).rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Damaged> {
    let mut number = 0_u64;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Ok(number);
        }
    }
    Err(Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_kind() {
        // 1: varint 300; 2: fixed64 1; 3: "ab"; 4: fixed32 2.
        let bytes = [8, 0xac, 2, 0x11, 1, 0, 0, 0, 0, 0, 0, 0, 0x1a, 2, b'a', b'b', 0x25, 2, 0, 0, 0];
        let fields: Vec<_> = Fields(&bytes).map(Result::unwrap).collect();
        let expected =
            [(1, Value::Number(300)), (2, Value::Number(1)), (3, Value::Bytes(b"ab")), (4, Value::Number(2))];
        assert_eq!(fields, expected);
        let packed: Vec<_> = Value::Bytes(&[1, 0xac, 2]).numbers().map(Result::unwrap).collect();
        assert_eq!(packed, [1, 300]);
    }

    #[test]
    fn what_is_cut_off_ends_in_one_error() {
        for bytes in [
            &[0x80][..],
            &[8],
            &[0x1a, 200, 1],
            &[0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0x0b],
        ] {
            let fields: Vec<_> = Fields(bytes).take(3).collect();
            assert_eq!(fields, [Err(Damaged)], "{bytes:?}");
        }
        let numbers: Vec<_> = Value::Bytes(&[1, 0x80]).numbers().take(5).collect();
        assert_eq!(numbers, [Ok(1), Err(Damaged)]);
    }
}
