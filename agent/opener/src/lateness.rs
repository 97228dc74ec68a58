//! Whether an opener that has not answered in time still gets more of it. Pure.
//!
//! | the opener | file that may hang | file on a disk of this node |
//! |---|---|---|
//! | is runnable: it has no CPU | waits on | waits on |
//! | waits, for the first time | given up | waits on: it is looked at once more |
//! | waits, and was scheduled since the last look | given up | waits on: the disk answers, slowly |
//! | waits, and was not scheduled since | given up | given up, unless the machine is overloaded |
//!
//! A wait for a FUSE or NFS server that hangs schedules nothing. A slow disk wakes the opener for each block. A container can
//! delay an opener only by a file that may hang, so that these have the shorter wait.

use podopsy_helper::Activity;

/// An opener gets its time limit at most this many times.
pub(crate) const PATIENCE: u32 = 4;

/// The looks at an opener that has not answered.
#[derive(Debug)]
pub(crate) struct Lateness {
    may_hang: bool,
    looks: u32,
    last: Option<Activity>,
}

impl Lateness {
    pub fn new(may_hang: bool) -> Lateness {
        Lateness { may_hang, looks: 0, last: None }
    }

    /// Whether an opener that has not answered within another time limit is waited for once more. `now`: what it does; None: it
    /// has ended.
    pub fn waits_on(&mut self, now: Option<Activity>, is_overloaded: impl FnOnce() -> bool) -> bool {
        self.looks += 1;
        let Some(now) = now.filter(|_| self.looks < PATIENCE) else { return false };
        let before = self.last.replace(now);
        if now.is_runnable {
            return true;
        }
        !self.may_hang && (before.is_none_or(|before| before.is_behind(&now)) || is_overloaded())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An opener that waits, and was scheduled so many times.
    fn waiting(switches: u64) -> Option<Activity> {
        Some(Activity { is_runnable: false, cpu_ticks: 0, switches })
    }

    const RUNNABLE: Option<Activity> = Some(Activity { is_runnable: true, cpu_ticks: 0, switches: 0 });

    /// How many time limits an opener gets that is seen like this at each look.
    fn limits(may_hang: bool, is_overloaded: bool, looks: [Option<Activity>; 3]) -> u32 {
        let mut lateness = Lateness::new(may_hang);
        let waits = looks.into_iter().take_while(|now| lateness.waits_on(*now, || is_overloaded));
        1 + waits.count() as u32
    }

    #[test]
    fn a_file_that_may_hang_gets_its_time_limit_once() {
        for is_overloaded in [false, true] {
            assert_eq!(limits(true, is_overloaded, [waiting(1), waiting(2), waiting(3)]), 1);
        }
    }

    #[test]
    fn a_file_on_a_slow_disk_is_waited_for_while_its_opener_is_scheduled() {
        assert_eq!(limits(false, false, [waiting(1), waiting(2), waiting(3)]), PATIENCE);
        assert_eq!(limits(false, false, [waiting(1), waiting(1), waiting(1)]), 2, "nothing happened");
        assert_eq!(limits(false, false, [waiting(1), waiting(2), waiting(2)]), 3);
    }

    #[test]
    fn on_an_overloaded_machine_a_disk_gets_all_the_time_that_there_is() {
        assert_eq!(limits(false, true, [waiting(1), waiting(1), waiting(1)]), PATIENCE);
    }

    #[test]
    fn an_opener_without_a_cpu_is_waited_for_and_one_that_has_ended_is_not() {
        for may_hang in [false, true] {
            assert_eq!(limits(may_hang, false, [RUNNABLE; 3]), PATIENCE);
            assert_eq!(limits(may_hang, true, [None; 3]), 1);
        }
    }

    #[test]
    fn the_wait_is_bounded() {
        let mut lateness = Lateness::new(false);
        let waits = (0..100).filter(|n| lateness.waits_on(waiting(*n), || true)).count();
        assert_eq!(waits as u32, PATIENCE - 1);
    }
}
