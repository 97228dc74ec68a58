//! Words that the project's vocabulary has replaced: none of them may come back. `docs/glossary.md` has the terms to use.
//!
//! Only words that are unambiguous stand here. Others ("room", "tell", "say") have proper uses in prose, and reviewers decide.

use super::source::Source;

/// Whether a former word makes `cargo xtask tidy` fail; otherwise it is counted.
pub const IS_ENFORCED: bool = true;

/// A former word, and what to write.
struct Former {
    /// A whole word, or several, in lower case.
    word: &'static str,
    instead: &'static str,
}

/// Anywhere in a file.
const IN_TEXT: &[Former] = &[
    Former { word: "nobody", instead: "name the actor: no one, none, no reader" },
    Former { word: "whoever", instead: "name the actor: the caller, the reader" },
    Former { word: "mend", instead: "fix, repair, remedy" },
    Former { word: "mends", instead: "fixes, repairs" },
    Former { word: "mended", instead: "fixed, repaired" },
    Former { word: "mending", instead: "fixing, repair" },
    Former { word: "anew", instead: "again" },
    Former { word: "let go of", instead: "close, drop, release" },
    Former { word: "lets go of", instead: "closes, drops, releases" },
    Former { word: "on the desk", instead: "aggregate, correlate" },
    Former { word: "told late", instead: "reported late" },
    Former { word: "told twice", instead: "duplicated" },
    Former { word: "futile", instead: "search-path miss" },
    Former { word: "named rights", instead: "explicit capabilities" },
    Former { word: "fn word(self", instead: "as_str()" },
];

/// Parts of identifiers, split at underscores and capitals.
const IN_NAMES: &[Former] = &[
    Former { word: "told", instead: "emitted, reported, logged" },
    Former { word: "tell", instead: "emit, report, log" },
    Former { word: "tells", instead: "emits, reports, logs" },
    Former { word: "nobody", instead: "none" },
    Former { word: "whoever", instead: "the actor" },
    Former { word: "mend", instead: "remedy" },
    Former { word: "mends", instead: "remedies" },
    Former { word: "anew", instead: "again" },
    Former { word: "futile", instead: "search_path_miss" },
];

/// Types.
const TYPES: &[Former] = &[
    Former { word: "Desk", instead: "IncidentBuilder, Correlator" },
    Former { word: "Room", instead: "a noun of the domain" },
];

/// Files that may use a word, with the reason; `*` stands for every word.
const ALLOWED: &[(&str, &str)] = &[
    // The rule itself.
    ("xtask/src/tidy/vocabulary.rs", "*"),
    // It records former names with their aliases.
    ("CHANGELOG.md", "*"),
    // JSON fields keep their names.
    ("agent/doctor/src/lib.rs", "mend"),
    ("cli/tests/usage.rs", "mend"),
    ("agent/model/src/lookup.rs", "futile"),
    ("agent/recorder/src/incidents/tests.rs", "futile"),
    ("tests/kernel/dns_socket.rs", "futile"),
    ("docs/events.md", "futile"),
    ("docs/schema/event.json", "futile"),
    ("agent/recorder/src/dns/lookups/summary.rs", "futile"),
    // A metric keeps its name.
    ("agent/src/metrics/mod.rs", "futile"),
    ("docs/metrics.md", "futile"),
    ("docs/glossary.md", "futile"),
    // A trigger of stores that exist.
    ("agent/store/src/schema.rs", "anew"),
    // A user's name.
    ("tests/kernel/store.rs", "nobody"),
];

/// A line for each former word in the file.
pub fn check(path: &str, text: &str) -> Vec<String> {
    let source = path.ends_with(".rs").then(|| Source::new(path, text));
    if source.as_ref().is_some_and(Source::is_generated) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut former = former_in_text(line);
        if let Some(source) = &source {
            former.extend(former_in_code(&source.lines[index].code));
        }
        former.sort_by_key(|former| former.word);
        former.dedup_by_key(|former| former.word);
        for Former { word, instead } in former.into_iter().filter(|former| !is_allowed(path, former.word)) {
            found.push(format!("{path}:{}: `{word}` is a former word → {instead}", index + 1));
        }
    }
    found
}

fn former_in_text(line: &str) -> Vec<&'static Former> {
    let line = line.to_lowercase();
    IN_TEXT.iter().filter(|former| has_words(&line, former.word)).collect()
}

fn former_in_code(code: &str) -> Vec<&'static Former> {
    let is_part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for name in code.split(|c| !is_part_of_name(c)).filter(|name| !name.is_empty()) {
        found.extend(TYPES.iter().filter(|former| former.word == name));
        let parts = parts(name);
        found.extend(IN_NAMES.iter().filter(|former| parts.iter().any(|part| part == former.word)));
    }
    found
}

/// `words` occurs in `line`, and its letters do not continue on either side.
fn has_words(line: &str, words: &str) -> bool {
    line.match_indices(words).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + words.len()..].chars().next();
        let ends_in_letter = words.ends_with(char::is_alphanumeric);
        !(before.is_some_and(char::is_alphanumeric)
            || ends_in_letter && after.is_some_and(char::is_alphanumeric))
    })
}

/// The parts of an identifier in lower case: `TimesTold` and `times_told` have the same.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut previous_is_lower = false;
    for c in name.chars() {
        if c == '_' || c.is_uppercase() && previous_is_lower {
            parts.push(String::new());
        }
        previous_is_lower = c.is_lowercase() || c.is_numeric();
        if let (Some(part), true) = (parts.last_mut(), c != '_') {
            part.extend(c.to_lowercase());
        }
    }
    parts
}

fn is_allowed(path: &str, word: &str) -> bool {
    ALLOWED.iter().any(|(file, allowed)| *file == path && (*allowed == "*" || *allowed == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_former_word_is_found_at_its_line_with_what_to_write() {
        let found = check("README.md", "A page.\nNobody reads it.\n");
        assert_eq!(
            found,
            ["README.md:2: `nobody` is a former word → name the actor: no one, none, no reader"]
        );
        for (path, text, word) in [
            ("agent/a.rs", "// Compiled anew.", "anew"),
            ("agent/a.rs", "let message = \"mend the file\";", "mend"),
            ("agent/a.rs", "fn word(self) -> &'static str {", "fn word(self"),
            ("agent/a.rs", "let times_told = 1;", "told"),
            ("agent/a.rs", "struct TimesTold;", "told"),
            ("agent/a.rs", "struct Desk {", "Desk"),
            ("agent/a.rs", "const MEND: &str = \"\";", "mend"),
            ("docs/a.md", "It lays it on the desk.", "on the desk"),
            ("manifests/a.yaml", "# Whoever scrapes it.", "whoever"),
        ] {
            let found = check(path, text);
            assert!(found.len() == 1 && found[0].contains(&format!("`{word}`")), "{text}: {found:?}");
        }
    }

    #[test]
    fn similar_words_and_prose_about_telling_are_fine() {
        for (path, text) in [
            ("agent/a.rs", "// The kernel is told its size; a renewed lease. Amend, recommend, desktop."),
            ("agent/a.rs", "let retold = mushroom(x); struct Rooms; // a room"),
            ("CHANGELOG.md", "`futile_queries` is `search_path_misses`."),
            ("agent/a.rs", "// This file is @generated by prost-build.\n// nobody"),
        ] {
            assert!(check(path, text).is_empty(), "{text}: {:?}", check(path, text));
        }
    }
}
