//! The rules about what a file says, as a table: where each holds, what it forbids, how to mend it.

use super::source::{Line, Source};

/// A rule: its sentence, the files that it holds for, what breaks it, and the mend.
pub struct Rule {
    pub says: &'static str,
    pub mend: &'static str,
    holds_for: fn(&str) -> bool,
    /// The lines (from 1) that break it.
    broken_at: fn(&Source) -> Vec<usize>,
}

/// A file longer than this is two rooms.
const LONGEST: usize = 600;
/// How far above `unsafe` its reason may stand.
const SAFETY_ABOVE: usize = 5;

pub const RULES: &[Rule] = &[
    Rule {
        says: "only attach/ and ring.rs know aya",
        mend: "move it to agent/src/attach/ or agent/src/ring.rs, and hand on plain bytes and counts",
        holds_for: |path| ours(path) && !below(path, "agent/src/attach") && path != "agent/src/ring.rs",
        broken_at: |source| mentions(source, &["aya::", "aya_log", "aya_obj"]),
    },
    Rule {
        says: "only pods/ knows CRI and cgroup naming",
        mend: "move it to agent/src/pods/, and ask its resolver",
        holds_for: |path| ours(path) && !below(path, "agent/src/pods"),
        broken_at: |source| mentions(source, &["kubepods", "cri::"]),
    },
    Rule {
        says: "decode and model do no I/O",
        mend: "let the caller do it, and pass the bytes in",
        holds_for: |path| below(path, "agent/src/decode") || below(path, "agent/src/model"),
        broken_at: |source| {
            let doing = ["std::fs", "fs::", "tokio::", "std::process", "nix::", "inotify::"];
            let sockets =
                ["UdpSocket", "TcpStream", "TcpListener", "UnixStream", "UnixDatagram", "UnixListener"];
            mentions(source, &[doing.as_slice(), &sockets].concat())
        },
    },
    Rule {
        says: "the wire depends on nothing",
        mend: "keep probe-ebpf/wire to plain #[repr(C)] types and `core`",
        holds_for: |path| below(path, "probe-ebpf/wire/src"),
        broken_at: |source| mentions(source, &["extern crate", "std::", "alloc::", "aya_ebpf"]),
    },
    Rule {
        says: "every unsafe has its reason",
        mend: "write `// SAFETY: …` (or `# Safety` in the docs of an unsafe fn) right above it",
        holds_for: written,
        broken_at: unexplained_unsafe,
    },
    Rule {
        says: "nothing is left for later",
        mend: "do it now, or write an issue and delete the note",
        holds_for: written,
        broken_at: |source| {
            lines(source, |line| {
                let code = ["todo!", "unimplemented!"].iter().any(|word| has_word(&line.code, word));
                code || ["TODO", "FIXME", "XXX"].iter().any(|word| has_word(&line.comment, word))
            })
        },
    },
    Rule {
        says: "no file is longer than 600 lines",
        mend: "it is two rooms: split it",
        holds_for: written,
        broken_at: |source| if source.lines.len() > LONGEST { vec![LONGEST + 1] } else { vec![] },
    },
    Rule {
        says: "every file says what it is",
        mend: "begin it with a `//!` line: what is in here, and what it must not know",
        holds_for: written,
        broken_at: |source| {
            let mut texts = source.lines.iter().map(|l| l.raw.trim());
            let first = texts.find(|t| !t.is_empty() && !t.starts_with("#!"));
            if first.is_some_and(|t| t.starts_with("//!")) { vec![] } else { vec![1] }
        },
    },
];

/// Applies the table to a file; one line of text for each breach.
pub fn check(source: &Source) -> Vec<String> {
    if source.is_generated() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for rule in RULES.iter().filter(|rule| (rule.holds_for)(&source.path)) {
        for line in (rule.broken_at)(source) {
            out.push(format!("{}:{line}: {} → {}", source.path, rule.says, rule.mend));
        }
    }
    out
}

/// The agent and the CLI: the code that ships in user space.
fn ours(path: &str) -> bool {
    below(path, "agent/src") || below(path, "cli/src")
}

