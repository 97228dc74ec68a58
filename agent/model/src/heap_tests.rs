//! The verdicts on heaps, by figures.

use super::*;
use crate::incident::Evidence;

const MIB: u64 = 1 << 20;

fn limit(mib: u64) -> LimitHit {
    LimitHit {
        of: Level::Container,
        how: Evidence::Observed,
        by: "kernel log".into(),
        path: Some("/a".into()),
        limit_bytes: Some(mib * MIB),
        usage_bytes: Some(mib * MIB),
    }
}

fn heap(used: u64, committed: u64, max: u64, share: f64) -> RuntimeHeap {
    let figures = HeapFigures {
        used_bytes: used * MIB,
        committed_bytes: committed * MIB,
        max_bytes: Some(max * MIB),
        metaspace_bytes: Some(60 * MIB),
        recent_collections: 41,
        recent_collection_share: share,
        trend_seconds: 60.0,
        ..HeapFigures::default()
    };
    RuntimeHeap {
        runtime: "OpenJDK 64-Bit Server VM 17".into(),
        pid: 7,
        source: "hsperfdata".into(),
        options: Vec::new(),
        configured_max_bytes: None,
        figures: Some(figures),
        why_not: None,
        verdict: None,
    }
}

fn advice(mut heap: RuntimeHeap, limit: &LimitHit, held: Option<u64>) -> (Option<HeapVerdict>, String) {
    heap.verdict = heap.verdict(limit, held);
    (heap.verdict, heap.advice(limit, held).unwrap_or_default())
}

#[test]
fn memory_outside_of_the_heap_is_no_leak_in_it() {
    let (verdict, line) = advice(heap(739, 800, 1600, 0.01), &limit(2048), Some(2000 * MIB));
    assert_eq!(verdict, Some(HeapVerdict::OutsideOfHeap));
    assert_eq!(
        line,
        "heap 739 of 1600 MiB, 1200 MiB outside of it: native memory filled the limit of 2048 MiB, the heap does not leak"
    );
}

#[test]
fn a_maximum_that_does_not_fit_below_the_limit_had_to_meet_it() {
    let (verdict, line) = advice(heap(900, 960, 1024, 0.0), &limit(1024), Some(1000 * MIB));
    assert_eq!(verdict, Some(HeapVerdict::LimitBelowMaximum));
    assert_eq!(
        line,
        "heap 900 of 1024 MiB: at its maximum it does not fit below the limit of 1024 MiB: the limit is too small for it"
    );
    let (_, line) = advice(heap(900, 960, 1000, 0.0), &limit(1024), Some(1000 * MIB));
    assert!(line.contains("at its maximum, with 60 MiB of classes, it does not fit"), "{line}");
}

#[test]
fn a_heap_that_stays_full_leaks() {
    let (verdict, line) = advice(heap(510, 512, 512, 0.7), &limit(640), Some(630 * MIB));
    assert_eq!(verdict, Some(HeapVerdict::HeapLeak));
    assert!(line.contains("41 collections stopped the program for 70 % of the last 60 s"), "{line}");
    // A full heap that is not collected is about to be.
    assert_eq!(advice(heap(510, 512, 512, 0.0), &limit(640), Some(630 * MIB)).0, None);
}

#[test]
fn what_is_not_known_gives_no_verdict() {
    assert_eq!(advice(heap(900, 960, 1024, 0.0), &limit(1024), None).0, None);
    let of_node = LimitHit { of: Level::Node, ..limit(1024) };
    assert_eq!(advice(heap(900, 960, 1024, 0.0), &of_node, Some(1000 * MIB)).0, None);
    let without_figures = RuntimeHeap { figures: None, ..heap(1, 1, 1, 0.0) };
    assert_eq!(advice(without_figures, &limit(1024), Some(MIB)), (None, String::new()));
}

#[test]
fn a_configured_maximum_above_the_limit_is_named_with_its_option() {
    let node = |max: u64| RuntimeHeap {
        runtime: "Node.js".into(),
        source: "command line and environment".into(),
        options: vec![format!("--max-old-space-size={max}")],
        configured_max_bytes: Some(max * MIB),
        figures: None,
        ..heap(1, 1, 1, 0.0)
    };
    let (verdict, line) = advice(node(4096), &limit(512), None);
    assert_eq!(verdict, Some(HeapVerdict::LimitBelowMaximum));
    assert_eq!(
        line,
        "Node.js: --max-old-space-size=4096 lets it grow to 4096 MiB, which does not fit below the limit of 512 MiB"
    );
    assert_eq!(advice(node(400), &limit(512), None), (None, String::new()));
}
