//! `cargo xtask tidy`: the house rules that a tool can check.
//!
//! [`rules`] is the table of what a source file must not say, [`deps`] the direction of dependencies,
//! [`source`] tells code from comments and strings. A rule that is written down gets a line there, or goes.

mod deps;
mod rules;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{sh, stamp};
use source::Source;

/// The command: runs every check, then fails if one found something.
pub fn run() -> Result<()> {
    let root = sh::root();
    let mut found = Vec::new();

    let mut tool = |mend: &str, arguments: &[&str]| {
        if let Err(e) = sh::run(sh::cargo().args(arguments)) {
            found.push(format!("{e:#} → {mend}"));
        }
    };
    tool("cargo fmt", &["fmt", "--check"]);
    if root.join("probe-ebpf/Cargo.toml").exists() {
        let manifest = ["fmt", "--check", "--manifest-path", "probe-ebpf/Cargo.toml"];
        tool("cargo fmt --manifest-path probe-ebpf/Cargo.toml", &manifest);
    }
    tool(
        "mend what clippy names (no clippy here: rustup component add clippy rustfmt)",
        &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
    );

    sh::progress("dependency direction");
    found.extend(deps::check(&root)?);

    sh::progress("prebuilt/STAMP");
    found.extend(stamp::complaints(&root.join("probe-ebpf")).unwrap_or_else(|e| vec![format!("{e:#}")]));

    let files = rust_files(&root)?;
    sh::progress(format_args!("{} rules over {} files", rules::RULES.len(), files.len()));
    for path in files {
        let text = std::fs::read_to_string(root.join(&path)).with_context(|| path.display().to_string())?;
        found.extend(rules::check(&Source::new(&path.to_string_lossy(), &text)));
    }

    if found.is_empty() {
        sh::progress("tidy");
        return Ok(());
    }
    for line in &found {
        eprintln!("{line}");
    }
    bail!("{} untidy", found.len())
}

/// Every Rust file of the repository, relative to `root`, sorted.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = dir.join(&name);
            if entry.file_type()?.is_dir() {
                // Build output, git's own, and what the demo wrote are nobody's prose.
                if !name.starts_with('.') && name != "target" && name != "demo-out" {
                    todo.push(path);
                }
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                out.push(path);
            }
        }
    }
    out.sort();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_finds_sources_and_no_build_output() {
        let files = rust_files(&sh::root()).unwrap();
        assert!(files.contains(&PathBuf::from("xtask/src/tidy.rs")));
        assert!(files.iter().all(|path| !path.components().any(|c| c.as_os_str() == "target")));
    }
}
