//! The containers: pods with two sleeping containers, and one pod for each [`Trouble`]; their restarts, and the count
//! of their kills.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use podopsy_harness::{ContainerSpec, ContainerState, Node, PodHandle, PodSpec, Status};
use serde_json::{Value, json};

use crate::trouble::{Counted, TROUBLES, Trouble};

const NAMESPACE: &str = "soak";
/// Sleeping containers in a pod: 200 containers are then the 106 pods of a full node.
const SLEEPERS_PER_POD: usize = 2;
/// containerd starts this many pods at once without delaying any of them.
const STARTERS: usize = 3;
/// Between a container's end and its next attempt.
const BACK_OFF: Duration = Duration::from_secs(3);
const SIGKILLED: i32 = 137;

/// The started containers.
pub struct Crowd {
    in_trouble: Vec<(&'static Trouble, PodHandle)>,
    tally: Arc<Tally>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// What the keeper counted.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    restarts: AtomicU64,
    /// The ids of killed containers. A set, because one that still waits for its restart at the end is noted twice.
    killed: Mutex<BTreeSet<String>>,
}

impl Crowd {
    /// Starts `containers` containers. The JSON has the pods' uids and the time that it took.
    pub fn start(node: &Node, image: &str, containers: usize) -> anyhow::Result<(Crowd, Value)> {
        let began = Instant::now();
        let mut plans = Vec::new();
        for (at, trouble) in TROUBLES.iter().take(containers).enumerate() {
            let spec = PodSpec::new(NAMESPACE, trouble.name).container(trouble.container(image));
            plans.push((Some(at), spec.label("app", trouble.name)));
        }
        let mut left = containers - plans.len();
        while left > 0 {
            let name = format!("sleeps-{:03}", plans.len());
            let mut spec = PodSpec::new(NAMESPACE, name).label("app", "sleeps");
            for n in 0..SLEEPERS_PER_POD.min(left) {
                let sleeper = ContainerSpec::new(format!("app-{n}"), image).command(["pause"]);
                spec = spec.container(sleeper.memory_limit(32 << 20));
            }
            left -= SLEEPERS_PER_POD.min(left);
            plans.push((None, spec));
        }
        let pods = run(node, &plans)?;
        let uids: Vec<&str> = pods.iter().map(|(_, pod)| pod.uid.as_str()).collect();
        let description = json!({
            "pods": pods.len(),
            "containers": containers,
            "seconds": began.elapsed().as_secs_f64(),
            "uids": uids,
        });
        let in_trouble: Vec<(&Trouble, PodHandle)> =
            pods.into_iter().filter_map(|(at, pod)| Some((&TROUBLES[at?], pod))).collect();
        let tally = Arc::new(Tally::default());
        let kept: Vec<_> =
            in_trouble.iter().filter(|(trouble, _)| trouble.restarts).map(|(t, p)| (*t, p.clone())).collect();
        let keeper = std::thread::spawn({
            let tally = tally.clone();
            move || keep(&kept, &tally)
        });
        Ok((Crowd { in_trouble, tally, keeper: Mutex::new(Some(keeper)) }, description))
    }

    /// The kills so far, counted by the kernel or the runtime as each trouble needs it.
    pub fn kills(&self) -> anyhow::Result<Value> {
        let mut kills = self.tally.killed().len() as u64;
        for (trouble, pod) in &self.in_trouble {
            if trouble.counted == Counted::ByCgroup {
                kills += killed_in(&pod.memory_cgroup("app")?)?;
            }
        }
        Ok(json!({ "kills": kills, "restarts": self.tally.restarts.load(Ordering::SeqCst) }))
    }

