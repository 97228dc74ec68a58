//! Which formats there are, and what they are called: by the endings of files, and by name.

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

    pub fn name(self) -> &'static str {
        match self {
            Format::Pprof => "pprof",
            Format::Folded => "folded",
            Format::Svg => "svg",
            Format::Speedscope => "speedscope",
            Format::Firefox => "firefox",
        }
    }

    /// How a file ends that is in this format.
    pub fn ending(self) -> &'static str {
        match self {
            Format::Pprof => ".pb.gz",
            Format::Folded => ".folded",
            Format::Svg => ".svg",
            Format::Speedscope => ".speedscope.json",
            Format::Firefox => ".firefox.json",
        }
    }

    /// The format that a file's name asks for by its ending. A name that is nothing but an ending (`.svg`) is a hidden
    /// file without one.
    pub fn of_file(name: &[u8]) -> Option<Format> {
        Self::ALL.into_iter().find(|format| {
            let ending = format.ending().as_bytes();
            name.len() > ending.len() && name.ends_with(ending)
        })
    }

    pub fn named(name: &str) -> Option<Format> {
        Self::ALL.into_iter().find(|format| format.name() == name)
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
