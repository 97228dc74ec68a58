//! How far a restart need not look back: the state of the recorder, written only when all that it has passed is kept.
//!
//! A restart tells the kills that the kernel's log has behind the state's number. So a state may not be on the disk before
//! the kills up to it are: until then the one before stands, a restart tells some once more, and the store knows them by
//! their names. A state is taken, then waits until nothing older is under way here, then until whoever keeps events has kept
//! as many as were sent.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use crate::oom::checkpoint::RecoveryCheckpoint;
use podopsy_model::{Event, Kind};

/// What attribution and whoever keeps its events see of each other: numbers alone.
#[derive(Debug, Default)]
pub struct Progress {
    /// Kills and incidents that are in the listener's queue, or were.
    sent: AtomicU64,
    /// Incidents that are being settled.
    open: AtomicU64,
    /// Of those sent, how many are kept, or counted as not kept.
    kept: AtomicU64,
    awaited: AtomicBool,
    /// The last word, for whoever keeps events.
    last: Mutex<Option<(PathBuf, RecoveryCheckpoint)>>,
}

impl Progress {
    /// Whether a restart could find it again.
    pub fn is_recoverable(event: &Event) -> bool {
        matches!(event.kind, Kind::OomKill | Kind::OomIncident)
    }

    /// From now on somebody says what is kept; without, what is sent is.
    pub fn await_keeper(&self) {
        self.awaited.store(true, SeqCst);
    }

    /// So many more are kept.
    pub fn kept(&self, more: u64) {
        self.kept.fetch_add(more, SeqCst);
    }

    /// All is kept, and nothing comes any more.
    pub fn save_last(&self) -> anyhow::Result<()> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        last.map_or(Ok(()), |(dir, state)| state.save(&dir))
    }

    pub(super) fn sent(&self, event: &Event) {
        self.sent.fetch_add(u64::from(Self::is_recoverable(event)), SeqCst);
    }

    /// An incident is being settled, until what is returned is dropped.
    pub(super) fn opened(self: &Arc<Self>) -> Opened {
        self.open.fetch_add(1, SeqCst);
        Opened(self.clone())
    }

    fn all_kept(&self, sent: u64) -> bool {
        !self.awaited.load(SeqCst) || self.kept.load(SeqCst) >= sent
    }
}

/// One incident that is being settled.
#[derive(Debug)]
pub(super) struct Opened(Arc<Progress>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

/// The state on its way to the disk.
#[derive(Debug)]
pub(super) struct Saver {
    dir: PathBuf,
    progress: Arc<Progress>,
    /// Taken; and what had been sent when nothing older was under way.
    next: Option<(RecoveryCheckpoint, Option<u64>)>,
    /// There is none yet: any is better.
    first: bool,
}

impl Saver {
    pub fn new(dir: PathBuf, progress: Arc<Progress>, first: bool) -> Saver {
        Saver { dir, progress, next: None, first }
    }

    /// Call now and then; `quiet`: no kill is under way to the listener. What may be written now; `now` is taken where no
    /// other waits.
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
            && self.progress.open.load(SeqCst) == 0
        {
            *passed = Some(self.progress.sent.load(SeqCst));
        }
        let (state, passed) = self.next.take().unwrap_or_else(|| (now(), None));
        if passed.is_some_and(|sent| self.progress.all_kept(sent)) {
            return Some((self.dir.clone(), state));
        }
        self.next = Some((state, passed));
        None
    }

    /// The last one: to be written at once where nobody keeps events, else by [`Progress::save_last`].
    pub fn end(self, now: RecoveryCheckpoint) -> Option<(PathBuf, RecoveryCheckpoint)> {
        if !self.progress.awaited.load(SeqCst) {
            return Some((self.dir, now));
        }
        *self.progress.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.dir, now));
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
    fn a_state_waits_until_what_it_has_passed_is_kept() {
        let progress = Arc::new(Progress::default());
        progress.await_keeper();
        let mut saver = Saver::new(PathBuf::from("/nowhere"), progress.clone(), false);
        // Taken while a kill is in the log already, and its record still on the way.
        assert_eq!(written(saver.round(false, || state(7))), None);
        assert_eq!(written(saver.round(false, || state(8))), None);
        progress.sent(&kill());
        // Its incident is being settled.
        let opened = progress.opened();
        assert_eq!(written(saver.round(true, || state(9))), None);
        progress.sent(&kill());
        drop(opened);
        assert_eq!(written(saver.round(true, || state(10))), None, "nothing is on the disk");
        progress.kept(1);
        assert_eq!(written(saver.round(true, || state(11))), None, "the incident is not");
        progress.kept(1);
        // What has happened since is none of this state's.
        progress.sent(&kill());
        assert_eq!(written(saver.round(true, || state(12))), Some(7));
        assert_eq!(written(saver.round(true, || state(13))), None);
        progress.kept(1);
        assert_eq!(written(saver.round(true, || state(14))), Some(13));
    }

    #[test]
    fn where_nobody_keeps_events_what_is_sent_is_enough_and_the_first_is_written_at_once() {
        let progress = Arc::new(Progress::default());
        let mut saver = Saver::new(PathBuf::from("/nowhere"), progress.clone(), true);
        assert_eq!(written(saver.round(false, || state(1))), Some(1));
        progress.sent(&kill());
        assert_eq!(written(saver.round(true, || state(2))), None);
        assert_eq!(written(saver.round(true, || state(3))), Some(2));
        assert_eq!(written(saver.end(state(4))), Some(4));
    }

    #[test]
    fn the_last_one_is_left_to_whoever_keeps_events() {
        let dir = tempfile::tempdir().unwrap();
        let progress = Arc::new(Progress::default());
        progress.await_keeper();
        let saver = Saver::new(dir.path().to_owned(), progress.clone(), false);
        assert_eq!(written(saver.end(state(5))), None);
        assert_eq!(RecoveryCheckpoint::load(dir.path()).unwrap(), None);
        progress.save_last().unwrap();
        assert_eq!(RecoveryCheckpoint::load(dir.path()).unwrap().unwrap().log_sequence, Some(5));
    }
}
