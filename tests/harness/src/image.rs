//! Container images made from scratch: an OCI image layout (image-spec 1.0) in a tar file, with one uncompressed layer.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The contents of an image.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    /// Programs: the path in the image, and the path on this machine.
    binaries: Vec<(String, PathBuf)>,
    files: Vec<(String, String)>,
}

impl Image {
    /// An image of that name, e.g. `registry.podopsy.test/finance/checkout-api:1.4.2`, from scratch.
    pub fn new(name: impl Into<String>) -> Self {
        let files = [
            ("etc/passwd", "root:x:0:0:root:/:/bin/false\n"),
            ("etc/group", "root:x:0:\n"),
            ("etc/nsswitch.conf", "hosts: files dns\n"),
            // Mounted over in every container; where they exist, runc need not make them.
            ("etc/resolv.conf", ""),
            ("etc/hosts", "127.0.0.1 localhost\n"),
        ];
        Self {
            name: name.into(),
            entrypoint: Vec::new(),
            binaries: Vec::new(),
            files: files.map(|(path, text)| (path.to_owned(), text.to_owned())).into(),
        }
    }

    /// Puts a static program at `/bin/<its file name>`.
    pub fn binary(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.binary_at(format!("bin/{name}"), path)
    }

    /// Puts a static program at a path without a leading slash.
    pub fn binary_at(mut self, target: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.binaries.push((target.into(), path.into()));
        self
    }

    /// A text file at a path without a leading slash.
    pub fn file(mut self, path: impl Into<String>, text: impl Into<String>) -> Self {
        self.files.push((path.into(), text.into()));
        self
    }

    /// The program of a container that has no command.
    pub fn entrypoint<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = command.into_iter().map(Into::into).collect();
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the archive that `ctr images import` reads.
    pub fn write(&self, archive: &Path) -> anyhow::Result<()> {
        let layer = Blob::new(self.layer()?);
        let config = json!({
            // OCI wants Go's names.
            "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/bin"],
                "WorkingDir": "/",
                // An image's id is its config's digest, and CRI reports one name for an id: without this label, CRI
                // could report two images of the same content by either name.
                "Labels": { "org.opencontainers.image.ref.name": self.name },
            },
            "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
        });
        let config = Blob::new(config.to_string().into_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
        });
        let manifest = Blob::new(manifest.to_string().into_bytes());
        let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        entry["annotations"] = json!({ "io.containerd.image.name": self.name });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();

        let file = std::fs::File::create(archive).with_context(|| format!("write {}", archive.display()))?;
        let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
        append(&mut tar, "index.json", index.as_bytes(), 0o644)?;
        for blob in [&layer, &config, &manifest] {
            let name = blob.digest.replace(':', "/");
            append(&mut tar, &format!("blobs/{name}"), &blob.bytes, 0o644)?;
        }
        let mut writer = tar.into_inner()?;
        std::io::Write::flush(&mut writer).with_context(|| format!("write {}", archive.display()))
    }

    /// The one layer; the same content gives the same bytes, so containerd unpacks it once for all images.
    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for folder in ["bin/", "etc/", "proc/", "sys/", "dev/", "tmp/", "run/"] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(if folder == "tmp/" { 0o1777 } else { 0o755 });
            header.set_size(0);
            tar.append_data(&mut header, folder, std::io::empty())?;
        }
        for (path, text) in &self.files {
            append(&mut tar, path, text.as_bytes(), 0o644)?;
        }
        for (place, path) in &self.binaries {
            let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            append(&mut tar, place, &bytes, 0o755)?;
        }
        Ok(tar.into_inner()?)
    }
}

/// One file, owned by root and dated 1970, so that an image does not depend on when and by whom it was made.
fn append(
    tar: &mut tar::Builder<impl std::io::Write>,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("add {path} to an image"))
}

/// Bytes and their digest, which is computed once: a layer is large.
struct Blob {
    bytes: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { bytes, digest: format!("sha256:{hex}") }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}