/// Everything but fixtures, which are what they are.
fn written(path: &str) -> bool {
    !below(path, "tests/fixtures")
}

/// The file is `dir`.rs or lies in `dir`.
fn below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
}

fn lines(source: &Source, breaks: impl Fn(&Line) -> bool) -> Vec<usize> {
    source.lines.iter().enumerate().filter(|(_, line)| breaks(line)).map(|(i, _)| i + 1).collect()
}

/// Lines whose code or strings say one of the words, tests apart: their fixtures look like the real thing.
fn mentions(source: &Source, words: &[&str]) -> Vec<usize> {
    lines(source, |line| {
        let says = |word: &&str| has_word(&line.code, word) || has_word(&line.strings, word);
        !line.in_tests && words.iter().any(says)
    })
}

/// `word` occurs in `text`, not as the tail of a longer identifier, nor (if it ends in a letter) as its head.
fn has_word(text: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back().is_some_and(is_name);
        let after = text[at + word.len()..].chars().next().is_some_and(is_name);
        !(before || after && word.ends_with(is_name))
    })
}

fn unexplained_unsafe(source: &Source) -> Vec<usize> {
    let explains = |line: &Line| line.comment.contains("SAFETY:") || line.comment.contains("# Safety");
    let mut out = Vec::new();
    for (i, line) in source.lines.iter().enumerate() {
        if !opens_unsafe(&line.code) {
            continue;
        }
        let near = &source.lines[i.saturating_sub(SAFETY_ABOVE)..=i];
        // Docs and attributes may be longer than that: all that hang together above the item count.
        let hanging = source.lines[..i].iter().rev().take_while(|l| {
            let text = l.raw.trim_start();
            text.starts_with("//") || text.starts_with("#[")
        });
        if !near.iter().any(explains) && !hanging.into_iter().any(explains) {
            out.push(i + 1);
        }
    }
    out
}

