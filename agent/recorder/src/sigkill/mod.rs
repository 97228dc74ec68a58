//! SIGKILLs that no OOM killer sent: record → owners of sender and target → the runtime's report → verdict → event.
//!
//! Each record is handled by a task of its own, so that a slow runtime does not delay the others. The number of tasks
//! is bounded. This module must not depend on aya or on rendering.

mod rate_limiter;
pub(crate) mod reader;
mod sender;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podopsy_wire::Task;
use tokio::sync::{Semaphore, mpsc, watch};

use podopsy_decode::{SentBy, SigkillDecoded};
use podopsy_model::incident::RuntimeView;
use podopsy_model::sigkill::{Party, Sigkill};
use podopsy_model::{Detail, Event, EventKind, KnownBy, Losses, Owner, ProcessRef, text};
use podopsy_pods::{ContainerDetails, Pods};
use podopsy_system::clock;
use podopsy_system::sync::lock;
use rate_limiter::RateLimiter;

/// The runtime needs about this long to notice an exit.
const SETTLE: Duration = Duration::from_millis(1500);
/// How often the runtime is asked again while it still reports a container as running that must have ended.
const RETRIES: u32 = 3;
/// Records that wait for the runtime's report at a time.
const TASKS_MAX: usize = 1024;

/// Which SIGKILLs are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigkillScope {
    None,
    /// SIGKILLs to processes of containers.
    Containers,
    /// SIGKILLs to host processes, too.
    AllProcesses,
}

/// Correlates each SIGKILL with the owners of both processes and the runtime's report, and makes the event.
pub struct SigkillCorrelator {
    node: String,
    /// The first four digits of the boot id.
    id_prefix: String,
    scope: SigkillScope,
    pods: Arc<Pods>,
    rate_limiter: Mutex<RateLimiter>,
    tasks: Arc<Semaphore>,
    /// Records that were dropped because [`TASKS_MAX`] tasks were running.
    crowded: AtomicU64,
    own_kills: AtomicU64,
}

impl SigkillCorrelator {
    /// `boot_id`: the content of `/proc/sys/kernel/random/boot_id`.
    pub fn new(scope: SigkillScope, node: &str, boot_id: &str, pods: Arc<Pods>) -> Arc<SigkillCorrelator> {
        Arc::new(SigkillCorrelator {
            node: node.to_owned(),
            id_prefix: boot_id.chars().take(4).collect(),
            scope,
            pods,
            rate_limiter: Mutex::default(),
            tasks: Arc::new(Semaphore::new(TASKS_MAX)),
            crowded: AtomicU64::new(0),
            own_kills: AtomicU64::new(0),
        })
    }

    /// Whether a record is to be queued: its target was not reported before, and its container has had few enough.
    pub fn admits(&self, record: &SigkillDecoded) -> bool {
        lock(&self.rate_limiter).admits(record)
    }

    /// SIGKILLs among the processes of one container that the kernel side could not recognize as such, because the
    /// processes were in cgroups that the container had made itself.
    pub fn own_kills(&self) -> u64 {
        self.own_kills.load(Relaxed)
    }

    /// `sigkill_throttled`: records beyond the rate; `sigkill_crowded`: records beyond the number of tasks.
    pub fn losses(&self) -> Losses {
        let throttled = lock(&self.rate_limiter).throttled;
        let all = [("sigkill_throttled", throttled), ("sigkill_crowded", self.crowded.load(Relaxed))];
        all.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }

    /// Starts a task that sends the event some seconds later, or at once when `closing` becomes true.
    pub fn report(
        self: &Arc<SigkillCorrelator>,
        record: SigkillDecoded,
        events: mpsc::Sender<Event>,
        closing: watch::Receiver<bool>,
        losses: Arc<Mutex<Losses>>,
    ) {
        let Ok(permit) = self.tasks.clone().try_acquire_owned() else {
            self.crowded.fetch_add(1, Relaxed);
            return;
        };
        let correlator = self.clone();
        tokio::spawn(async move {
            if let Some(event) = correlator.event(record, closing, &losses).await {
                // The receiver is gone; dropping the event is correct.
                let _ = events.send(event).await;
            }
            drop(permit);
        });
    }

