//! The kernel side's numbers for rules: each distinct rule has one for as long as a table uses it.
//!
//! Must not depend on: rows, pages, files.

use std::collections::HashMap;

use podopsy_wire::{KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, RULES_MAX, Rule};

use super::tables::KernelMaps;

#[derive(Debug)]
struct NumberedRule {
    rule: Rule,
    /// Tables that use it.
    users: u32,
}

pub(super) struct RuleNumbers {
    numbers: HashMap<Rule, u16>,
    by_number: Vec<NumberedRule>,
    /// Numbers that no rule has at present.
    free: Vec<u16>,
}

impl RuleNumbers {
    /// Starts with the special rules (`RULE_NONE`, `RULE_STOP`, `RULE_UNSUPPORTED`), which keep their numbers for ever.
    pub fn new(kernel: &mut impl KernelMaps) -> anyhow::Result<RuleNumbers> {
        let mut rules = RuleNumbers { numbers: HashMap::new(), by_number: Vec::new(), free: Vec::new() };
        let special = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind);
        rules.acquire(kernel, &special)?;
        Ok(rules)
    }

    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// A number for each of one table's rules, which are distinct. None if they do not all fit.
    pub fn acquire(
        &mut self,
        kernel: &mut impl KernelMaps,
        wanted: &[Rule],
    ) -> anyhow::Result<Option<Vec<u16>>> {
        let new = wanted.iter().filter(|rule| !self.numbers.contains_key(rule)).count();
        if self.numbers.len() + new > RULES_MAX {
            return Ok(None);
        }
        let mut numbers = Vec::with_capacity(wanted.len());
        for rule in wanted {
            let number = match self.numbers.get(rule) {
                Some(&number) => number,
                None => self.add(kernel, rule)?,
            };
            self.by_number[usize::from(number)].users += 1;
            numbers.push(number);
        }
        Ok(Some(numbers))
    }

    fn add(&mut self, kernel: &mut impl KernelMaps, rule: &Rule) -> anyhow::Result<u16> {
        let number = self.free.pop().map_or_else(|| u16::try_from(self.by_number.len()), Ok)?;
        kernel.set_rule(number, rule)?;
        let numbered = NumberedRule { rule: *rule, users: 0 };
        match self.by_number.get_mut(usize::from(number)) {
            Some(slot) => *slot = numbered,
            None => self.by_number.push(numbered),
        }
        self.numbers.insert(*rule, number);
        Ok(number)
    }

    /// Releases the numbers of a table that was removed and that the kernel side no longer reads.
    pub fn release(&mut self, numbers: &[u16]) {
        for &number in numbers {
            let numbered = &mut self.by_number[usize::from(number)];
            numbered.users -= 1;
            if numbered.users == 0 {
                self.numbers.remove(&numbered.rule);
                self.free.push(number);
            }
        }
    }
}
