//! Which packages have to be unpacked together: a package, every package that it requires in an exact version, and the
//! libraries that the installed packages do not provide.
//!
//! A program that is unpacked beside the system finds the system's libraries. If those are of another version, it does not
//! start: BIND puts its version into its libraries' names (`libisc-9.18.47-1~deb12u1-Debian.so`).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::version;

/// Names and versions of packages.
pub type Versions = BTreeMap<String, String>;

/// A package as `apt-cache show` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub package: String,
    pub version: String,
    section: String,
    dependencies: Vec<Dependency>,
}

/// A dependency: one of the alternatives is enough.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dependency(Vec<Requirement>);

/// `NAME` or `NAME (RELATION VERSION)`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    name: String,
    bound: Option<(Relation, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Earlier,
    AtMost,
    Exactly,
    AtLeast,
    Later,
}

impl Record {
    /// Reads stanzas of `Field: value`, separated by empty lines; continuation lines are skipped.
    pub fn parse_all(text: &str) -> Vec<Record> {
        text.split("\n\n").filter_map(Record::parse).collect()
    }

    fn parse(stanza: &str) -> Option<Record> {
        let field = |name: &str| {
            stanza.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
        };
        let dependencies = ["Pre-Depends", "Depends"].into_iter().filter_map(field);
        let dependencies = dependencies.flat_map(|list| list.split(',')).map(Dependency::parse);
        Some(Record {
            package: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            section: field("Section").unwrap_or_default().to_owned(),
            dependencies: dependencies.collect(),
        })
    }

    /// The packages that this one requires in one exact version, with that version.
    pub fn exact_dependencies(&self) -> impl Iterator<Item = (&str, &str)> {
        self.dependencies.iter().filter_map(Dependency::exact)
    }

    fn is_library(&self) -> bool {
        // "libs", or "contrib/libs" outside of main.
        self.section.rsplit('/').next() == Some("libs")
    }
}

impl Dependency {
    fn parse(text: &str) -> Dependency {
        Dependency(text.split('|').filter_map(Requirement::parse).collect())
    }

    fn exact(&self) -> Option<(&str, &str)> {
        match self.0.as_slice() {
            [Requirement { name, bound: Some((Relation::Exactly, version)) }] => Some((name, version)),
            _ => None,
        }
    }

    fn is_satisfied_by(&self, installed: &Versions) -> bool {
        self.0.iter().any(|requirement| requirement.is_satisfied_by(installed))
    }
}

impl Requirement {
    fn parse(text: &str) -> Option<Requirement> {
        let (name, bound) = match text.split_once('(') {
            Some((name, bound)) => (name, Some(parse_bound(bound)?)),
            None => (text, None),
        };
        // "python3:any", and "libc6 [amd64]" in sources.
        let name = name.trim().split([':', ' ']).next().filter(|name| !name.is_empty())?;
        Some(Requirement { name: name.to_owned(), bound })
    }

    fn is_satisfied_by(&self, installed: &Versions) -> bool {
        let Some(installed) = installed.get(&self.name) else {
            return false;
        };
        self.bound.as_ref().is_none_or(|(relation, bound)| {
            let order = version::compare(installed, bound);
            match relation {
                Relation::Earlier => order.is_lt(),
                Relation::AtMost => order.is_le(),
                Relation::Exactly => order.is_eq(),
                Relation::AtLeast => order.is_ge(),
                Relation::Later => order.is_gt(),
            }
        })
    }
}

/// `>= 1.2)`, what follows the opening parenthesis.
fn parse_bound(text: &str) -> Option<(Relation, String)> {
    let text = text.trim().trim_end_matches(')').trim();
    let (relation, version) = text.split_at(text.find(|c: char| !"<>=".contains(c))?);
    let relation = match relation {
        "<<" => Relation::Earlier,
        "<=" => Relation::AtMost,
        "=" => Relation::Exactly,
        ">=" => Relation::AtLeast,
        ">>" => Relation::Later,
        _ => return None,
    };
    Some((relation, version.trim().to_owned()))
}