/// The code opens an unsafe block, function or impl; types (`unsafe fn(…)`) and attributes do not.
fn opens_unsafe(code: &str) -> bool {
    code.match_indices("unsafe").any(|(at, word)| {
        let rest = code[at + word.len()..].trim_start();
        let named_fn = rest.starts_with("fn ") || (rest.starts_with("extern \"") && rest.contains(" fn "));
        // `unsafe` at the end of a line opens its block on the next.
        has_word(&code[at..], word)
            && (rest.is_empty() || rest.starts_with('{') || named_fn || rest.starts_with("impl"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each violating snippet, the path it stands in, and the rule that must name it, at which line.
    const CAUGHT: &[(&str, &str, &str, usize)] = &[
        ("cli/src/cmd/watch.rs", "//! x\nuse aya::Ebpf;", "only attach/ and ring.rs", 2),
        ("agent/src/recorder.rs", "//! x\naya_log::init();", "only attach/ and ring.rs", 2),
        ("agent/src/recorder.rs", "//! x\nlet a = \"/kubepods/x\";", "only pods/", 2),
        ("cli/src/cmd/pods.rs", "//! x\nuse podopsy_agent::pods::cri::Client;", "only pods/", 2),
        ("agent/src/decode/dns.rs", "//! x\nstd::fs::read(p)", "decode and model", 2),
        ("agent/src/decode.rs", "//! x\nuse std::net::{SocketAddr, UdpSocket};", "decode and model", 2),
        ("agent/src/model/event.rs", "//! x\ntokio::spawn(f);", "decode and model", 2),
        ("probe-ebpf/wire/src/lib.rs", "//! x\nuse std::fmt;", "the wire depends on nothing", 2),
        ("agent/src/a.rs", "//! x\nunsafe { f() }", "every unsafe", 2),
        ("agent/src/a.rs", "//! x\nlet a = unsafe {\n f() };", "every unsafe", 2),
        ("agent/src/a.rs", "//! x\npub unsafe fn f() {}", "every unsafe", 2),
        ("agent/src/a.rs", "//! x\npub unsafe extern \"C\" fn f() {}", "every unsafe", 2),
        ("agent/src/a.rs", "//! x\nunsafe impl Send for A {}", "every unsafe", 2),
        ("agent/src/a.rs", "//! x\n// SAFETY: far\n\n\n\n\n\nunsafe { f() }", "every unsafe", 8),
        ("tests/kernel/a.rs", "//! x\nfn f() { todo!() }", "nothing is left", 2),
        ("tests/kernel/a.rs", "//! x\nunimplemented!(\"x\")", "nothing is left", 2),
        ("tests/kernel/a.rs", "//! x\n// FIXME: later", "nothing is left", 2),
        ("xtask/src/a.rs", "//! x\n/* TODO */", "nothing is left", 2),
        ("xtask/src/a.rs", "use std::fs;", "every file says", 1),
        ("probe-ebpf/src/main.rs", "#![no_std]\n\n// not docs", "every file says", 1),
    ];

    const FINE: &[(&str, &str)] = &[
        ("agent/src/attach/oom.rs", "//! x\nuse aya::Ebpf;"),
        ("agent/src/ring.rs", "//! x\nuse aya::maps::RingBuf;"),
        ("agent/src/recorder.rs", "//! x\n// aya::Ebpf is what attach hides\nlet malaya::x = 1;"),
        ("agent/src/pods/paths.rs", "//! x\nconst A: &str = \"kubepods\";"),
        (
            "agent/src/recorder.rs",
            "//! x\n#[cfg(test)]\nmod tests {\n    const A: &str = \"/kubepods/x\";\n}",
        ),
        ("agent/src/recorder.rs", "//! x\nuse crate::describe::x; // describe ends like cri::"),
        ("agent/src/model/event.rs", "//! x\nuse std::net::SocketAddr;"),
        ("agent/src/a.rs", "//! x\n// SAFETY: f wants nothing.\nunsafe { f() }"),
        ("agent/src/a.rs", "//! x\nlet a = unsafe { f() }; // SAFETY: f wants nothing."),
        (
            "agent/src/a.rs",
            "//! x\n/// # Safety\n/// a\n/// b\n/// c\n/// d\n/// e\n#[inline]\npub unsafe fn f() {}",
        ),
        (
            "agent/src/a.rs",
            "//! x\n#[unsafe(no_mangle)]\nstatic A: unsafe fn(u8) = f;\n#![forbid(unsafe_code)]",
        ),
        ("agent/src/a.rs", "//! x\nlet a = \"unsafe { todo!() } // TODO\";"),
        ("agent/src/pods/cri/v1.rs", "// This file is @generated by prost-build.\nunsafe { todo!() }"),
        ("tests/fixtures/a.rs", "fn main() { unsafe { f() } }"),
        ("probe-ebpf/wire/src/lib.rs", "#![no_std]\n//! x\nuse core::mem;"),
    ];

    #[test]
    fn every_violation_is_caught_at_its_line_with_its_mend() {
        for (path, text, says, line) in CAUGHT {
            let found = check(&Source::new(path, text));
            let expected = format!("{path}:{line}: {says}");
            assert!(
                found.iter().any(|f| f.starts_with(&expected) && f.contains(" → ")),
                "{path}: {text}\n{found:?}"
            );
        }
    }

    #[test]
    fn what_is_fine_is_left_alone() {
        for (path, text) in FINE {
            let found = check(&Source::new(path, text));
            assert!(found.is_empty(), "{path}: {text}\n{found:?}");
        }
    }

    #[test]
    fn every_rule_has_a_violation_in_this_test_or_is_about_length() {
        for rule in RULES {
            let covered = CAUGHT.iter().any(|(_, _, says, _)| rule.says.starts_with(says));
            assert!(covered || rule.says.contains("600"), "{}", rule.says);
        }
    }

    #[test]
    fn a_long_file_is_flagged() {
        let text = format!("//! x{}", "\nlet a = 1;".repeat(LONGEST));
        assert!(
            check(&Source::new("cli/src/a.rs", &text))[0].starts_with("cli/src/a.rs:601: no file is longer")
        );
    }
}
