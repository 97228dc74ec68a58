//! Translates the state of a frame into a [`Rule`] that the kernel side can follow.
//!
//! Must not depend on: files, pages. Expressions are recognised by their shape and never evaluated.

use gimli::{
    CfaRule, EndianSlice, LittleEndian, Reader, Register, RegisterRule, UnwindExpression, UnwindSection,
};
use podopsy_wire::{
    FP_AT_CFA, FP_AT_FP, FP_AT_SP, FP_SAME, KIND_DEREF, KIND_INDEXED, KIND_PLT, KIND_REGISTER, KIND_SIGNAL,
    KIND_STOP, KIND_UNSUPPORTED, RA_AT_CFA, Rule,
};

use super::arch::NATIVE;
use super::frame_state::FrameState;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

const UNSUPPORTED: Rule = Rule::of_kind(KIND_UNSUPPORTED);

/// The rule for a state, of kind [`KIND_UNSUPPORTED`] if the kernel side could not follow it.
#[inline]
pub(super) fn rule_for_state<'a, S>(state: &FrameState, section: &S, is_signal: bool) -> Rule
where
    S: UnwindSection<Bytes<'a>>,
{
    supported_rule(state, section, is_signal).unwrap_or(UNSUPPORTED)
}

#[inline]
fn supported_rule<'a, S>(state: &FrameState, section: &S, is_signal: bool) -> Option<Rule>
where
    S: UnwindSection<Bytes<'a>>,
{
    let ra = &state.return_address;
    if matches!(ra, RegisterRule::Undefined) {
        return Some(Rule::of_kind(KIND_STOP));
    }
    let mut rule = match &state.cfa {
        CfaRule::RegisterAndOffset { register, offset } => Rule {
            base: usable_register(register.0)?,
            cfa_offset: i32::try_from(*offset).ok()?,
            ..Rule::of_kind(KIND_REGISTER)
        },
        CfaRule::Expression(expression) => {
            let rule = cfa_expression(&bytes(*expression, section)?)?;
            if is_signal && rule.kind == KIND_DEREF && u16::from(rule.base) == NATIVE.stack_pointer {
                // The kernel wrote this frame, not the compiler, so the kernel side knows its layout.
                return Some(Rule::of_kind(KIND_SIGNAL));
            }
            rule
        }
    };
    match ra {
        RegisterRule::Offset(offset) => {
            (rule.ra, rule.ra_offset) = (RA_AT_CFA, i16::try_from(*offset).ok()?);
        }
        RegisterRule::Register(Register(number)) => rule.ra = usable_register(*number)?.checked_add(1)?,
        _ => return None,
    }
    match &state.frame_pointer {
        RegisterRule::Undefined | RegisterRule::SameValue => rule.fp = FP_SAME,
        RegisterRule::Offset(offset) => {
            (rule.fp, rule.fp_offset) = (FP_AT_CFA, i16::try_from(*offset).ok()?);
        }
        RegisterRule::Expression(expression) => {
            let (number, offset) = single_register(&bytes(*expression, section)?)?;
            rule.fp_offset = i16::try_from(offset).ok()?;
            rule.fp = match number {
                n if n == NATIVE.frame_pointer => FP_AT_FP,
                n if n == NATIVE.stack_pointer => FP_AT_SP,
                _ => return None,
            };
        }
        _ => return None,
    }
    Some(rule)
}

/// The register's number, if the kernel side has that register.
fn usable_register(number: u16) -> Option<u8> {
    (number < NATIVE.register_count).then(|| u8::try_from(number).ok()).flatten()
}

fn bytes<'a, S>(expression: UnwindExpression<usize>, section: &S) -> Option<Vec<u8>>
where
    S: UnwindSection<Bytes<'a>>,
{
    let found = expression.get(section).ok()?;
    // The longest shape that is recognised has 16 bytes.
    (found.0.len() <= 32).then(|| found.0.slice().to_vec())
}

/// The operators in the shapes below (DWARF 5, 7.7.1).
mod op {
    pub const DEREF: u8 = 0x06;
    pub const AND: u8 = 0x1a;
    pub const MUL: u8 = 0x1e;
    pub const PLUS: u8 = 0x22;
    pub const PLUS_UCONST: u8 = 0x23;
    pub const SHL: u8 = 0x24;
    pub const GE: u8 = 0x2a;
    pub const LIT0: u8 = 0x30;
    pub const BREG0: u8 = 0x70;
}

/// Reads an expression, operator by operator.
struct ExpressionReader<'a>(Bytes<'a>);

