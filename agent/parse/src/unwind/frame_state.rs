//! Runs call frame instructions (DWARF 5, 6.4.2) for what a [`Rule`](podopsy_wire::Rule) can express: the canonical frame
//! address, the return address and the frame pointer.
//!
//! gimli decodes the instructions. Its own table keeps all registers, which took a third of the time of reading a file.
//! Must not depend on: files, rules.

use std::ops::ControlFlow;

use gimli::{
    BaseAddresses, CallFrameInstruction, CfaRule, CommonInformationEntry, EndianSlice, Error,
    FrameDescriptionEntry, LittleEndian, Register, RegisterRule, UnwindSection,
};

use super::arch::NATIVE;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// States that a function may remember at once. Compilers nest two.
const MAX_REMEMBERED: usize = 16;

/// What is known of a frame at one instruction of its function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrameState {
    pub cfa: CfaRule<usize>,
    /// `Undefined` also if no instruction names it.
    pub return_address: RegisterRule<usize>,
    /// `Undefined` also if no instruction names it.
    pub frame_pointer: RegisterRule<usize>,
}

impl FrameState {
    /// The state that the instructions of a common entry lead to.
    pub fn of_common_entry<'a, S: UnwindSection<Bytes<'a>>>(
        entry: &CommonInformationEntry<Bytes<'a>>,
        section: &S,
        bases: &BaseAddresses,
    ) -> gimli::Result<FrameState> {
        let mut state = FrameState {
            cfa: CfaRule::default(),
            return_address: RegisterRule::Undefined,
            frame_pointer: RegisterRule::Undefined,
        };
        let mut instructions = entry.instructions(section, bases);
        while let Some(instruction) = &instructions.next()? {
            state.apply(instruction, None, entry.data_alignment_factor())?;
        }
        Ok(state)
    }

    /// Applies an instruction that changes neither the location nor the remembered states. `initial`: the state at the
    /// function's beginning, if that is known. `factor`: the data alignment factor.
    fn apply(
        &mut self,
        instruction: &CallFrameInstruction<usize>,
        initial: Option<&FrameState>,
        factor: i64,
    ) -> gimli::Result<()> {
        use CallFrameInstruction as I;
        let scaled = |factored: i64| factored.wrapping_mul(factor);
        match *instruction {
            I::DefCfa { register, offset } => {
                self.cfa = CfaRule::RegisterAndOffset { register, offset: offset as i64 };
            }
            I::DefCfaSf { register, factored_offset } => {
                self.cfa = CfaRule::RegisterAndOffset { register, offset: scaled(factored_offset) };
            }
            I::DefCfaRegister { register } => *self.cfa_register()?.0 = register,
            I::DefCfaOffset { offset } => *self.cfa_register()?.1 = offset as i64,
            I::DefCfaOffsetSf { factored_offset } => *self.cfa_register()?.1 = scaled(factored_offset),
            I::DefCfaExpression { expression } => self.cfa = CfaRule::Expression(expression),
            I::Undefined { register } => self.set(register, || RegisterRule::Undefined),
            I::SameValue { register } => self.set(register, || RegisterRule::SameValue),
            I::Offset { register, factored_offset } => {
                self.set(register, || RegisterRule::Offset(scaled(factored_offset as i64)));
            }
            I::OffsetExtendedSf { register, factored_offset } => {
                self.set(register, || RegisterRule::Offset(scaled(factored_offset)));
            }
            I::ValOffset { register, factored_offset } => {
                self.set(register, || RegisterRule::ValOffset(scaled(factored_offset as i64)));
            }
            I::ValOffsetSf { register, factored_offset } => {
                self.set(register, || RegisterRule::ValOffset(scaled(factored_offset)));
            }
            I::Register { dest_register, src_register } => {
                self.set(dest_register, || RegisterRule::Register(src_register));
            }
            I::Expression { register, expression } => {
                self.set(register, || RegisterRule::Expression(expression));
            }
            I::ValExpression { register, expression } => {
                self.set(register, || RegisterRule::ValExpression(expression));
            }
            I::Restore { register } => {
                let initial = initial.ok_or(Error::CfiInstructionInInvalidContext)?;
                if register.0 == NATIVE.return_address {
                    self.return_address = initial.return_address.clone();
                } else if register.0 == NATIVE.frame_pointer {
                    self.frame_pointer = initial.frame_pointer.clone();
                }
            }
            // The rest changes nothing that is kept here.
            _ => {}
        }
        Ok(())
    }

    /// The register and the offset of the canonical frame address, unless an expression computes it.
    fn cfa_register(&mut self) -> gimli::Result<(&mut Register, &mut i64)> {
        match &mut self.cfa {
            CfaRule::RegisterAndOffset { register, offset } => Ok((register, offset)),
            CfaRule::Expression(_) => Err(Error::CfiInstructionInInvalidContext),
        }
    }

    fn set(&mut self, register: Register, rule: impl FnOnce() -> RegisterRule<usize>) {
        if register.0 == NATIVE.return_address {
            self.return_address = rule();
        } else if register.0 == NATIVE.frame_pointer {
            self.frame_pointer = rule();
        }
    }
}

