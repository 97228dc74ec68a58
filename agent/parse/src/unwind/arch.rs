//! The registers of an architecture, by their DWARF numbers.
//!
//! Must not depend on: files, tables. To support another architecture, add a constant here and a module to
//! `probe-ebpf/src/arch.rs`.

use object::elf;

/// DWARF register numbers (psABI, "DWARF Register Number Mapping").
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// `e_machine` of its ELF files.
    pub elf_machine: elf::Machine,
    pub stack_pointer: u16,
    pub frame_pointer: u16,
    pub return_address: u16,
    /// The kernel side has the registers below this number, for the innermost frame.
    pub register_count: u16,
    /// The instruction pointer, as DWARF expressions name it.
    pub instruction_pointer: u16,
}

/// System V ABI, AMD64 supplement, figure 3.36.
const AMD64: Architecture = Architecture {
    elf_machine: elf::EM_X86_64,
    stack_pointer: 7,
    frame_pointer: 6,
    return_address: 16,
    register_count: 16,
    instruction_pointer: 16,
};

/// The architecture that podopsy runs on. Files for another one get no tables.
pub const NATIVE: Architecture = AMD64;
