//! Which tests of this machine may run while the lab's machines do.
//!
//! Emulated machines take all of the CPU time that they can get. Most kernel tests wait for most of their time: for a
//! timeout of DNS, for a pod to start, for a report. They can wait beside the lab. Those that measure shares of CPU time or
//! deadlines, that compile, or that fill rings at full speed run alone, before the machines boot. A new suite runs alone
//! until it is listed here.

use std::fs;

/// Suites, by the name of their file in tests/kernel.
const SUITES: [&str; 16] = [
    "alerts",
    "autopsy",
    "daemonset",
    "dns",
    "dns_nat",
    "dns_tcp",
    "dying",
    "exports",
    "harness",
    "kubernetes_events",
    "metrics",
    "oom",
    "oom_kinds",
    "sandboxes",
    "sigkill",
    "systemd",
];

/// What a machine takes of the host's memory: its 3 GiB, and QEMU's own.
const MACHINE_KIB: u64 = 3_500 << 10;
/// What has to be left to the tests of this machine.
const TESTS_KIB: u64 = 4 << 20;

/// Whether a test, `suite::name`, may run beside the lab.
pub fn is_patient(test: &str) -> bool {
    test.split_once("::").is_some_and(|(suite, _)| SUITES.contains(&suite))
}

/// Whether this machine has the memory for `machines` and the tests beside them.
pub fn has_memory_for(machines: usize) -> bool {
    fs::read_to_string("/proc/meminfo").is_ok_and(|text| suffices(&text, machines))
}

fn suffices(meminfo: &str, machines: usize) -> bool {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    available.is_some_and(|kib| kib >= machines as u64 * MACHINE_KIB + TESTS_KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_run_alone_unless_they_are_listed() {
        assert!(is_patient("dns::silence") && is_patient("oom::the_trigger"));
        for test in ["profile::known_functions", "dns_counts::successes", "storm::a", "new_suite::a", "dns"] {
            assert!(!is_patient(test), "{test}");
        }
    }

    #[test]
    fn two_machines_and_the_tests_need_eleven_gigabytes() {
        let meminfo = |kib: u64| format!("MemTotal: 99999999 kB\nMemAvailable:   {kib} kB\n");
        assert!(suffices(&meminfo(12_000_000), 2));
        assert!(!suffices(&meminfo(8_000_000), 2));
        assert!(!suffices("", 2));
    }
}
