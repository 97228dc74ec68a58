//! Address → function, for the living and the dead.
//!
//! Must not know: aya, CRI, pods. Reads /proc and ELF files.

use std::sync::Arc;

use crate::model::profile::{Frame, Mapping};

/// A user-space address in a process, before symbolization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserAddress {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    pub address: u64,
    /// False for the innermost frame of an interrupted stack, true for return addresses (looked up at address - 1).
    pub is_return: bool,
}

/// Symbolizes; remembers each process's mappings and holds its files open from first sight.
#[derive(Debug, Default)]
pub struct Symbolizer {}

impl Symbolizer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Call on first sight of a process: reads its mappings and opens its executables while it lives.
    pub fn see_process(&mut self, _pid: u32) {}

    /// Innermost first; one address gives several frames where functions were inlined, at least one always.
    pub fn user(&mut self, _address: UserAddress) -> Vec<Frame> {
        Vec::new()
    }

    /// A kernel address.
    pub fn kernel(&mut self, _address: u64, _is_return: bool) -> Vec<Frame> {
        Vec::new()
    }

    /// By build id and file offset, from any file held open (`bpf_stack_build_id` in `<linux/bpf.h>`).
    pub fn build_id(&mut self, _build_id: &[u8; 20], _offset: u64, _is_return: bool) -> Vec<Frame> {
        Vec::new()
    }

    /// Executable mappings seen so far, one a file.
    pub fn mappings(&self) -> Vec<Mapping> {
        Vec::new()
    }

    /// Why addresses stayed without a name, by counter name.
    pub fn losses(&self) -> std::collections::BTreeMap<String, u64> {
        Default::default()
    }
}

#[allow(dead_code)]
fn _types(_: Arc<str>) {}
