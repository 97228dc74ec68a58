//! What the kernel side and the agent share: the records that cross the kernel boundary, the settings that go the other
//! way, and the pure DNS rules that both sides apply.
//!
//! Records are `#[repr(C)]`, integers only, without padding; the derive of [`bytemuck::Pod`] checks that. The kernel
//! side writes them, `agent/decode` reads them with [`bytemuck`], so that the order of fields is written once, here.
//! Enums are carried as integers, because a record may hold any bit pattern.
//!
//! Times are nanoseconds of CLOCK_BOOTTIME. Process ids are those of the initial pid namespace.
//!
//! Must not depend on: anything but `core` and `bytemuck`.
#![no_std]
#![forbid(unsafe_code)]

mod config;
mod cpu;
mod dns;
mod dns_answer;
mod dns_counters;
mod dns_question;
mod dns_rules;
mod exec;
mod loss;
mod oom;
mod python;
mod sigkill;
mod task;
mod unwind;

pub use config::{
    ABSENT, BUDGET_SHIFT, Config, DnsConfig, Layout, SCOPE_CGROUPS, SCOPE_NODE, SCOPE_OTHERS, SCOPE_PROCESS,
};
pub use cpu::{FRAMES_MAX, KERNEL_NAME_BYTES, Sample};
pub use dns::{
    AnsweredSlot, AskedSlot, CacheLine, DNS_ANSWER_KEPT, DNS_MESSAGE_MAX, DNS_PORTS_MAX, DNS_PREFIX_BYTES,
    DNS_QUERY_KEPT, DNS_QUESTION_MAX, DNS_QUESTION_WORDS, DnsConnection, DnsKey, DnsPending, DnsPosition,
    DnsRecord, DnsSender, NAME_SLOTS, SOCKET_SLOTS, STATE_TIMED_OUT, STATE_WAITING, SocketClosed,
    SocketError, StrayAnswer, SweptKey, TABLE_CONNECTIONS, TABLE_QUERIES, TABLE_SENDERS, TABLES,
    USED_INSERTED, USED_MAX, USED_REMOVED, USED_SWEPT, WHY_ANSWER, WHY_BESIDE_A, WHY_REASONS, WHY_SAMPLE,
    WHY_SLOW, used_index,
};
pub use dns_answer::{
    AnswerRecords, TYPE_A, TYPE_AAAA, TYPE_CNAME, TYPE_OPT, answer_class, answers_type, is_accepted,
};
pub use dns_counters::{
    ANSWER_FORMERR, ANSWER_NODATA, ANSWER_NOERROR, ANSWER_NXDOMAIN, ANSWER_OTHER, ANSWER_REFUSED,
    ANSWER_SERVFAIL, ANSWER_TRUNCATED, ANSWERS, DNS_CONTAINERS_MAX, DNS_LATENCY_BUCKETS, DnsCounters,
    TableCounts,
};
pub use dns_question::{AName, Question, socket_slot};
pub use dns_rules::{
    DNS_HEADER_BYTES, DnsHeader, OPCODE_DSO, OPCODE_IQUERY, OPCODE_NOTIFY, OPCODE_QUERY, OPCODE_STATUS,
    OPCODE_UPDATE, TokenBucket, fold_address, in_flight, in_flight_share, latency_bucket, token_price,
};
pub use exec::Exec;
pub use loss::Loss;
pub use oom::{BuildIdFrame, CGROUP_LEVELS, CGROUP_NAME_MAX, OOM_KERNEL_FRAMES, OOM_USER_FRAMES, OomRecord};
pub use python::*;
pub use sigkill::{SI_KERNEL, SI_QUEUE, SI_TKILL, SI_UNREAD, SI_USER, SigkillLayout, SigkillRecord};
pub use task::Task;
pub use unwind::*;