/// Selects the packages to unpack for `names`: those, and recursively
///
/// - every dependency on one exact version, whatever is installed: an installed package can be upgraded at any time;
/// - every library that the installed packages do not provide in the version that is asked for.
///
/// Other dependencies (`adduser`, `debconf`) serve the installation, which does not happen. `look_up` gets `NAME` or
/// `NAME=VERSION` each and returns the records that apt has of them.
pub fn select(
    names: &[&str],
    installed: &Versions,
    mut look_up: impl FnMut(&[String]) -> Result<Vec<Record>>,
) -> Result<Versions> {
    let mut selected = Versions::new();
    let mut requests: BTreeSet<Request> =
        names.iter().map(|name| Request::Named((*name).to_owned())).collect();
    let mut seen = requests.clone();
    while !requests.is_empty() {
        let queries: Vec<String> = requests.iter().map(Request::query).collect();
        let records = look_up(&queries)?;
        let mut next = BTreeSet::new();
        for request in &requests {
            let Some(record) = request.choose(&records)? else {
                continue;
            };
            let version = selected.entry(record.package.clone()).or_insert_with(|| record.version.clone());
            ensure!(
                *version == record.version,
                "{} is required in the versions {version} and {}",
                record.package,
                record.version
            );
            next.extend(
                record.dependencies.iter().filter_map(|dependency| request_for(dependency, installed)),
            );
        }
        next.retain(|request| {
            !selected.contains_key(request.name()) || matches!(request, Request::Exact(..))
        });
        requests = next.into_iter().filter(|request| seen.insert(request.clone())).collect();
    }
    Ok(selected)
}

/// A package to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Request {
    /// Asked for by the caller.
    Named(String),
    /// Required in this version.
    Exact(String, String),
    /// Not installed in the required version: to be unpacked if it is a library.
    Unsatisfied(String),
}

impl Request {
    fn name(&self) -> &str {
        match self {
            Request::Named(name) | Request::Exact(name, _) | Request::Unsatisfied(name) => name,
        }
    }

    fn query(&self) -> String {
        match self {
            Request::Exact(name, version) => format!("{name}={version}"),
            Request::Named(name) | Request::Unsatisfied(name) => name.clone(),
        }
    }

    /// The record that answers the request; None if nothing has to be unpacked for it.
    fn choose<'a>(&self, records: &'a [Record]) -> Result<Option<&'a Record>> {
        let record = records.iter().find(|record| {
            let is_version = match self {
                Request::Exact(_, version) => record.version == *version,
                Request::Named(_) | Request::Unsatisfied(_) => true,
            };
            record.package == self.name() && is_version
        });
        match self {
            // apt knows no record of a virtual package.
            Request::Unsatisfied(_) => Ok(record.filter(|record| record.is_library())),
            _ => record.with_context(|| format!("apt's lists have no {}", self.query())).map(Some),
        }
    }
}

