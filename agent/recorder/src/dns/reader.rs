//! Reads the dns probe: queries that ended, and those in flight that nothing answers.

use std::sync::Arc;

use podopsy_decode::BadRecord;
use podopsy_decode::dns::{self as decode, DnsMessage};
use podopsy_model::{DnsTransaction, Losses, Outcome};
use podopsy_probes::ring::Ring;
use podopsy_system::sync::lock;
use podopsy_wire::{DnsRecord, SocketClosed, TYPE_AAAA, WHY_REASONS};

use super::closed::failed_connection;
use super::counts::SharedCounts;
use super::flight::{EndedQuery, QueriesInFlight};
use super::held::HeldAnswers;
use super::shares::EventShares;
use super::truncated::TruncatedAnswers;
use crate::attribute::Record;
use crate::reader::{Outbox, ProbeReader};
use crate::shed::{Shed, ShedMode, ShedStep};

/// Ticks between two looks at the counts. The kernel side may need the place of an idle cgroup, so they are read also
/// where no one asks for them.
const TICKS_PER_LOOK: u32 = 10;

pub(crate) struct DnsReader {
    pub events: Ring,
    pub in_flight: QueriesInFlight,
    pub counts: SharedCounts,
    pub shed: Arc<Shed>,
    pub shares: EventShares,
    pub truncated: TruncatedAnswers,
    pub held: HeldAnswers,
    pub out: Outbox,
    /// Decoded and not yet handed over.
    pub messages: Vec<Result<DnsMessage, BadRecord>>,
    pub ticks: u32,
}

impl DnsReader {
    /// Passes a record on, unless it has to wait.
    fn answered(&mut self, record: Box<DnsRecord>) {
        let transaction = decode::answered(&record);
        let may_be_beside_a = transaction.outcome == Outcome::Nodata
            && record.pending.qtype == TYPE_AAAA
            && !transaction.facts.beside_a;
        let held = if may_be_beside_a { self.held.hold(record) } else { Some(record) };
        if let Some(record) = held {
            self.transaction(&record, transaction);
        }
    }

    fn transaction(&mut self, record: &DnsRecord, transaction: DnsTransaction) {
        // The kernel side ships what it cannot judge: some of it turns out to be a plain success.
        if transaction.outcome == Outcome::Noerror && record.why & WHY_REASONS == 0 {
            return;
        }
        let asker = record.pending.asker;
        self.truncated.add(&asker, &transaction, record.time_ns);
        // The kernel side bounds what each container has in the ring. In the queue, records of many containers meet.
        let price = self.out.price();
        if price > 1 && !lock(&self.counts).may_queue_answered(asker.cgroup_id, record.time_ns, price) {
            return;
        }
        let step = match (transaction.outcome, transaction.slow) {
            (Outcome::Noerror, false) => ShedStep::DnsAnswers,
            (Outcome::Noerror, true) => ShedStep::DnsSlow,
            _ if !transaction.is_failure() => ShedStep::DnsAnswers,
            _ => ShedStep::DnsFailures,
        };
        if self.is_shed(step, asker.cgroup_id, record.time_ns) {
            return;
        }
        self.out.pass_on(Record::Dns { asker, owner: None, time_ns: record.time_ns, transaction });
    }

    /// Counts queries that ended without an answer, and passes on those within their container's bound.
    fn unanswered(&mut self, ended: Vec<EndedQuery>) {
        for EndedQuery { pending, time_ns, transaction } in ended {
            let asker = pending.asker;
            let is_within_rate = lock(&self.counts).unanswered(
                asker.cgroup_id,
                transaction.outcome,
                time_ns,
                self.out.price(),
            );
            let step = match transaction.is_failure() {
                true => ShedStep::DnsFailures,
                false => ShedStep::DnsAnswers,
            };
            if !is_within_rate || self.is_shed(step, asker.cgroup_id, time_ns) {
                continue;
            }
            self.out.pass_on(Record::Dns { asker, owner: None, time_ns, transaction });
        }
    }

    /// Counts and passes on a TCP connection that was never established.
    fn connection_failed(&mut self, closed: &SocketClosed) {
        let server = decode::socket_address(closed.server, closed.port as u16);
        let truncated = self.truncated.take(&closed.asker, server, closed.opened_ns);
        let transaction = failed_connection(closed, self.in_flight.timeout_ns(), truncated);
        let (asker, time_ns) = (closed.asker, closed.time_ns);
        lock(&self.counts).unsent_query(asker.cgroup_id);
        let is_within_rate =
            lock(&self.counts).unanswered(asker.cgroup_id, transaction.outcome, time_ns, self.out.price());
        if is_within_rate && !self.is_shed(ShedStep::DnsFailures, asker.cgroup_id, time_ns) {
            self.out.pass_on(Record::Dns { asker, owner: None, time_ns, transaction });
        }
    }

    /// Whether to shed an event that is due. Counts the event, and what is shed on its container.
    fn is_shed(&mut self, step: ShedStep, cgroup_id: u64, now_ns: u64) -> bool {
        self.shed.count_due_event();
        let is_within = self.shares.admit(cgroup_id, step, now_ns, self.shed.events_allowed());
        let is_shed = match self.shed.mode(step) {
            ShedMode::Off => false,
            ShedMode::LargestUsers => !is_within,
            ShedMode::All => true,
        };
        if is_shed {
            self.shed.count_shed(step);
            lock(&self.counts).shed_event(cgroup_id);
        } else if !is_within {
            self.shares.take(cgroup_id);
        }
        is_shed
    }
}

impl ProbeReader for DnsReader {
    async fn drain(&mut self) -> anyhow::Result<()> {
        let messages = &mut self.messages;
        self.events.drain(|bytes| messages.push(decode::record(bytes))).await
    }

    fn drain_now(&mut self) {
        let messages = &mut self.messages;
        self.events.drain_now(|bytes| messages.push(decode::record(bytes)));
    }

    fn hand_over(&mut self) {
        for message in std::mem::take(&mut self.messages) {
            match message {
                Ok(DnsMessage::Answered(record)) => self.answered(record),
                Ok(DnsMessage::SocketError(error)) => self.in_flight.socket_error(error),
                Ok(DnsMessage::SocketClosed(closed)) if closed.never_connected != 0 => {
                    self.connection_failed(&closed);
                }
                Ok(DnsMessage::SocketClosed(closed)) => self.in_flight.socket_closed(closed),
                Ok(DnsMessage::Stray(stray)) => self.in_flight.stray_answer(stray),
                Err(error) => self.out.reject(&error),
            }
        }
    }

    fn tick(&mut self, is_last: bool) {
        // What the ring has of closed sockets belongs to the queries that are looked at now.
        self.drain_now();
        self.hand_over();
        for record in self.held.tick(is_last) {
            self.transaction(&record, decode::answered(&record));
        }
        let ended = if is_last { self.in_flight.look() } else { self.in_flight.sweep() };
        for (cgroup_id, count) in self.in_flight.take_untracked() {
            lock(&self.counts).untracked(cgroup_id, count);
        }
        self.unanswered(ended);
        self.ticks += 1;
        if self.ticks.is_multiple_of(TICKS_PER_LOOK) {
            self.in_flight.sweep_tables();
            let counters = lock(&self.counts).look();
            self.in_flight.correct(&counters);
        }
    }

    fn losses(&self) -> Losses {
        let mut losses = self.in_flight.losses();
        losses.extend(lock(&self.counts).losses());
        losses
    }
}
