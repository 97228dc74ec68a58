//! SIGKILLs.

use podopsy_wire::{SI_KERNEL, SI_QUEUE, SI_TKILL, SI_UNREAD, SI_USER, SigkillRecord, Task};

use super::read::{self, BadRecord};

/// The kind of sender, as far as it follows from the signal itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentBy {
    /// The running task sent it.
    Task,
    /// The kernel sent it; the running task may have caused that.
    Kernel,
    /// A timer, a file that became ready, or a code that could not be read: the running task may have nothing to do
    /// with it.
    Unknown,
}

/// A [`SigkillRecord`], with the facts that are not known left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigkillDecoded {
    pub time_ns: u64,
    /// The task that was running when the signal was sent.
    pub running: Task,
    pub target: Task,
    pub sent_by: SentBy,
    /// None: it could not be read.
    pub si_code: Option<i32>,
    /// To the process; false: to one of its threads.
    pub to_process: bool,
    /// The process's id in its own pid namespace; None: not known.
    pub namespace_pid: Option<u32>,
}

/// Decodes a [`SigkillRecord`] from the ring.
pub fn sigkill(bytes: &[u8]) -> Result<SigkillDecoded, BadRecord> {
    read::whole("sigkill", bytes).map(|record| sigkill_record(&record))
}

/// Decodes a [`SigkillRecord`] that was read from a map.
pub fn sigkill_record(record: &SigkillRecord) -> SigkillDecoded {
    let sent_by = match record.si_code {
        _ if record.from_kernel != 0 => SentBy::Kernel,
        SI_KERNEL => SentBy::Kernel,
        // A process may choose any other code below 0 for itself, so such a code is no evidence.
        SI_USER | SI_QUEUE | SI_TKILL => SentBy::Task,
        _ => SentBy::Unknown,
    };
    SigkillDecoded {
        time_ns: record.time_ns,
        running: record.sender,
        target: record.target,
        sent_by,
        si_code: Some(record.si_code).filter(|&code| code != SI_UNREAD),
        to_process: record.to_process != 0,
        namespace_pid: Some(record.namespace_pid).filter(|&pid| pid != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::sigkill as record;

    #[test]
    fn sender_and_target_are_not_mixed_up_and_a_short_record_is_an_error() {
        let mut bytes = vec![0; size_of::<SigkillRecord>()];
        bytes[0..8].copy_from_slice(&5u64.to_ne_bytes());
        bytes[8 + 16..8 + 20].copy_from_slice(&42u32.to_ne_bytes());
        bytes[48 + 16..48 + 20].copy_from_slice(&43u32.to_ne_bytes());
        let decoded = sigkill(&bytes).unwrap();
        assert_eq!((decoded.time_ns, decoded.running.pid, decoded.target.pid), (5, 42, 43));
        assert_eq!((decoded.sent_by, decoded.namespace_pid), (SentBy::Task, None));
        for cut in [0, 7, 60, bytes.len() - 1] {
            assert!(sigkill(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn the_running_task_is_the_sender_only_if_the_code_is_that_of_a_process() {
        let by = |code| sigkill_record(&record(code)).sent_by;
        assert_eq!([SI_USER, SI_QUEUE, SI_TKILL].map(by), [SentBy::Task; 3]);
        // SI_TIMER, POLL_IN, what could not be read.
        assert_eq!([-2, 1, SI_UNREAD].map(by), [SentBy::Unknown; 3]);
        assert_eq!(by(SI_KERNEL), SentBy::Kernel);
        assert_eq!(sigkill_record(&SigkillRecord { from_kernel: 1, ..record(0) }).sent_by, SentBy::Kernel);
    }
}
