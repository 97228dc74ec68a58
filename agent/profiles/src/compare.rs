//! Compares two profiles function by function, and stack by stack.
//!
//! Functions with the same name count as the same function. Must not depend on: files, formats, pods.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::import::ImportedProfile;

/// A value in the earlier and in the later profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BeforeAfter {
    pub before: u64,
    pub after: u64,
}

/// One function in both profiles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionChange {
    pub function: String,
    /// The value of the function itself.
    #[serde(rename = "self")]
    pub own: BeforeAfter,
    /// The value including the functions that it called; a recursive call counts once.
    pub cumulative: BeforeAfter,
}

/// How values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComparisonBasis {
    /// As shares of each profile's total, so that profiles of different lengths and loads can be compared.
    Share,
    /// As absolute values.
    Value,
}

/// Two profiles, function by function.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The type of the values and its unit, such as `cpu` in `nanoseconds`.
    pub kind: String,
    pub unit: String,
    pub by: ComparisonBasis,
    pub total: BeforeAfter,
    /// Largest change of a function's own value first.
    pub functions: Vec<FunctionChange>,
}

impl Comparison {
    /// The change from before to after: in percentage points of the total, or in units.
    pub fn change(&self, pair: BeforeAfter) -> f64 {
        match self.by {
            ComparisonBasis::Share => {
                share(pair.after, self.total.after) - share(pair.before, self.total.before)
            }
            ComparisonBasis::Value => pair.after as f64 - pair.before as f64,
        }
    }
}

/// The share in percent; 0 if the total is 0.
pub fn share(part: u64, total: u64) -> f64 {
    part as f64 * 100.0 / total.max(1) as f64
}

/// Compares two profiles; the largest changes come first.
pub fn compare(before: &ImportedProfile, after: &ImportedProfile, by: ComparisonBasis) -> Comparison {
    let mut found = HashMap::<&str, _>::new();
    count(before, |pair| &mut pair.before, &mut found);
    count(after, |pair| &mut pair.after, &mut found);
    let mut comparison = Comparison {
        kind: after.kind.clone(),
        unit: after.unit.clone(),
        by,
        total: BeforeAfter { before: before.total(), after: after.total() },
        functions: Vec::new(),
    };
    let mut functions: Vec<FunctionChange> = found
        .into_iter()
        .map(|(function, (own, cumulative))| FunctionChange {
            function: function.to_owned(),
            own,
            cumulative,
        })
        .collect();
    let size = |function: &FunctionChange| {
        (comparison.change(function.own).abs(), comparison.change(function.cumulative).abs())
    };
    // Equal changes are sorted by name, so that the order is the same in each run.
    functions.sort_by(|a, b| {
        let ((own_a, sum_a), (own_b, sum_b)) = (size(a), size(b));
        own_b.total_cmp(&own_a).then(sum_b.total_cmp(&sum_a)).then_with(|| a.function.cmp(&b.function))
    });
    comparison.functions = functions;
    comparison
}

/// Adds a profile's sums to one side of the pairs.
fn count<'a>(
    profile: &'a ImportedProfile,
    side: fn(&mut BeforeAfter) -> &mut u64,
    found: &mut HashMap<&'a str, (BeforeAfter, BeforeAfter)>,
) {
    for (name, (own, sum)) in profile.functions.iter().zip(profile.sums()) {
        let (own_pair, sum_pair) = found.entry(&**name).or_default();
        *side(own_pair) = own;
        *side(sum_pair) = sum;
    }
}

/// The stacks of both profiles as names, outermost first, with their values before and after. With
/// [`ComparisonBasis::Share`], values before are scaled to the total after.
pub fn stacks<'a>(
    before: &'a ImportedProfile,
    after: &'a ImportedProfile,
    by: ComparisonBasis,
) -> BTreeMap<Vec<&'a str>, BeforeAfter> {
    let mut found: BTreeMap<Vec<&str>, BeforeAfter> = BTreeMap::new();
    let names = |profile: &'a ImportedProfile, stack: &[u32]| -> Vec<&'a str> {
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
    if by == ComparisonBasis::Share {
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
    fn profiles_of_different_lengths_are_compared_by_shares() {
        let before = example(&[(&["hash", "price", "main"], 60), (&["price", "price", "main"], 40)]);
        let after = example(&[(&["hash", "price", "main"], 300), (&["copy", "main"], 700)]);
        let compared = compare(&before, &after, ComparisonBasis::Share);
        let names: Vec<_> = compared.functions.iter().map(|function| function.function.as_str()).collect();
        assert_eq!(names, ["copy", "price", "hash", "main"]);
        assert_eq!(compared.total, BeforeAfter { before: 100, after: 1000 });
        let price = &compared.functions[1];
        // It stands twice in one stack and counts once.
        assert_eq!(
            (price.own, price.cumulative),
            (BeforeAfter { before: 40, after: 0 }, BeforeAfter { before: 100, after: 300 })
        );
        assert_eq!((compared.change(price.own), compared.change(price.cumulative)), (-40.0, -70.0));
        let absolute = compare(&before, &after, ComparisonBasis::Value);
        assert_eq!(absolute.functions[0].function, "copy");
        assert_eq!(absolute.change(absolute.functions[1].own), 240.0, "hash: 60 → 300");
    }

    #[test]
    fn values_before_are_scaled_to_the_total_after_only_when_shares_are_compared() {
        let before = example(&[(&["hash", "main"], 60), (&["main"], 40)]);
        let after = example(&[(&["hash", "main"], 300), (&["copy", "main"], 700)]);
        let scaled = stacks(&before, &after, ComparisonBasis::Share);
        assert_eq!(scaled[&vec!["main", "hash"]], BeforeAfter { before: 600, after: 300 });
        assert_eq!(scaled[&vec!["main", "copy"]], BeforeAfter { before: 0, after: 700 });
        assert_eq!(
            stacks(&before, &after, ComparisonBasis::Value)[&vec!["main", "hash"]],
            BeforeAfter { before: 60, after: 300 }
        );
    }

    #[test]
    fn empty_profiles_compare_without_a_division_by_zero() {
        let nothing = example(&[]);
        let compared = compare(&nothing, &nothing, ComparisonBasis::Share);
        assert!(compared.functions.is_empty() && compared.change(BeforeAfter::default()) == 0.0);
        assert!(stacks(&nothing, &nothing, ComparisonBasis::Share).is_empty());
    }
}
