//! Inputs that are records: of interpreters, of the worker, and of the kernel side.

use super::Inputs;
use super::binary::{rows, words};

/// The start of `_PyRuntime` in 3.13: a cookie, the version, and offsets.
pub fn debug_offsets() -> Vec<u8> {
    let mut offsets = b"xdebugpy".to_vec();
    offsets.extend(words(&[0x030d_00f0, 0]));
    offsets.extend((0..100_u64).flat_map(|i| (i % 12 * 8).to_le_bytes()));
    offsets
}

pub fn python_offsets() -> Inputs {
    let with = |minor: u8, bytes: Vec<u8>| [vec![minor], bytes].concat();
    vec![
        ("3.10", with(10, Vec::new())),
        ("3.11", with(11, Vec::new())),
        ("3.12", with(12, Vec::new())),
        ("3.13", with(13, debug_offsets())),
        ("3.13-large-offsets", with(13, [&b"xdebugpy"[..], &[0xff; 900]].concat())),
        ("3.13-cut", with(13, debug_offsets()[..40].to_vec())),
        ("3.14", with(14, debug_offsets())),
    ]
}

pub fn python_codes() -> Inputs {
    // A code object of 3.11 at 0, a name at 256, a file at 512, lines at 768.
    let memory = |name: &[u64], file: &[u64]| {
        let mut memory = vec![0; 1024];
        let mut put = |at: usize, word: u64| memory[at..at + 8].copy_from_slice(&word.to_le_bytes());
        put(8, 0x1234);
        put(72, 41);
        for (at, to) in [(112, 512), (128, 256), (136, 768)] {
            put(at, to);
        }
        for (at, text) in [(256, name), (512, file)] {
            put(at + 16, text[0]);
            put(at + 32, text[1]);
            text[2..].iter().enumerate().for_each(|(index, word)| put(at + 48 + 8 * index, *word));
        }
        put(768 + 16, 3);
        put(768 + 32, 0x0002_0180);
        [vec![11, 0], memory].concat()
    };
    let ascii = 1 << 2 | 1 << 5 | 1 << 6;
    let wide = 4 << 2 | 1 << 5;
    let name: &[u64] = &[16, ascii, u64::from_le_bytes(*b"Outer.in"), u64::from_le_bytes(*b"ner\x1b[2J;")];
    let mut far = memory(name, name);
    far[1] = 100;
    vec![
        ("function", memory(name, &[8, ascii, u64::from_le_bytes(*b"/app.py\n")])),
        ("wide", memory(&[3, wide, 0, 0, 0, 0x1f40d, 0xd800_0000_202e], name)),
        ("long", memory(&[u64::MAX, ascii, 0], &[1 << 40, wide, 0])),
        ("not-text", memory(&[5, 0, 0], name)),
        ("at-the-end", far),
        ("cut", memory(name, name)[..200].to_vec()),
    ]
}

pub fn python_lines() -> Inputs {
    let with = |format: u8, first: u32, at: u32, table: &[u8]| {
        [&[format][..], &first.to_le_bytes(), &at.to_le_bytes(), table].concat()
    };
    let pairs = b"\x02\x80\x04\x01\x06\x01\x02\x01\x06\xff\x0a\x03\x00\x7f\x00\x81\xff\x7f";
    let locations = b"\x80\x00\xd8\x08\x0d\xf0\x02\x56\x03\x05\x0d\xe8\x7f\x7f\x7f\x01\xff\x00";
    vec![
        ("3.10", with(0, 3, 8, pairs)),
        ("3.11", with(1, 3, 4, locations)),
        ("3.10-odd", with(0, u32::MAX, 1, &pairs[..5])),
        ("3.11-long-numbers", with(1, u32::MAX, 100, &[&[0xe8][..], &[0x7f; 40]].concat())),
        ("3.10-lines-beyond", with(0, u32::MAX, 60000, &[0xff, 0x7f].repeat(300))),
        ("3.11-without-heads", with(1, 0, 9, &[0x40; 100])),
    ]
}

pub fn worker_frames() -> Inputs {
    let frame = |body: &[u8]| [&(body.len() as u32).to_le_bytes()[..], body].concat();
    let no_time = [0, 0];
    let rows = rows(&[(16, 1)], 3);
    let names = [&[1, 0, 1, 0, 1, 4][..], b"main", &[1, 3], b"a.c", &[42, 0], &no_time].concat();
    vec![
        ("described", frame(&[&[0, 0][..], &no_time].concat())),
        ("job", frame(&[&[0][..], &no_time].concat())),
        ("names", frame(&names)),
        ("perf-map", frame(&[&[2, 0, 1, 1, 1, b'f', 0][..], &no_time].concat())),
        ("rows", frame(&[&[4, 0][..], &rows, &no_time].concat())),
        ("panicked", frame(&[&[5][..], &no_time].concat())),
        ("two", [frame(&[0, 0, 0, 0]), frame(&[0, 0, 0, 0])].concat()),
        ("long-list", frame(&[1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])),
        ("length-beyond-the-end", [&[0xff, 0xff, 0xff, 1][..], &[0; 10]].concat()),
        (
            "long-time",
            frame(&[5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff, 15]),
        ),
        ("addresses", frame(&[&[2, 3, 1, 2, 3][..], &no_time].concat())),
    ]
}

pub fn kernel_records() -> Inputs {
    let with = |kind: u8, len: usize| [vec![kind], vec![0; len]].concat();
    let mut sample = with(2, size_of::<podopsy_wire::Sample>());
    sample.extend(words(&[1, 2, 3]));
    let mut lengths = sample.clone();
    lengths[41..45].copy_from_slice(&8_u32.to_le_bytes());
    lengths[45..49].copy_from_slice(&16_u32.to_le_bytes());
    vec![
        ("oom", with(0, size_of::<podopsy_wire::OomRecord>())),
        ("oom-of-ones", [vec![0], vec![0xff; size_of::<podopsy_wire::OomRecord>()]].concat()),
        ("sigkill", with(1, size_of::<podopsy_wire::SigkillRecord>())),
        ("sample", sample),
        ("sample-with-stacks", lengths),
        ("table-request", with(3, size_of::<podopsy_wire::TableRequest>())),
        ("exec", with(4, size_of::<podopsy_wire::Exec>())),
        ("dns", with(5, size_of::<podopsy_wire::DnsRecord>())),
        ("socket-error", with(5, size_of::<podopsy_wire::SocketError>())),
    ]
}
