//! The rules about single Rust files, as a table: which files each applies to, what it forbids, how to fix it.

use super::source::{Line, Source};

/// A rule: its sentence, the remedy, the files that it applies to, and what violates it.
pub struct Rule {
    pub sentence: &'static str,
    pub remedy: &'static str,
    applies_to: fn(&str) -> bool,
    /// The numbers of the lines that violate it, from 1.
    violations: fn(&Source) -> Vec<usize>,
}

/// A file longer than this has more than one subject.
const LONGEST: usize = 600;
/// How far above `unsafe` its reason may stand.
const SAFETY_ABOVE: usize = 5;

pub const RULES: &[Rule] = &[
    Rule {
        sentence: "only podopsy-pods knows CRI and cgroup naming",
        remedy: "move it to agent/pods/, and use its resolver",
        applies_to: |path| is_shipped(path) && !below(path, "agent/pods") && !below(path, "agent/runtime"),
        violations: |source| mentions(source, &["kubepods", "cri::"]),
    },
    Rule {
        sentence: "decode and model do no I/O",
        remedy: "do it in the caller, and pass the bytes",
        applies_to: |path| {
            (below(path, "agent/decode") || below(path, "agent/model")) && !path.ends_with("_tests.rs")
        },
        violations: |source| {
            let calls = ["std::fs", "fs::", "tokio::", "std::process", "nix::", "inotify::"];
            let sockets =
                ["UdpSocket", "TcpStream", "TcpListener", "UnixStream", "UnixDatagram", "UnixListener"];
            mentions(source, &[calls.as_slice(), &sockets].concat())
        },
    },
    Rule {
        sentence: "the wire depends on nothing",
        remedy: "keep probe-ebpf/wire to plain #[repr(C)] types and `core`",
        applies_to: |path| below(path, "probe-ebpf/wire/src"),
        violations: |source| mentions(source, &["extern crate", "std::", "alloc::", "aya_ebpf"]),
    },
    Rule {
        sentence: "every unsafe has its reason",
        remedy: "write `// SAFETY: …` (or `# Safety` in the docs of an unsafe fn) right above it",
        applies_to: is_ours,
        violations: unexplained_unsafe,
    },
    Rule {
        sentence: "nothing is left for later",
        remedy: "do it now, or write an issue and delete the note",
        applies_to: is_ours,
        violations: |source| {
            lines(source, |line| {
                let code = ["todo!", "unimplemented!"].iter().any(|word| has_word(&line.code, word));
                code || ["TODO", "FIXME", "XXX"].iter().any(|word| has_word(&line.comment, word))
            })
        },
    },
    Rule {
        sentence: "no file is longer than 600 lines",
        remedy: "split it by subject",
        applies_to: is_ours,
        violations: |source| if source.lines.len() > LONGEST { vec![LONGEST + 1] } else { vec![] },
    },
    Rule {
        sentence: "every file begins with its purpose",
        remedy: "begin it with a `//!` line: what it contains, and what it must not know",
        applies_to: is_ours,
        violations: |source| {
            let mut texts = source.lines.iter().map(|l| l.raw.trim());
            let first = texts.find(|t| !t.is_empty() && !t.starts_with("#!"));
            if first.is_some_and(|t| t.starts_with("//!")) { vec![] } else { vec![1] }
        },
    },
];

/// Applies the table to a file, and returns a line for each violation.
pub fn check(source: &Source) -> Vec<String> {
    if source.is_generated() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for rule in RULES.iter().filter(|rule| (rule.applies_to)(&source.path)) {
        for line in (rule.violations)(source) {
            out.push(format!("{}:{line}: {} → {}", source.path, rule.sentence, rule.remedy));
        }
    }
    out
}

/// The agent's crates and the CLI: the code that ships in user space.
fn is_shipped(path: &str) -> bool {
    let is_test = path.split('/').any(|folder| folder == "tests");
    (below(path, "agent") || below(path, "cli/src")) && !is_test
}

/// Everything but fixtures, which are copies of foreign files.
fn is_ours(path: &str) -> bool {
    !below(path, "tests/fixtures")
}

/// The file is `dir`.rs or lies in `dir`.
fn below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
}

fn lines(source: &Source, breaks: impl Fn(&Line) -> bool) -> Vec<usize> {
    source.lines.iter().enumerate().filter(|(_, line)| breaks(line)).map(|(i, _)| i + 1).collect()
}

