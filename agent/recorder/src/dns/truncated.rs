//! Truncated answers over UDP, whose clients are about to ask again by TCP. A connection that fails carries no question, so
//! its question is that of the answer.

use std::collections::VecDeque;
use std::net::SocketAddr;

use podopsy_model::event::Protocol;
use podopsy_model::{DnsTransaction, Outcome};
use podopsy_wire::Task;

const ANSWERS_MAX: usize = 1024;
/// The longest time from a truncated answer to the SYN that follows: microseconds, on a busy node longer.
const WITHIN_NS: u64 = 1_000_000_000;

#[derive(Debug, Default)]
pub(crate) struct TruncatedAnswers {
    /// The process, when the answer came, and the query.
    answers: VecDeque<(u32, u64, DnsTransaction)>,
}

impl TruncatedAnswers {
    /// Adds an answer if it was truncated.
    pub fn add(&mut self, asker: &Task, transaction: &DnsTransaction, time_ns: u64) {
        if (transaction.outcome, transaction.protocol) != (Outcome::Truncated, Protocol::Udp) {
            return;
        }
        if self.answers.len() >= ANSWERS_MAX {
            self.answers.pop_front();
        }
        self.answers.push_back((asker.pid, time_ns, transaction.clone()));
    }

    /// Takes the last answer of this server that the process got before it opened a connection.
    pub fn take(&mut self, asker: &Task, server: SocketAddr, opened_ns: u64) -> Option<DnsTransaction> {
        let is_cause = |(pid, time_ns, transaction): &(u32, u64, DnsTransaction)| {
            let is_before = *time_ns <= opened_ns && opened_ns - time_ns <= WITHIN_NS;
            *pid == asker.pid && is_before && transaction.server.ip() == server.ip()
        };
        let at = self.answers.iter().rposition(is_cause)?;
        self.answers.remove(at).map(|(_, _, transaction)| transaction)
    }
}
