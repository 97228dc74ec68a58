//! Bundles that are written, redacted, and read, also damaged and hostile ones.

use jiff::Timestamp;
use podopsy_model::memory::MemorySteps;
use podopsy_model::testing::{dns, owner};
use podopsy_profiles::export::{Format, example};
use podopsy_store::MemoryRecord;

use super::*;
use crate::evidence::CpuFacts;
use crate::render::oom::tests::event;
use crate::render::pods::tests::{container, pod};
use crate::render::sigkill;
use crate::timeline::{self, Sources};

/// Evidence of a kill, of failed lookups, of memory and of a profile.
fn evidence() -> PodEvidence {
    let from = Timestamp::from_second(1_800_000_000).unwrap();
    let owner = owner("shop", "orders", &[("app", "orders-label")]);
    let steps = MemorySteps {
        from,
        until: from,
        step_seconds: 10,
        step: vec![0, 1],
        current_max_bytes: vec![1 << 20, 60 << 20],
        limit_bytes: Some(64 << 20),
        ..MemorySteps::default()
    };
    let mut cpu = Vec::new();
    Format::Pprof.write(&example::profile(), &mut cpu).unwrap();
    PodEvidence {
        manifest: Manifest {
            version: VERSION,
            node: "node-of-orders".into(),
            subject: "shop/orders".into(),
            from,
            until: Timestamp::now(),
            incident: Some("3f2a-7".into()),
            cpu: Some(CpuFacts { frequency_hz: 99, ..CpuFacts::default() }),
            ..Manifest::default()
        },
        sources: Sources {
            events: vec![
                dns(from, owner.clone(), "db.internal.test"),
                event("3f2a-7", 5),
                sigkill::tests::event("3f2a-k7-9", 1),
            ],
            memory: vec![MemoryRecord { owner, steps }],
            incidents: Vec::new(),
            pods: vec![pod("orders", vec![container("api", 1, "running")])],
        },
        gaps: Vec::new(),
        cpu: Some(cpu),
    }
}

fn written(evidence: &PodEvidence, redactions: &[Redaction]) -> Vec<u8> {
    let mut out = Vec::new();
    write(evidence, redactions, &mut out).unwrap();
    out
}

fn read(bytes: &[u8]) -> Result<PodEvidence, BundleError> {
    Input { name: "a.podopsy".into() }.read(bytes)
}

/// An archive with one entry beside a manifest.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

fn manifest(version: u32) -> Vec<u8> {
    serde_json::to_vec(&Manifest { version, ..Manifest::default() }).unwrap()
}

/// The text of all entries, with the functions of the profile.
fn contents(bundle: &[u8]) -> String {
    let mut archive = tar::Archive::new(GzDecoder::new(bundle));
    let mut text = String::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut unpacked = Vec::new();
            GzDecoder::new(&*bytes).read_to_end(&mut unpacked).unwrap();
            bytes = unpacked;
        }
        text += &String::from_utf8_lossy(&bytes);
    }
    text
}

/// Runs everything that reads evidence.
fn render_all(evidence: &PodEvidence) -> String {
    let mut out = Vec::new();
    for event in &evidence.sources.events {
        render::autopsy::print(&mut out, Terminal::PLAIN, event).unwrap();
    }
    let entries = timeline::build(&evidence.sources, evidence.manifest.from);
    for entry in &entries {
        render::timeline::print_line(&mut out, Terminal::PLAIN, entry).unwrap();
    }
    let report = render::report::build(evidence, "a bundle".into(), Timestamp::now());
    String::from_utf8(out).unwrap() + &podopsy_report::write(&report)
}

#[test]
fn a_bundle_is_read_as_it_was_written() {
    let evidence = evidence();
    let read = read(&written(&evidence, &[])).unwrap();
    assert_eq!(read.manifest, evidence.manifest);
    assert_eq!(read.sources.events, evidence.sources.events);
    assert_eq!(read.sources.memory, evidence.sources.memory);
    assert_eq!((read.sources.pods.len(), &read.cpu), (1, &evidence.cpu));
    assert!(render_all(&read).contains("silent child kill"));
    let text = contents(&written(&evidence, &[]));
    assert!(
        text.contains("Privacy: it holds names") && text.contains("OOM 3f2a-7 of shop/orders/api"),
        "{text}"
    );
}

#[test]
fn redaction_leaves_no_name_behind() {
    let evidence = evidence();
    let both = contents(&written(&evidence, &[Redaction::Names, Redaction::Args]));
    let plain = contents(&written(&evidence, &[]));
    let names = ["orders", "shop", "/api", "db.internal", "10.0.0.10", "registry.local", "/k/pod1"];
    for name in names.iter().chain(&["leak", "worker-7", "/bin/leaker"]) {
        assert!(plain.contains(name), "{name} is nowhere: it proves nothing");
        assert!(!both.contains(name), "{name} is left in {both}");
    }
    let only_args = contents(&written(&evidence, &[Redaction::Args]));
    assert!(only_args.contains("shop") && !only_args.contains("leak["), "{only_args}");
    let only_names = contents(&written(&evidence, &[Redaction::Names]));
    assert!(!only_names.contains("shop") && only_names.contains("leak"), "{only_names}");
    assert!(both.contains("3f2a-7") && both.contains("cart::total"), "ids and functions stay: {both}");
}

