//! The notes of a core: `struct elf_prstatus`, `elf_prpsinfo` (`<linux/elfcore.h>`), registers, auxv, mapped files.

use std::fs;

use podopsy_system::page_size;

use crate::image::Image;
use crate::trace::StoppedProcess;
use crate::{CoreError, read_error};

/// Kinds of `<linux/elf.h>`.
const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;

/// Bytes of the general registers.
#[cfg(target_arch = "x86_64")]
const GENERAL: usize = 27 * 8;
#[cfg(target_arch = "aarch64")]
const GENERAL: usize = 34 * 8;
/// Other register sets: AVX (`NT_X86_XSTATE`); TLS and the mask of pointer authentication (`NT_ARM_TLS`, `NT_ARM_PAC_MASK`).
#[cfg(target_arch = "x86_64")]
const OTHERS: &[u32] = &[0x202];
#[cfg(target_arch = "aarch64")]
const OTHERS: &[u32] = &[0x401, 0x406];

/// All notes, as they are written.
#[derive(Debug)]
pub struct Notes {
    pub bytes: Vec<u8>,
    pub threads: usize,
}

/// What stat and status of a thread have.
#[derive(Debug, Default)]
struct ThreadFacts {
    state: u8,
    ppid: u32,
    group: u32,
    session: u32,
    nice: i8,
    pending: u64,
    blocked: u64,
    uid: u32,
    gid: u32,
}

/// The notes of a stopped process. As in the kernel's own cores, those about the process stand behind the first thread's
/// status.
pub fn of(stopped: &StoppedProcess, image: &Image) -> Result<Notes, CoreError> {
    let pid = stopped.pid();
    let mut bytes = Vec::new();
    for (index, tid) in stopped.tids().enumerate() {
        let error = read_error(pid, "the registers");
        let get = |kind| stopped.registers(tid, kind).map_err(&error);
        let general = get(NT_PRSTATUS)?.filter(|registers| registers.len() == GENERAL);
        let general = general.ok_or(CoreError::OtherArchitecture(pid))?;
        let facts = ThreadFacts::read(pid, tid);
        push(&mut bytes, "CORE", NT_PRSTATUS, &prstatus(tid, &facts, &general));
        if index == 0 {
            push(&mut bytes, "CORE", NT_PRPSINFO, &prpsinfo(pid, tid, &facts));
            let auxv =
                fs::read(format!("/proc/{tid}/auxv")).map_err(read_error(pid, "the auxiliary vector"))?;
            push(&mut bytes, "CORE", NT_AUXV, &auxv);
            push(&mut bytes, "CORE", NT_FILE, &files(image));
        }
        if let Some(floating) = get(NT_FPREGSET)? {
            push(&mut bytes, "CORE", NT_FPREGSET, &floating);
        }
        for &kind in OTHERS {
            if let Some(registers) = get(kind)? {
                push(&mut bytes, "LINUX", kind, &registers);
            }
        }
    }
    Ok(Notes { bytes, threads: stopped.tids().len() })
}

