//! Files of users, frames of the parsing worker, records and the log of the kernel.

use podopsy_profiles::import::pprof;
use podopsy_recorder::kernel_log::record;
use podopsy_recorder::kernel_log::visit::Visits;

use crate::{assert_printable, targets};

targets! {
    pprof_import,
    config_file,
    worker_frames,
    kernel_records,
    kernel_log,
}

fn pprof_import(input: &[u8]) {
    for value in [None, Some("cpu")] {
        let Ok(profile) = pprof::read(input, value) else { continue };
        profile.functions.iter().chain([&*profile.kind, &*profile.unit].map(Into::into).iter()).for_each(
            |text| {
                assert_printable(text);
            },
        );
        let count = profile.functions.len();
        assert!(profile.stacks().all(|(stack, _)| stack.iter().all(|&function| (function as usize) < count)));
        profile.total();
    }
}

fn config_file(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Err((line, reason)) = podopsy_agent::fuzzing::config(&text) {
        assert!((1..=text.split('\n').count()).contains(&line), "line {line}");
        assert_printable(&reason);
    }
}

/// What a worker that was taken over could send, and what could be sent to a worker.
fn worker_frames(input: &[u8]) {
    podopsy_worker::fuzzing::frames(input);
}

/// The first byte chooses the record.
fn kernel_records(input: &[u8]) {
    let Some((&kind, bytes)) = input.split_first() else { return };
    match kind % 6 {
        0 => drop(podopsy_decode::oom(bytes)),
        1 => drop(podopsy_decode::sigkill(bytes)),
        2 => drop(podopsy_decode::sample(bytes)),
        3 => drop(podopsy_decode::table_request(bytes)),
        4 => drop(podopsy_decode::exec(bytes)),
        _ => drop(podopsy_decode::dns::record(bytes)),
    }
}

/// Records as /dev/kmsg gives them, one a line.
fn kernel_log(input: &[u8]) {
    let mut visits = Visits::default();
    for line in input.split(|&byte| byte == b'\n') {
        if let Some(record) = record::parse(line) {
            assert!(record.text.len() <= line.len());
            visits.push(record);
        }
    }
    let visits = visits.into_visits();
    assert!(visits.len() <= 513 && visits.iter().all(|visit| visit.rows.len() <= 2048));
}
