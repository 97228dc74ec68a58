//! The name of this node, for both binaries.

use std::os::unix::ffi::OsStrExt;

use podopsy_model::text;

/// The given name, else the host name, escaped for printing. A manifest may set NODE_NAME to an empty string.
pub fn name(given: Option<&str>) -> String {
    match given.filter(|name| !name.is_empty()) {
        Some(name) => text::escape(name),
        None => nix::unistd::gethostname()
            .map(|name| text::escape_bytes(name.as_bytes()))
            .unwrap_or_else(|_| "unknown".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn an_empty_name_is_ignored_and_a_hostile_one_is_escaped() {
        assert_eq!(name(Some("")), name(None));
        assert!(!name(None).is_empty());
        assert_eq!(name(Some("a\x1b[2J")), "a\\x1b[2J");
    }
}
