//! Tests with podopsy's own profiles, with damaged ones, and with small files that unpack to huge ones.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::export;
use podopsy_model::profile::{Frame, Profile, Sample};

fn stacks(imported: &ImportedProfile) -> Vec<(Vec<&str>, u64)> {
    let name = |&id: &u32| &*imported.functions[id as usize];
    imported.stacks().map(|(stack, value)| (stack.iter().map(name).collect(), value)).collect()
}

fn ours() -> Vec<u8> {
    let frame = |name: &str, inlined| Frame {
        function: (!name.is_empty()).then(|| name.into()),
        module: Some("/app/shop".into()),
        offset: name.len() as u64,
        inlined,
        ..Frame::default()
    };
    let sample = |stack: Vec<Frame>, count| Sample {
        stack,
        count,
        pid: 1,
        tid: 1,
        thread: "t".into(),
        comm: "t".into(),
        owner: Default::default(),
    };
    let sampling = podopsy_model::profile::Sampling::Cpu { frequency_hz: 100 };
    let second = std::time::Duration::from_secs(1);
    let samples = vec![
        sample(vec![frame("price", true), frame("total", false), frame("main", false)], 3),
        sample(vec![frame("", false), frame("main", false)], 2),
    ];
    let profile = Profile { samples, ..Profile::empty(jiff::Timestamp::UNIX_EPOCH, second, sampling, "n") };
    let mut bytes = Vec::new();
    export::pprof::write(&profile, &mut bytes).unwrap();
    bytes
}

fn unpacked(packed: &[u8]) -> Vec<u8> {
    unpack(packed, LIMITS).unwrap()
}

#[test]
fn a_profile_written_by_podopsy_reads_back_gzipped_or_not() {
    for bytes in [ours(), unpacked(&ours())] {
        let read = read(bytes.as_slice(), None).unwrap();
        assert_eq!((read.kind.as_str(), read.unit.as_str()), ("cpu", "nanoseconds"));
        assert_eq!(
            stacks(&read),
            [(vec!["price", "total", "main"], 30_000_000), (vec!["shop+0x0", "main"], 20_000_000)]
        );
        assert_eq!(read.total(), 50_000_000);
    }
    let samples = read(ours().as_slice(), Some("samples")).unwrap();
    assert_eq!((samples.total(), samples.unit.as_str()), (5, "count"));
    let error = read(ours().as_slice(), Some("heap")).unwrap_err().to_string();
    assert_eq!(error, "has no values of type heap; it has samples, cpu");
}

#[test]
fn samples_keep_their_pod_their_process_and_their_modules() {
    let mut profile = crate::export::example::profile();
    profile.samples.iter_mut().for_each(|sample| {
        sample.stack.iter_mut().filter(|frame| frame.function.is_none()).for_each(|frame| {
            frame.function = Some("named".into());
        });
    });
    let mut bytes = Vec::new();
    export::pprof::write(&profile, &mut bytes).unwrap();
    let read = read(bytes.as_slice(), Some("samples")).unwrap();
    let facts = |sample: &Sample| {
        let owner = &sample.owner;
        let pod = owner.pod.as_ref().map(|pod| (pod.namespace.clone(), pod.name.clone()));
        let container = owner.container.as_ref().map(|one| (one.name.clone(), one.id.clone()));
        let shown = |name: &Option<std::sync::Arc<str>>| name.as_deref().map(podopsy_model::text::visible);
        let names: Vec<_> =
            sample.stack.iter().map(|frame| (shown(&frame.function), shown(&frame.module))).collect();
        let comm = podopsy_model::text::visible(&sample.comm);
        (sample.pid, comm, sample.count, pod, container, names)
    };
    let again = read.to_profile(Profile { samples: Vec::new(), ..profile.clone() });
    assert_eq!(
        again.samples.iter().map(facts).collect::<Vec<_>>(),
        profile.samples.iter().map(facts).collect::<Vec<_>>()
    );
    assert!(again.samples.iter().any(|sample| sample.owner.pod.is_some()));
    let bare = read.to_functions(Profile { samples: Vec::new(), ..profile });
    assert!(bare.samples.iter().all(|one| one.owner.pod.is_none() && one.comm.is_empty() && one.pid == 0));
    assert!(bare.samples.iter().flat_map(|one| &one.stack).all(|frame| frame.module.is_none()));
}