    async fn event(
        &self,
        record: SigkillDecoded,
        closing: watch::Receiver<bool>,
        losses: &Mutex<Losses>,
    ) -> Option<Event> {
        let target = self.owner(&record.target).await;
        let in_container = !matches!(target.known_by, KnownBy::Host | KnownBy::Unknown);
        if !in_container && self.scope != SigkillScope::AllProcesses {
            return None;
        }
        let running = match record.sent_by {
            SentBy::Unknown => None,
            _ => Some(self.owner(&record.running).await),
        };
        let comm = text::from_kernel(&record.running.comm);
        let by = sender::sender(record.sent_by, &comm, running.as_ref(), &target);
        if sender::is_own_container(by, running.as_ref(), &target) {
            self.own_kills.fetch_add(1, Relaxed);
            return None;
        }
        if sender::is_routine(by, &target) {
            return None;
        }
        let id = target.container.as_ref().map(|container| container.id.clone());
        let (first_process, view) = match id {
            Some(id) => self.ask_runtime(&id, &record, closing).await,
            None => (None, None),
        };
        let sigkill = Sigkill {
            id: format!("{}-k{}-{}", self.id_prefix, record.target.pid, record.time_ns / 1_000_000),
            by,
            sender: running.map(|owner| party(&record.running, owner)),
            first_process,
            si_code: record.si_code,
            to_process: record.to_process,
            verdict: podopsy_model::sigkill_verdict::verdict(view.as_ref()),
            runtime: view,
        };
        let losses = lock(losses).clone();
        Some(Event::new(
            clock::wall(record.time_ns),
            EventKind::Sigkill,
            &self.node,
            target,
            process(&record.target),
            Detail::Sigkill(sigkill),
            losses,
        ))
    }

    async fn owner(&self, task: &Task) -> Owner {
        self.pods.owner_of_task(task.cgroup_id, task.pid).await
    }

    /// Whether the target was the container's PID 1, and the runtime's report after it has had time to notice the exit.
    async fn ask_runtime(
        &self,
        id: &str,
        record: &SigkillDecoded,
        mut closing: watch::Receiver<bool>,
    ) -> (Option<bool>, Option<RuntimeView>) {
        // Asked at once: a runtime that has not noticed the exit yet still knows which process is PID 1.
        let mut is_first = is_first_process(self.pods.container(id).await.as_ref(), record);
        for retry in 0..=RETRIES {
            let _ = tokio::time::timeout(SETTLE, closing.wait_for(|&now| now)).await;
            let report = self.pods.container(id).await;
            is_first = is_first.or(is_first_process(report.as_ref(), record));
            let lags =
                is_first != Some(false) && report.as_ref().is_some_and(|report| report.state == "running");
            if !lags || retry == RETRIES || *closing.borrow() {
                return (is_first, report.map(ContainerDetails::view));
            }
        }
        (is_first, None)
    }
}

/// Whether the target was the container's first process; None: not known.
///
/// While the container runs, the runtime knows. After its end, only the process's id in its pid namespace is left: 1
/// means yes, any other id means nothing, because the containers of a pod may share the namespace.
fn is_first_process(report: Option<&ContainerDetails>, record: &SigkillDecoded) -> Option<bool> {
    let running = report.filter(|report| report.state == "running").and_then(|report| report.pid);
    match running {
        Some(pid) => Some(pid == record.target.pid),
        None => (record.namespace_pid == Some(1)).then_some(true),
    }
}

fn party(task: &Task, owner: Owner) -> Party {
    let Owner { pod, container, cgroup, known_by } = owner;
    Party { process: process(task), pod, container, cgroup, known_by }
}

fn process(task: &Task) -> ProcessRef {
    ProcessRef { pid: task.pid, comm: text::from_kernel(&task.comm), start_time: clock::start(task.start_ns) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podopsy_decode::sigkill_record;
    use podopsy_decode::testing::sigkill as record;

    fn container(state: &str, pid: Option<u32>) -> ContainerDetails {
        ContainerDetails {
            container: podopsy_model::ContainerRef {
                name: String::new(),
                id: String::new(),
                image: String::new(),
                attempt: 0,
            },
            state: state.into(),
            reason: String::new(),
            exit_code: None,
            started_at: None,
            finished_at: None,
            restarts: 0,
            pid,
            pids: Vec::new(),
            namespaces: Default::default(),
            cgroup_path: None,
            cgroup_ids: Vec::new(),
            memory_limit_bytes: None,
            memory_usage_bytes: None,
            cpu_limit_millis: None,
            ports: Vec::new(),
        }
    }

    #[test]
    fn the_runtime_decides_which_process_is_pid_1_while_the_container_runs() {
        let mut killed = sigkill_record(&record(0));
        assert_eq!(
            is_first_process(Some(&container("running", Some(killed.target.pid))), &killed),
            Some(true)
        );
        // PID 1 of another pid namespace that was made inside the container.
        assert_eq!(is_first_process(Some(&container("running", Some(5))), &killed), Some(false));
        assert_eq!(is_first_process(Some(&container("exited", None)), &killed), Some(true));
        killed.namespace_pid = Some(7);
        assert_eq!(
            (is_first_process(Some(&container("exited", None)), &killed), is_first_process(None, &killed)),
            (None, None)
        );
    }
}
