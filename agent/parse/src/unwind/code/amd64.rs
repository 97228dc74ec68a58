//! Decodes AMD64 instructions: what each does to the stack, and where it leads.
//!
//! Must not depend on: files, rules. To support another architecture, add a file beside this one.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions,
    Mnemonic, OpAccess, OpKind, Register,
};
use object::elf;

/// Relocation types whose addend is an address of the file.
pub(super) const ADDRESS_RELOCATIONS: [u32; 2] = [elf::R_X86_64_RELATIVE.0, elf::R_X86_64_IRELATIVE.0];

/// What an instruction does to the stack pointer and the frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StackEffect {
    Nothing,
    /// The stack pointer goes down by this many bytes.
    Grows(i32),
    /// `push %rbp`.
    PushesFrame,
    /// `pop %rbp`.
    PopsFrame,
    /// The frame pointer is written to memory at this distance above the stack pointer.
    Saves(i32),
    /// The frame pointer is read from memory at this distance above the stack pointer.
    Restores(i32),
    /// The frame pointer is set to this distance above the stack pointer.
    FramePoints(i32),
    /// The stack pointer is set to this distance above the frame pointer.
    StackPoints(i32),
    /// `leave`.
    Leaves,
    /// The frame pointer is set to 0. By the ABI this marks the outermost frame, if it was not saved before.
    Outermost,
    /// The frame pointer has an unknown value.
    FrameLost,
    /// The stack pointer has an unknown value.
    StackLost,
}

/// Where an instruction leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the next instruction.
    Continues,
    /// To the next instruction if the called function returns. None if the address is computed.
    Calls(Option<u64>),
    /// To the next instruction, as padding between functions and before loops.
    Pads,
    Ends,
    Jumps(u64),
    Branches(u64),
    /// To a computed address.
    JumpsComputed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DecodedInstruction {
    pub len: usize,
    pub effect: StackEffect,
    pub flow: Flow,
    /// The address that it loads a pointer to (`lea`).
    pub pointer: Option<u64>,
    /// A number in it that may be an address, in a file that is loaded at a fixed one: `mov $imm32`, `push $imm32`.
    pub number: Option<u64>,
}

/// `mov $15, %rax; syscall`. A signal handler returns to it, and the kernel wrote the frame on the stack there.
pub(super) const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];

pub(super) struct InstructionDecoder(InstructionInfoFactory);

impl InstructionDecoder {
    pub fn new() -> InstructionDecoder {
        InstructionDecoder(InstructionInfoFactory::new())
    }

    /// The instruction at the start of `bytes`. None if there is no complete one.
    pub fn decode(&mut self, bytes: &[u8], address: u64) -> Option<DecodedInstruction> {
        let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return None;
        }
        let is_pointer = instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand();
        let pointer = is_pointer.then(|| instruction.ip_rel_memory_address());
        Some(DecodedInstruction {
            len: instruction.len(),
            effect: self.effect(&instruction),
            flow: flow(&instruction),
            pointer,
            number: number(&instruction),
        })
    }

    fn effect(&mut self, instruction: &Instruction) -> StackEffect {
        let registers = [instruction.op0_register(), instruction.op1_register()];
        // The displacement of a memory operand that consists of `base` and a displacement only.
        let displacement = |base| {
            let is_plain = instruction.memory_base() == base && instruction.memory_index() == Register::None;
            let is_on_stack = is_plain && instruction.segment_prefix() == Register::None;
            is_on_stack
                .then(|| i32::try_from(instruction.memory_displacement64().cast_signed()).ok())
                .flatten()
        };
        let known = match (instruction.mnemonic(), registers) {
            (Mnemonic::Push, [Register::RBP, _]) => Some(StackEffect::PushesFrame),
            (Mnemonic::Pop, [Register::RBP, _]) => Some(StackEffect::PopsFrame),
            (Mnemonic::Pop, [Register::RSP, _]) => Some(StackEffect::StackLost),
            (Mnemonic::Push | Mnemonic::Pop | Mnemonic::Pushfq | Mnemonic::Popfq, _) => {
                Some(StackEffect::Grows(-instruction.stack_pointer_increment()))
            }
            (Mnemonic::Leave, _) => Some(StackEffect::Leaves),
            (Mnemonic::Mov, [Register::RBP, Register::RSP]) => Some(StackEffect::FramePoints(0)),
            (Mnemonic::Mov, [Register::RSP, Register::RBP]) => Some(StackEffect::StackPoints(0)),
            (Mnemonic::Mov, [_, Register::RBP]) if instruction.op0_kind() == OpKind::Memory => {
                displacement(Register::RSP).map(StackEffect::Saves)
            }
            (Mnemonic::Mov, [Register::RBP, _]) if instruction.op1_kind() == OpKind::Memory => {
                displacement(Register::RSP).map(StackEffect::Restores)
            }
            (Mnemonic::Lea, [Register::RBP, _]) => displacement(Register::RSP).map(StackEffect::FramePoints),
            (Mnemonic::Lea, [Register::RSP, _]) => displacement(Register::RSP)
                .and_then(i32::checked_neg)
                .map(StackEffect::Grows)
                .or_else(|| displacement(Register::RBP).map(StackEffect::StackPoints)),
            (Mnemonic::Xor, [Register::EBP | Register::RBP, second]) if second == registers[0] => {
                Some(StackEffect::Outermost)
            }
            (Mnemonic::Sub, [Register::RSP, Register::None]) => {
                immediate(instruction).map(StackEffect::Grows)
            }
            (Mnemonic::Add, [Register::RSP, Register::None]) => {
                immediate(instruction).and_then(i32::checked_neg).map(StackEffect::Grows)
            }
            _ if is_call(instruction) => Some(StackEffect::Nothing),
            _ => None,
        };
        known.unwrap_or_else(|| self.other_effect(instruction))
    }

    /// The effect of an instruction that [`Self::effect`] has no case for: whether it writes to one of the two registers.
    fn other_effect(&mut self, instruction: &Instruction) -> StackEffect {
        let info = self.0.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
        let writes = |register: Register| {
            info.used_registers().iter().any(|used| {
                used.register().full_register() == register
                    && !matches!(
                        used.access(),
                        OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
                    )
            })
        };
        if writes(Register::RSP) {
            StackEffect::StackLost
        } else if writes(Register::RBP) {
            StackEffect::FrameLost
        } else {
            StackEffect::Nothing
        }
    }
}

