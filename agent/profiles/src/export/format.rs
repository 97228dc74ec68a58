//! The formats, with their names and their file extensions.

use std::io::Write;

use super::{firefox, folded, pprof, speedscope, svg};
use podopsy_model::profile::Profile;

/// A format that a profile can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Pprof,
    Folded,
    Svg,
    Speedscope,
    Firefox,
}

impl Format {
    pub const ALL: [Format; 5] =
        [Format::Pprof, Format::Folded, Format::Svg, Format::Speedscope, Format::Firefox];

    pub fn as_str(self) -> &'static str {
        match self {
            Format::Pprof => "pprof",
            Format::Folded => "folded",
            Format::Svg => "svg",
            Format::Speedscope => "speedscope",
            Format::Firefox => "firefox",
        }
    }

    /// The ending of file names in this format, with the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Pprof => ".pb.gz",
            Format::Folded => ".folded",
            Format::Svg => ".svg",
            Format::Speedscope => ".speedscope.json",
            Format::Firefox => ".firefox.json",
        }
    }

    /// The format that the extension of a file name selects. A name that is only an extension (`.svg`) is a hidden file
    /// without one.
    pub fn from_file_name(name: &[u8]) -> Option<Format> {
        Self::ALL.into_iter().find(|format| {
            let extension = format.extension().as_bytes();
            name.len() > extension.len() && name.ends_with(extension)
        })
    }

    pub fn from_name(name: &str) -> Option<Format> {
        Self::ALL.into_iter().find(|format| format.as_str() == name)
    }

    pub fn write(self, profile: &Profile, out: impl Write) -> anyhow::Result<()> {
        match self {
            Format::Pprof => pprof::write(profile, out),
            Format::Folded => folded::write(profile, out),
            Format::Svg => svg::write(profile, out),
            Format::Speedscope => speedscope::write(profile, out),
            Format::Firefox => firefox::write(profile, out),
        }
    }
}
