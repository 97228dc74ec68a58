//! What is particular to a machine: numbers of registers, and where they lie.
//!
//! Must not know: files, tables. Another machine is another `mod` here, and another one in `probe-ebpf/src/arch.rs`.

use object::elf;

/// DWARF numbers (psABI, "DWARF Register Number Mapping").
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// `e_machine`.
    pub elf: elf::Machine,
    pub stack: u16,
    pub frame: u16,
    pub ra: u16,
    /// Registers that the kernel side has of the innermost frame: below this number.
    pub registers: u16,
    /// The instruction pointer's number in expressions.
    pub ip: u16,
}

/// System V ABI, AMD64 supplement, figure 3.36.
const AMD64: Machine = Machine { elf: elf::EM_X86_64, stack: 7, frame: 6, ra: 16, registers: 16, ip: 16 };

/// The machine that we run on: tables of other machines' files are of no use.
pub(crate) const HERE: Machine = AMD64;
