//! One opener for each container at a time: otherwise each thread that opens a file of the container could lose one, before it
//! is known that its file system does not answer.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use podopsy_helper::Tenant;
use podopsy_system::sync::lock;

/// The containers that an opener works for at the moment.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    busy: Mutex<HashSet<Tenant>>,
    ended: Condvar,
}

/// The turn of a container, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    tenant: Tenant,
}

impl Turns {
    /// Waits until no other thread has the container's turn. None: that took longer than `limit`.
    pub fn take(self: &Arc<Self>, tenant: Tenant, limit: Duration) -> Option<Turn> {
        let is_busy = |busy: &mut HashSet<Tenant>| busy.contains(&tenant);
        let waited = self.ended.wait_timeout_while(lock(&self.busy), limit, is_busy);
        let (mut busy, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        busy.insert(tenant).then(|| Turn { turns: Arc::clone(self), tenant })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.turns.busy).remove(&self.tenant);
        self.turns.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns_for_a_container_and_not_for_others() {
        let turns = Arc::<Turns>::default();
        let first = turns.take(1, Duration::ZERO).unwrap();
        assert!(turns.take(1, Duration::from_millis(10)).is_none());
        assert!(turns.take(2, Duration::ZERO).is_some());
        let other = Arc::clone(&turns);
        let waits = std::thread::spawn(move || other.take(1, Duration::from_secs(60)).is_some());
        drop(first);
        assert!(waits.join().unwrap());
        assert!(turns.take(1, Duration::ZERO).is_some());
    }
}
