//! What the container's language runtime knew of its heap before the kill.

use podopsy_model::heap::{HeapFigures, RuntimeHeap};

use super::units;

pub fn text(heap: &RuntimeHeap) -> String {
    let mut lines = vec![format!("{}, pid {}", heap.runtime, heap.pid)];
    lines.extend(heap.why_not.clone());
    lines.extend(heap.figures.iter().flat_map(|figures| figure_lines(figures, &heap.source)));
    lines.extend((!heap.options.is_empty()).then(|| heap.options.join(" ")));
    lines.join("\n")
}

fn figure_lines(figures: &HeapFigures, source: &str) -> Vec<String> {
    let of = figures.max_bytes.map(|max| format!(" of at most {}", units::bytes(max))).unwrap_or_default();
    let mut lines = vec![format!(
        "heap {}{of}, {} committed (observed: {source}, {})",
        units::bytes(figures.used_bytes),
        units::bytes(figures.committed_bytes),
        units::clock(figures.time)
    )];
    let beside = [
        figures.metaspace_bytes.map(|bytes| format!("classes {}", units::bytes(bytes))),
        figures.threads.map(|count| units::plural(count, "thread")),
    ];
    let beside: Vec<String> = beside.into_iter().flatten().collect();
    lines.extend((!beside.is_empty()).then(|| beside.join(", ")));
    if figures.trend_seconds > 0.0 {
        lines.push(format!(
            "{} in the {:.0} s before, which stopped the program for {:.0} % of them",
            units::plural(figures.recent_collections, "collection"),
            figures.trend_seconds,
            figures.recent_collection_share * 100.0
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_heap_is_shown_with_how_it_is_known() {
        let figures = HeapFigures {
            used_bytes: 739 * MIB,
            committed_bytes: 800 * MIB,
            max_bytes: Some(1600 * MIB),
            metaspace_bytes: Some(60 * MIB),
            threads: Some(41),
            recent_collections: 3,
            recent_collection_share: 0.014,
            trend_seconds: 60.0,
            ..HeapFigures::default()
        };
        let heap = RuntimeHeap {
            runtime: "OpenJDK 64-Bit Server VM 17".into(),
            pid: 7,
            source: "hsperfdata".into(),
            options: vec!["-Xmx1600m".into()],
            configured_max_bytes: None,
            figures: Some(figures),
            why_not: None,
            verdict: None,
        };
        let shown = text(&heap);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "OpenJDK 64-Bit Server VM 17, pid 7");
        assert!(
            lines[1].starts_with(
                "heap 739.0 MiB of at most 1.6 GiB, 800.0 MiB committed (observed: hsperfdata, "
            ),
            "{shown}"
        );
        assert_eq!(
            lines[2..],
            [
                "classes 60.0 MiB, 41 threads",
                "3 collections in the 60 s before, which stopped the program for 1 % of them",
                "-Xmx1600m",
            ]
        );
        let silent =
            RuntimeHeap { figures: None, why_not: Some("no counters".into()), options: Vec::new(), ..heap };
        assert_eq!(text(&silent), "OpenJDK 64-Bit Server VM 17, pid 7\nno counters");
    }
}
