//! `cargo xtask tidy`: the project's rules that a tool can check.
//!
//! | file | checks |
//! |---|---|
//! | [`rules`] | what a Rust file must not contain |
//! | [`deps`] | the direction of direct dependencies, those of tests included |
//! | [`walls`] | which crate must not reach which other one |
//! | [`vocabulary`] | words that the glossary has replaced |
//!
//! [`source`] separates code from comments and strings.

mod deps;
mod rules;
mod source;
mod vocabulary;
mod walls;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{sh, stamp};
use source::Source;

/// The command: runs every check, then fails if one of them found something.
pub fn run() -> Result<()> {
    let root = sh::root();
    let mut found = run_tools(&root);

    sh::progress("dependencies");
    found.extend(deps::check(&root)?);
    found.extend(walls::check(&root)?);

    sh::progress("prebuilt/STAMP");
    found.extend(stamp::complaints(&root.join("probe-ebpf")).unwrap_or_else(|e| vec![format!("{e:#}")]));

    found.extend(check_files(&root)?);
    if found.is_empty() {
        sh::progress("tidy");
        return Ok(());
    }
    for line in &found {
        eprintln!("{line}");
    }
    bail!("{} untidy", found.len())
}

/// Runs cargo's own checks, and returns a line for each that failed.
fn run_tools(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut run = |remedy: &str, arguments: &[&str]| {
        if let Err(e) = sh::run(sh::cargo().args(arguments)) {
            found.push(format!("{e:#} → {remedy}"));
        }
    };
    run("cargo fmt", &["fmt", "--check"]);
    if root.join("probe-ebpf/Cargo.toml").exists() {
        let arguments = ["fmt", "--check", "--manifest-path", "probe-ebpf/Cargo.toml"];
        run("cargo fmt --manifest-path probe-ebpf/Cargo.toml", &arguments);
    }
    run(
        "fix what clippy reports (no clippy: rustup component add clippy rustfmt)",
        &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
    );
    found
}

/// Applies the rules about single files.
fn check_files(root: &Path) -> Result<Vec<String>> {
    let files = files(root)?;
    sh::progress(format_args!("{} rules over {} files", rules::RULES.len(), files.len()));
    let (mut found, mut former) = (Vec::new(), Vec::new());
    for path in files {
        let text = std::fs::read_to_string(root.join(&path)).with_context(|| path.display().to_string())?;
        let path = path.to_string_lossy();
        if path.ends_with(".rs") {
            found.extend(rules::check(&Source::new(&path, &text)));
        }
        former.extend(vocabulary::check(&path, &text));
    }
    if vocabulary::IS_ENFORCED {
        found.extend(former);
    } else {
        sh::progress(format_args!("{} former words of the vocabulary (no failure yet)", former.len()));
    }
    Ok(found)
}

/// Every Rust, Markdown and YAML file of the repository, relative to `root`, sorted.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = folder.join(&name);
            if entry.file_type()?.is_dir() {
                // Build output, git's own files, and the demo's output are not written by people.
                if !name.starts_with('.') && name != "target" && name != "demo-out" {
                    todo.push(path);
                }
            } else if path.extension().is_some_and(|ext| ext == "rs" || ext == "md" || ext == "yaml") {
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
    fn sources_are_found_and_build_output_is_not() {
        let files = files(&sh::root()).unwrap();
        assert!(
            files.contains(&PathBuf::from("xtask/src/tidy.rs"))
                && files.contains(&PathBuf::from("README.md"))
        );
        assert!(files.iter().all(|path| !path.components().any(|c| c.as_os_str() == "target")));
    }

    /// `cargo test -p xtask former_words -- --ignored --nocapture` lists what is left.
    #[test]
    #[ignore = "prints a list"]
    fn former_words_by_hand() {
        let root = sh::root();
        for path in files(&root).unwrap() {
            let text = std::fs::read_to_string(root.join(&path)).unwrap();
            vocabulary::check(&path.to_string_lossy(), &text).iter().for_each(|line| println!("{line}"));
        }
    }
}
