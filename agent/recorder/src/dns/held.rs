//! AAAA answers without data that wait for a moment, because their process may be about to ask for A.
//!
//! Go asks for both by two threads, in any order, and a resolver on the node answers in less time than lies between them.

use std::sync::Arc;

use podopsy_probes::ANames;
use podopsy_system::clock::boot_now_ns;
use podopsy_wire::{DnsRecord, WHY_BESIDE_A};

/// Records that wait; more are passed on as they are.
const RECORDS_MAX: usize = 4096;
/// Ticks that each waits, the first one in part: at least 100 ms.
const TICKS: u8 = 2;

/// Records that wait, with the ticks that are left.
pub(crate) struct HeldAnswers {
    a_names: Arc<ANames>,
    records: Vec<(Box<DnsRecord>, u8)>,
}

impl HeldAnswers {
    pub fn new(a_names: Arc<ANames>) -> HeldAnswers {
        HeldAnswers { a_names, records: Vec::new() }
    }

    /// Takes a record, or returns it if there is no place for it.
    pub fn hold(&mut self, record: Box<DnsRecord>) -> Option<Box<DnsRecord>> {
        if self.records.len() >= RECORDS_MAX {
            return Some(record);
        }
        self.records.push((record, TICKS));
        None
    }

    /// The records that have waited long enough, or all, with what is known now.
    pub fn tick(&mut self, all: bool) -> Vec<DnsRecord> {
        let mut due = Vec::new();
        for (record, ticks) in std::mem::take(&mut self.records) {
            match ticks {
                2.. if !all => self.records.push((record, ticks - 1)),
                _ => due.push(*record),
            }
        }
        for record in &mut due {
            if self.a_names.has(&record.pending, boot_now_ns()) {
                record.why |= WHY_BESIDE_A;
            }
        }
        due
    }
}
