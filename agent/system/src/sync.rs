//! Handles poisoned locks in one place.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after a thread panicked while it held it.
///
/// The data behind our mutexes (counters, maps, queues) is valid after each statement, so recording can continue after a
/// panic elsewhere.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::lock;

    #[test]
    fn a_lock_is_usable_after_a_thread_panicked_with_it() {
        let mutex = Arc::new(Mutex::new(1));
        let other = mutex.clone();
        let panicked = std::thread::spawn(move || {
            let _guard = other.lock().unwrap();
            panic!("poisons the lock");
        });
        assert!(panicked.join().is_err());
        assert!(mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 1);
    }
}
