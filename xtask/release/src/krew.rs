//! The manifest by which krew, kubectl's plugin manager, installs `kubectl podopsy`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Where the files of a release are downloaded from.
pub const DOWNLOADS: &str = "https://github.com/podopsy/podopsy/releases/download";

/// Writes the manifest for an archive. JSON is YAML, and krew reads both.
pub fn write(version: &str, arch: &str, archive: &Path, target: &Path) -> Result<()> {
    let bytes = fs::read(archive).with_context(|| archive.display().to_string())?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let name = archive.file_name().context("an archive's name")?.to_string_lossy();
    let folder = format!("podopsy-{version}");
    let file = |from: &str, to: &str| json!({ "from": format!("{folder}/{from}"), "to": to });
    let manifest = json!({
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": { "name": "podopsy" },
        "spec": {
            "version": format!("v{version}"),
            "homepage": "https://github.com/podopsy/podopsy",
            "shortDescription": "What happened to this pod, and where in the code?",
            "description": "OOM kills, failed DNS lookups and CPU profiles of all nodes, from podopsy's agents.",
            "caveats": "The agents have to run in the cluster: docs/install.md. Exec in their pods is a strong right: docs/fleet.md.",
            "platforms": [{
                "selector": { "matchLabels": { "os": "linux", "arch": arch } },
                "uri": format!("{DOWNLOADS}/v{version}/{name}"),
                "sha256": digest,
                "files": [file("podopsy", "kubectl-podopsy"), file("LICENSE-APACHE", "."), file("LICENSE-MIT", ".")],
                "bin": "kubectl-podopsy",
            }],
        },
    });
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    fs::write(target, text).with_context(|| format!("write {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_names_the_archive_by_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("podopsy-1.2.3-linux-amd64.tar.gz");
        fs::write(&archive, "abc").unwrap();
        let target = folder.path().join("podopsy.krew.yaml");
        write("1.2.3", "amd64", &archive, &target).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&fs::read_to_string(target).unwrap()).unwrap();
        let platform = &manifest["spec"]["platforms"][0];
        // FIPS 180-2, appendix B.1.
        assert_eq!(platform["sha256"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let end = "/v1.2.3/podopsy-1.2.3-linux-amd64.tar.gz";
        assert!(platform["uri"].as_str().unwrap().ends_with(end), "{platform}");
        assert_eq!(platform["files"][0]["to"], platform["bin"], "krew links the program by this name");
    }
}