/// A note: lengths, kind, the owner's name, and the content, each padded to four bytes.
fn push(bytes: &mut Vec<u8>, owner: &str, kind: u32, content: &[u8]) {
    for number in [owner.len() as u32 + 1, content.len() as u32, kind] {
        bytes.extend(number.to_ne_bytes());
    }
    let name = [owner.as_bytes(), b"\0"].concat();
    for part in [&name[..], content] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus` of a 64-bit machine. Times are left at zero: debuggers do not show them.
fn prstatus(tid: i32, facts: &ThreadFacts, general: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes.extend(facts.pending.to_ne_bytes());
    bytes.extend(facts.blocked.to_ne_bytes());
    for number in [tid as u32, facts.ppid, facts.group, facts.session] {
        bytes.extend(number.to_ne_bytes());
    }
    // Four times of 16 bytes.
    bytes.resize(bytes.len() + 64, 0);
    bytes.extend(general);
    // There are floating-point registers.
    bytes.extend(1_u32.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// `struct elf_prpsinfo` of a 64-bit machine.
fn prpsinfo(pid: u32, tid: i32, facts: &ThreadFacts) -> Vec<u8> {
    const STATES: &[u8] = b"RSDTZW";
    let number = STATES.iter().position(|state| *state == facts.state).unwrap_or(1);
    let mut bytes = vec![number as u8, facts.state, u8::from(facts.state == b'Z'), facts.nice as u8];
    // Padding, and flags.
    bytes.resize(16, 0);
    for number in [facts.uid, facts.gid, pid, facts.ppid, facts.group, facts.session] {
        bytes.extend(number.to_ne_bytes());
    }
    let comm = fs::read(format!("/proc/{tid}/comm")).unwrap_or_default();
    bytes.extend(fixed::<16>(comm.strip_suffix(b"\n").unwrap_or(&comm)));
    // A page of the process itself, so this is bounded by the kernel: at most what was set as arguments.
    let mut arguments = fs::read(format!("/proc/{tid}/cmdline")).unwrap_or_default();
    arguments.truncate(79);
    arguments.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    bytes.extend(fixed::<80>(arguments.trim_ascii_end()));
    bytes
}

/// The beginning of a text, with at least one NUL behind it.
fn fixed<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let length = text.len().min(N - 1);
    bytes[..length].copy_from_slice(&text[..length]);
    bytes
}

/// NT_FILE: the count, the page size, start, end and offset in pages of each mapped file, then the names.
fn files(image: &Image) -> Vec<u8> {
    let mapped: Vec<_> = image.mappings.iter().filter(|mapping| mapping.path.starts_with(b"/")).collect();
    let mut numbers = vec![mapped.len() as u64, page_size()];
    let mut names = Vec::new();
    for mapping in mapped {
        numbers.extend([mapping.start, mapping.end, mapping.offset / page_size()]);
        names.extend(&mapping.path);
        names.push(0);
    }
    numbers.iter().flat_map(|number| number.to_ne_bytes()).chain(names).collect()
}

impl ThreadFacts {
    fn read(pid: u32, tid: i32) -> ThreadFacts {
        let read = |file| fs::read(format!("/proc/{pid}/task/{tid}/{file}")).unwrap_or_default();
        ThreadFacts::parse(&read("stat"), &String::from_utf8_lossy(&read("status")))
    }

    fn parse(stat: &[u8], status: &str) -> ThreadFacts {
        // Behind the name in parentheses, which may hold parentheses of its own.
        let at = stat.iter().rposition(|byte| *byte == b')').map_or(stat.len(), |at| at + 1);
        let stat = String::from_utf8_lossy(&stat[at..]).into_owned();
        let fields: Vec<&str> = stat.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok()).unwrap_or(0);
        let line =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
        let set = |key| u64::from_str_radix(line(key), 16).unwrap_or(0);
        let id = |key| line(key).split_whitespace().next().and_then(|id| id.parse().ok()).unwrap_or(0);
        ThreadFacts {
            state: fields.first().and_then(|state| state.bytes().next()).unwrap_or(b'S'),
            ppid: number(1),
            group: number(2),
            session: number(3),
            nice: fields.get(16).and_then(|nice| nice.parse().ok()).unwrap_or(0),
            pending: set("SigPnd:"),
            blocked: set("SigBlk:"),
            uid: id("Uid:"),
            gid: id("Gid:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_padded_to_four_bytes() {
        let mut bytes = Vec::new();
        push(&mut bytes, "CORE", 6, b"abcde");
        assert_eq!(bytes.len(), 12 + 8 + 8);
        assert_eq!(&bytes[12..], b"CORE\0\0\0\0abcde\0\0\0");
    }

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        let facts = ThreadFacts::default();
        let status = prstatus(7, &facts, &[0xEE; GENERAL]);
        assert_eq!(status.len(), (112 + GENERAL + 4).next_multiple_of(8));
        assert_eq!((status[32], status[112]), (7, 0xEE));
        assert_eq!(prpsinfo(std::process::id(), std::process::id() as i32, &facts).len(), 136);
    }

    #[test]
    fn a_name_with_parentheses_shifts_nothing() {
        let stat = b"7 (a) R 9) S 3 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 -5 1";
        let facts = ThreadFacts::parse(stat, "Uid:\t10\t11\nGid:\t12\t1\nSigPnd:\t01\nSigBlk:\tff\n");
        assert_eq!((facts.state, facts.ppid, facts.group, facts.session, facts.nice), (b'S', 3, 4, 5, -5));
        assert_eq!((facts.uid, facts.gid, facts.pending, facts.blocked), (10, 12, 1, 255));
    }
}