    /// Ends restarts and lifts the memory limits, so that the count is final.
    pub fn settle(&self) -> anyhow::Result<Value> {
        self.tally.stop.store(true, Ordering::SeqCst);
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.join().map_err(|_| anyhow!("the thread that restarts containers failed"))?;
        }
        for (trouble, pod) in self.in_trouble.iter().filter(|(trouble, _)| trouble.counted != Counted::Never)
        {
            // A container that ended since the keeper looked has no cgroup any more; it is counted below.
            if pod.status("app")?.state == ContainerState::Running {
                lift(&pod.memory_cgroup("app")?).with_context(|| trouble.name)?;
            }
        }
        // By then, a kill that had begun when the limit was lifted has ended, and the runtime reports it.
        std::thread::sleep(Duration::from_secs(2));
        for (trouble, pod) in self.in_trouble.iter().filter(|(trouble, _)| trouble.restarts) {
            let status = pod.status("app")?;
            if status.state == ContainerState::Exited {
                self.tally.note(trouble, &status);
            }
        }
        self.kills()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.tally.stop.store(true, Ordering::SeqCst);
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = keeper.join();
        }
    }
}

impl Tally {
    fn killed(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.killed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an end by SIGKILL as an OOM kill: nothing else sends SIGKILL here.
    fn note(&self, trouble: &Trouble, status: &Status) {
        if trouble.counted == Counted::ByRuntime && status.exit_code == SIGKILLED {
            self.killed().insert(status.id.clone());
        }
    }
}

/// Runs the pods, several at a time; in the order of `plans`.
fn run(node: &Node, plans: &[(Option<usize>, PodSpec)]) -> anyhow::Result<Vec<(Option<usize>, PodHandle)>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let starter = || -> anyhow::Result<()> {
            while let Some((at, spec)) = plans.get(next.fetch_add(1, Ordering::SeqCst)) {
                let pod = match node.run_pod(spec.clone()) {
                    Ok(pod) => pod,
                    Err(error) => {
                        // The other threads stop, too.
                        next.store(plans.len(), Ordering::SeqCst);
                        return Err(error);
                    }
                };
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                done.push((*at, pod));
                if done.len() % 10 == 0 {
                    eprintln!("node: {} of {} pods run", done.len(), plans.len());
                }
            }
            Ok(())
        };
        let starters: Vec<_> = (0..STARTERS).map(|_| scope.spawn(starter)).collect();
        starters
            .into_iter()
            .try_for_each(|one| one.join().map_err(|_| anyhow!("a thread that starts pods failed"))?)
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Restarts containers as a kubelet does, but with a constant back-off, so that the rate of kills is constant for an
/// hour.
fn keep(pods: &[(&'static Trouble, PodHandle)], tally: &Tally) {
    let mut due: Vec<Option<Instant>> = vec![None; pods.len()];
    while !tally.stop.load(Ordering::SeqCst) {
        for ((trouble, pod), due) in pods.iter().zip(&mut due) {
            match *due {
                None => {
                    let Ok(status) = pod.status("app") else { continue };
                    if status.state == ContainerState::Exited {
                        tally.note(trouble, &status);
                        *due = Some(Instant::now() + BACK_OFF);
                    }
                }
                Some(at) if at <= Instant::now() => match pod.restart("app") {
                    Ok(_) => {
                        tally.restarts.fetch_add(1, Ordering::SeqCst);
                        *due = None;
                    }
                    Err(error) => {
                        eprintln!("node: restart {}: {error:#}", trouble.name);
                        *due = Some(Instant::now() + BACK_OFF);
                    }
                },
                Some(_) => {}
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The kernel's count of OOM kills in this memory cgroup, without its children.
fn killed_in(cgroup: &Path) -> anyhow::Result<u64> {
    let read = |name: &str| std::fs::read_to_string(cgroup.join(name));
    let text = read("memory.events").or_else(|_| read("memory.oom_control"));
    let text = text.with_context(|| format!("read the kills of {}", cgroup.display()))?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.with_context(|| format!("{} has no count of OOM kills", cgroup.display()))
}

/// Lifts the memory limit.
fn lift(cgroup: &Path) -> anyhow::Result<()> {
    // v1 refuses a limit of memory above the limit of memory and swap together, so that one is lifted first.
    let limits =
        [("memory.max", "max"), ("memory.memsw.limit_in_bytes", "-1"), ("memory.limit_in_bytes", "-1")];
    for (file, limit) in limits.map(|(name, limit)| (cgroup.join(name), limit)) {
        if file.exists() {
            std::fs::write(&file, limit).with_context(|| format!("lift {}", file.display()))?;
        }
    }
    Ok(())
}