/// Runs the instructions of a function, and calls `row` with each address at which a state begins to hold, ascending, and
/// that state; until `row` breaks. `initial`: the state of the function's common entry.
pub(super) fn run<'a, S: UnwindSection<Bytes<'a>>>(
    entry: &FrameDescriptionEntry<Bytes<'a>>,
    section: &S,
    bases: &BaseAddresses,
    initial: &FrameState,
    mut row: impl FnMut(u64, &FrameState) -> ControlFlow<()>,
) -> gimli::Result<()> {
    let (code_factor, data_factor) =
        (entry.cie().code_alignment_factor(), entry.cie().data_alignment_factor());
    let mut address = entry.initial_address();
    let mut state = initial.clone();
    let mut remembered: Vec<FrameState> = Vec::new();
    let mut instructions = entry.instructions(section, bases);
    loop {
        // Matched where it lies: moving an instruction takes longer than running it.
        let decoded = instructions.next();
        let Some(instruction) = (match &decoded {
            Ok(instruction) => instruction,
            Err(error) => return Err(*error),
        }) else {
            break;
        };
        let next = match *instruction {
            CallFrameInstruction::SetLoc { address: next } if next < address => {
                return Err(Error::InvalidCfiSetLoc(next));
            }
            CallFrameInstruction::SetLoc { address: next } => next,
            CallFrameInstruction::AdvanceLoc { delta } => {
                let delta = u64::from(delta).wrapping_mul(code_factor);
                address.checked_add(delta).ok_or(Error::AddressOverflow)?
            }
            CallFrameInstruction::RememberState if remembered.len() < MAX_REMEMBERED => {
                remembered.push(state.clone());
                continue;
            }
            CallFrameInstruction::RememberState => return Err(Error::StackFull),
            CallFrameInstruction::RestoreState => {
                state = remembered.pop().ok_or(Error::PopWithEmptyStack)?;
                continue;
            }
            _ => {
                state.apply(instruction, Some(initial), data_factor)?;
                continue;
            }
        };
        if row(address, &state).is_break() {
            return Ok(());
        }
        address = next;
    }
    let _ = row(address, &state);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use gimli::{EhFrame, UnwindContext, UnwindTableRow};

    use super::*;
    use crate::elf::{read_at, sections};

    fn by_gimli(row: &UnwindTableRow<usize>) -> FrameState {
        let register = |number| row.register(Register(number)).unwrap_or(RegisterRule::Undefined);
        FrameState {
            cfa: row.cfa().clone(),
            return_address: register(NATIVE.return_address),
            frame_pointer: register(NATIVE.frame_pointer),
        }
    }

    #[test]
    fn every_row_of_a_library_is_as_gimlis_own_table_has_it() {
        let file = File::open("/proc/self/exe").unwrap();
        let table = sections(&file);
        let section = table.iter().find(|section| section.name == b".eh_frame").unwrap();
        let bytes = read_at(&file, section.offset, section.size as usize).unwrap();
        let mut eh_frame = EhFrame::new(&bytes, LittleEndian);
        eh_frame.set_address_size(8);
        let bases = BaseAddresses::default().set_eh_frame(section.address);
        let mut context = UnwindContext::new();
        let mut entries = eh_frame.entries(&bases);
        let mut compared = 0;
        while let Some(entry) = entries.next().unwrap() {
            let gimli::CieOrFde::Fde(partial) = entry else { continue };
            let entry = partial.parse(EhFrame::cie_from_offset).unwrap();
            let mut expected = Vec::new();
            let mut rows = entry.rows(&eh_frame, &bases, &mut context).unwrap();
            while let Some(row) = rows.next_row().unwrap() {
                expected.push((row.start_address(), by_gimli(row)));
            }
            let initial = FrameState::of_common_entry(entry.cie(), &eh_frame, &bases).unwrap();
            let mut found = Vec::new();
            let add = |address, state: &FrameState| {
                found.push((address, state.clone()));
                ControlFlow::Continue(())
            };
            run(&entry, &eh_frame, &bases, &initial, add).unwrap();
            assert_eq!(found, expected);
            compared += found.len();
        }
        assert!(compared > 10_000, "{compared} rows");
    }

    /// The error of a function with these instructions, at address 0.
    fn run_instructions(instructions: &[u8]) -> gimli::Result<()> {
        // CIE: length, id, version, augmentation, code factor 1, data factor -8, return address.
        let common = [&[13, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0x78, 16][..], &[0; 4]].concat();
        let length = 4 + 16 + instructions.len() as u32;
        let pointer = common.len() as u32 + 4;
        let head = [length.to_le_bytes(), pointer.to_le_bytes()].concat();
        let addresses = [0u64.to_le_bytes(), 100u64.to_le_bytes()].concat();
        let bytes = [&common[..], &head, &addresses, instructions, &[0; 4]].concat();
        let mut eh_frame = EhFrame::new(&bytes, LittleEndian);
        eh_frame.set_address_size(8);
        let bases = BaseAddresses::default();
        let entry = eh_frame.fde_from_offset(&bases, common.len().into(), EhFrame::cie_from_offset)?;
        let initial = FrameState::of_common_entry(entry.cie(), &eh_frame, &bases)?;
        run(&entry, &eh_frame, &bases, &initial, |_, _| ControlFlow::Continue(()))
    }

    #[test]
    fn instructions_that_make_no_sense_are_an_error() {
        const REMEMBER: u8 = 0x0a;
        const RESTORE: u8 = 0x0b;
        assert_eq!(run_instructions(&[REMEMBER, RESTORE]), Ok(()));
        assert_eq!(run_instructions(&[RESTORE]), Err(Error::PopWithEmptyStack));
        assert_eq!(run_instructions(&[REMEMBER; 16]), Ok(()));
        assert_eq!(run_instructions(&[REMEMBER; 17]), Err(Error::StackFull));
        // DW_CFA_def_cfa_expression without bytes, then DW_CFA_def_cfa_offset.
        let invalid = run_instructions(&[0x0f, 0, 0x0e, 8]);
        assert_eq!(invalid, Err(Error::CfiInstructionInInvalidContext));
    }
}
