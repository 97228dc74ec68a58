//! Leaves out the frames that a profile names as uninteresting (`drop_frames` and `keep_frames` in profile.proto), as `go tool
//! pprof` does (`Prune` in its package profile).
//!
//! Must not depend on: the file format.

use regex::{Regex, RegexBuilder};

use super::pprof::ImportError;

/// Bytes of a compiled expression: the file chooses it.
const MAX_EXPRESSION: usize = 1 << 20;
/// Names with a parenthesis that is no list of parameters.
const NOT_PARAMETERS: [&str; 2] = ["(anonymous namespace)", "operator()"];

/// The expressions of a profile.
pub(super) struct DropFrames {
    drop: Option<Regex>,
    keep: Option<Regex>,
}

/// What is left out of stacks at a location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    Nothing,
    /// The frames that it called.
    Callees,
    /// Itself, and the frames that it called.
    All,
}

impl DropFrames {
    pub fn new(drop: &[u8], keep: &[u8]) -> Result<DropFrames, ImportError> {
        Ok(DropFrames { drop: expression(drop)?, keep: expression(keep)? })
    }

    fn drops(&self, name: &str) -> bool {
        let name = without_parameters(name);
        self.drop.as_ref().is_some_and(|drop| drop.is_match(name))
            && !self.keep.as_ref().is_some_and(|keep| keep.is_match(name))
    }

    /// Removes the functions of a location, innermost first, up to the outermost one that is dropped.
    pub fn of(&self, functions: &mut Vec<String>) -> Dropped {
        match functions.iter().rposition(|name| self.drops(name)) {
            None => Dropped::Nothing,
            Some(outermost) if outermost + 1 == functions.len() => Dropped::All,
            Some(at) => {
                functions.drain(..=at);
                Dropped::Callees
            }
        }
    }

    /// The index of the first location that is kept of a stack, innermost first. The outermost locations are kept until one
    /// is not dropped, or nothing might be left.
    pub fn first_kept(stack: impl DoubleEndedIterator<Item = Dropped> + ExactSizeIterator) -> usize {
        let mut after_kept = false;
        for (index, dropped) in stack.enumerate().rev() {
            match dropped {
                Dropped::Nothing => after_kept = true,
                Dropped::All if after_kept => return index + 1,
                Dropped::Callees if after_kept => return index,
                _ => {}
            }
        }
        0
    }
}

fn expression(text: &[u8]) -> Result<Option<Regex>, ImportError> {
    if text.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(text).map_err(|_| ImportError::NoExpression)?;
    let built = RegexBuilder::new(&format!("^(?:{text})$")).size_limit(MAX_EXPRESSION).build();
    built.map(Some).map_err(|_| ImportError::NoExpression)
}

/// A C++ name without its list of parameters.
fn without_parameters(name: &str) -> &str {
    let name = name.strip_prefix('.').unwrap_or(name);
    let is_list = |at: &usize| {
        // `operator()` begins before its parenthesis.
        let from = at.saturating_sub("operator".len());
        !NOT_PARAMETERS.iter().any(|other| {
            name[*at..].starts_with(other) || name.get(from..).is_some_and(|rest| rest.starts_with(other))
        })
    };
    let parenthesis = name.match_indices('(').map(|(at, _)| at).find(is_list);
    parenthesis.map_or(name, |at| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(drop: &str, keep: &str, stack: &[&[&str]]) -> Vec<String> {
        let frames = DropFrames::new(drop.as_bytes(), keep.as_bytes()).unwrap();
        let mut locations: Vec<(Vec<String>, Dropped)> = stack
            .iter()
            .map(|location| (location.iter().map(|name| (*name).to_owned()).collect(), Dropped::Nothing))
            .collect();
        for (functions, dropped) in &mut locations {
            *dropped = frames.of(functions);
        }
        let first = DropFrames::first_kept(locations.iter().map(|(_, dropped)| *dropped));
        locations.drain(..first);
        locations.into_iter().flat_map(|(functions, _)| functions).collect()
    }

    #[test]
    fn frames_below_the_outermost_dropped_one_are_left_out() {
        let drop = "malloc|operator new.*|tcmalloc::.*";
        let stack: &[&[&str]] = &[&["tcmalloc::Span"], &["malloc"], &["remember"], &["main"]];
        assert_eq!(kept(drop, "", stack), ["remember", "main"]);
        assert_eq!(kept("", "", stack).len(), 4);
        assert_eq!(kept(drop, "malloc", stack), ["malloc", "remember", "main"]);
        // The whole name has to match.
        assert_eq!(kept("mall", "", stack).len(), 4);
        assert_eq!(kept(drop, "", &[&["operator new(unsigned long)"], &["main"]]), ["main"]);
    }

    #[test]
    fn an_inlined_function_that_is_dropped_leaves_its_callers() {
        assert_eq!(
            kept("malloc", "", &[&["sysmalloc"], &["malloc", "remember"], &["main"]]),
            ["remember", "main"]
        );
    }

    #[test]
    fn a_stack_of_dropped_frames_alone_is_kept() {
        assert_eq!(kept("malloc", "", &[&["malloc"], &["malloc"]]), ["malloc", "malloc"]);
    }

    #[test]
    fn parameters_are_not_a_part_of_a_name() {
        assert_eq!(without_parameters("a::b(int)"), "a::b");
        assert_eq!(without_parameters("(anonymous namespace)::f(int)"), "(anonymous namespace)::f");
        assert_eq!(without_parameters("A::operator()(int)"), "A::operator()");
    }

    #[test]
    fn an_expression_that_costs_too_much_is_refused() {
        for text in ["(", "(?:a{1000}){1000}", "\u{1b}["] {
            assert_eq!(
                DropFrames::new(text.as_bytes(), b"").err(),
                Some(ImportError::NoExpression),
                "{text}"
            );
        }
    }
}
