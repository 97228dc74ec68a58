//! The part of the DNS message format (RFC 1035) that a misbehaving server needs: read one question, write one answer.
//! Not a library's, because a library would refuse to write what `malformed` needs.

/// Query types that get an address.
pub const A: u16 = 1;
/// IPv6 address.
pub const AAAA: u16 = 28;

/// The first question of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Transaction id.
    pub id: u16,
    /// Recursion desired, copied to the answer.
    pub recursion: bool,
    /// Lower-case, dots between labels, none at the end.
    pub name: String,
    /// A (1), AAAA (28), …
    pub kind: u16,
    /// The question as it stood in the query, to be repeated byte for byte.
    pub bytes: Vec<u8>,
}

/// Reads the header and the first question; `None` for anything that is not a plain query.
pub fn question(packet: &[u8]) -> Option<Question> {
    let header = packet.get(..12)?;
    let response = header[2] & 0x80 != 0;
    if response || u16::from_be_bytes([header[4], header[5]]) == 0 {
        return None;
    }
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        // Queries carry no compression pointers.
        if length > 63 {
            return None;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]);
    Some(Question {
        id: u16::from_be_bytes([header[0], header[1]]),
        recursion: header[2] & 1 != 0,
        name: labels.join("."),
        kind,
        bytes: packet.get(12..at + 4)?.to_vec(),
    })
}

/// Response codes by the names DNS gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// NOERROR
    NoError = 0,
    /// FORMERR
    FormErr = 1,
    /// SERVFAIL
    ServFail = 2,
    /// NXDOMAIN
    NxDomain = 3,
    /// REFUSED
    Refused = 5,
}

/// A reply with the question and these addresses (4 or 16 bytes each, by the question's type).
pub fn reply(question: &Question, code: Code, truncated: bool, addresses: &[Vec<u8>]) -> Vec<u8> {
    let mut packet = header(question, code, truncated, 1, addresses.len() as u16);
    packet.extend(&question.bytes);
    for address in addresses {
        // The name is a pointer to the question's, at byte 12.
        packet.extend([0xc0, 12]);
        packet.extend(question.kind.to_be_bytes());
        packet.extend(1_u16.to_be_bytes());
        packet.extend(30_u32.to_be_bytes());
        packet.extend((address.len() as u16).to_be_bytes());
        packet.extend(address);
    }
    packet
}

/// A header: response, recursion available.
fn header(question: &Question, code: Code, truncated: bool, questions: u16, answers: u16) -> Vec<u8> {
    let mut packet = question.id.to_be_bytes().to_vec();
    packet.push(0x80 | if truncated { 2 } else { 0 } | u8::from(question.recursion));
    packet.push(0x80 | code as u8);
    for count in [questions, answers, 0, 0] {
        packet.extend(count.to_be_bytes());
    }
    packet
}

/// Ways to be malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// The answer's name is a compression pointer to itself.
    Loop,
    /// The packet ends inside the answer that its header promises.
    Short,
    /// A name of 127 labels of 63 bytes: far past the 255 bytes a name may have.
    Long,
    /// The question is another one than was asked.
    Question,
}

/// A reply with that defect. The id and the response bit are right, so that it gets as far as the parser.
pub fn malformed(question: &Question, defect: Defect) -> Vec<u8> {
    let mut packet = header(question, Code::NoError, false, 1, 1);
    match defect {
        Defect::Loop => {
            packet.extend(&question.bytes);
            let own = packet.len() as u16;
            packet.extend((0xc000 | own).to_be_bytes());
            packet.extend([0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, 1]);
        }
        Defect::Short => {
            packet.extend(&question.bytes);
            packet.extend([0xc0, 12, 0, 1, 0]);
        }
        Defect::Long => {
            for _ in 0..127 {
                packet.push(63);
                packet.extend([b'x'; 63]);
            }
            packet.extend([0, 0, 1, 0, 1]);
        }
        Defect::Question => {
            packet.extend(b"\x05other\x04test\x00\x00\x01\x00\x01");
            packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, 1]);
        }
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03Web\x04test\x00\x00\x01\x00\x01";

    #[test]
    fn a_query_is_read_and_answered_with_its_own_question() {
        let asked = question(QUERY).expect("a plain query");
        assert_eq!((asked.id, asked.name.as_str(), asked.kind), (0x1234, "web.test", A));
        let answer = reply(&asked, Code::NoError, false, &[vec![10, 0, 0, 1]]);
        assert_eq!(answer[..4], [0x12, 0x34, 0x81, 0x80]);
        assert_eq!(answer[12..12 + asked.bytes.len()], asked.bytes);
        assert!(answer.ends_with(&[0, 4, 10, 0, 0, 1]));
        assert_eq!(question(&answer), None, "a response is no query");
    }

    #[test]
    fn a_cut_query_is_no_question() {
        for end in 0..QUERY.len() {
            assert_eq!(question(&QUERY[..end]), None);
        }
    }
}
