//! The kernel's numbers of rules: one a distinct rule, for as long as a table uses it.
//!
//! Must not know: rows, pages, files.

use std::collections::HashMap;

use podopsy_wire::{KIND_NONE, KIND_STOP, KIND_UNSUPPORTED, RULES_MAX, Rule};

use super::tables::Kernel;

#[derive(Debug)]
struct Numbered {
    rule: Rule,
    /// Tables that use it.
    users: u32,
}

pub(super) struct Rules {
    numbers: HashMap<Rule, u16>,
    /// By number.
    all: Vec<Numbered>,
    /// Numbers without a rule.
    free: Vec<u16>,
}

impl Rules {
    /// With those that have a number of their own, for ever.
    pub fn new(kernel: &mut impl Kernel) -> anyhow::Result<Rules> {
        let mut rules = Rules { numbers: HashMap::new(), all: Vec::new(), free: Vec::new() };
        let special = [KIND_NONE, KIND_STOP, KIND_UNSUPPORTED].map(Rule::of_kind);
        rules.take(kernel, &special)?;
        Ok(rules)
    }

    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// A number for each of one table's rules, which are distinct; none: they do not all fit.
    pub fn take(&mut self, kernel: &mut impl Kernel, wanted: &[Rule]) -> anyhow::Result<Option<Vec<u16>>> {
        let new = wanted.iter().filter(|rule| !self.numbers.contains_key(rule)).count();
        if self.numbers.len() + new > RULES_MAX {
            return Ok(None);
        }
        let mut numbers = Vec::with_capacity(wanted.len());
        for rule in wanted {
            let number = match self.numbers.get(rule) {
                Some(&number) => number,
                None => {
                    let number = self.free.pop().map_or_else(|| u16::try_from(self.all.len()), Ok)?;
                    kernel.set_rule(number, rule)?;
                    match self.all.get_mut(usize::from(number)) {
                        Some(slot) => *slot = Numbered { rule: *rule, users: 0 },
                        None => self.all.push(Numbered { rule: *rule, users: 0 }),
                    }
                    self.numbers.insert(*rule, number);
                    number
                }
            };
            self.all[usize::from(number)].users += 1;
            numbers.push(number);
        }
        Ok(Some(numbers))
    }

    /// A table is gone, and the kernel side no longer reads it.
    pub fn give_back(&mut self, numbers: &[u16]) {
        for &number in numbers {
            let numbered = &mut self.all[usize::from(number)];
            numbered.users -= 1;
            if numbered.users == 0 {
                self.numbers.remove(&numbered.rule);
                self.free.push(number);
            }
        }
    }
}
