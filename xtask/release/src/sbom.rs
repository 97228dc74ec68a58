//! The bill of materials: CycloneDX 1.5, JSON.
//!
//! The same sources give the same bytes: the time is the commit's, and there is no random serial number.

use anyhow::{Context, Result, ensure};
use cyclonedx_bom::external_models::date_time::DateTime;
use cyclonedx_bom::external_models::uri::Purl;
use cyclonedx_bom::models::bom::Bom;
use cyclonedx_bom::models::component::{Classification, Component, Components};
use cyclonedx_bom::models::dependency::{Dependencies, Dependency};
use cyclonedx_bom::models::hash::{Hash, HashAlgorithm, HashValue, Hashes};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::metadata::Metadata;
use cyclonedx_bom::models::property::{Properties, Property};
use cyclonedx_bom::prelude::Validate;

use crate::packages::{Package, PackageId, Packages};

/// C code that a package compiles and links, which cargo has no version of.
#[derive(Clone, Debug)]
pub struct LinkedSource {
    pub name: String,
    pub version: String,
    /// A name that no SPDX expression has, e.g. a dedication to the public domain.
    pub license: String,
    /// The package that brings it.
    pub inside_of: String,
}

/// What the release itself is.
#[derive(Clone, Debug)]
pub struct Subject {
    pub name: String,
    pub version: String,
    /// Of the commit, in RFC 3339.
    pub time: String,
    pub compiler: String,
}

/// The document, checked against the specification.
pub fn write(subject: &Subject, packages: &Packages, sources: &[LinkedSource]) -> Result<Vec<u8>> {
    let bom = Bom {
        serial_number: None,
        metadata: Some(metadata(subject)?),
        components: Some(Components(components(packages, sources))),
        dependencies: Some(Dependencies(dependencies(subject, packages, sources))),
        ..Bom::default()
    };
    let checked = bom.validate();
    ensure!(checked.passed(), "the bill of materials breaks its specification: {checked:?}");
    let mut json = Vec::new();
    bom.output_as_json_v1_5(&mut json).context("write the bill of materials")?;
    Ok(json)
}

fn metadata(subject: &Subject) -> Result<Metadata> {
    let Subject { name, version, time, compiler } = subject;
    let mut component = Component::new(Classification::Application, name, version, Some(name.clone()));
    component.licenses = Some(Licenses(vec![LicenseChoice::expression("Apache-2.0 OR MIT")]));
    let built_with = Property::new("podopsy:compiler", compiler);
    Ok(Metadata {
        timestamp: Some(DateTime::try_from(time.clone()).context("the commit's time")?),
        component: Some(component),
        properties: Some(Properties(vec![built_with])),
        ..Metadata::default()
    })
}

fn components(packages: &Packages, sources: &[LinkedSource]) -> Vec<Component> {
    let crates = packages.all.iter().map(|(id, package)| component(id, package));
    let sources = sources.iter().map(|source| {
        let reference = Some(source_reference(source));
        let mut component = Component::new(Classification::Library, &source.name, &source.version, reference);
        component.licenses = Some(Licenses(vec![LicenseChoice::license(&source.license)]));
        component
    });
    crates.chain(sources).collect()
}

fn component((name, version): &PackageId, package: &Package) -> Component {
    let id = (name.clone(), version.clone());
    let mut component = Component::new(Classification::Library, name, version, Some(reference(&id)));
    if !package.license.is_empty() {
        // Cargo still takes the slash of before SPDX expressions.
        let expression = package.license.replace('/', " OR ");
        component.licenses = Some(Licenses(vec![LicenseChoice::expression(&expression)]));
    }
    if let Some(checksum) = &package.checksum {
        // Only what a registry has is a package by a URL.
        component.purl = Purl::new("cargo", name, version).ok();
        let hash = Hash { alg: HashAlgorithm::SHA_256, content: HashValue(checksum.clone()) };
        component.hashes = Some(Hashes(vec![hash]));
    }
    component
}

fn dependencies(subject: &Subject, packages: &Packages, sources: &[LinkedSource]) -> Vec<Dependency> {
    let roots = packages.roots.iter().map(reference).collect();
    let top = Dependency { dependency_ref: subject.name.clone(), dependencies: roots };
    let of_package = |(id, package): (&PackageId, &Package)| {
        let linked = sources.iter().filter(|source| source.inside_of == id.0).map(source_reference);
        let dependencies = package.depends_on.iter().map(reference).chain(linked).collect();
        Dependency { dependency_ref: reference(id), dependencies }
    };
    std::iter::once(top).chain(packages.all.iter().map(of_package)).collect()
}

fn reference((name, version): &PackageId) -> String {
    format!("{name}@{version}")
}

fn source_reference(source: &LinkedSource) -> String {
    format!("{}@{}", source.name, source.version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn example() -> Vec<u8> {
        let id = |name: &str| (name.to_owned(), "1.0.0".to_owned());
        let app =
            Package { license: "MIT".to_owned(), checksum: None, depends_on: BTreeSet::from([id("lib")]) };
        let checksum = Some("ab".repeat(32));
        let lib = Package { license: "MIT/Apache-2.0".to_owned(), checksum, depends_on: BTreeSet::new() };
        let packages =
            Packages { roots: vec![id("app")], all: BTreeMap::from([(id("app"), app), (id("lib"), lib)]) };
        let subject = Subject {
            name: "podopsy".to_owned(),
            version: "1.2.3".to_owned(),
            time: "2026-11-30T01:02:03Z".to_owned(),
            compiler: "rustc 1.95.0".to_owned(),
        };
        let sqlite = LinkedSource {
            name: "sqlite".to_owned(),
            version: "3.54.1".to_owned(),
            license: "Public domain".to_owned(),
            inside_of: "lib".to_owned(),
        };
        write(&subject, &packages, &[sqlite]).unwrap()
    }

    #[test]
    fn a_bill_of_materials_is_valid_and_names_packages_licenses_and_what_needs_what() {
        let bom = Bom::parse_from_json_v1_5(&example()[..]).unwrap();
        assert!(bom.validate().passed());
        let components = bom.components.unwrap().0;
        let names: Vec<&str> = components.iter().map(|component| component.name.as_ref()).collect();
        assert_eq!(names, ["app", "lib", "sqlite"]);
        assert_eq!(components[1].purl.as_ref().unwrap().to_string(), "pkg:cargo/lib@1.0.0");
        assert!(components[0].purl.is_none(), "our own package is in no registry");
        let depends = bom.dependencies.unwrap().0;
        let of =
            |name: &str| &depends.iter().find(|entry| entry.dependency_ref == name).unwrap().dependencies;
        assert_eq!(
            (&of("podopsy")[..], &of("app@1.0.0")[..], &of("lib@1.0.0")[..]),
            (&["app@1.0.0".to_owned()][..], &["lib@1.0.0".to_owned()][..], &["sqlite@3.54.1".to_owned()][..])
        );
    }

    #[test]
    fn the_same_packages_give_the_same_bytes() {
        assert_eq!(example(), example());
    }
}