impl ExpressionReader<'_> {
    fn next(&mut self) -> Option<u8> {
        self.0.read_u8().ok()
    }

    fn expect(&mut self, operators: &[u8]) -> Option<()> {
        operators.iter().all(|&operator| self.next() == Some(operator)).then_some(())
    }

    fn expect_end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// `DW_OP_bregN offset`.
    fn register(&mut self) -> Option<(u16, i32)> {
        let number = self.next()?.checked_sub(op::BREG0).filter(|&number| number < 32)?;
        Some((u16::from(number), i32::try_from(self.0.read_sleb128().ok()?).ok()?))
    }

    fn literal(&mut self) -> Option<i32> {
        let literal = self.next()?.checked_sub(op::LIT0).filter(|&literal| literal < 32)?;
        Some(i32::from(literal))
    }

    /// `DW_OP_plus_uconst n`, or 0 at the end of the expression.
    fn addend(&mut self) -> Option<i32> {
        if self.0.is_empty() {
            return Some(0);
        }
        self.expect(&[op::PLUS_UCONST])?;
        i32::try_from(self.0.read_uleb128().ok()?).ok()
    }
}

/// The rule whose CFA has one of the shapes that compilers and linkers write.
fn cfa_expression(expression: &[u8]) -> Option<Rule> {
    let mut rest = ExpressionReader(EndianSlice::new(expression, LittleEndian));
    let (number, cfa_offset) = rest.register()?;
    let rule = |kind| Some(Rule { base: usable_register(number)?, cfa_offset, ..Rule::of_kind(kind) });
    if expression.get(expression.len() - rest.0.len()) == Some(&op::DEREF) {
        rest.expect(&[op::DEREF])?;
        let extra = rest.addend()?;
        rest.expect_end()?;
        return Some(Rule { extra, ..rule(KIND_DEREF)? });
    }
    let (second, 0) = rest.register()? else { return None };
    if second == NATIVE.instruction_pointer {
        // `.plt`: ((ip & 15) >= n) << 3 is added.
        let (15, ()) = (rest.literal()?, rest.expect(&[op::AND])?) else { return None };
        let extra = rest.literal()?;
        rest.expect(&[op::GE])?;
        let 3 = rest.literal()? else { return None };
        rest.expect(&[op::SHL, op::PLUS])?;
        rest.expect_end()?;
        return Some(Rule { extra, ..rule(KIND_PLT)? });
    }
    // OpenSSL's multiplication: the old stack pointer is in a slot whose index is in a register.
    let 8 = rest.literal()? else { return None };
    rest.expect(&[op::MUL, op::PLUS, op::DEREF])?;
    let extra = rest.addend()?;
    rest.expect_end()?;
    Some(Rule { extra, index: usable_register(second)?, ..rule(KIND_INDEXED)? })
}

/// The register and the offset of an expression that consists of nothing else.
fn single_register(expression: &[u8]) -> Option<(u16, i32)> {
    let mut rest = ExpressionReader(EndianSlice::new(expression, LittleEndian));
    let found = rest.register()?;
    rest.expect_end()?;
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_that_distributions_use_are_recognised() {
        // breg7+8, breg16+0, lit15, and, lit11, ge, lit3, shl, plus
        let plt = cfa_expression(&[0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22]).unwrap();
        assert_eq!((plt.kind, plt.base, plt.cfa_offset, plt.extra), (KIND_PLT, 7, 8, 11));
        // breg6-8, deref
        let realigned = cfa_expression(&[0x76, 0x78, 0x06]).unwrap();
        assert_eq!((realigned.kind, realigned.base, realigned.cfa_offset), (KIND_DEREF, 6, -8));
        // breg7+152, deref, plus_uconst 8
        let stack = cfa_expression(&[0x77, 0x98, 0x01, 0x06, 0x23, 8]).unwrap();
        assert_eq!((stack.kind, stack.cfa_offset, stack.extra), (KIND_DEREF, 152, 8));
        // breg7+8, breg9+0, lit8, mul, plus, deref, plus_uconst 8
        let openssl = cfa_expression(&[0x77, 8, 0x79, 0, 0x38, 0x1e, 0x22, 0x06, 0x23, 8]).unwrap();
        assert_eq!((openssl.kind, openssl.index, openssl.extra), (KIND_INDEXED, 9, 8));
        assert_eq!(single_register(&[0x76, 0]), Some((6, 0)));
    }

    #[test]
    fn other_shapes_are_rejected_and_never_guessed() {
        for expression in [&[][..], &[0x77], &[0x77, 8], &[0x77, 8, 0x06, 0x06], &[0x30, 0x06], &[0xff; 32]] {
            assert_eq!(cfa_expression(expression), None, "{expression:?}");
        }
    }
}
