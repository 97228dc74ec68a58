//! The interpreters that were found, by the number that the kernel side uses for them.
//!
//! The kernel side has few numbers, and a container can have many files that look like interpreters. When all numbers are
//! taken, the container that has most of them loses its oldest one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use podopsy_system::sync::lock;
use podopsy_wire::PYTHONS_MAX;
use podopsy_worker::{Interpreter, Tenant};

/// A number that is taken.
#[derive(Clone, Debug)]
struct Numbered {
    interpreter: Interpreter,
    /// The container that it was first found in.
    tenant: Tenant,
    /// The order in which the interpreters were found.
    found: u64,
}

/// The number of an interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InterpreterNumber {
    /// It is known, or a number was free.
    Own(u32),
    /// Another interpreter had this number. Nothing on the kernel side may use it for that one any more.
    Reused(u32),
}

/// The interpreters by their numbers, which begin at 1: on the kernel side, 0 stands for a file that is no interpreter. A
/// clone is the same registry.
#[derive(Clone, Debug, Default)]
pub struct InterpreterRegistry(Arc<Mutex<Vec<Numbered>>>);

impl InterpreterRegistry {
    /// The number of an interpreter, which is added if it is new. None if all numbers are taken, each by another container.
    pub(crate) fn number(&self, interpreter: &Interpreter, tenant: Tenant) -> Option<InterpreterNumber> {
        let mut all = lock(&self.0);
        let number = |index: usize| u32::try_from(index + 1).ok();
        if let Some(index) = all.iter().position(|known| known.interpreter == *interpreter) {
            return number(index).map(InterpreterNumber::Own);
        }
        let found = all.iter().map(|known| known.found + 1).max().unwrap_or(0);
        let new = Numbered { interpreter: interpreter.clone(), tenant, found };
        if all.len() + 1 < PYTHONS_MAX {
            all.push(new);
            return number(all.len() - 1).map(InterpreterNumber::Own);
        }
        let index = oldest_of_largest(&all, tenant)?;
        all[index] = new;
        number(index).map(InterpreterNumber::Reused)
    }

    pub(super) fn get(&self, number: u32) -> Option<Interpreter> {
        let all = lock(&self.0);
        all.get((number as usize).checked_sub(1)?).map(|known| known.interpreter.clone())
    }
}

/// The oldest interpreter of the container that has most, if that has more than the one who asks.
fn oldest_of_largest(all: &[Numbered], asks: Tenant) -> Option<usize> {
    let mut counts: HashMap<Tenant, usize> = HashMap::new();
    for known in all {
        *counts.entry(known.tenant).or_default() += 1;
    }
    let (&largest, &count) = counts.iter().max_by_key(|(tenant, count)| (**count, **tenant == asks))?;
    if count < 2 {
        return None;
    }
    let own = all.iter().enumerate().filter(|(_, known)| known.tenant == largest);
    own.min_by_key(|(_, known)| known.found).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use podopsy_worker::layouts_for_version;

    use super::InterpreterNumber::{Own, Reused};
    use super::*;

    fn interpreter(code_type: u64) -> Interpreter {
        let (layout, code) = layouts_for_version((3, 11), &[]).unwrap();
        Interpreter { layout, code, code_type }
    }

    #[test]
    fn an_interpreter_has_one_number_in_all_containers() {
        let registry = InterpreterRegistry::default();
        assert_eq!(registry.number(&interpreter(7), 1), Some(Own(1)));
        assert_eq!(registry.number(&interpreter(7), 2), Some(Own(1)));
        assert_eq!(registry.number(&interpreter(8), 2), Some(Own(2)));
        assert_eq!(registry.get(1), Some(interpreter(7)));
        assert!(registry.get(0).is_none() && registry.get(3).is_none());
    }

    #[test]
    fn a_container_with_many_interpreters_replaces_its_own() {
        let registry = InterpreterRegistry::default();
        assert_eq!(registry.number(&interpreter(1_000_000), 1), Some(Own(1)));
        let numbers: Vec<_> = (0..200).map(|code_type| registry.number(&interpreter(code_type), 2)).collect();
        assert_eq!(numbers[PYTHONS_MAX - 3], Some(Own(PYTHONS_MAX as u32 - 1)));
        assert_eq!(numbers[PYTHONS_MAX - 2], Some(Reused(2)));
        assert!(numbers[PYTHONS_MAX - 2..].iter().all(|number| matches!(number, Some(Reused(2..)))));
        assert_eq!(registry.get(1), Some(interpreter(1_000_000)), "the neighbour lost its own");
        // And the neighbour's next one takes a number from the container that has most.
        assert!(matches!(registry.number(&interpreter(1_000_001), 1), Some(Reused(2..))));
    }

    #[test]
    fn containers_with_one_interpreter_each_keep_them() {
        let registry = InterpreterRegistry::default();
        for tenant in 1..PYTHONS_MAX as u64 {
            assert!(matches!(registry.number(&interpreter(tenant), tenant), Some(Own(_))));
        }
        assert_eq!(registry.number(&interpreter(0), 0), None);
    }
}
