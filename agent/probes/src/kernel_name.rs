//! What the kernel calls addresses of its own: `probe-ebpf/src/kernel_name.rs` is run for each.

use std::collections::BTreeSet;

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use podopsy_wire::KERNEL_NAME_BYTES;

/// Names with their modules, as the kernel writes them.
pub(crate) fn names(ebpf: &mut Ebpf, addresses: &BTreeSet<u64>) -> anyhow::Result<Vec<(u64, Vec<u8>)>> {
    let answer = ebpf.take_map("KERNEL_NAME").context("the probes have no map KERNEL_NAME")?;
    let answer: Array<MapData, [u8; KERNEL_NAME_BYTES]> = answer.try_into()?;
    let program: &mut RawTracePoint =
        ebpf.program_mut("kernel_name").context("no program kernel_name")?.try_into()?;
    program.load().context("load kernel_name")?;
    let name = |&address: &u64| {
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = address;
        program.test_run(options).context("run kernel_name")?;
        let text = answer.get(&0, 0).context("read the map KERNEL_NAME")?;
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        Ok((address, text[..end].to_vec()))
    };
    addresses.iter().map(name).collect()
}
