//! What is in an image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::image::Arch;

/// How an image's layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// For images that do not leave this machine.
    None,
    /// For registries.
    Gzip,
}

/// The content of an image for one platform.
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) name: String,
    pub(crate) arch: Arch,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) compression: Compression,
    /// The path in the image, and the path on this machine.
    pub(crate) programs: Vec<(String, PathBuf)>,
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Image {
    /// An image for this machine's processor, e.g. `registry.podopsy.test/finance/checkout-api:1.4.2`.
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
            arch: Arch::default(),
            entrypoint: Vec::new(),
            user: None,
            compression: Compression::None,
            programs: Vec::new(),
            files: files.map(|(path, text)| (path.to_owned(), text.into())).into(),
            labels: BTreeMap::new(),
        }
    }

    /// For another processor than this machine's.
    pub fn arch(self, arch: Arch) -> Self {
        Self { arch, ..self }
    }

    pub fn compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// Puts a static program at `/bin/<its file name>`.
    pub fn binary(self, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.binary_at(format!("bin/{name}"), path)
    }

    /// Puts a static program at a path without a leading slash.
    pub fn binary_at(mut self, target: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.programs.push((target.into(), path.into()));
        self
    }

    /// A file at a path without a leading slash.
    pub fn file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((path.into(), content.into()));
        self
    }

    /// The program of a container that has no command.
    pub fn entrypoint<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = command.into_iter().map(Into::into).collect();
        self
    }

    /// `UID:GID` of the program.
    pub fn user(self, user: impl Into<String>) -> Self {
        Self { user: Some(user.into()), ..self }
    }

    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}
