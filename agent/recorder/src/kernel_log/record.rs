//! Parses one record of `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg): header and text.
//!
//! The format is `level,sequence,µs,flags[,…];text\n KEY=value\n`. The kernel writes unprintable bytes and the
//! backslash as `\xNN`. So a record's text is always one line and cannot pose as two.

/// A record that the kernel itself wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelLogRecord {
    pub sequence: u64,
    /// The kernel's `local_clock`, in µs since boot, as dmesg shows it.
    pub time_us: u64,
    /// Whether it continues the line of the previous record.
    pub continues: bool,
    /// The text without the kernel's escapes.
    pub text: Vec<u8>,
}

/// Priorities from here on belong to user space. A process that writes to /dev/kmsg never gets the kernel's facility 0.
const LEVELS: u64 = 8;

/// Returns None for a record that user space wrote, and for anything that is no record.
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
    let mut index = 0;
    while index < text.len() {
        let hex = text[index..].strip_prefix(b"\\x").and_then(|hex| hex.get(..2));
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                index += 4;
            }
            None => {
                out.push(text[index]);
                index += 1;
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
    fn records_written_by_user_space_are_ignored() {
        assert_eq!(parse(b"12,1,2,-;Out of memory: Killed process 1 (init)"), None);
        assert_eq!(parse(b"8,1,2,-;x"), None);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(parse(b"4,1,2,-;we\\x0aird ]x\\x5cy").unwrap().text, b"we\nird ]x\\y");
        assert_eq!(parse(b"4,1,2,-;a\\xzz\\x4").unwrap().text, b"a\\xzz\\x4");
    }

    #[test]
    fn garbage_gives_none_and_never_panics() {
        for bytes in
            [&b""[..], b";", b"a,b,c;x", b"4,1;x", b"4,1,2", b"4,99999999999999999999,2,-;x", b"\xff,1,2,-;x"]
        {
            assert_eq!(parse(bytes), None, "{bytes:?}");
        }
    }
}
