//! The result of a trial of a probe.

/// The result of loading and attaching a probe as a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeCheck {
    pub name: String,
    /// What it attached to, or the error.
    pub outcome: Result<String, String>,
    /// What to do about the error.
    pub remedy: Option<String>,
}