/// Lines whose code or strings contain one of the words. Tests are excluded: their fixtures look like real data.
fn mentions(source: &Source, words: &[&str]) -> Vec<usize> {
    lines(source, |line| {
        let contains = |word: &&str| has_word(&line.code, word) || has_word(&line.strings, word);
        !line.in_tests && words.iter().any(contains)
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
    let is_reason = |line: &Line| line.comment.contains("SAFETY:") || line.comment.contains("# Safety");
    let mut out = Vec::new();
    for (i, line) in source.lines.iter().enumerate() {
        if !opens_unsafe(&line.code) {
            continue;
        }
        let near = &source.lines[i.saturating_sub(SAFETY_ABOVE)..=i];
        // Docs and attributes may be longer than that: all of them that stand right above the item count.
        let attached = source.lines[..i].iter().rev().take_while(|l| {
            let text = l.raw.trim_start();
            text.starts_with("//") || text.starts_with("#[")
        });
        if !near.iter().any(is_reason) && !attached.into_iter().any(is_reason) {
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

    /// Each violating snippet: its path, its text, the beginning of the rule that must report it, and the line.
    const CAUGHT: &[(&str, &str, &str, usize)] = &[
        ("agent/recorder/src/lib.rs", "//! x\nlet a = \"/kubepods/x\";", "only podopsy-pods", 2),
        ("cli/src/cmd/pods.rs", "//! x\nuse podopsy_pods::cri::Client;", "only podopsy-pods", 2),
        ("agent/decode/src/dns/mod.rs", "//! x\nstd::fs::read(p)", "decode and model", 2),
        ("agent/decode/src/lib.rs", "//! x\nuse std::net::{SocketAddr, UdpSocket};", "decode and model", 2),
        ("agent/model/src/event.rs", "//! x\ntokio::spawn(f);", "decode and model", 2),
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
        ("xtask/src/a.rs", "use std::fs;", "every file begins", 1),
        ("probe-ebpf/src/main.rs", "#![no_std]\n\n// not docs", "every file begins", 1),
    ];

    const FINE: &[(&str, &str)] = &[
        ("agent/pods/src/paths.rs", "//! x\nconst A: &str = \"kubepods\";"),
        (
            "agent/src/recorder.rs",
            "//! x\n#[cfg(test)]\nmod tests {\n    const A: &str = \"/kubepods/x\";\n}",
        ),
        ("agent/src/recorder.rs", "//! x\nuse crate::describe::x; // describe ends like cri::"),
        ("agent/model/src/event.rs", "//! x\nuse std::net::SocketAddr;"),
        ("agent/src/a.rs", "//! x\n// SAFETY: f has no precondition.\nunsafe { f() }"),
        ("agent/src/a.rs", "//! x\nlet a = unsafe { f() }; // SAFETY: f has no precondition."),
        (
            "agent/src/a.rs",
            "//! x\n/// # Safety\n/// a\n/// b\n/// c\n/// d\n/// e\n#[inline]\npub unsafe fn f() {}",
        ),
        (
            "agent/src/a.rs",
            "//! x\n#[unsafe(no_mangle)]\nstatic A: unsafe fn(u8) = f;\n#![forbid(unsafe_code)]",
        ),
        ("agent/src/a.rs", "//! x\nlet a = \"unsafe { todo!() } // TODO\";"),
        ("agent/pods/src/cri/v1.rs", "// This file is @generated by prost-build.\nunsafe { todo!() }"),
        ("tests/fixtures/a.rs", "fn main() { unsafe { f() } }"),
        ("probe-ebpf/wire/src/lib.rs", "#![no_std]\n//! x\nuse core::mem;"),
    ];

    #[test]
    fn every_violation_is_reported_at_its_line_with_its_remedy() {
        for (path, text, sentence, line) in CAUGHT {
            let found = check(&Source::new(path, text));
            let expected = format!("{path}:{line}: {sentence}");
            assert!(
                found.iter().any(|f| f.starts_with(&expected) && f.contains(" → ")),
                "{path}: {text}\n{found:?}"
            );
        }
    }

    #[test]
    fn correct_files_have_no_violations() {
        for (path, text) in FINE {
            let found = check(&Source::new(path, text));
            assert!(found.is_empty(), "{path}: {text}\n{found:?}");
        }
    }

    #[test]
    fn every_rule_has_a_violation_in_this_test_or_is_about_length() {
        for rule in RULES {
            let covered = CAUGHT.iter().any(|(_, _, sentence, _)| rule.sentence.starts_with(sentence));
            assert!(covered || rule.sentence.contains("600"), "{}", rule.sentence);
        }
    }

    #[test]
    fn a_long_file_is_reported() {
        let text = format!("//! x{}", "\nlet a = 1;".repeat(LONGEST));
        assert!(
            check(&Source::new("cli/src/a.rs", &text))[0].starts_with("cli/src/a.rs:601: no file is longer")
        );
    }
}
