//! Domain names: read from a message (RFC 1035 §4.1.4) and written as people do (§5.1).
//!
//! Must not depend on: records, wire records of the kernel side.

use std::fmt::Write;

/// Bytes of a name, with its length bytes (RFC 1035 §3.1).
const MAX_NAME: usize = 255;
/// Characters that dig writes with a backslash, too, besides the dot and the backslash themselves.
const SPECIAL: &[u8] = b".\\\"();@$";

/// Why there is no name at a place of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    #[error("a name runs out of the message")]
    Short,
    #[error("a name has more than 255 bytes")]
    Long,
    #[error("a name has a label of a reserved kind")]
    Reserved,
    #[error("a name points forwards")]
    Forwards,
}

/// A name: absolute, in lower case (names that differ in case are the same, RFC 4343), without the final dot except for the
/// root. `\.` is a dot inside of a label, `\DDD` a byte that is no printable ASCII. Safe to print.
pub(super) struct Name {
    pub text: String,
    /// The place behind it in the message.
    pub end: usize,
}

impl Name {
    pub fn read(message: &[u8], at: usize) -> Result<Name, NameError> {
        let mut text = String::new();
        let end = labels(message, at, |label| {
            if !text.is_empty() {
                text.push('.');
            }
            label.iter().for_each(|&byte| push(&mut text, byte.to_ascii_lowercase()));
        })?;
        if text.is_empty() {
            text.push('.');
        }
        Ok(Name { text, end })
    }
}

/// The place behind the name at a place.
pub(super) fn skip(message: &[u8], at: usize) -> Result<usize, NameError> {
    labels(message, at, |_| ())
}

/// Calls `label` with each label of the name at a place, and returns the place behind the name.
fn labels(message: &[u8], at: usize, mut label: impl FnMut(&[u8])) -> Result<usize, NameError> {
    // Each pointer has to lead to a place before the labels that end in it, so that no name is without end.
    let (mut position, mut start, mut end, mut len) = (at, at, None, 0);
    loop {
        let kind = *message.get(position).ok_or(NameError::Short)?;
        match kind >> 6 {
            0b00 => {
                let size = usize::from(kind);
                len += 1 + size;
                if len > MAX_NAME {
                    return Err(NameError::Long);
                }
                if size == 0 {
                    return Ok(end.unwrap_or(position + 1));
                }
                label(message.get(position + 1..position + 1 + size).ok_or(NameError::Short)?);
                position += 1 + size;
            }
            0b11 => {
                let low = *message.get(position + 1).ok_or(NameError::Short)?;
                end.get_or_insert(position + 2);
                position = usize::from(kind & 0x3f) << 8 | usize::from(low);
                if position >= start {
                    return Err(NameError::Forwards);
                }
                start = position;
            }
            _ => return Err(NameError::Reserved),
        }
    }
}

fn push(text: &mut String, byte: u8) {
    match byte {
        special if SPECIAL.contains(&special) => text.extend(['\\', char::from(special)]),
        b'!'..=b'~' => text.push(char::from(byte)),
        // Writing to a string does not fail.
        other => drop(write!(text, "\\{other:03}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(message: &[u8]) -> String {
        Name::read(message, 0).unwrap().text
    }

    #[test]
    fn names_are_written_as_dig_writes_them() {
        for (message, expected) in [
            (&b"\x02nx\x03a.b\x03com\x00"[..], r"nx.a\.b.com"),
            (b"\x03x y\x00", r"x\032y"),
            (b"\x04\x01\xff\\;\x00", r"\001\255\\\;"),
            (b"\x05\"q\"$@\x00", r#"\"q\"\$\@"#),
            (b"\x04_sip\x04_TCP\x00", "_sip._tcp"),
            (b"\x00", "."),
        ] {
            assert_eq!(text(message), expected);
        }
    }

    #[test]
    fn a_name_goes_on_where_its_pointer_leads() {
        let message = b"\x03com\x00\x01a\xc0\x00rest";
        let name = Name::read(message, 5).unwrap();
        assert_eq!((name.text.as_str(), name.end), ("a.com", 9));
        assert_eq!(skip(message, 5), Ok(9));
    }

    #[test]
    fn a_name_without_an_end_is_an_error() {
        let long = [&[63][..], &[b'a'; 63]].concat().repeat(5);
        for (message, error) in [
            (&b""[..], NameError::Short),
            (b"\x03co", NameError::Short),
            (b"\xc0", NameError::Short),
            (b"\xc0\x00", NameError::Forwards),
            (b"\xc0\x05\x00\x00\x00\x00", NameError::Forwards),
            // A pointer into the labels that lead to it.
            (b"\x01a\xc0\x00", NameError::Forwards),
            (b"\x40a\x00", NameError::Reserved),
            (&long, NameError::Long),
        ] {
            assert_eq!(skip(message, 0), Err(error), "{message:?}");
        }
    }
}
