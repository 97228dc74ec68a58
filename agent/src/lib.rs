//! podopsy's recorder. Data flows one way, and each stage is a room:
//!
//! | stage | room | knows |
//! |---|---|---|
//! | load, attach | [`attach`] | aya, BTF |
//! | bytes | [`ring`] | aya's maps, async fds |
//! | the same from packets, without BPF | [`packets`] | IP, TCP, a packet socket |
//! | records | [`decode`] | the wire's shapes; no I/O |
//! | owner | [`pods`] | cgroups, CRI, /proc, Kubernetes' names |
//! | whose limit, the table | [`kernel_log`] | /dev/kmsg |
//! | the curve before it | [`memory`] | the memory controller's files |
//! | kills to incidents | [`oom`] | what makes an autopsy |
//! | kills that are no OOM | [`sigkill`] | who sent them |
//! | what grew before it | [`growth`] | suspects, stacks as places in files, a rolling window |
//! | queries to lookups | [`lookups`] | how resolvers search and retry; no I/O |
//! | a process's resolv.conf, its network's counters | [`network`] | files of containers |
//! | counts | [`aggregate`] | stacks as numbers |
//! | unwind tables | [`unwind`] | call frame information; what the kernel side unwinds by |
//! | names of addresses | [`symbolize`] | ELF, DWARF, kallsyms |
//! | events, profiles | [`model`] | nothing: serde types |
//! | what belongs together | [`incidents`] | one pod's events in time; no I/O |
//! | the history on the node | [`store`] | SQLite; what may be told |
//! | out | [`export`] | formats |
//! | to where people look already | [`deliver`] | queues, HTTP, TLS; other people's formats |
//! | profiles from before | [`import`], [`compare`] | pprof; what changed between two |
//! | questions from this machine | [`api`] | HTTP, who may ask |
//! | what it may cost, what it leaves out | [`budget`] | CPU time, memory, events a second; a table |
//! | what the allocator gives back | [`heap`] | glibc's malloc |
//! | what the agent gives up of itself | [`restraint`] | capabilities, system calls |
//! | what a restart must know | [`small_file`] | what it is |
//! | how many files it may open | [`descriptors`] | a limit of the kernel |
//! | flags, environment, file | [`config`] | where a value comes from |
//!
//! [`recorder`] puts the event stages together, [`service`] what follows an event in the agent, [`profiler`] the profile stages; [`doctor`] says which
//! of them can work on this machine.

pub mod aggregate;
pub mod api;
pub mod attach;
pub mod budget;
pub mod bytes;
pub mod clock;
pub mod compare;
pub mod config;
pub mod decode;
pub mod deliver;
pub mod descriptors;
pub mod doctor;
pub mod duration;
pub mod export;
pub mod growth;
pub mod heap;
pub mod import;
pub mod incidents;
pub mod kernel_log;
pub mod lookups;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod network;
pub mod node;
pub mod oom;
pub mod packets;
pub mod pods;
pub mod profiler;
pub mod python;
pub mod recorder;
pub mod restraint;
pub mod ring;
pub mod service;
pub mod sigkill;
pub mod small_file;
pub mod store;
pub mod symbolize;
pub mod unwind;
