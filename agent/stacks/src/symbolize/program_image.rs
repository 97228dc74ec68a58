//! Which of the programs that a process has run (exec).

/// Distinguishes the programs that a process has run: [`podopsy_wire::Sample::image`]. Their addresses have nothing to do
/// with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProgramImage(pub u64);

impl ProgramImage {
    /// It is not known which program: it may be any.
    pub const UNKNOWN: ProgramImage = ProgramImage(0);

    /// Whether two may be the same program.
    pub(super) fn may_be(self, other: ProgramImage) -> bool {
        self == other || self == Self::UNKNOWN || other == Self::UNKNOWN
    }
}
