//! Tests of counting, naming and bounds, with the test process itself.

use super::*;
use crate::Helpers;

fn comm(name: &str) -> Comm {
    let mut comm = Comm::default();
    comm[..name.len()].copy_from_slice(name.as_bytes());
    comm
}

fn sample<'a>(tid: u32, user: &'a [u64]) -> RawSample<'a> {
    let pid = std::process::id();
    RawSample {
        pid,
        tid,
        thread_comm: comm("worker\x1b"),
        cgroup_id: 7,
        kernel: &[],
        user,
        file: FileKey::NONE,
        image: ProgramImage::UNKNOWN,
        end: End::Complete,
        end_frame: 0,
        python: &[],
        python_end: PythonEnd::None,
    }
}

fn unknown_owner(id: u64) -> Arc<Owner> {
    let cgroup = podopsy_model::owner::CgroupRef { id, path: None };
    Arc::new(Owner { cgroup, ..Owner::default() })
}

#[test]
fn equal_stacks_are_counted_together_and_named() {
    let function = equal_stacks_are_counted_together_and_named as fn() as usize as u64;
    let (mut symbolizer, mut aggregator) = (Symbolizer::new(&Helpers::in_threads()), Aggregator::new());
    for _ in 0..3 {
        aggregator.add(&sample(1, &[function, function + 1]), &mut symbolizer);
    }
    aggregator.add(&sample(2, &[]), &mut symbolizer);
    assert_eq!((aggregator.total(), aggregator.cgroups()), (4, BTreeSet::from([7])));
    let (samples, mappings) =
        aggregator.finish(&mut symbolizer, &mut PythonFunctions::default(), unknown_owner);
    let counts: Vec<_> = samples.iter().map(|sample| (sample.count, sample.tid)).collect();
    assert_eq!(counts, [(3, 1), (1, 2)]);
    for frame in &samples[0].stack {
        assert!(frame.function.as_ref().unwrap().contains("equal_stacks_are_counted"), "{frame:?}");
    }
    assert_eq!(samples[1].stack[0].function.as_deref(), Some("[no stack]"));
    assert_eq!((&*samples[0].thread, samples[0].owner.cgroup.id), ("worker\\x1b", 7));
    // The sample is not of the leader, so the process has another name.
    assert_ne!(samples[0].comm, samples[0].thread);
    assert_eq!(mappings.len(), 1);
    assert_eq!(aggregator.total(), 0);
}

#[test]
fn samples_over_the_bound_are_counted_without_their_stacks() {
    let (mut symbolizer, mut aggregator) =
        (Symbolizer::new(&Helpers::in_threads()), Aggregator::with_limit(2));
    for address in 0..10 {
        aggregator.add(&sample(1, &[address]), &mut symbolizer);
    }
    aggregator.add(&sample(1, &[0]), &mut symbolizer);
    assert_eq!(aggregator.losses(), BTreeMap::from([("stacks_evicted".to_string(), 8)]));
    assert_eq!(aggregator.total(), 11);
    let (samples, _) = aggregator.finish(&mut symbolizer, &mut PythonFunctions::default(), unknown_owner);
    let over = samples.iter().find(|sample| sample.stack[0].function.as_deref() == Some("[too many stacks]"));
    assert_eq!(over.map(|sample| (sample.count, sample.pid)), Some((8, std::process::id())));
    assert_eq!(samples.iter().map(|sample| sample.count).sum::<u64>(), 11);
}

#[test]
fn an_incomplete_stack_has_a_frame_with_the_reason_and_is_counted() {
    let function = an_incomplete_stack_has_a_frame_with_the_reason_and_is_counted as fn() as usize as u64;
    let (mut symbolizer, mut aggregator) = (Symbolizer::new(&Helpers::in_threads()), Aggregator::new());
    aggregator.add(&sample(1, &[function]), &mut symbolizer);
    let stack = [function];
    let cut = RawSample { end: End::TableAsked, ..sample(1, &stack) };
    aggregator.add(&cut, &mut symbolizer);
    aggregator.add(&RawSample { end: End::NoUser, ..sample(1, &[]) }, &mut symbolizer);
    let quality = aggregator.completeness(unknown_owner);
    assert_eq!((quality.len(), quality[0].samples, quality[0].complete), (1, 2, 1));
    assert_eq!(quality[0].incomplete, BTreeMap::from([("no_table_yet".to_string(), 1)]));
    let (samples, _) = aggregator.finish(&mut symbolizer, &mut PythonFunctions::default(), unknown_owner);
    let ends = |sample: &&Sample| {
        let last = sample.stack.last().and_then(|frame| frame.function.as_deref());
        last.is_some_and(|name| name.starts_with("[unwind: no table yet for podopsy_stacks"))
    };
    assert_eq!(samples.iter().filter(ends).count(), 1, "{samples:?}");
    assert!(End::ALL.iter().zip(0..).all(|(end, index)| *end as u32 == index));
}

#[test]
fn a_kernel_thread_without_a_user_stack_is_no_loss() {
    // kthreadd, if the pid namespace shows it; otherwise this is like a process that has ended.
    let kthread = RawSample { pid: 2, tid: 2, user: &[], ..sample(2, &[]) };
    let (mut symbolizer, mut aggregator) = (Symbolizer::new(&Helpers::in_threads()), Aggregator::new());
    aggregator.add(&kthread, &mut symbolizer);
    if read_comm(2) == Some(comm("kthreadd")) {
        assert_eq!(symbolizer.losses(), BTreeMap::new());
    }
}
