//! What the command line and the environment of a process set the size of its heap to: Node.js and Go, whose runtimes publish no
//! figures.
//!
//! Both are the process's own memory, which it may have overwritten: they are claims. Of the environment only the variables below
//! are looked at, and of the options only those that set sizes.

use podopsy_model::text;

/// What is read of each of the two.
pub const BYTES_MAX: usize = 64 << 10;
const VALUE_MAX: usize = 128;
const OPTIONS_MAX: usize = 8;
const NODE_MAX: &str = "--max-old-space-size";
const NODE_OPTIONS: [&str; 2] = [NODE_MAX, "--max-semi-space-size"];
const MIB: u64 = 1 << 20;

/// The settings of a heap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapSettings {
    pub runtime: &'static str,
    /// As they were given, escaped.
    pub options: Vec<String>,
    pub max_bytes: Option<u64>,
}

/// `program`: the name of the executable. `arguments` and `environment`: separated by NUL, as the kernel lays them out. None: nothing
/// says that it is Node.js or Go.
pub fn of(program: &[u8], arguments: &[u8], environment: &[u8]) -> Option<HeapSettings> {
    match program {
        b"node" | b"nodejs" => Some(node(arguments, environment)),
        _ => go(environment),
    }
}

/// The command line comes after `NODE_OPTIONS`, and the last value counts.
fn node(arguments: &[u8], environment: &[u8]) -> HeapSettings {
    let from_environment = variable(environment, b"NODE_OPTIONS").unwrap_or_default();
    let words = from_environment.split(|byte| byte.is_ascii_whitespace());
    let words: Vec<String> = words.chain(split(arguments)).take(4096).map(normal).collect();
    let mut settings = HeapSettings { runtime: "Node.js", options: Vec::new(), max_bytes: None };
    for (at, word) in words.iter().enumerate() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.as_str(), words.get(at + 1).map(String::as_str)),
        };
        let Some(value) = value.filter(|_| NODE_OPTIONS.contains(&name)) else { continue };
        if settings.options.len() < OPTIONS_MAX {
            settings.options.push(format!("{name}={}", shown(value.as_bytes())));
        }
        if name == NODE_MAX {
            settings.max_bytes = value.parse::<u64>().ok().and_then(|mib| mib.checked_mul(MIB));
        }
    }
    settings
}

/// V8 takes underscores in the place of hyphens.
fn normal(word: &[u8]) -> String {
    let word = String::from_utf8_lossy(&word[..word.len().min(VALUE_MAX)]);
    match word.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")),
        None => word.replace('_', "-"),
    }
}

fn go(environment: &[u8]) -> Option<HeapSettings> {
    let limit = variable(environment, b"GOMEMLIMIT")?;
    let options = [b"GOMEMLIMIT".as_slice(), b"GOGC"].into_iter().filter_map(|name| {
        let value = variable(environment, name)?;
        Some(format!("{}={}", String::from_utf8_lossy(name), shown(value)))
    });
    Some(HeapSettings {
        runtime: "Go (by its environment)",
        options: options.collect(),
        max_bytes: std::str::from_utf8(limit).ok().and_then(go_bytes),
    })
}

/// A number with or without a unit (`runtime/debug`'s SetMemoryLimit). None: `off`, or no number.
fn go_bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0), ("", 0)];
    units.into_iter().find_map(|(unit, shift)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(1 << shift)
    })
}

fn split(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    block.split(|&byte| byte == 0)
}

fn variable<'a>(environment: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    split(environment).find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
}

fn shown(value: &[u8]) -> String {
    text::escape_bytes(&value[..value.len().min(VALUE_MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node_max(arguments: &str, environment: &str) -> Option<u64> {
        let block = |text: &str| text.replace('|', "\0").into_bytes();
        of(b"node", &block(arguments), &block(environment)).unwrap().max_bytes.map(|bytes| bytes / MIB)
    }

    #[test]
    fn the_last_of_nodes_options_counts_and_the_command_line_is_the_last() {
        assert_eq!(node_max("node|--max-old-space-size=4096|app.js|", ""), Some(4096));
        assert_eq!(node_max("node|--max_old_space_size|512|app.js|", ""), Some(512));
        assert_eq!(
            node_max("node|app.js|", "A=1|NODE_OPTIONS=--no-warnings --max-old-space-size=300|"),
            Some(300)
        );
        assert_eq!(
            node_max("node|--max-old-space-size=200|", "NODE_OPTIONS=--max-old-space-size=300|"),
            Some(200)
        );
        assert_eq!(node_max("node|app.js|", "MY_NODE_OPTIONS=--max-old-space-size=300|"), None);
        assert_eq!(node_max("node|--max-old-space-size=99999999999999999999|", ""), None);
    }

    #[test]
    fn only_settings_of_sizes_are_kept_and_they_are_escaped() {
        let arguments = b"node\0--password=secret\0--max-semi-space-size=\x1b[2J\0";
        assert_eq!(of(b"node", arguments, b"TOKEN=x\0").unwrap().options, ["--max-semi-space-size=\\x1b[2J"]);
        let go = of(b"app", b"app\0", b"TOKEN=x\0GOMEMLIMIT=900MiB\0GOGC=50\0").unwrap();
        assert_eq!(
            (go.options.as_slice(), go.max_bytes),
            (["GOMEMLIMIT=900MiB".into(), "GOGC=50".into()].as_slice(), Some(900 * MIB))
        );
        assert_eq!(of(b"app", b"app\0", b"TOKEN=x\0"), None);
    }

    #[test]
    fn gos_limit_has_units() {
        let known = [("1024", 1024), ("3B", 3), ("2KiB", 2048), ("1GiB", 1 << 30)];
        assert!(known.into_iter().all(|(text, bytes)| go_bytes(text) == Some(bytes)));
        assert!(
            ["off", "", "MiB", "-1", "1.5GiB", "99999999999TiB"]
                .into_iter()
                .all(|text| go_bytes(text).is_none())
        );
    }
}
