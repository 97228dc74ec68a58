//! From where a restart reads the kernel's log: the recorder's state, written only after the store has kept everything
//! before it.
//!
//! A restart reports the kills in the kernel's log after the state's sequence number. So a state must not reach the disk
//! before the kills up to it do. Until then the previous state stands: a restart reports some kills again, and the store
//! recognises them by their keys. A state is taken, waits until nothing older is under way in the recorder, and then until
//! the store has kept as many events as were sent.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::oom::checkpoint::RecoveryCheckpoint;
use podopsy_model::{Event, EventKind};
use podopsy_system::sync::lock;

/// What attribution and the store know of each other: counts of events.
#[derive(Debug, Default)]
pub struct Confirmations {
    /// Kills and incidents that were put into the receiver's queue.
    sent: AtomicU64,
    /// Incidents that are not complete yet.
    open: AtomicU64,
    /// How many of those sent are stored, or counted as not stored.
    kept: AtomicU64,
    awaited: AtomicBool,
    /// The last state, which the store writes when it is done.
    last: Mutex<Option<(PathBuf, RecoveryCheckpoint)>>,
}

impl Confirmations {
    /// Whether a restart could find this event in the kernel's log.
    pub fn is_recoverable(event: &Event) -> bool {
        matches!(event.kind, EventKind::OomKill | EventKind::OomIncident)
    }

    /// The store will report what it has kept. Without a store, an event counts as kept when it is sent.
    pub fn await_store(&self) {
        self.awaited.store(true, SeqCst);
    }

    /// The store has kept `more` events.
    pub fn kept(&self, more: u64) {
        self.kept.fetch_add(more, SeqCst);
    }

    /// Writes the last state: everything is stored, and no event follows.
    pub fn save_last(&self) -> anyhow::Result<()> {
        let last = lock(&self.last).take();
        last.map_or(Ok(()), |(dir, state)| state.save(&dir))
    }

    pub(crate) fn sent(&self, event: &Event) {
        self.sent.fetch_add(u64::from(Self::is_recoverable(event)), SeqCst);
    }

    /// An incident is open until the returned guard is dropped.
    pub(crate) fn open_incident(self: &Arc<Self>) -> OpenIncident {
        self.open.fetch_add(1, SeqCst);
        OpenIncident(self.clone())
    }

    fn all_kept(&self, sent: u64) -> bool {
        !self.awaited.load(SeqCst) || self.kept.load(SeqCst) >= sent
    }
}

/// Guard of an incident that is not complete yet.
#[derive(Debug)]
pub(crate) struct OpenIncident(Arc<Confirmations>);

impl Drop for OpenIncident {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

/// Takes states and decides when each may be written.
#[derive(Debug)]
pub(crate) struct CheckpointSaver {
    dir: PathBuf,
    confirmations: Arc<Confirmations>,
    /// A state that was taken, and how many events had been sent when nothing older was under way.
    next: Option<(RecoveryCheckpoint, Option<u64>)>,
    /// No state exists yet: the first is written at once.
    first: bool,
}

impl CheckpointSaver {
    pub fn new(dir: PathBuf, confirmations: Arc<Confirmations>, first: bool) -> CheckpointSaver {
        CheckpointSaver { dir, confirmations, next: None, first }
    }

    /// Call regularly. Returns a state that may be written now. `quiet`: no kill is under way; `now` takes a new state if
    /// none waits.
    pub fn round(
        &mut self,
        quiet: bool,
        now: impl FnOnce() -> RecoveryCheckpoint,
    ) -> Option<(PathBuf, RecoveryCheckpoint)> {
        if std::mem::take(&mut self.first) {
            return Some((self.dir.clone(), now()));
        }
        if let Some((_, passed @ None)) = &mut self.next
            && quiet
            && self.confirmations.open.load(SeqCst) == 0
        {
            *passed = Some(self.confirmations.sent.load(SeqCst));
        }
        let (state, passed) = self.next.take().unwrap_or_else(|| (now(), None));
        if passed.is_some_and(|sent| self.confirmations.all_kept(sent)) {
            return Some((self.dir.clone(), state));
        }
        self.next = Some((state, passed));
        None
    }

    /// The last state: returned to be written at once where there is no store, else written by [`Confirmations::save_last`].
    pub fn end(self, now: RecoveryCheckpoint) -> Option<(PathBuf, RecoveryCheckpoint)> {
        if !self.confirmations.awaited.load(SeqCst) {
            return Some((self.dir, now));
        }
        *lock(&self.confirmations.last) = Some((self.dir, now));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sequence: u64) -> RecoveryCheckpoint {
        RecoveryCheckpoint { log_sequence: Some(sequence), ..RecoveryCheckpoint::now(None) }
    }

    fn written(round: Option<(PathBuf, RecoveryCheckpoint)>) -> Option<u64> {
        round.and_then(|(_, state)| state.log_sequence)
    }

    fn kill() -> Event {
        use podopsy_model::testing::{kill, owner};
        kill(jiff::Timestamp::now(), owner("shop", "cart", &[]), "i-1", 7, false)
    }

    #[test]
    fn a_state_waits_until_everything_before_it_is_stored() {
        let confirmations = Arc::new(Confirmations::default());
        confirmations.await_store();
        let mut saver = CheckpointSaver::new(PathBuf::from("/nowhere"), confirmations.clone(), false);
        // Taken while a kill is in the log already, and its record still on the way.
        assert_eq!(written(saver.round(false, || state(7))), None);
        assert_eq!(written(saver.round(false, || state(8))), None);
        confirmations.sent(&kill());
        // Its incident is still open.
        let open = confirmations.open_incident();
        assert_eq!(written(saver.round(true, || state(9))), None);
        confirmations.sent(&kill());
        drop(open);
        assert_eq!(written(saver.round(true, || state(10))), None, "nothing is stored");
        confirmations.kept(1);
        assert_eq!(written(saver.round(true, || state(11))), None, "the incident is not stored");
        confirmations.kept(1);
        // Events after the state was taken do not hold it back.
        confirmations.sent(&kill());
        assert_eq!(written(saver.round(true, || state(12))), Some(7));
        assert_eq!(written(saver.round(true, || state(13))), None);
        confirmations.kept(1);
        assert_eq!(written(saver.round(true, || state(14))), Some(13));
    }

    #[test]
    fn without_a_store_sent_events_count_as_kept_and_the_first_state_is_written_at_once() {
        let confirmations = Arc::new(Confirmations::default());
        let mut saver = CheckpointSaver::new(PathBuf::from("/nowhere"), confirmations.clone(), true);
        assert_eq!(written(saver.round(false, || state(1))), Some(1));
        confirmations.sent(&kill());
        assert_eq!(written(saver.round(true, || state(2))), None);
        assert_eq!(written(saver.round(true, || state(3))), Some(2));
        assert_eq!(written(saver.end(state(4))), Some(4));
    }

    #[test]
    fn the_last_state_is_written_when_the_store_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let confirmations = Arc::new(Confirmations::default());
        confirmations.await_store();
        let saver = CheckpointSaver::new(dir.path().to_owned(), confirmations.clone(), false);
        assert_eq!(written(saver.end(state(5))), None);
        assert_eq!(RecoveryCheckpoint::load(dir.path()).unwrap(), None);
        confirmations.save_last().unwrap();
        assert_eq!(RecoveryCheckpoint::load(dir.path()).unwrap().unwrap().log_sequence, Some(5));
    }
}
