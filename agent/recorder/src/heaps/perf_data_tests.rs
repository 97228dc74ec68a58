//! Counters as a JVM lays them out, and damaged ones.

use super::*;

const MIB: u64 = 1 << 20;

enum Counter<'a> {
    Long(u64),
    Text(&'a str),
}
use Counter::{Long, Text};

/// Counters as a JVM lays them out.
fn file(counters: &[(&str, Counter<'_>)]) -> Vec<u8> {
    let mut bytes = vec![0xca, 0xfe, 0xc0, 0xc0, 1, 2, 0, 1];
    bytes.extend([0; 16]);
    bytes.extend(32i32.to_le_bytes());
    bytes.extend((counters.len() as i32).to_le_bytes());
    for (name, counter) in counters {
        let data = (ENTRY_HEADER + name.len() + 1).next_multiple_of(8);
        let (value, kind, length) = match counter {
            Long(number) => (number.to_le_bytes().to_vec(), b'J', 0),
            Text(text) => ([text.as_bytes(), &[0]].concat(), b'B', text.len() as i32 + 1),
        };
        let whole = (data + value.len()).next_multiple_of(8);
        let mut entry = Vec::new();
        for word in [whole as i32, ENTRY_HEADER as i32, length] {
            entry.extend(word.to_le_bytes());
        }
        entry.extend([kind, 0, 1, 1]);
        entry.extend((data as i32).to_le_bytes());
        entry.extend(name.as_bytes());
        entry.resize(data, 0);
        entry.extend(value);
        entry.resize(whole, 0);
        bytes.extend(entry);
    }
    bytes
}

fn serial() -> Vec<(&'static str, Counter<'static>)> {
    vec![
        ("sun.os.hrt.frequency", Long(1_000_000_000)),
        ("sun.gc.policy.name", Text("Copy:MSC")),
        ("sun.gc.generation.0.capacity", Long(60 * MIB)),
        ("sun.gc.generation.0.maxCapacity", Long(70 * MIB)),
        ("sun.gc.generation.0.space.0.used", Long(30 * MIB)),
        ("sun.gc.generation.0.space.2.used", Long(5 * MIB)),
        ("sun.gc.generation.1.capacity", Long(100 * MIB)),
        ("sun.gc.generation.1.maxCapacity", Long(130 * MIB)),
        ("sun.gc.generation.1.space.0.used", Long(65 * MIB)),
        ("sun.gc.collector.0.invocations", Long(3)),
        ("sun.gc.collector.0.time", Long(250_000_000)),
        ("sun.gc.collector.1.invocations", Long(2)),
        ("sun.gc.collector.1.time", Long(1_250_000_000)),
        ("sun.gc.metaspace.capacity", Long(20 * MIB)),
        ("java.threads.live", Long(12)),
        ("java.property.java.vm.name", Text("OpenJDK 64-Bit Server VM")),
        ("java.property.java.vm.version", Text("17.0.15+6")),
        ("java.rt.vmArgs", Text("-Dpassword=secret -Xmx200m -XX:+UseSerialGC -javaagent:/x.jar")),
    ]
}

#[test]
fn the_counters_of_a_jvm_are_summed_up_and_only_options_of_sizes_are_kept() {
    let data = parse(&file(&serial())).unwrap();
    let figures = HeapFigures {
        used_bytes: 100 * MIB,
        committed_bytes: 160 * MIB,
        max_bytes: Some(200 * MIB),
        metaspace_bytes: Some(20 * MIB),
        threads: Some(12),
        collections: 5,
        collection_seconds: 1.5,
        ..HeapFigures::default()
    };
    let expected = PerfData {
        runtime: "OpenJDK 64-Bit Server VM 17.0.15+6".into(),
        figures,
        options: vec!["-Xmx200m".into(), "-XX:+UseSerialGC".into()],
    };
    assert_eq!(data, expected);
}

#[test]
fn each_generation_of_g1_may_take_the_whole_heap() {
    let mut counters = serial();
    counters[1] = ("sun.gc.policy.name", Text("GarbageFirst"));
    assert_eq!(parse(&file(&counters)).unwrap().figures.max_bytes, Some(130 * MIB));
}

#[test]
fn damaged_counters_are_refused_or_have_what_is_whole() {
    let good = file(&serial());
    assert_eq!(parse(&[]), None);
    for (at, value) in [(0, 0), (4, 0), (7, 0), (27, 0x80), (31, 0x80)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(parse(&bad), None, "byte {at}");
    }
    // Whatever is cut or overwritten: bounded, and no panic.
    for len in 0..good.len() {
        let _ = parse(&good[..len]);
    }
    for at in 0..good.len() {
        for value in [0, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            let _ = parse(&bad);
        }
    }
}

#[test]
fn texts_are_escaped_and_cut() {
    let long = "x".repeat(10_000);
    let hostile = [
        ("sun.os.hrt.frequency", Long(1)),
        ("java.property.java.vm.name", Text("\x1b[2J")),
        ("java.property.java.vm.version", Text(&long)),
    ];
    let runtime = parse(&file(&hostile)).unwrap().runtime;
    assert!(!runtime.contains('\x1b') && runtime.len() < 2 * TEXT_MAX, "{runtime}");
}
