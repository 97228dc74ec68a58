//! The bill of materials of the image, against the JSON schema of CycloneDX in the library of its authors.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read()))
";

/// Where `cargo xtask setup test` puts the validator.
fn python() -> PathBuf {
    let of = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let cache = of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache"))).expect("a cache folder");
    cache.join("podopsy/sbom/bin/python")
}

fn validate(document: &Path) -> Output {
    Command::new(python()).args(["-c", VALIDATE]).arg(document).output().expect("start the validator")
}

/// Has `podopsy-release` write an image of two programs that nothing reads.
fn write_image(folder: &Path) {
    for program in ["podopsy", "podopsy-agent"] {
        std::fs::write(folder.join(program), program).unwrap();
    }
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = Command::new(env!("CARGO_BIN_EXE_podopsy-release"));
    command.args(["image", "--tag", "podopsy:test"]);
    command.args(["--target", &target, "--programs"]).arg(folder).arg("--out").arg(folder.join("out"));
    let status = command.status().expect("start podopsy-release");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "needs `cargo xtask setup test`"]
fn the_bill_of_materials_fits_the_schema_of_cyclonedx() {
    let folder = tempfile::tempdir().unwrap();
    write_image(folder.path());
    let document = folder.path().join(concat!("out/podopsy-", env!("CARGO_PKG_VERSION"), ".cdx.json"));
    let verdict = validate(&document);
    assert!(verdict.status.success(), "{}", String::from_utf8_lossy(&verdict.stderr));

    // The validator finds what the schema forbids.
    let text = std::fs::read_to_string(&document).unwrap();
    let mut wrong: serde_json::Value = serde_json::from_str(&text).unwrap();
    let packages = wrong["components"].as_array().map_or(0, Vec::len);
    assert!(packages > 200, "{packages} packages");
    wrong["components"][0]["type"] = "crate".into();
    std::fs::write(&document, wrong.to_string()).unwrap();
    let verdict = String::from_utf8_lossy(&validate(&document).stderr).into_owned();
    assert!(verdict.contains("'crate' is not one of"), "{verdict}");
}
