//! The node's own name, for both binaries.

use std::os::unix::ffi::OsStrExt;

use podopsy_model::text;

/// Safe to print: as given, else the host's. A manifest's NODE_NAME may be there and empty.
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
    fn an_empty_name_is_none_and_a_hostile_one_is_escaped() {
        assert_eq!(name(Some("")), name(None));
        assert!(!name(None).is_empty());
        assert_eq!(name(Some("a\x1b[2J")), "a\\x1b[2J");
    }
}
