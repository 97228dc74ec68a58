//! Two profiles → what each function takes in one and in the other.
//!
//! Must not know: files, formats, pods. Functions are the same when their names are.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::import::Imported;

/// A value before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pair {
    pub before: u64,
    pub after: u64,
}

/// One function in both profiles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    pub function: String,
    /// What it took itself.
    #[serde(rename = "self")]
    pub own: Pair,
    /// With what it called; a recursion counts once.
    pub cumulative: Pair,
}

/// How values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// As shares of their own profile's total: profiles of different lengths and loads can be compared.
    Share,
    /// As they are.
    Value,
}

/// Two profiles, function by function.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What the values are: `cpu` in `nanoseconds`.
    pub kind: String,
    pub unit: String,
    pub by: By,
    pub total: Pair,
    /// The largest change of what a function takes itself first.
    pub functions: Vec<Function>,
}

impl Comparison {
    /// How much more (or less) it is after, in percent points of the total or in units.
    pub fn change(&self, pair: Pair) -> f64 {
        match self.by {
            By::Share => share(pair.after, self.total.after) - share(pair.before, self.total.before),
            By::Value => pair.after as f64 - pair.before as f64,
        }
    }
}

/// In percent; nothing of nothing is nothing.
pub fn share(part: u64, total: u64) -> f64 {
    part as f64 * 100.0 / total.max(1) as f64
}

/// Compares, with the largest changes first.
pub fn compare(before: &Imported, after: &Imported, by: By) -> Comparison {
    let mut found = HashMap::<&str, _>::new();
    count(before, |pair| &mut pair.before, &mut found);
    count(after, |pair| &mut pair.after, &mut found);
    let mut comparison = Comparison {
        kind: after.kind.clone(),
        unit: after.unit.clone(),
        by,
        total: Pair { before: before.total(), after: after.total() },
        functions: Vec::new(),
    };
    let mut functions: Vec<Function> = found
        .into_iter()
        .map(|(function, (own, cumulative))| Function { function: function.to_owned(), own, cumulative })
        .collect();
    let size = |function: &Function| {
        (comparison.change(function.own).abs(), comparison.change(function.cumulative).abs())
    };
    // Names last, so that equal changes do not change places between runs.
    functions.sort_by(|a, b| {
        let ((own_a, sum_a), (own_b, sum_b)) = (size(a), size(b));
        own_b.total_cmp(&own_a).then(sum_b.total_cmp(&sum_a)).then_with(|| a.function.cmp(&b.function))
    });
    comparison.functions = functions;
    comparison
}

/// Adds a profile's sums to one side of the pairs.
fn count<'a>(
    profile: &'a Imported,
    side: fn(&mut Pair) -> &mut u64,
    found: &mut HashMap<&'a str, (Pair, Pair)>,
) {
    // Numbers first, names once: a profile has millions of frames and thousands of functions.
    let mut sums = vec![(0_u64, 0_u64); profile.functions.len()];
    let mut last_stack = vec![usize::MAX; profile.functions.len()];
    for (index, (stack, value)) in profile.stacks().enumerate() {
        if let Some(&innermost) = stack.first() {
            let own = &mut sums[innermost as usize].0;
            *own = own.saturating_add(value);
        }
        for &function in stack {
            if std::mem::replace(&mut last_stack[function as usize], index) != index {
                let sum = &mut sums[function as usize].1;
                *sum = sum.saturating_add(value);
            }
        }
    }
    for (name, (own, sum)) in profile.functions.iter().zip(sums) {
        let (own_pair, sum_pair) = found.entry(&**name).or_default();
        *side(own_pair) = own;
        *side(sum_pair) = sum;
    }
}

/// Stacks of both, outermost first, as names: with their values before and after. With [`By::Share`], values before are
/// scaled to the total after.
pub fn stacks<'a>(before: &'a Imported, after: &'a Imported, by: By) -> BTreeMap<Vec<&'a str>, Pair> {
    let mut found: BTreeMap<Vec<&str>, Pair> = BTreeMap::new();
    let names = |profile: &'a Imported, stack: &[u32]| -> Vec<&'a str> {
        stack.iter().rev().map(|&function| &*profile.functions[function as usize]).collect()
    };
    for (stack, value) in before.stacks() {
        let sum = &mut found.entry(names(before, stack)).or_default().before;
        *sum = sum.saturating_add(value);
    }
    for (stack, value) in after.stacks() {
        let sum = &mut found.entry(names(after, stack)).or_default().after;
        *sum = sum.saturating_add(value);
    }
    if by == By::Share {
        let scale = after.total() as f64 / before.total().max(1) as f64;
        for pair in found.values_mut() {
            pair.before = (pair.before as f64 * scale).round() as u64;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::example;

    #[test]
    fn shares_of_profiles_of_different_lengths_are_compared() {
        let before = example(&[(&["hash", "price", "main"], 60), (&["price", "price", "main"], 40)]);
        let after = example(&[(&["hash", "price", "main"], 300), (&["copy", "main"], 700)]);
        let compared = compare(&before, &after, By::Share);
        let names: Vec<_> = compared.functions.iter().map(|function| function.function.as_str()).collect();
        assert_eq!(names, ["copy", "price", "hash", "main"]);
        assert_eq!(compared.total, Pair { before: 100, after: 1000 });
        let price = &compared.functions[1];
        // Twice in one stack, counted once.
        assert_eq!(
            (price.own, price.cumulative),
            (Pair { before: 40, after: 0 }, Pair { before: 100, after: 300 })
        );
        assert_eq!((compared.change(price.own), compared.change(price.cumulative)), (-40.0, -70.0));
        let absolute = compare(&before, &after, By::Value);
        assert_eq!(absolute.functions[0].function, "copy");
        assert_eq!(absolute.change(absolute.functions[1].own), 240.0, "hash: 60 → 300");
    }

    #[test]
    fn stacks_are_scaled_to_the_total_after_or_left_as_they_are() {
        let before = example(&[(&["hash", "main"], 60), (&["main"], 40)]);
        let after = example(&[(&["hash", "main"], 300), (&["copy", "main"], 700)]);
        let scaled = stacks(&before, &after, By::Share);
        assert_eq!(scaled[&vec!["main", "hash"]], Pair { before: 600, after: 300 });
        assert_eq!(scaled[&vec!["main", "copy"]], Pair { before: 0, after: 700 });
        assert_eq!(
            stacks(&before, &after, By::Value)[&vec!["main", "hash"]],
            Pair { before: 60, after: 300 }
        );
    }

    #[test]
    fn nothing_divides_by_nothing() {
        let nothing = example(&[]);
        let compared = compare(&nothing, &nothing, By::Share);
        assert!(compared.functions.is_empty() && compared.change(Pair::default()) == 0.0);
        assert!(stacks(&nothing, &nothing, By::Share).is_empty());
    }
}