#[test]
fn a_damaged_profile_is_an_error_and_never_a_panic() {
    assert_eq!(read(&[][..], None).unwrap_err(), ImportError::Damaged);
    assert_eq!(read(&b"{\"profile\": 1}"[..], None).unwrap_err(), ImportError::Damaged);
    let whole = unpacked(&ours());
    for len in 0..whole.len() {
        let _ = read(&whole[..len], None);
    }
    // A fixed seed makes a failure reproducible.
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..3000 {
        let mut broken = whole.clone();
        for _ in 0..3 {
            let at = random.usize(..broken.len());
            broken[at] = random.u8(..);
        }
        let _ = read(broken.as_slice(), None);
    }
    assert!(matches!(read(&ours()[..40], None), Err(ImportError::Unreadable(_))));
}

/// A profile with the same field `count` times.
fn repeated(field: &[u8], count: usize) -> Vec<u8> {
    // A type of values and the empty text come first, as in any profile.
    let mut bytes = vec![0x0a, 2, 8, 0, 0x32, 0];
    bytes.extend(field.iter().copied().cycle().take(field.len() * count));
    bytes
}

#[test]
fn a_file_that_would_take_too_much_memory_is_refused_with_its_bound() {
    let limits = ImportLimits { bytes: 1 << 20, entries: 1000, frames: 10_000 };
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..64 {
        packed.write_all(&zeros).unwrap();
    }
    let bomb = packed.finish().unwrap();
    assert!(bomb.len() < 1 << 19, "a bomb is small");
    let too_large = |bytes: &[u8]| match unpack(bytes, limits)
        .and_then(|bytes| read_unpacked(&bytes, None, limits))
        .unwrap_err()
    {
        ImportError::TooLarge(what) => what,
        other => panic!("{other}"),
    };
    assert_eq!(too_large(&bomb), "1 MiB");
    // Empty texts, functions and locations with ids of their own, samples with a value, types of values.
    assert_eq!(too_large(&repeated(&[0x32, 0], 2000)), "1000 texts");
    let numbered = |tag: u8| -> Vec<u8> {
        (0..2000_u32).flat_map(|id| [tag, 3, 8, (id & 0x7f | 0x80) as u8, (id >> 7) as u8]).collect()
    };
    assert_eq!(too_large(&repeated(&numbered(0x2a), 1)), "1000 functions");
    assert_eq!(too_large(&repeated(&numbered(0x22), 1)), "1000 locations");
    assert_eq!(too_large(&repeated(&[0x12, 2, 0x10, 1], 2000)), "1000 samples");
    assert_eq!(too_large(&repeated(&[0x0a, 0], 2000)), "1000 kinds of values");
    // A location of 100 lines, 200 times in one sample: a file of 700 bytes with 20,000 frames.
    let mut location = vec![8, 1];
    location.extend([0x22, 2, 8, 1].iter().copied().cycle().take(400));
    let mut bytes = repeated(&[0x2a, 4, 8, 1, 0x10, 1], 1);
    bytes.extend([0x32, 1, b'f']);
    bytes.extend([0x22, 0x92, 3]);
    bytes.extend(&location);
    bytes.extend([0x12, 0xcd, 1, 0x0a, 0xc8, 1]);
    bytes.extend([1; 200]);
    bytes.extend([0x10, 1]);
    assert_eq!(too_large(&bytes), "10000 frames");
}

#[test]
fn names_are_escaped_and_negative_values_are_refused() {
    // Function 1 has the name ESC[2J, location 1 is in it, and a sample has the value 7.
    let mut bytes = repeated(&[0x32, 4, 0x1b, b'[', b'2', b'J'], 1);
    bytes.extend([0x2a, 4, 8, 1, 0x10, 1, 0x22, 6, 8, 1, 0x22, 2, 8, 1]);
    let sample = [0x12, 4, 8, 1, 0x10, 7];
    let read = read([bytes.as_slice(), &sample].concat().as_slice(), None).unwrap();
    assert_eq!(stacks(&read), [(vec!["\\x1b[2J"], 7)]);
    let mut negative = vec![0x12, 13, 8, 1, 0x10];
    negative.extend([0xff; 9]);
    negative.push(1);
    let error = super::read([bytes.as_slice(), &negative].concat().as_slice(), None).unwrap_err();
    assert_eq!(error, ImportError::Negative);
}
