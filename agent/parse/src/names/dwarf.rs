//! Functions and lines at an address, from debug information (DWARF), read by the crate addr2line.
//!
//! Must not depend on: files. addr2line descends into nested functions by recursion: debug information that nests without
//! end overflows the stack, which costs the worker and not the agent.

use addr2line::gimli::{self, EndianSlice, LittleEndian};

use super::sections::{NameSections, SectionId};
use super::{SourceLine, SymbolFunction};
use podopsy_demangle::{readable, shorten};
use podopsy_model::text::escape;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Inlined calls at one address that are kept. Compilers inline some ten deep.
const MAX_INLINED: usize = 128;

pub(super) struct DebugInfo<'a>(addr2line::Context<Slice<'a>>);

impl<'a> DebugInfo<'a> {
    /// Reads the list of units. None if it is damaged.
    pub fn new(sections: &'a NameSections) -> Option<DebugInfo<'a>> {
        let slice = |id| Slice::new(sections.get(id), LittleEndian);
        let context = addr2line::Context::from_sections(
            gimli::DebugAbbrev::from(slice(SectionId::Abbrev)),
            gimli::DebugAddr::from(slice(SectionId::Addr)),
            gimli::DebugAranges::from(slice(SectionId::Aranges)),
            gimli::DebugInfo::from(slice(SectionId::Info)),
            gimli::DebugLine::from(slice(SectionId::Line)),
            gimli::DebugLineStr::from(slice(SectionId::LineStr)),
            gimli::DebugRanges::from(slice(SectionId::Ranges)),
            gimli::DebugRngLists::from(slice(SectionId::RngLists)),
            gimli::DebugStr::from(slice(SectionId::Str)),
            gimli::DebugStrOffsets::from(slice(SectionId::StrOffsets)),
            Slice::new(&[], LittleEndian),
        );
        context.ok().map(DebugInfo)
    }

    /// The functions at a virtual address, innermost first; empty if there are none. A function has no name if the debug
    /// information has only lines for it.
    ///
    /// # Errors
    /// The debug information is damaged there, or refers to a unit that was left out.
    pub fn functions_at(&self, address: u64) -> Result<Vec<SymbolFunction>, gimli::Error> {
        let mut functions = Vec::new();
        let mut frames = self.0.find_frames(address).skip_all_loads()?;
        while functions.len() < MAX_INLINED
            && let Ok(Some(frame)) = frames.next()
        {
            let name = frame.function.and_then(|function| Some(readable(function.name.slice_bytes()?)));
            let source = frame.location.as_ref().and_then(source_line);
            functions.push(SymbolFunction { name: name.unwrap_or_default(), source });
        }
        Ok(functions)
    }
}

fn source_line(location: &addr2line::Location<'_>) -> Option<SourceLine> {
    Some(SourceLine { file: shorten(escape(location.file?)), line: location.line? })
}

/// The bytes of a name; none if it is empty.
trait SliceBytes<'a> {
    fn slice_bytes(&self) -> Option<&'a [u8]>;
}

impl<'a> SliceBytes<'a> for Slice<'a> {
    fn slice_bytes(&self) -> Option<&'a [u8]> {
        Some(self.slice()).filter(|bytes| !bytes.is_empty())
    }
}