fn request_for(dependency: &Dependency, installed: &Versions) -> Option<Request> {
    if let Some((name, version)) = dependency.exact() {
        return Some(Request::Exact(name.to_owned(), version.to_owned()));
    }
    if dependency.is_satisfied_by(installed) {
        return None;
    }
    Some(Request::Unsatisfied(dependency.0.first()?.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `apt-cache show` printed on Debian 12, shortened.
    const SHOWN: &str = "\
Package: bind9
Version: 1:9.18.47-1~deb12u1
Installed-Size: 1106
Maintainer: Debian DNS Team <team+dns@tracker.debian.org>
Architecture: amd64
Depends: adduser, bind9-libs (= 1:9.18.47-1~deb12u1), debconf | debconf-2.0, libc6 (>= 2.34), libcap2 (>= 1:2.10), liblmdb0 (>= 0.9.7), zlib1g (>= 1:1.1.4)
Pre-Depends: init-system-helpers (>= 1.54~)
Section: net
Description: Internet Domain Name Server
 The Berkeley Internet Name Domain (BIND 9) implements an Internet domain
 name server.

Package: bind9-libs
Version: 1:9.18.47-1~deb12u1
Source: bind9
Depends: libuv1 (>= 1.40.0), libc6 (>= 2.34), libjson-c5 (>= 0.15)
Section: libs

Package: bind9-libs
Version: 1:9.18.33-1~deb12u2
Source: bind9
Depends: libuv1 (>= 1.40.0), libc6 (>= 2.34), libjson-c5 (>= 0.15)
Section: libs

Package: liblmdb0
Version: 0.9.24-1
Depends: libc6 (>= 2.14)
Section: libs

Package: libuv1
Version: 1.44.2-1+deb12u1
Depends: libc6 (>= 2.34)
Section: libs

Package: adduser
Version: 3.134
Depends: passwd
Section: admin
";

    fn versions(list: &[(&str, &str)]) -> Versions {
        list.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect()
    }

    /// apt-cache answers all that it has of a name, and one version of `NAME=VERSION`.
    fn look_up(queries: &[String]) -> Result<Vec<Record>> {
        let is_asked = |record: &Record| {
            queries.iter().any(|query| match query.split_once('=') {
                Some((name, version)) => record.package == name && record.version == version,
                None => record.package == *query,
            })
        };
        Ok(Record::parse_all(SHOWN).into_iter().filter(is_asked).collect())
    }

    #[test]
    fn a_package_comes_with_the_exact_version_that_it_requires_although_an_older_one_is_installed() {
        let installed = versions(&[
            ("bind9-libs", "1:9.18.33-1~deb12u2"),
            ("bind9-dnsutils", "1:9.18.33-1~deb12u2"),
            ("libc6", "2.36-9+deb12u10"),
            ("libcap2", "1:2.66-4+deb12u2+b2"),
            ("libjson-c5", "0.16-2"),
            ("liblmdb0", "0.9.24-1"),
            ("libuv1", "1.44.2-1+deb12u1"),
            ("zlib1g", "1:1.2.13.dfsg-1"),
        ]);
        let selected = select(&["bind9"], &installed, look_up).unwrap();
        let expected = [("bind9", "1:9.18.47-1~deb12u1"), ("bind9-libs", "1:9.18.47-1~deb12u1")];
        assert_eq!(selected, versions(&expected));
    }

    #[test]
    fn libraries_that_are_missing_or_too_old_come_along_and_installers_helpers_do_not() {
        let installed = versions(&[
            ("libc6", "2.36-9"),
            ("libcap2", "1:2.66-4"),
            ("libjson-c5", "0.16-2"),
            ("libuv1", "1.24.1-1"),
            ("zlib1g", "1:1.2.13.dfsg-1"),
        ]);
        let selected = select(&["bind9"], &installed, look_up).unwrap();
        let names: Vec<_> = selected.keys().map(String::as_str).collect();
        assert_eq!(names, ["bind9", "bind9-libs", "liblmdb0", "libuv1"]);
    }

    #[test]
    fn a_required_version_that_apt_does_not_have_is_an_error() {
        let without = |queries: &[String]| {
            Ok(look_up(queries)?.into_iter().filter(|record| record.package != "bind9-libs").collect())
        };
        let error = select(&["bind9"], &Versions::new(), without).unwrap_err().to_string();
        assert_eq!(error, "apt's lists have no bind9-libs=1:9.18.47-1~deb12u1");
        assert!(select(&["no-such-package"], &Versions::new(), look_up).is_err());
    }

    #[test]
    fn alternatives_and_bounds_are_compared_with_what_is_installed() {
        let installed = versions(&[("debconf-2.0", "1"), ("libc6", "2.36-9"), ("host", "9")]);
        let is_satisfied = |text: &str| Dependency::parse(text).is_satisfied_by(&installed);
        assert!(is_satisfied("debconf | debconf-2.0") && is_satisfied("libc6:any (>= 2.34)"));
        assert!(is_satisfied("libc6 (<< 2.37)") && is_satisfied("host (= 9)") && is_satisfied("host (<= 9)"));
        assert!(
            !is_satisfied("libc6 (>= 2.38)") && !is_satisfied("host (>> 9)") && !is_satisfied("bind9-host")
        );
    }
}
