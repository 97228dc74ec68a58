//! Makes the growth profile of a container from its window: call paths and functions with their shares.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::window::{GrowthSlice, GrowthStack};
use podopsy_model::growth::{GrowthFrame, GrowthFunction, GrowthPath, GrowthProfile};
use podopsy_model::profile::{Frame, unnamed_frame};
use podopsy_stacks::aggregate::{incomplete_reason, missing_part};
use podopsy_stacks::symbolize::Symbolizer;
use podopsy_system::page_size;

/// The size of a profile: the JSON of an incident should stay readable.
const PATHS: usize = 20;
const FRAMES: usize = 48;
const FUNCTIONS: usize = 10;
/// Longer names are cut: C++ has names of several kilobytes.
const NAME_CHARS: usize = 240;

/// Makes the profile. Blocks while the symbolizer reads files.
pub fn report(slice: GrowthSlice, period: u64, symbolizer: &mut Symbolizer) -> GrowthProfile {
    symbolizer.look_up_locations(slice.stacks.iter().flat_map(|(stack, _)| stack.places.iter().copied()));
    let mut paths: HashMap<Vec<GrowthFrame>, u64> = HashMap::new();
    for (stack, count) in &slice.stacks {
        *paths.entry(frames(stack, symbolizer)).or_default() += count;
    }
    let samples: u64 = slice.ends.iter().map(|(_, count)| count).sum();
    let share = |count: u64| count as f64 / samples.max(1) as f64;
    let (mut by_self, mut by_total) = (HashMap::new(), HashMap::new());
    for (frames, count) in &paths {
        if let Some(first) = frames.first() {
            *by_self.entry(first).or_default() += count;
        }
        let functions: HashSet<&GrowthFrame> = frames.iter().filter(|frame| !is_remark(frame)).collect();
        functions.into_iter().for_each(|frame| *by_total.entry(frame).or_default() += count);
    }
    let (top_self, top_total) = (top(by_self, share), top(by_total, share));

    let (mut complete, mut incomplete) = (0, BTreeMap::new());
    for (end, count) in &slice.ends {
        match (end, incomplete_reason(*end)) {
            (podopsy_wire::End::NoUser, _) => {
                *incomplete.entry("no_user_stack".to_owned()).or_default() += count
            }
            (_, None) => complete += count,
            (_, Some(reason)) => *incomplete.entry(reason.to_owned()).or_default() += count,
        }
    }
    let mut paths: Vec<_> = paths.into_iter().collect();
    paths.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let other_paths = paths.len().saturating_sub(PATHS);
    let other_share = share(paths.iter().skip(PATHS).map(|(_, count)| count).sum());
    let path = |(mut frames, samples): (Vec<GrowthFrame>, u64)| {
        let frames_left_out = frames.len().saturating_sub(FRAMES);
        frames.truncate(FRAMES);
        GrowthPath { share: share(samples), samples, frames, frames_left_out }
    };
    GrowthProfile {
        window_seconds: slice.seconds,
        samples,
        period,
        page_bytes: page_size(),
        estimated_bytes: samples.saturating_mul(period).saturating_mul(page_size()),
        complete,
        incomplete,
        not_kept: slice.not_kept,
        paths: paths.into_iter().take(PATHS).map(path).collect(),
        other_paths,
        other_share,
        top_self,
        top_total,
    }
}

/// A stack's functions, innermost first. If the stack is incomplete, a remark at its end gives the reason.
fn frames(stack: &GrowthStack, symbolizer: &mut Symbolizer) -> Vec<GrowthFrame> {
    let mut out: Vec<GrowthFrame> = Vec::with_capacity(stack.places.len());
    let mut ended_in = None;
    for (depth, &place) in stack.places.iter().enumerate() {
        let frames = symbolizer.frames_at(place);
        if place.ends_stack() {
            out.extend(frames.iter().map(shorten));
            return out;
        }
        if depth == stack.end_frame as usize {
            ended_in = frames.last().and_then(|frame| frame.module.clone());
        }
        out.extend(frames.iter().map(shorten));
    }
    out.extend(missing_part(stack.end, ended_in.as_deref()).map(remark));
    if stack.places.is_empty() {
        out.insert(0, remark("[no user stack]".to_owned()));
    }
    out
}

fn shorten(frame: &Frame) -> GrowthFrame {
    let file = frame.module.as_deref().map(str::to_owned);
    let function = match (&frame.function, &file) {
        (Some(function), _) => function.chars().take(NAME_CHARS).collect(),
        (None, Some(file)) => unnamed_frame(file, frame.shown_offset()),
        (None, None) => format!("{:#x}", frame.shown_offset()),
    };
    GrowthFrame { function, file }
}

/// A frame that holds a remark instead of a function.
fn remark(text: String) -> GrowthFrame {
    GrowthFrame { function: text, file: None }
}

fn is_remark(frame: &GrowthFrame) -> bool {
    frame.file.is_none() && frame.function.starts_with('[')
}

