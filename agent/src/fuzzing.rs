//! What is private in this crate and has a fuzz target.

/// Parses a query string as each route of the API does. Returns the reason of the first refusal.
pub fn query(text: &str) -> Option<String> {
    crate::api::fuzzing(text)
}

/// Parses a configuration file. Returns the names of its settings, or the line and the reason of the refusal.
pub fn config(text: &str) -> Result<Vec<String>, (usize, String)> {
    crate::config::fuzzing(text)
}
