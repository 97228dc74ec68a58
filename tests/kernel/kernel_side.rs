//! Features of newer kernels that profiles use: each test fails if the older fallback is used instead.

use std::collections::{BTreeMap, BTreeSet};

use crate::support;
use podopsy_model::profile::Sampling;
use podopsy_probes::{CpuProbeOptions, ProbeOptions, Probes, Scope};
use support::require_root;

fn probes() -> Probes {
    require_root();
    let sampling = Sampling::Cpu { frequency_hz: 1 };
    let cpu = CpuProbeOptions { scope: Scope::Node, sampling, unwind: true, budget: 0, in_pod: false };
    let options = ProbeOptions { cpu: Some(cpu), ..ProbeOptions::default() };
    Probes::load(&options).unwrap_or_else(|error| panic!("load the probes: {error:#}"))
}

#[test]
fn stacks_and_python_are_walked_by_the_kernels_own_loop() {
    let probes = probes();
    let hooks = probes.hooks.join("; ");
    assert!(hooks.contains("unwind_loop, python_loop"), "{hooks}; left out: {:?}", probes.degraded);
}

/// Functions of the kernel's own image by address; some have several names.
fn kallsyms() -> BTreeMap<u64, BTreeSet<String>> {
    let table = std::fs::read_to_string("/proc/kallsyms").expect("read /proc/kallsyms");
    let mut all: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [address, "t" | "T", name] = words[..] {
            let address = u64::from_str_radix(address, 16).expect("an address");
            all.entry(address).or_default().insert(name.to_owned());
        }
    }
    all
}

#[test]
fn the_kernel_names_its_addresses_as_kallsyms_does() {
    let all = kallsyms();
    let chosen: Vec<(u64, &BTreeSet<String>)> =
        all.iter().step_by(97).map(|(&address, names)| (address, names)).collect();
    assert!(chosen.len() > 300 && chosen[0].0 != 0, "kallsyms has no addresses: {}", chosen.len());
    let mut asked: BTreeSet<u64> = chosen.iter().map(|(address, _)| *address).collect();
    // An address without kernel code.
    asked.insert(0xffff_7000_0000_0000);
    let named: BTreeMap<u64, Vec<u8>> = probes().kernel_names(&asked).into_iter().collect();
    assert_eq!(named.len(), asked.len(), "each address has an answer");
    let wrong: Vec<_> = chosen
        .iter()
        .filter(|(address, names)| !names.contains(&*String::from_utf8_lossy(&named[address])))
        .map(|(address, names)| {
            format!("{address:#x}: {names:?} is {:?}", String::from_utf8_lossy(&named[address]))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), chosen.len(), wrong.join("\n"));
    let nowhere = &named[&0xffff_7000_0000_0000];
    assert_eq!(String::from_utf8_lossy(nowhere), "0xffff700000000000");
}
