//! What is installed, compared with what apt offers: two calls for all packages together.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::dependencies::Versions;
use super::{Package, version};

/// What has to be done for a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Installed in the version that apt offers, or in a newer one, or apt offers none: its lists may be missing.
    Current,
    Missing,
    Outdated {
        installed: String,
        candidate: String,
    },
    /// Outdated, and the user has put it on hold.
    Held {
        installed: String,
        candidate: String,
    },
}

/// The status of each package, in their order.
pub fn of(packages: &[Package]) -> Result<Vec<Status>> {
    let names: Vec<_> = packages.iter().map(|package| package.name).collect();
    // dpkg-query exits 1 when a package is unknown, and still lists the others.
    let listing = output(Command::new("dpkg-query").args(["-W", "-f", LISTING]).args(&names))?;
    let policy = output(Command::new("apt-cache").arg("policy").args(&names))?;
    Ok(assess(&names, &listing, &policy))
}

/// A line of dpkg-query: the two letters of the state, the name, the version.
const LISTING: &str = "${db:Status-Abbrev} ${Package} ${Version}\\n";

/// Every installed package with its version, and what they provide.
pub fn installed() -> Result<Versions> {
    let format = "${db:Status-Abbrev}|${Package}|${Version}|${Provides}\\n";
    Ok(parse_installed(&output(Command::new("dpkg-query").args(["-W", "-f", format]))?))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn assess(names: &[&str], listing: &str, policy: &str) -> Vec<Status> {
    let candidates = parse_candidates(policy);
    let status = |name: &&str| {
        let Some((state, installed)) = find_installed(listing, name) else {
            return Status::Missing;
        };
        let installed = installed.to_owned();
        match candidates.get(*name) {
            Some(candidate) if version::compare(&installed, candidate).is_lt() => {
                let candidate = (*candidate).to_owned();
                if state.starts_with('h') {
                    Status::Held { installed, candidate }
                } else {
                    Status::Outdated { installed, candidate }
                }
            }
            _ => Status::Current,
        }
    };
    names.iter().map(status).collect()
}

/// State and version of the package, if it is installed.
fn find_installed<'a>(listing: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    listing.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (state, package, version) = (fields.next()?, fields.next()?, fields.next()?);
        // "ii": wanted and installed; "hi": held and installed; "rc": removed, its configuration left.
        (state.ends_with('i') && package == name).then_some((state, version))
    })
}

/// The candidates in the output of `apt-cache policy`: a line `NAME:`, and below it indented fields.
fn parse_candidates(policy: &str) -> BTreeMap<&str, &str> {
    let mut candidates = BTreeMap::new();
    let mut package = "";
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            package = name;
        }
        if let Some(candidate) = line.trim_start().strip_prefix("Candidate: ")
            && candidate != "(none)"
        {
            candidates.insert(package, candidate);
        }
    }
    candidates
}

fn parse_installed(listing: &str) -> Versions {
    let mut versions = Versions::new();
    for line in listing.lines() {
        let fields: Vec<_> = line.split('|').collect();
        let [state, package, version, provides] = fields[..] else {
            continue;
        };
        if !state.trim_end().ends_with('i') {
            continue;
        }
        versions.insert(package.to_owned(), version.to_owned());
        // "libz1 (= 1.2)", or a name alone, which satisfies no requirement on a version: the lowest one that there is.
        for provided in provides.split(',').map(str::trim).filter(|provided| !provided.is_empty()) {
            let (name, version) = provided.split_once(" (= ").unwrap_or((provided, "0~)"));
            versions.entry(name.to_owned()).or_insert_with(|| version.trim_end_matches(')').to_owned());
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
bind9-dnsutils:
  Installed: 1:9.18.33-1~deb12u2
  Candidate: 1:9.18.47-1~deb12u1
  Version table:
     1:9.18.47-1~deb12u1 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
        500 http://deb.debian.org/debian-security bookworm-security/main amd64 Packages
 *** 1:9.18.33-1~deb12u2 100
        100 /var/lib/dpkg/status
runc:
  Installed: 1.1.5+ds1-1+b1
  Candidate: 1.1.5+ds1-1+deb12u1
  Version table:
     1.1.5+ds1-1+deb12u1 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
 *** 1.1.5+ds1-1+b1 100
        100 /var/lib/dpkg/status
containerd:
  Installed: 1.6.20~ds1-1+deb12u1
  Candidate: 1.6.20~ds1-1+deb12u1
  Version table:
 *** 1.6.20~ds1-1+deb12u1 100
        100 /var/lib/dpkg/status
iptables:
  Installed: (none)
  Candidate: 1.8.9-2
  Version table:
     1.8.9-2 500
        500 http://deb.debian.org/debian bookworm/main amd64 Packages
";

    #[test]
    fn a_package_that_is_older_than_the_candidate_does_not_count_as_installed() {
        let listing = "ii  bind9-dnsutils 1:9.18.33-1~deb12u2\nhi  runc 1.1.5+ds1-1+b1\n\
                       ii  containerd 1.6.20~ds1-1+deb12u1\nrc  iptables 1.8.9-2\n";
        let names = ["bind9-dnsutils", "runc", "containerd", "iptables", "golang-go"];
        let expected = [
            Status::Outdated {
                installed: "1:9.18.33-1~deb12u2".into(),
                candidate: "1:9.18.47-1~deb12u1".into(),
            },
            Status::Held { installed: "1.1.5+ds1-1+b1".into(), candidate: "1.1.5+ds1-1+deb12u1".into() },
            Status::Current,
            Status::Missing,
            Status::Missing,
        ];
        assert_eq!(assess(&names, listing, POLICY), expected);
    }

    #[test]
    fn without_lists_whatever_is_installed_counts() {
        let listing = "ii  bind9-dnsutils 1:9.18.33-1~deb12u2\nii  runc 1.1.5+ds1-1+b1\n";
        let without_lists = "bind9-dnsutils:\n  Installed: 1:9.18.33-1~deb12u2\n  Candidate: 1:9.18.33-1~deb12u2\n  \
                             Version table:\n *** 1:9.18.33-1~deb12u2 100\n        100 /var/lib/dpkg/status\n\
                             runc:\n  Installed: 1.1.5+ds1-1+b1\n  Candidate: (none)\n";
        for policy in [without_lists, ""] {
            let found = assess(&["bind9-dnsutils", "runc"], listing, policy);
            assert_eq!(found, [Status::Current, Status::Current], "{policy}");
        }
    }

    #[test]
    fn an_installed_version_that_is_newer_than_the_candidate_counts() {
        let found = assess(&["containerd"], "ii  containerd 1.7.24~ds1-6\n", POLICY);
        assert_eq!(found, [Status::Current]);
    }

    #[test]
    fn installed_packages_and_what_they_provide_are_listed() {
        let listing = "ii |libssl3t64|3.5.1-1|libssl3 (= 3.5.1-1)\nrc |libuv1|1.44.2-1|\n\
                       hi |debconf|1.5.82|debconf-2.0\n";
        let versions: Vec<_> = parse_installed(listing).into_iter().collect();
        let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(
            versions,
            [
                pair("debconf", "1.5.82"),
                pair("debconf-2.0", "0~"),
                pair("libssl3", "3.5.1-1"),
                pair("libssl3t64", "3.5.1-1")
            ]
        );
    }
}