#[test]
fn redacted_records_still_belong_together() {
    let read = read(&written(&evidence(), &[Redaction::Names, Redaction::Args])).unwrap();
    assert_eq!(read.manifest.redacted, [Redaction::Names, Redaction::Args]);
    let [query, kill, ..] = &read.sources.events[..] else { panic!("{:?}", read.sources.events) };
    let name = |event: &podopsy_model::Event| {
        event.pod.as_ref().map(|pod| (pod.namespace.clone(), pod.name.clone()))
    };
    assert_eq!(name(query), name(kill));
    assert_eq!(read.sources.memory[0].owner.pod.as_ref().unwrap().name, name(query).unwrap().1);
    assert!(render_all(&read).contains("memory reached 93 % of the limit"));
}

#[test]
fn a_bundle_of_another_format_is_refused_with_the_reason() {
    for (bytes, reason) in [
        (b"not gzip".to_vec(), "is no podopsy bundle"),
        (archive(&[]), "it has no manifest.json"),
        (archive(&[("manifest.json", b"{}")]), "its manifest has no version"),
        (archive(&[("manifest.json", &manifest(VERSION + 1))]), "use a newer podopsy"),
        (
            archive(&[("manifest.json", &manifest(VERSION)), ("events.jsonl", b"{\"x\":1}\n")]),
            "is no podopsy bundle",
        ),
        (written(&evidence(), &[])[..500].to_vec(), "is no podopsy bundle"),
    ] {
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    // Entries of a later version are skipped.
    assert!(read(&archive(&[("new.bin", b"x"), ("manifest.json", &manifest(VERSION))])).is_ok());
}

#[test]
fn a_bundle_that_unpacks_to_too_much_is_refused() {
    let zeros = vec![b' '; 129 << 20];
    let error = read(&archive(&[("manifest.json", &manifest(VERSION)), ("cpu.pb.gz", &zeros)])).unwrap_err();
    assert!(error.to_string().contains("128 MiB unpacked"), "{error}");
    let line = vec![b'['; 5 << 20];
    let error = read(&archive(&[("events.jsonl", &line)])).unwrap_err();
    assert!(error.to_string().contains("4 MiB in a line"), "{error}");
    let many = "null\n".repeat(RECORDS_MAX + 1);
    assert!(read(&archive(&[("gaps.jsonl", many.as_bytes())])).is_err());
}

/// Replaces each string by a hostile one, or each number by the largest.
fn hostile(value: &mut Value, field: &str, is_number: bool) {
    const KEPT: [&str; 7] = ["id", "attempt", "oom_score_adj", "pid", "tid", "restarts", "rcode"];
    match value {
        Value::Number(number) if is_number && number.is_u64() && !KEPT.contains(&field) => {
            *value = u64::MAX.into()
        }
        Value::String(text)
            if !is_number && ["comm", "name", "image", "advice", "function"].contains(&field) =>
        {
            *text = "\u{1b}[2J\u{202e}</script><script>alert(1)".to_owned();
        }
        Value::Array(values) => values.iter_mut().for_each(|value| hostile(value, field, is_number)),
        Value::Object(map) => map.iter_mut().for_each(|(field, value)| hostile(value, field, is_number)),
        _ => {}
    }
}

#[test]
fn hostile_strings_and_numbers_are_shown_without_harm() {
    for is_number in [false, true] {
        let evidence = evidence();
        let mut lines = String::new();
        for event in &evidence.sources.events[1..2] {
            let mut value = serde_json::to_value(event).unwrap();
            hostile(&mut value, "", is_number);
            value["schema"] = 1.into();
            value["incident"]["processes"]["others"] = u32::MAX.into();
            value["incident"]["victims"][0]["task"] = Value::Null;
            lines += &format!("{value}\n");
        }
        let bytes = archive(&[("manifest.json", &manifest(VERSION)), ("events.jsonl", lines.as_bytes())]);
        let shown = render_all(&read(&bytes).unwrap());
        assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'));
        let (_, document) = shown.split_once("<!DOCTYPE").unwrap();
        assert!(!document.contains("<script>alert"));
    }
}

#[test]
fn a_damaged_bundle_is_refused_or_shown() {
    let evidence = evidence();
    let events = lines(&evidence.sources.events).unwrap();
    let mut shown = 0;
    for at in (0..events.len()).step_by(197) {
        let mut damaged = events.clone();
        damaged[at] = b'9';
        let bytes = archive(&[("manifest.json", &manifest(VERSION)), ("events.jsonl", &damaged)]);
        if let Ok(evidence) = read(&bytes) {
            render_all(&evidence);
            shown += 1;
        }
    }
    assert!(shown > 10, "only {shown} were shown");
}