fn top(counts: HashMap<&GrowthFrame, u64>, share: impl Fn(u64) -> f64) -> Vec<GrowthFunction> {
    let mut all: Vec<_> = counts.into_iter().collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    all.truncate(FUNCTIONS);
    all.into_iter()
        .map(|(frame, count)| GrowthFunction { frame: frame.clone(), share: share(count) })
        .collect()
}

#[cfg(test)]
mod tests {
    use podopsy_wire::End;

    use super::*;
    use crate::growth::GrowthWindow;
    use podopsy_stacks::Helpers;
    use podopsy_stacks::symbolize::{CodeLocation, ProgramImage, UserAddress};

    const S: u64 = 1_000_000_000;

    /// Contains no inlined function, so that each of its addresses has one name.
    #[inline(never)]
    fn leaking_function() -> u64 {
        0x1eaf
    }

    fn own(symbolizer: &mut Symbolizer, address: u64) -> CodeLocation {
        let place = symbolizer.locate(UserAddress {
            pid: std::process::id(),
            image: ProgramImage::UNKNOWN,
            address,
            is_return: false,
        });
        assert!(matches!(place, CodeLocation::File { .. }), "{place:?}");
        place
    }

    #[test]
    fn paths_and_functions_have_the_right_shares() {
        let mut symbolizer = Symbolizer::new(&Helpers::in_threads());
        symbolizer.add_process(std::process::id());
        let leak = own(&mut symbolizer, leaking_function as fn() -> u64 as usize as u64);
        let caller = own(&mut symbolizer, paths_and_functions_have_the_right_shares as fn() as usize as u64);
        let stack = |places: &[CodeLocation], end| GrowthStack { places: places.into(), end, end_frame: 0 };
        let mut window = GrowthWindow::default();
        for _ in 0..60 {
            window.add(7, stack(&[leak, caller], End::Complete), S);
        }
        // A recursive function counts once for each stack.
        for _ in 0..20 {
            window.add(7, stack(&[leak, leak, caller], End::NoRule), S);
        }
        (0..15).for_each(|_| window.add(7, stack(&[caller], End::Complete), S));
        (0..5).for_each(|_| window.add(7, stack(&[], End::NoUser), S));
        let profile = report(window.slice(7, 11 * S).unwrap(), 32, &mut symbolizer);

        assert_eq!((profile.samples, profile.complete, profile.window_seconds), (100, 75, 10.0));
        assert_eq!(profile.estimated_bytes, 100 * 32 * page_size());
        let reasons = [("no_rule".to_owned(), 20), ("no_user_stack".to_owned(), 5)];
        assert_eq!(profile.incomplete, BTreeMap::from(reasons));
        let names = |frames: &[GrowthFrame]| -> Vec<String> {
            frames.iter().map(|frame| frame.function.rsplit("::").next().unwrap().to_owned()).collect()
        };
        let (leak, caller) = ("leaking_function", "paths_and_functions_have_the_right_shares");
        assert_eq!(
            (names(&profile.paths[0].frames), profile.paths[0].share),
            (vec![leak.into(), caller.into()], 0.6)
        );
        assert!(profile.paths[1].frames.last().unwrap().function.starts_with("[unwind: no rule in "));
        assert!(profile.paths[3].frames[0].function == "[no user stack]", "{:?}", profile.paths);
        let shares = |functions: &[GrowthFunction]| -> Vec<(String, f64)> {
            let name =
                |function: &GrowthFunction| function.frame.function.rsplit("::").next().unwrap().to_owned();
            functions.iter().map(|function| (name(function), function.share)).collect()
        };
        assert_eq!(shares(&profile.top_total), [(caller.to_owned(), 0.95), (leak.to_owned(), 0.8)]);
        assert_eq!(shares(&profile.top_self)[0], (leak.to_owned(), 0.8));
    }

    #[test]
    fn a_profile_is_short_and_counts_what_it_leaves_out() {
        let mut symbolizer = Symbolizer::new(&Helpers::in_threads());
        let mut window = GrowthWindow::default();
        let place = |address| CodeLocation::Anonymous { pid: 1, image: ProgramImage::UNKNOWN, address };
        for number in 0..50 {
            let places: Box<[_]> = (0..100).map(|depth| place(number * 1000 + depth)).collect();
            let stack = GrowthStack { places, end: End::Truncated, end_frame: 99 };
            window.add(7, stack, S);
        }
        let profile = report(window.slice(7, S).unwrap(), 1, &mut symbolizer);
        assert_eq!((profile.paths.len(), profile.other_paths, profile.other_share), (PATHS, 30, 0.6));
        assert_eq!((profile.paths[0].frames.len(), profile.paths[0].frames_left_out), (FRAMES, 101 - FRAMES));
        assert_eq!((profile.top_self.len(), profile.top_total.len()), (FUNCTIONS, FUNCTIONS));
        let json = serde_json::to_string(&profile).unwrap();
        assert_eq!(serde_json::from_str::<GrowthProfile>(&json).unwrap(), profile);
    }
}
