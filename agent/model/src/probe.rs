//! What became of trying a probe.

/// A probe that was loaded and attached on trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeCheck {
    pub name: String,
    /// What it attached to, or why it could not.
    pub outcome: Result<String, String>,
    pub mend: Option<String>,
}