/// The immediate value of 32 bits that an instruction moves or pushes.
fn number(instruction: &Instruction) -> Option<u64> {
    let last = instruction.op_count().checked_sub(1)?;
    let is_moved = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Push);
    let is_wide = matches!(
        instruction.op_kind(last),
        OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64
    );
    (is_moved && is_wide).then(|| instruction.immediate(last))
}

/// The second operand, if it is an immediate value.
fn immediate(instruction: &Instruction) -> Option<i32> {
    let is_immediate = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    is_immediate.then(|| i32::try_from(instruction.immediate(1).cast_signed()).ok()).flatten()
}

/// True for calls, and for system calls, which iced counts among them.
fn is_call(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

fn is_system_call(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter)
}

fn flow(instruction: &Instruction) -> Flow {
    match instruction.flow_control() {
        FlowControl::UnconditionalBranch => Flow::Jumps(instruction.near_branch_target()),
        FlowControl::ConditionalBranch => Flow::Branches(instruction.near_branch_target()),
        FlowControl::IndirectBranch => Flow::JumpsComputed,
        FlowControl::Return | FlowControl::Exception => Flow::Ends,
        FlowControl::Interrupt if matches!(instruction.mnemonic(), Mnemonic::Int3 | Mnemonic::Int1) => {
            Flow::Ends
        }
        FlowControl::Call if is_system_call(instruction) => Flow::Continues,
        FlowControl::Call => Flow::Calls(Some(instruction.near_branch_target())),
        FlowControl::IndirectCall => Flow::Calls(None),
        FlowControl::Next if instruction.mnemonic() == Mnemonic::Nop => Flow::Pads,
        // Privileged: libraries use it to stop.
        FlowControl::Next if instruction.mnemonic() == Mnemonic::Hlt => Flow::Ends,
        _ => Flow::Continues,
    }
}

/// Whether a function may begin at `at`: the code before it leads nowhere. A number that is an address by chance is hardly
/// ever such a place.
pub(super) fn may_begin_at(bytes: &[u8], at: usize) -> bool {
    let before = &bytes[..at];
    let [.., last] = before else { return true };
    // `ret`, `nop`, `int3`, `hlt`; `ud2`; a jump with 32 bits or 8; a long `nop` ends in zeros.
    matches!(last, 0xc3 | 0x90 | 0xcc | 0xf4)
        || before.ends_with(&[0x0f, 0x0b])
        || before.ends_with(&[0, 0])
        || before.len() >= 5 && before[before.len() - 5] == 0xe9
        || before.len() >= 2 && before[before.len() - 2] == 0xeb
}

/// The first byte that is not padding between two functions.
pub(super) fn after_padding(bytes: &[u8]) -> usize {
    let mut at = 0;
    while at < bytes.len() {
        let instruction = Decoder::with_ip(64, &bytes[at..], 0, DecoderOptions::NONE).decode();
        let is_padding = matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
        // Zeros are an `add` that no function begins with.
        let is_zero = bytes[at..].starts_with(&[0, 0]);
        if instruction.is_invalid() || !(is_padding || is_zero) {
            break;
        }
        at += instruction.len();
    }
    at.min(bytes.len())
}

/// Bytes of the longest instruction that [`find_references`] looks for.
pub(super) const LONGEST_REFERENCE: usize = 7;

/// What [`find_references`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    /// A call or a jump.
    Leads,
    /// The `lea` of an address.
    Points,
    /// A `mov` of a number.
    Number,
}

/// Calls `found(from, to, reference)` for all bytes that look like one; for numbers only if `NUMBERS`. They may be in the middle of another instruction, so only references into a gap are of use. Decoding
/// all instructions took longer than all other work together on a Rust program of 12 MB.
pub(super) fn find_references<const NUMBERS: bool>(
    bytes: &[u8],
    address: u64,
    mut found: impl FnMut(u64, u64, Reference),
) {
    let mut refer = |at: usize, len: usize, reference| {
        let number = bytes.get(at + len - 4..at + len).and_then(|four| four.try_into().ok());
        let Some(number) = number.map(i32::from_le_bytes).map(i64::from) else { return };
        let from = address.wrapping_add(at as u64);
        let to = match reference {
            Reference::Number => number.cast_unsigned(),
            _ => from.wrapping_add(len as u64).wrapping_add_signed(number),
        };
        found(from, to, reference);
    };
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            0xe8 | 0xe9 => refer(at, 5, Reference::Leads),
            0xb8..=0xbf if NUMBERS => refer(at, 5, Reference::Number),
            // `lea`: REX.W with or without R, and the ModRM byte of [rip + 32 bits].
            0x48 | 0x4c => match bytes.get(at + 1..at + 3) {
                Some([0x8d, modrm]) if modrm & 0xc7 == 5 => refer(at, 7, Reference::Points),
                // `mov` of a number that is extended to 64 bits, to a register.
                Some([0xc7, modrm]) if NUMBERS && modrm & 0xf8 == 0xc0 => refer(at, 7, Reference::Number),
                _ => {}
            },
            _ => {}
        }
    }
}
