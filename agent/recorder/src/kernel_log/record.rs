//! One record of `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg): header and text.
//!
//! `level,sequence,µs,flags[,…];text\n KEY=value\n`. The kernel writes bytes that are not printable, and the
//! backslash, as `\xNN`: a record's text is one line, and cannot be made to look like two.

/// A record that the kernel itself wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLogRecord {
    pub sequence: u64,
    /// The kernel's `local_clock`, in µs since boot: what dmesg shows.
    pub time_us: u64,
    /// It goes on with the line of the record before.
    pub continues: bool,
    /// As the kernel had it, before its escapes.
    pub text: Vec<u8>,
}

/// Facilities above the kernel's (0) are user space's: whoever may write to /dev/kmsg never gets 0.
const LEVELS: u64 = 8;

/// None: not the kernel's, or no record.
pub fn parse(bytes: &[u8]) -> Option<KernelLogRecord> {
    let split = bytes.iter().position(|&b| b == b';')?;
    let (header, rest) = (std::str::from_utf8(&bytes[..split]).ok()?, &bytes[split + 1..]);
    let mut fields = header.split(',');
    let mut number = || fields.next()?.parse::<u64>().ok();
    let (priority, sequence, time_us) = (number()?, number()?, number()?);
    if priority >= LEVELS {
        return None;
    }
    let continues = fields.next().is_some_and(|flags| flags.starts_with('c'));
    let end = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    Some(KernelLogRecord { sequence, time_us, continues, text: unescape(&rest[..end]) })
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let hex = text[at..].strip_prefix(b"\\x").and_then(|hex| hex.get(..2));
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_header_and_text() {
        let record = parse(b"3,28908,11646256481,-;Memory cgroup out of memory\n SUBSYSTEM=x\n").unwrap();
        assert_eq!((record.sequence, record.time_us, record.continues), (28908, 11_646_256_481, false));
        assert_eq!(record.text, b"Memory cgroup out of memory");
        assert!(parse(b"6,1,2,c,caller=T12;,oom_memcg=/a").unwrap().continues);
    }

    #[test]
    fn what_user_space_wrote_is_not_the_kernels() {
        assert_eq!(parse(b"12,1,2,-;Out of memory: Killed process 1 (init)"), None);
        assert_eq!(parse(b"8,1,2,-;x"), None);
    }

    #[test]
    fn escapes_are_undone_and_a_second_line_is_no_record() {
        assert_eq!(parse(b"4,1,2,-;we\\x0aird ]x\\x5cy").unwrap().text, b"we\nird ]x\\y");
        assert_eq!(parse(b"4,1,2,-;a\\xzz\\x4").unwrap().text, b"a\\xzz\\x4");
    }

    #[test]
    fn garbage_is_none_and_never_a_panic() {
        for bytes in
            [&b""[..], b";", b"a,b,c;x", b"4,1;x", b"4,1,2", b"4,99999999999999999999,2,-;x", b"\xff,1,2,-;x"]
        {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }
}
