//! The code that made a container's memory grow, in a few lines.

use podopsy_model::growth::{GrowthFrame, GrowthPath, GrowthProfile};

use super::table::cut_middle;
use super::units;

/// How many paths and frames are shown; the JSON has all.
const PATHS: usize = 3;
const FRAMES: usize = 8;
/// The longest function name; names of C++ templates can fill a screen.
const NAME: usize = 48;
/// Paths with a smaller share are not shown.
const SHARE_MIN: f64 = 0.02;

pub fn text(growth: &GrowthProfile) -> String {
    let mut lines = Vec::new();
    if let Some(top) = growth.top_self.first() {
        let file = top.frame.file.as_deref().map(|file| format!(" ({file})")).unwrap_or_default();
        lines.push(format!(
            "{} took {} of the page faults itself{file}",
            name(&top.frame),
            percent(top.share)
        ));
    }
    let shown: Vec<&GrowthPath> = growth
        .paths
        .iter()
        .enumerate()
        .filter(|(at, path)| *at == 0 || (*at < PATHS && path.share >= SHARE_MIN))
        .map(|(_, path)| path)
        .collect();
    lines.extend(shown.iter().map(|path| format!("{:>5} {}", percent(path.share), frames(path))));
    let more = growth.paths.len() + growth.other_paths - shown.len();
    let more =
        if more > 0 { format!("; and {}", units::plural(more as u64, "other path")) } else { String::new() };
    lines.push(format!(
        "{} in {:.0} s, one page fault in {}: about {} touched (an estimate){more}",
        units::plural(growth.samples, "sample"),
        growth.window_seconds,
        growth.period,
        units::bytes(growth.estimated_bytes)
    ));
    lines.extend(quality(growth));
    lines.join("\n")
}

/// The share of complete stacks and the reasons for the others; None when all are complete.
fn quality(growth: &GrowthProfile) -> Option<String> {
    let mut reasons: Vec<(&str, u64)> =
        growth.incomplete.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut parts: Vec<String> =
        reasons.iter().map(|(reason, count)| format!("{} {count}", reason.replace('_', " "))).collect();
    if growth.not_kept > 0 {
        parts.push(format!("stack not stored {}", growth.not_kept));
    }
    let complete = growth.complete as f64 / growth.samples.max(1) as f64;
    (!parts.is_empty())
        .then(|| format!("{} of the stacks are complete; {}", percent(complete), parts.join(", ")))
}

fn frames(path: &GrowthPath) -> String {
    let names: Vec<String> = path.frames.iter().take(FRAMES).map(name).collect();
    let more = if path.frames.len() + path.frames_left_out > FRAMES { " ← …" } else { "" };
    format!("{}{more}", names.join(" ← "))
}

fn name(frame: &GrowthFrame) -> String {
    cut_middle(&frame.function, NAME)
}

/// A whole percentage; less than everything is at most 99 %.
fn percent(share: f64) -> String {
    let whole = (share * 100.0).round();
    let whole = if share < 1.0 && whole >= 100.0 { 99.0 } else { whole };
    format!("{whole:.0} %")
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeMap;

    use podopsy_model::growth::GrowthFunction;

    use super::*;

    fn frame(function: &str) -> GrowthFrame {
        GrowthFrame { function: function.into(), file: Some("/bin/leaker".into()) }
    }

    /// 385 samples of a leak, most of them in one path.
    pub fn profile() -> GrowthProfile {
        let path = |samples: u64, frames: &[&str]| GrowthPath {
            share: samples as f64 / 385.0,
            samples,
            frames: frames.iter().map(|name| frame(name)).collect(),
            frames_left_out: 0,
        };
        let deep: Vec<String> = (0..20).map(|depth| format!("level_{depth}")).collect();
        let deep: Vec<&str> = deep.iter().map(String::as_str).collect();
        GrowthProfile {
            window_seconds: 11.9,
            samples: 385,
            period: 32,
            page_bytes: 4096,
            estimated_bytes: 385 * 32 * 4096,
            complete: 384,
            incomplete: BTreeMap::from([("no_table_yet".to_owned(), 1)]),
            not_kept: 0,
            paths: vec![
                path(362, &["remember_request", "handle_request", "serve_until_killed", "main"]),
                path(20, &deep),
                path(3, &["main"]),
            ],
            other_paths: 4,
            other_share: 0.0,
            top_self: vec![GrowthFunction { frame: frame("remember_request"), share: 0.94 }],
            top_total: vec![GrowthFunction { frame: frame("main"), share: 1.0 }],
        }
    }

    #[test]
    fn the_hottest_path_comes_first_and_the_paths_left_out_are_counted() {
        let text = text(&profile());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "remember_request took 94 % of the page faults itself (/bin/leaker)",
                " 94 % remember_request ← handle_request ← serve_until_killed ← main",
                "  5 % level_0 ← level_1 ← level_2 ← level_3 ← level_4 ← level_5 ← level_6 ← level_7 ← …",
                "385 samples in 12 s, one page fault in 32: about 48.1 MiB touched (an estimate); and 5 other paths",
                "99 % of the stacks are complete; no table yet 1",
            ]
        );
    }

    #[test]
    fn complete_stacks_are_not_mentioned_and_a_long_name_is_cut() {
        let mut one = profile();
        (one.complete, one.incomplete) = (385, BTreeMap::new());
        one.paths[0].frames[0].function = "x".repeat(500);
        let text = text(&one);
        assert!(!text.contains("complete") && !text.contains(&"x".repeat(49)), "{text}");
        // An empty profile has only the count.
        let none = GrowthProfile::default();
        assert_eq!(
            super::text(&none),
            "0 samples in 0 s, one page fault in 0: about 0 B touched (an estimate)"
        );
    }
}
