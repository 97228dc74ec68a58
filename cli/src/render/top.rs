//! The functions that take the most time, largest first.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};

use podopsy_model::profile::{Frame, Profile};
use serde::Serialize;

use super::table::TextTable;
use super::{json, yaml};
use crate::args::TopFormat;
use crate::terminal::Terminal;

/// A function's share of a profile, in samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct FunctionShare {
    #[serde(rename = "function")]
    name: String,
    module: String,
    /// Samples in which the function itself ran.
    #[serde(rename = "self")]
    own: u64,
    /// Samples in which it or a callee ran; a recursion counts once.
    total: u64,
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct FunctionList {
    /// Of the whole profile.
    samples: u64,
    functions: Vec<FunctionShare>,
}

/// Prints the `count` functions with the most samples of their own. The name is the last column, because some are wider
/// than the screen.
pub fn print(
    out: &mut impl Write,
    terminal: Terminal,
    profile: &Profile,
    count: usize,
    format: TopFormat,
) -> io::Result<()> {
    let terminal = match format {
        TopFormat::Table => terminal,
        TopFormat::Wide => Terminal { width: None, ..terminal },
        TopFormat::Json | TopFormat::Yaml => {
            let mut functions = shares(profile);
            functions.truncate(count);
            let list = FunctionList { samples: profile.total(), functions };
            return if format == TopFormat::Json { json(out, &list) } else { yaml(out, &list) };
        }
    };
    let all = profile.total().max(1);
    let percent = |samples: u64| format!("{:5.1} %", samples as f64 * 100.0 / all as f64);
    let mut table = TextTable::new(&["   SELF", "  TOTAL", "MODULE", "FUNCTION"]);
    for share in shares(profile).into_iter().take(count) {
        table.row(vec![percent(share.own), percent(share.total), share.module, share.name]);
    }
    table.print(out, terminal)
}

fn shares(profile: &Profile) -> Vec<FunctionShare> {
    let mut shares: HashMap<(String, String), (u64, u64)> = HashMap::new();
    for sample in &profile.samples {
        let keys: Vec<_> = sample.stack.iter().map(|frame| (name(frame), module(frame))).collect();
        if let Some(innermost) = keys.first() {
            shares.entry(innermost.clone()).or_default().0 += sample.count;
        }
        for key in keys.into_iter().collect::<BTreeSet<_>>() {
            shares.entry(key).or_default().1 += sample.count;
        }
    }
    let mut shares: Vec<FunctionShare> = shares
        .into_iter()
        .map(|((name, module), (own, total))| FunctionShare { name, module, own, total })
        .collect();
    // By name in the end, so that equal shares keep their order between runs.
    shares.sort_by(|a, b| (b.own, b.total).cmp(&(a.own, a.total)).then_with(|| a.name.cmp(&b.name)));
    shares
}

fn name(frame: &Frame) -> String {
    // Frames without a function name are shown, too: module and offset can still be looked up.
    frame.function.as_deref().map_or_else(|| format!("0x{:x}", frame.offset), str::to_owned)
}

fn module(frame: &Frame) -> String {
    let path = frame.module.as_deref().unwrap_or("[unknown]");
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use podopsy_model::profile::Sample;

    use podopsy_model::profile::Sampling;

    use super::*;

    fn profile(stacks: &[(&[&str], u64)]) -> Profile {
        let frame = |name: &&str| Frame {
            function: (!name.starts_with("0x")).then(|| (*name).into()),
            module: Some("/usr/bin/burner".into()),
            offset: 0x1234,
            ..Frame::default()
        };
        let samples = stacks.iter().map(|(stack, count)| Sample {
            stack: stack.iter().map(frame).collect(),
            count: *count,
            pid: 1,
            tid: 1,
            thread: "t".into(),
            comm: "t".into(),
            owner: Arc::default(),
        });
        let sampling = Sampling::Cpu { frequency_hz: 99 };
        let base = Profile::empty(jiff::Timestamp::UNIX_EPOCH, Duration::from_secs(1), sampling, "n");
        Profile { samples: samples.collect(), ..base }
    }

    #[test]
    fn self_counts_the_innermost_frame_and_a_recursion_counts_once() {
        let profile =
            profile(&[(&["hash", "price", "price", "main"], 60), (&["price", "main"], 30), (&["0x"], 10)]);
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN, &profile, 10, TopFormat::Table).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "   SELF    TOTAL  MODULE  FUNCTION
 60.0 %   60.0 %  burner  hash
 30.0 %   90.0 %  burner  price
 10.0 %   10.0 %  burner  0x1234
  0.0 %   90.0 %  burner  main
"
        );
    }

    #[test]
    fn the_functions_are_printed_as_json() {
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN, &profile(&[(&["hash", "main"], 7)]), 1, TopFormat::Json).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let function = serde_json::json!({ "function": "hash", "module": "burner", "self": 7, "total": 7 });
        assert_eq!(list, serde_json::json!({ "samples": 7, "functions": [function] }));
    }

    #[test]
    fn a_profile_without_samples_is_printed() {
        print(&mut Vec::new(), Terminal::PLAIN, &profile(&[]), 10, TopFormat::Table).unwrap();
    }
}
