//! Verdicts and advice for example incidents.

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::charged::ChargedMemory;
use crate::incident::{Attempt, ProcessRow, ProcessTable};
use crate::memory::Curve;
use crate::testing::incident;

fn view(state: &str, reason: &str, code: Option<i32>, pid: Option<u32>) -> Option<RuntimeView> {
    Some(RuntimeView {
        state: state.into(),
        reason: reason.into(),
        exit_code: code,
        restarts: 1,
        started_at: None,
        finished_at: None,
        pid,
        asked_at: Timestamp::UNIX_EPOCH,
    })
}

#[test]
fn each_runtime_report_gives_its_verdict() {
    let mut one = incident();
    assert_eq!(verdicts(&one), []);
    for (runtime, expected) in [
        (view("running", "", None, Some(7)), Some(Verdict::SilentChildKill)),
        // The report is outdated: the container must have ended.
        (view("running", "", None, Some(42)), None),
        (view("exited", "OOMKilled", Some(137), None), Some(Verdict::Agrees)),
        (view("exited", "Error", Some(137), None), Some(Verdict::RuntimeDisagrees)),
        (view("exited", "Completed", Some(0), None), Some(Verdict::RuntimeDisagrees)),
    ] {
        one.runtime = runtime;
        assert_eq!(verdicts(&one).first().copied(), expected, "{:?}", one.runtime);
        assert_eq!(is_settled(&one), expected.is_some(), "{:?}", one.runtime);
    }
    one.runtime = view("exited", "Error", Some(137), None);
    assert_eq!(explain(Verdict::RuntimeDisagrees, &one), "the runtime says Error (137), the kernel says OOM");
    one.runtime = view("exited", "OOMKilled", Some(0), None);
    assert!(counts_as_success(&one));
    assert_eq!(
        explain(Verdict::Agrees, &one),
        "OOMKilled, exit code 0: Kubernetes counts it as succeeded, although a process of it was killed"
    );
    one.runtime = view("exited", "OOMKilled", Some(1), None);
    assert_eq!(explain(Verdict::Agrees, &one), "the runtime says OOMKilled (1), as the kernel does");
    one.runtime = view("exited", "Error", Some(137), None);
    assert!(!counts_as_success(&one));
    one.limit.of = Level::Node;
    assert_eq!(verdicts(&one), [Verdict::NodeOom, Verdict::RuntimeDisagrees]);
}

fn curve(points: i64, bytes: impl Fn(i64) -> u64, slope: f64) -> Option<Curve> {
    let held: Vec<u64> = (0..points).map(bytes).collect();
    Some(Curve {
        time: (0..points).map(|s| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(s)).collect(),
        current_bytes: held.clone(),
        anon_bytes: held,
        file_bytes: vec![0; points as usize],
        shmem_bytes: vec![0; points as usize],
        kernel_bytes: vec![0; points as usize],
        growth_bytes_per_second: Some(slope),
        pressure: None,
    })
}

#[test]
fn advice_states_only_what_was_observed() {
    let mut one = incident();
    assert_eq!(advice(&one), None);
    one.curve = curve(61, |s| (s as u64) << 20, f64::from(1 << 20));
    let line = advice(&one).unwrap();
    assert_eq!(
        line,
        "grew by 60.0 MiB a minute over the last 60 s: at that rate the whole limit of 64 MiB lasts 64 s"
    );
    one.curve = curve(61, |_| 60 << 20, 0.0);
    assert!(advice(&one).unwrap().starts_with("held 94 % of its limit steadily for 60 s"));
    // The curve is the container's, and the limit another one's.
    one.limit.of = Level::Pod;
    assert_eq!(advice(&one), None);
    one.limit.of = Level::InsideContainer;
    one.curve = curve(61, |s| (s as u64) << 20, f64::from(1 << 20));
    assert_eq!(advice(&one), None);
    one.limit.of = Level::Container;
    one.curve = curve(61, |_| 30 << 20, 0.0);
    assert!(
        advice(&one).unwrap().starts_with("went from 30 MiB, where it had stayed, to the limit of 64 MiB")
    );
    // A leak is reported even if its last sample is old.
    one.curve = curve(31, |s| (s as u64) << 20, f64::from(1 << 20));
    assert!(advice(&one).unwrap().starts_with("grew by 60.0 MiB"));
    // Too few points for a slope.
    one.curve = curve(5, |s| (s as u64) << 20, f64::from(1 << 20));
    assert_eq!(advice(&one), None);
    one.attempts =
        [4.6, 5.2, 5.0].into_iter().zip(0..).map(|(seconds, attempt)| Attempt { attempt, seconds }).collect();
    assert_eq!(advice(&one).unwrap(), "met its limit in each of 3 attempts, 5 s to 5 s after its start");
}

#[test]
fn a_dominant_process_is_named() {
    let row = |pid: u32, mib: u64, victim: bool| ProcessRow {
        pid,
        comm: format!("p{pid}"),
        rss_bytes: mib << 20,
        swap_bytes: 0,
        oom_score_adj: -997,
        share: None,
        victim,
    };
    let mut one = incident();
    let table = |rows| ProcessTable { source: "kernel log".into(), rows, others: 2, others_rss_bytes: 0 };
    one.processes = Some(table(vec![row(1, 50, true), row(2, 5, false), row(3, 5, false)]));
    assert_eq!(advice(&one).unwrap(), "one of 5 processes, p1[1], held 83 % of their memory");
    one.processes = Some(table(vec![row(1, 30, false), row(2, 28, false), row(3, 5, true)]));
    assert!(advice(&one).unwrap().contains("p1[1] held 30 MiB and was spared by its oom_score_adj -997"));
    one.processes = Some(table(vec![row(1, 30, true), row(2, 28, false), row(3, 25, false)]));
    assert_eq!(advice(&one), None);
}

#[test]
fn memory_that_no_process_holds_is_reported_before_how_the_memory_grew() {
    let mut one = incident();
    one.curve = curve(61, |s| (s as u64) << 20, f64::from(1 << 20));
    one.charged = Some(ChargedMemory {
        source: "kernel log".into(),
        usage_bytes: 64 << 20,
        anon_bytes: 8 << 20,
        file_bytes: 0,
        shmem_bytes: 56 << 20,
        kernel: None,
        sock_bytes: None,
        unheld_shmem_bytes: Some(56 << 20),
    });
    assert!(advice(&one).unwrap().starts_with("56 MiB of 64 MiB is shmem that no process holds"));
    one.charged.as_mut().unwrap().unheld_shmem_bytes = Some(1 << 20);
    assert!(advice(&one).unwrap().starts_with("grew by"));
}
