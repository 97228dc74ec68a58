//! Whether a message has the records that its header counts (RFC 1035 §4.1). What is inside of a record's data is not judged:
//! new types and values are legal.
//!
//! Must not depend on: types of records.

use podopsy_wire::DNS_HEADER_BYTES;

use super::name;

/// Bytes behind a record's name: type, class, time to live, and the length of its data.
const FIXED: usize = 10;
const SECTIONS: [&str; 4] = ["question", "answer", "authority", "additional"];

/// Walks over all records. An error says which one the message lacks.
pub(super) fn walk(message: &[u8]) -> Result<(), String> {
    let header = message.get(..DNS_HEADER_BYTES).ok_or("shorter than a header")?;
    let mut at = DNS_HEADER_BYTES;
    for (count, section) in header[4..].chunks_exact(2).zip(SECTIONS) {
        let count = u16::from_be_bytes([count[0], count[1]]);
        for number in 1..=count {
            let here = |error: &dyn std::fmt::Display| format!("{section} {number} of {count}: {error}");
            at = name::skip(message, at).map_err(|error| here(&error))?;
            if section == "question" {
                at = behind(message, at, 4).ok_or_else(|| here(&"the message ends in it"))?;
                continue;
            }
            let data = behind(message, at, FIXED).ok_or_else(|| here(&"the message ends in it"))?;
            let field = |offset: usize| u16::from_be_bytes([message[at + offset], message[at + offset + 1]]);
            at = behind(message, data, field(8).into())
                .ok_or_else(|| here(&"the message ends in its data"))?;
        }
    }
    Ok(())
}

/// The place so many bytes behind a place, if the message has them.
fn behind(message: &[u8], at: usize, bytes: usize) -> Option<usize> {
    at.checked_add(bytes).filter(|end| *end <= message.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\x01a\x00\x00\x01\x00\x01";

    fn message(counts: [u16; 4], body: &[&[u8]]) -> Vec<u8> {
        let counts: Vec<u8> = counts.iter().flat_map(|count| count.to_be_bytes()).collect();
        [&[0, 1, 0x81, 0x80][..], &counts, &body.concat()].concat()
    }

    /// A record of the question's name.
    fn record(kind: u16, data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u16).to_be_bytes();
        [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 30], &length, data].concat()
    }

    #[test]
    fn records_of_any_type_and_content_are_well_formed() {
        // CSYNC with unknown flags, SIG, NAPTR with the flag "-", and a type without a name.
        for (kind, data) in [
            (62, &b"\x00\x00\x00\x01\x00\xff\x00\x01\x40"[..]),
            (24, b"x"),
            (35, b"\x00\x01\x00\x02\x01-\x00\x00\x00"),
            (65534, b"\xc0\x0c\xc0\xff"),
            (1, b""),
        ] {
            let whole = message([1, 1, 0, 0], &[QUESTION, &record(kind, data)]);
            assert_eq!(walk(&whole), Ok(()), "type {kind}");
            // Bytes behind the message belong to nothing, and are no fault of it.
            assert!(walk(&[&whole[..], b"x"].concat()).is_ok());
            for cut in 0..whole.len() {
                assert!(walk(&whole[..cut]).is_err(), "type {kind}, {cut} bytes");
            }
        }
    }

    #[test]
    fn a_missing_record_is_named() {
        let whole = message([1, 2, 0, 0], &[QUESTION, &record(1, &[1, 2, 3, 4])]);
        assert_eq!(walk(&whole).unwrap_err(), "answer 2 of 2: a name runs out of the message");
    }
}
