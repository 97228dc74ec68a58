//! The packages that are compiled into a program, by `cargo tree`, with the checksums of the lock file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::source::cargo;

/// Name and version.
pub type PackageId = (String, String);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// An SPDX expression; empty if the package has none.
    pub license: String,
    /// SHA-256 of the package as crates.io has it; none for our own.
    pub checksum: Option<String>,
    pub depends_on: BTreeSet<PackageId>,
}

/// The packages of some programs of one workspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packages {
    pub roots: Vec<PackageId>,
    pub all: BTreeMap<PackageId, Package>,
}

impl Packages {
    /// The packages that are linked into `programs` on a target: no build scripts' and no macros' dependencies.
    pub fn of(folder: &Path, programs: &[&str], target: &str) -> Result<Packages> {
        let mut command = cargo();
        command.current_dir(folder).args(["tree", "--locked", "-e", "normal", "--prefix", "depth"]);
        command.args(["--format", " {p}|{l}", "--target", target]);
        command.args(programs.iter().flat_map(|program| ["-p", program]));
        let out = command.output().context("cannot start cargo tree")?;
        ensure!(out.status.success(), "cargo tree: {}", String::from_utf8_lossy(&out.stderr));
        let mut packages = parse(&String::from_utf8_lossy(&out.stdout))?;
        let lock = std::fs::read_to_string(folder.join("Cargo.lock")).context("Cargo.lock")?;
        packages.add_checksums(&lock)?;
        Ok(packages)
    }

    fn add_checksums(&mut self, lock: &str) -> Result<()> {
        let Lock { package } = toml::from_str(lock).context("Cargo.lock")?;
        for locked in package {
            if let Some(package) = self.all.get_mut(&(locked.name, locked.version)) {
                package.checksum = locked.checksum;
            }
        }
        Ok(())
    }

    /// The packages of both.
    pub fn and(mut self, other: Packages) -> Packages {
        self.roots.extend(other.roots);
        for (id, package) in other.all {
            self.all.entry(id).or_default().join(package);
        }
        self
    }
}

impl Package {
    fn join(&mut self, other: Package) {
        self.license = other.license;
        self.checksum = other.checksum.or(self.checksum.take());
        self.depends_on.extend(other.depends_on);
    }
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// Parses lines like `3 anstyle v1.0.14|MIT OR Apache-2.0 (*)`: the number is the depth. What follows a macro at a greater
/// depth runs in the compiler, and is left out.
fn parse(tree: &str) -> Result<Packages> {
    let mut packages = Packages::default();
    // The package at each depth above the line.
    let mut above: Vec<PackageId> = Vec::new();
    let mut macro_at = None;
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let (depth, rest) = line.split_once(' ').context("a line without a depth")?;
        let depth: usize = depth.parse().with_context(|| format!("the depth of {line:?}"))?;
        if macro_at.is_some_and(|at| depth > at) {
            continue;
        }
        macro_at = rest.contains("(proc-macro)").then_some(depth);
        if macro_at.is_some() {
            continue;
        }
        let (named, license) = rest.split_once('|').context("a line without a license field")?;
        let mut words = named.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
        let id = (name.to_owned(), version.trim_start_matches('v').to_owned());
        above.truncate(depth);
        match above.last() {
            Some(parent) => _ = packages.all.entry(parent.clone()).or_default().depends_on.insert(id.clone()),
            None => packages.roots.push(id.clone()),
        }
        let license = license.trim_end_matches("(*)").trim();
        packages.all.entry(id.clone()).or_default().license = license.to_owned();
        above.push(id);
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> PackageId {
        (name.to_owned(), "1.0.0".to_owned())
    }

    #[test]
    fn a_tree_without_its_macros_is_a_graph() {
        let tree = "0 app v1.0.0 (/src/app)|MIT\n1 a v1.0.0|MIT OR Apache-2.0\n2 b v1.0.0|Zlib\n\
                    1 m v1.0.0 (proc-macro)|MIT\n2 syn v1.0.0|MIT\n1 b v1.0.0|Zlib (*)\n\n0 tool v1.0.0|MIT\n1 a v1.0.0|MIT OR Apache-2.0 (*)\n";
        let packages = parse(tree).unwrap();
        assert_eq!(packages.roots, [id("app"), id("tool")]);
        assert_eq!(
            packages.all.keys().map(|(name, _)| &name[..]).collect::<Vec<_>>(),
            ["a", "app", "b", "tool"]
        );
        assert_eq!(packages.all[&id("app")].depends_on, BTreeSet::from([id("a"), id("b")]));
        assert_eq!(packages.all[&id("a")].license, "MIT OR Apache-2.0");
        assert!(parse("no depth").is_err());
    }

    #[test]
    fn our_own_programs_have_packages_with_licenses_and_checksums() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let packages =
            Packages::of(folder, &["podopsy", "podopsy-agent"], "x86_64-unknown-linux-gnu").unwrap();
        assert_eq!(packages.roots.len(), 2);
        let of = |name: &str| packages.all.iter().find(|(id, _)| id.0 == name);
        assert!(of("tokio").is_some_and(|(_, package)| package.checksum.as_ref().unwrap().len() == 64));
        assert!(of("podopsy-stacks").is_some_and(|(_, package)| package.checksum.is_none()));
        assert!(of("clap_derive").is_none() && of("framehop").is_none(), "they are not in the programs");
        assert_eq!(packages.all.values().filter(|package| package.license.is_empty()).count(), 0);
    }
}
