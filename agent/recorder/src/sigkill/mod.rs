//! SIGKILLs that no OOM killer sent: record → sender and target named → the runtime's word → verdict → event.
//!
//! Each record is told by a task of its own, so that a slow runtime holds up nobody; how many there may be is bounded.
//! Must not know: aya, how anything is rendered.

mod gate;
pub(crate) mod reader;
mod sender;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use podopsy_wire::Task;
use tokio::sync::{Semaphore, mpsc, watch};

use gate::Gate;
use podopsy_decode::{SentBy, SigkillDecoded};
use podopsy_model::incident::RuntimeView;
use podopsy_model::sigkill::{Party, Sigkill};
use podopsy_model::{Detail, Event, Kind, KnownBy, Losses, Owner, ProcessRef, text};
use podopsy_pods::{Container, Pods};
use podopsy_system::clock;

/// The runtime needs about as long to see an exit.
const SETTLE: Duration = Duration::from_millis(1500);
/// Asked again where a container must have ended and the runtime does not know it yet.
const ASK_AGAIN: u32 = 3;
/// Records that wait for the runtime's word at a time.
const TASKS_MAX: usize = 1024;

/// Which SIGKILLs are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigkillScope {
    None,
    /// Those whose target is in a container.
    Containers,
    /// Host processes', too.
    AllProcesses,
}

/// Tells SIGKILLs.
pub struct SigkillCorrelator {
    node: String,
    boot: String,
    scope: SigkillScope,
    pods: Arc<Pods>,
    gate: Mutex<Gate>,
    room: Arc<Semaphore>,
    crowded: AtomicU64,
    own: AtomicU64,
}

impl SigkillCorrelator {
    /// `boot_id`: of `/proc/sys/kernel/random/boot_id`.
    pub fn new(scope: SigkillScope, node: &str, boot_id: &str, pods: Arc<Pods>) -> Arc<SigkillCorrelator> {
        Arc::new(SigkillCorrelator {
            node: node.to_owned(),
            boot: boot_id.chars().take(4).collect(),
            scope,
            pods,
            gate: Mutex::default(),
            room: Arc::new(Semaphore::new(TASKS_MAX)),
            crowded: AtomicU64::new(0),
            own: AtomicU64::new(0),
        })
    }

    /// Whether it is worth a place in the queue: not told before, and its container has not had too many.
    pub fn admits(&self, record: &SigkillDecoded) -> bool {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).admits(record)
    }

    /// SIGKILLs among the processes of one container that were found only here, in cgroups that it made itself.
    pub fn own(&self) -> u64 {
        self.own.load(Relaxed)
    }

    pub fn losses(&self) -> Losses {
        let throttled = self.gate.lock().unwrap_or_else(PoisonError::into_inner).throttled;
        let all = [("sigkill_throttled", throttled), ("sigkill_crowded", self.crowded.load(Relaxed))];
        all.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }

    /// Tells one, some seconds later: `closing` says that there is no more time.
    pub fn report(
        self: &Arc<SigkillCorrelator>,
        record: SigkillDecoded,
        events: mpsc::Sender<Event>,
        closing: watch::Receiver<bool>,
        losses: Arc<Mutex<Losses>>,
    ) {
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            self.crowded.fetch_add(1, Relaxed);
            return;
        };
        let correlator = self.clone();
        tokio::spawn(async move {
            if let Some(event) = correlator.event(record, closing, &losses).await {
                // Nobody listens any more: that is their choice.
                let _ = events.send(event).await;
            }
            drop(place);
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
        if sender::is_own(by, running.as_ref(), &target) {
            self.own.fetch_add(1, Relaxed);
            return None;
        }
        if sender::is_routine(by, &target) {
            return None;
        }
        let id = target.container.as_ref().map(|container| container.id.clone());
        let (first, view) = match id {
            Some(id) => self.runtime(&id, &record, closing).await,
            None => (None, None),
        };
        let sigkill = Sigkill {
            id: format!("{}-k{}-{}", self.boot, record.target.pid, record.time_ns / 1_000_000),
            by,
            sender: running.map(|owner| party(&record.running, owner)),
            first_process: first,
            si_code: record.si_code,
            to_process: record.to_process,
            verdict: podopsy_model::sigkill_verdict::verdict(view.as_ref()),
            runtime: view,
        };
        let losses = losses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(Event::new(
            clock::wall(record.time_ns),
            Kind::Sigkill,
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

    /// Whether the target was the container's PID 1, and what the runtime says once it has had time to notice.
    async fn runtime(
        &self,
        id: &str,
        record: &SigkillDecoded,
        mut closing: watch::Receiver<bool>,
    ) -> (Option<bool>, Option<RuntimeView>) {
        // At once: a runtime that has not noticed yet still says which process is PID 1.
        let mut first = first(self.pods.container(id).await.as_ref(), record);
        for again in 0..=ASK_AGAIN {
            let _ = tokio::time::timeout(SETTLE, closing.wait_for(|&now| now)).await;
            let said = self.pods.container(id).await;
            first = first.or(self::first(said.as_ref(), record));
            let lags = first != Some(false) && said.as_ref().is_some_and(|said| said.state == "running");
            if !lags || again == ASK_AGAIN || *closing.borrow() {
                return (first, said.map(Container::view));
            }
        }
        (first, None)
    }
}

/// By what the runtime says while the container runs; after its end by the process's id in its pid namespace, where 1
/// says all, and any other nothing: the pod may share the namespace.
fn first(said: Option<&Container>, record: &SigkillDecoded) -> Option<bool> {
    let running = said.filter(|said| said.state == "running").and_then(|said| said.pid);
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

    fn container(state: &str, pid: Option<u32>) -> Container {
        Container {
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
        }
    }

    #[test]
    fn a_living_containers_pid_1_is_the_runtimes_to_say() {
        let mut killed = sigkill_record(&record(0));
        assert_eq!(first(Some(&container("running", Some(killed.target.pid))), &killed), Some(true));
        // PID 1 of a pid namespace of its own, inside of the container.
        assert_eq!(first(Some(&container("running", Some(5))), &killed), Some(false));
        assert_eq!(first(Some(&container("exited", None)), &killed), Some(true));
        killed.namespace_pid = Some(7);
        assert_eq!((first(Some(&container("exited", None)), &killed), first(None, &killed)), (None, None));
    }
}
