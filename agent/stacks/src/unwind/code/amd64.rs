//! What an instruction of AMD64 does to the stack, and where it leads.
//!
//! Must not know: files, rules. Another machine is another file here.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions,
    Mnemonic, OpAccess, OpKind, Register,
};
use object::elf;

/// Relocations whose addend is an address in the file.
pub(super) const IS_ADDRESS: [u32; 2] = [elf::R_X86_64_RELATIVE.0, elf::R_X86_64_IRELATIVE.0];

/// What it does to the stack pointer and the frame pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Nothing,
    /// The stack pointer goes down so many bytes.
    Grows(i32),
    PushesFrame,
    PopsFrame,
    /// The frame pointer is written to, or read from, so far above the stack pointer.
    Keeps(i32),
    Restores(i32),
    /// The frame pointer points so far above the stack pointer, or the other way round.
    FramePoints(i32),
    StackPoints(i32),
    /// `leave`.
    Leaves,
    /// The frame pointer is set to 0: the ABI's mark of the outermost frame, where nobody has kept it before.
    Outermost,
    /// Another value, that is not known.
    FrameLost,
    StackLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    /// To what follows, if what is called comes back to it; none: its address is computed.
    Calls(Option<u64>),
    /// Does nothing: between functions, and before loops.
    Pads,
    Ends,
    Jumps(u64),
    Branches(u64),
    /// To an address that is computed.
    Anywhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub len: usize,
    pub effect: Effect,
    pub flow: Flow,
    /// The address that it makes a pointer to (`lea`).
    pub points: Option<u64>,
}

/// `mov $15, %rax; syscall`: a signal handler comes back to it, and the kernel laid out what is on the stack there.
pub(super) const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];

pub(super) struct Reader(InstructionInfoFactory);

impl Reader {
    pub fn new() -> Reader {
        Reader(InstructionInfoFactory::new())
    }

    /// The instruction at the beginning of `bytes`; none: there is no whole one.
    pub fn step(&mut self, bytes: &[u8], address: u64) -> Option<Step> {
        let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return None;
        }
        let is_pointer = instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand();
        let points = is_pointer.then(|| instruction.ip_rel_memory_address());
        Some(Step {
            len: instruction.len(),
            effect: self.effect(&instruction),
            flow: flow(&instruction),
            points,
        })
    }

    fn effect(&mut self, instruction: &Instruction) -> Effect {
        let registers = [instruction.op0_register(), instruction.op1_register()];
        // Of a memory operand: its base, and what is added, if that is all.
        let memory = |base| {
            let is_plain = instruction.memory_base() == base && instruction.memory_index() == Register::None;
            let is_here = is_plain && instruction.segment_prefix() == Register::None;
            is_here.then(|| i32::try_from(instruction.memory_displacement64().cast_signed()).ok()).flatten()
        };
        let known = match (instruction.mnemonic(), registers) {
            (Mnemonic::Push, [Register::RBP, _]) => Some(Effect::PushesFrame),
            (Mnemonic::Pop, [Register::RBP, _]) => Some(Effect::PopsFrame),
            (Mnemonic::Pop, [Register::RSP, _]) => Some(Effect::StackLost),
            (Mnemonic::Push | Mnemonic::Pop | Mnemonic::Pushfq | Mnemonic::Popfq, _) => {
                Some(Effect::Grows(-instruction.stack_pointer_increment()))
            }
            (Mnemonic::Leave, _) => Some(Effect::Leaves),
            (Mnemonic::Mov, [Register::RBP, Register::RSP]) => Some(Effect::FramePoints(0)),
            (Mnemonic::Mov, [Register::RSP, Register::RBP]) => Some(Effect::StackPoints(0)),
            (Mnemonic::Mov, [_, Register::RBP]) if instruction.op0_kind() == OpKind::Memory => {
                memory(Register::RSP).map(Effect::Keeps)
            }
            (Mnemonic::Mov, [Register::RBP, _]) if instruction.op1_kind() == OpKind::Memory => {
                memory(Register::RSP).map(Effect::Restores)
            }
            (Mnemonic::Lea, [Register::RBP, _]) => memory(Register::RSP).map(Effect::FramePoints),
            (Mnemonic::Lea, [Register::RSP, _]) => memory(Register::RSP)
                .and_then(i32::checked_neg)
                .map(Effect::Grows)
                .or_else(|| memory(Register::RBP).map(Effect::StackPoints)),
            (Mnemonic::Xor, [Register::EBP | Register::RBP, second]) if second == registers[0] => {
                Some(Effect::Outermost)
            }
            (Mnemonic::Sub, [Register::RSP, Register::None]) => number(instruction).map(Effect::Grows),
            (Mnemonic::Add, [Register::RSP, Register::None]) => {
                number(instruction).and_then(i32::checked_neg).map(Effect::Grows)
            }
            _ if is_call(instruction) => Some(Effect::Nothing),
            _ => None,
        };
        known.unwrap_or_else(|| self.lost(instruction))
    }

    /// Of what has no name above: whether it writes to one of the two.
    fn lost(&mut self, instruction: &Instruction) -> Effect {
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
            Effect::StackLost
        } else if writes(Register::RBP) {
            Effect::FrameLost
        } else {
            Effect::Nothing
        }
    }
}

/// The second operand, if it is a number.
fn number(instruction: &Instruction) -> Option<i32> {
    let is_number = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    is_number.then(|| i32::try_from(instruction.immediate(1).cast_signed()).ok()).flatten()
}

/// System calls are among them.
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
        FlowControl::IndirectBranch => Flow::Anywhere,
        FlowControl::Return | FlowControl::Exception => Flow::Ends,
        FlowControl::Interrupt if matches!(instruction.mnemonic(), Mnemonic::Int3 | Mnemonic::Int1) => {
            Flow::Ends
        }
        FlowControl::Call if is_system_call(instruction) => Flow::On,
        FlowControl::Call => Flow::Calls(Some(instruction.near_branch_target())),
        FlowControl::IndirectCall => Flow::Calls(None),
        FlowControl::Next if instruction.mnemonic() == Mnemonic::Nop => Flow::Pads,
        // The kernel's alone: libraries stop with it.
        FlowControl::Next if instruction.mnemonic() == Mnemonic::Hlt => Flow::Ends,
        _ => Flow::On,
    }
}

/// The longest of the instructions that [`references`] looks for.
pub(super) const LONGEST: usize = 7;

/// Calls `found` with the address of whatever in `bytes` looks like a call, a jump or (true) `lea` of an address, and with that
/// address. It may be the middle of another instruction: only what leads into a gap is of use. To decode all
/// of it took longer than all else together that is done with a Rust program of 12 MB.
pub(super) fn references(bytes: &[u8], address: u64, mut found: impl FnMut(u64, u64, bool)) {
    let mut refer = |at: usize, len: usize, is_pointer| {
        let distance = bytes.get(at + len - 4..at + len).and_then(|four| four.try_into().ok());
        let Some(distance) = distance.map(i32::from_le_bytes) else { return };
        let from = address.wrapping_add(at as u64);
        found(from, from.wrapping_add(len as u64).wrapping_add_signed(i64::from(distance)), is_pointer);
    };
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            0xe8 | 0xe9 => refer(at, 5, false),
            // REX.W, with or without R, and ModRM of [rip + 32 bits].
            0x48 | 0x4c => {
                if let Some([0x8d, modrm]) = bytes.get(at + 1..at + 3)
                    && modrm & 0xc7 == 5
                {
                    refer(at, 7, true);
                }
            }
            _ => {}
        }
    }
}
