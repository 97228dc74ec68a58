//! `podopsy explain`: the glossary, which is built in.

use std::io::{self, Write as _};

use podopsy_model::target_match::similar_names;

use crate::args::ExplainArgs;
use crate::context::Context;
use crate::exit::{CommandOutcome, NotFound};
use crate::render::table::wrap;
use crate::terminal::Colour;

const GLOSSARY: &str = include_str!("../../../docs/glossary.md");

/// A row of one of the glossary's tables.
#[derive(Debug, PartialEq)]
pub struct Term<'a> {
    pub section: &'a str,
    pub name: &'a str,
    /// The type or the field that holds it; empty: none.
    code: &'a str,
    pub definition: &'a str,
}

pub fn run(context: &Context, args: &ExplainArgs) -> anyhow::Result<CommandOutcome> {
    let mut out = io::stdout().lock();
    if args.topic.is_empty() {
        return list(context, &mut out).map(|()| CommandOutcome::Success).map_err(Into::into);
    }
    let found = find(&args.topic.join(" "))?;
    for (index, term) in found.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{}", context.stdout.paint(Colour::Bold, term.name))?;
        writeln!(out, "{}", wrap(&plain(term.definition), context.stdout.width))?;
        let place = match plain(term.code).as_str() {
            "" => term.section.to_owned(),
            code => format!("{}; in the code: {code}", term.section),
        };
        for line in wrap(&place, context.stdout.width).lines() {
            writeln!(out, "{}", context.stdout.paint(Colour::Dim, line))?;
        }
    }
    Ok(CommandOutcome::Success)
}

/// All terms, by section.
fn list(context: &Context, out: &mut impl io::Write) -> io::Result<()> {
    let mut sections: Vec<(&str, Vec<&str>)> = Vec::new();
    for term in terms() {
        match sections.last_mut() {
            Some((section, names)) if *section == term.section => names.push(term.name),
            _ => sections.push((term.section, vec![term.name])),
        }
    }
    for (section, names) in sections {
        writeln!(out, "{}", context.stdout.paint(Colour::Bold, section))?;
        writeln!(out, "{}", wrap(&names.join(", "), context.stdout.width))?;
    }
    Ok(())
}

/// The term of this name, or else those whose names have it as a part.
pub fn find(topic: &str) -> Result<Vec<Term<'static>>, NotFound> {
    let topic = topic.to_lowercase();
    let with = |is: &dyn Fn(&str) -> bool| terms().filter(|term| is(&term.name.to_lowercase())).collect();
    let exact: Vec<_> = with(&|name| name.split(',').any(|one| one.trim() == topic));
    let found = if exact.is_empty() { with(&|name| name.contains(&topic)) } else { exact };
    if found.is_empty() {
        let similar = similar_names(&topic, terms().map(|term| term.name.to_lowercase()));
        return Err(NotFound(format!("the glossary has no term {topic:?}{similar}")));
    }
    Ok(found)
}

pub fn terms() -> impl Iterator<Item = Term<'static>> {
    let mut section = "";
    GLOSSARY.lines().filter_map(move |line| {
        if let Some(title) = line.strip_prefix("## ") {
            section = title;
        }
        let cells: Vec<&'static str> = line.strip_prefix('|')?.splitn(3, '|').map(str::trim).collect();
        match cells[..] {
            [name, code, definition] if name != "term" && !name.starts_with("---") => {
                let definition = definition.trim_end_matches('|').trim();
                Some(Term { section, name, code, definition })
            }
            _ => None,
        }
    })
}

/// Without what Markdown needs.
pub fn plain(text: &str) -> String {
    text.replace(['`', '*'], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_term_of_the_glossary_is_found_by_its_name() {
        let rows =
            GLOSSARY.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| term")).count();
        assert!(rows > 50, "{rows}");
        assert_eq!(terms().count(), rows);
        for term in terms() {
            assert!(!term.section.is_empty() && term.definition.len() > 10, "{term:?}");
            assert!(find(term.name).unwrap().contains(&term), "{}", term.name);
        }
    }

    #[test]
    fn a_part_of_a_name_finds_all_terms_that_have_it() {
        assert_eq!(find("cgroup id").unwrap().len(), 1);
        assert!(find("cgroup").unwrap().iter().any(|term| term.name == "cgroup id"));
        assert!(find("no such term").is_err());
    }
}
