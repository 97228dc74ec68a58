//! `podopsy profile diff`: compares two pprof files function by function.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::Context as _;
use podopsy_profiles::compare::{self, ComparisonBasis};
use podopsy_profiles::export::differential;
use podopsy_profiles::import::pprof::{PprofFile, PprofTables};
use podopsy_profiles::import::{ImportedProfile, ValueType};
use podopsy_profiles::unit;

use crate::args::{DiffArgs, DiffFormat};
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::output::{self, Output, shown};
use crate::render;
use crate::terminal::{Terminal, note};

pub fn run(context: &Context, args: &DiffArgs) -> anyhow::Result<CommandOutcome> {
    let pending = output::prepare(outputs(args)?)?;
    let (mut before, mut after) = read_both(args)?;
    anyhow::ensure!(unit::make_equal(&mut before, &mut after), "the units of {} differ", after.kind);
    for (path, profile) in [(&args.before, &before), (&args.after, &after)] {
        if profile.total() == 0 {
            note(&format!("{} has no samples: there is nothing to compare", shown(path)));
            return Ok(CommandOutcome::NothingFound);
        }
    }
    let by = if args.absolute { ComparisonBasis::Value } else { ComparisonBasis::Share };
    let compared = compare::compare(&before, &after, by);

    // Files before the table: they must be written even if the reader of stdout has closed the pipe.
    let stacks = compare::stacks(&before, &after, by);
    let title = format!("{} → {}", shown(&args.before), shown(&args.after));
    let mut failed = None;
    let written = pending.finish_with(|format, out| {
        let stacks = stacks.iter().map(|(stack, pair)| (stack.as_slice(), *pair));
        differential::write(format, &title, stacks, out)
    });
    for (output, result) in written {
        match result {
            Ok(()) => note(&format!("wrote {}", output.shown())),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let mut out = io::stdout().lock();
    match args.output {
        DiffFormat::Json => render::json(&mut out, &compared)?,
        DiffFormat::Table => render::diff::print(&mut out, context.stdout, &compared, args.top)?,
        DiffFormat::Wide => {
            let wide = Terminal { width: None, ..context.stdout };
            render::diff::print(&mut out, wide, &compared, args.top)?;
        }
    }
    failed.map_or(Ok(CommandOutcome::Success), Err)
}

fn outputs(args: &DiffArgs) -> Result<Vec<Output>, Refusal> {
    let outputs = args.write.iter().map(|path| {
        let output =
            Output::new(path.clone(), None).ok().filter(|output| differential::is_supported(output.format));
        output.ok_or_else(|| Refusal(format!("{}: a difference is written as .folded or .svg", shown(path))))
    });
    outputs.collect()
}

/// Reads values of one type from both files, in units that can be compared.
fn read_both(args: &DiffArgs) -> anyhow::Result<(ImportedProfile, ImportedProfile)> {
    let (before, after) = (unpack(&args.before)?, unpack(&args.after)?);
    let before = before.tables().with_context(|| shown(&args.before))?;
    let after = after.tables().with_context(|| shown(&args.after))?;
    let types = [
        before.value_types().with_context(|| shown(&args.before))?,
        after.value_types().with_context(|| shown(&args.after))?,
    ];
    let value = match &args.value {
        Some(value) => require_comparable(value, &types, [&args.before, &args.after]).map(|()| value.clone()),
        None => common_type(&types[0], &types[1]),
    };
    let value = value.map_err(Refusal)?;
    let read = |file: &PprofTables, path| file.read(Some(&value)).with_context(|| shown(path));
    Ok((read(&before, &args.before)?, read(&after, &args.after)?))
}

/// Refuses values of one type that are in units of different quantities. A file that has no values of this type is refused
/// when it is read, by its name.
fn require_comparable(value: &str, types: &[ValueTypes; 2], paths: [&Path; 2]) -> Result<(), String> {
    let [before, after] = types;
    let unit =
        |(types, _): &ValueTypes| types.iter().find(|one| one.kind == value).map(|one| one.unit.clone());
    let (Some(one), Some(other)) = (unit(before), unit(after)) else { return Ok(()) };
    if unit::is_comparable(&one, &other) {
        return Ok(());
    }
    let others: Vec<&str> =
        before.0.iter().filter(|one| has_comparable(after, one)).map(|one| one.kind.as_str()).collect();
    let next = if others.is_empty() {
        "the files have no values that can be compared".to_owned()
    } else {
        format!("these can be compared: --value {}", others.join(", --value "))
    };
    Err(format!(
        "cannot compare {value}: it is in {} in {}, and in {} in {}; {next}",
        or_none(&one),
        shown(paths[0]),
        or_none(&other),
        shown(paths[1])
    ))
}

/// Whether a file has values of this type, in a unit of the same quantity.
fn has_comparable((types, _): &ValueTypes, wanted: &ValueType) -> bool {
    types.iter().any(|one| one.kind == wanted.kind && unit::is_comparable(&one.unit, &wanted.unit))
}

fn unpack(path: &Path) -> anyhow::Result<PprofFile> {
    let file = File::open(path).with_context(|| format!("cannot open {}", shown(path)))?;
    PprofFile::unpack(file).with_context(|| shown(path))
}

/// The type of values that both files have, in units that can be compared: the default one of the later file, as `go tool pprof
/// -diff_base` takes it, or that of the earlier file. An error is the reason why there is none.
fn common_type(before: &ValueTypes, after: &ValueTypes) -> Result<String, String> {
    fn default((types, default): &ValueTypes) -> &ValueType {
        &types[*default]
    }
    let found = [(default(after), before), (default(before), after)];
    let common = found.into_iter().find(|(one, other)| has_comparable(other, one));
    let common = common.map(|(one, _)| one.kind.clone());
    let listed = |(types, _): &ValueTypes| {
        let types: Vec<String> =
            types.iter().map(|one| format!("{} in {}", one.kind, or_none(&one.unit))).collect();
        types.join(", ")
    };
    common.ok_or_else(|| {
        format!(
            "cannot compare: the first file has {}, the second {}; choose a type of values that both have with --value",
            listed(before),
            listed(after)
        )
    })
}

/// All types of values of a file, and the index of the default one.
type ValueTypes = (Vec<ValueType>, usize);

fn or_none(unit: &str) -> &str {
    if unit.is_empty() { "no unit" } else { unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(kinds: &[&str], default: usize) -> ValueTypes {
        let types = kinds.iter().map(|kind| ValueType { kind: (*kind).to_owned(), unit: "bytes".to_owned() });
        (types.collect(), default)
    }

    #[test]
    fn both_files_are_compared_by_a_type_that_both_have() {
        let kinds = ["alloc_space", "inuse_space"];
        let (heap, allocs) = (types(&kinds, 1), types(&kinds, 0));
        assert_eq!(common_type(&heap, &allocs).unwrap(), "alloc_space");
        assert_eq!(common_type(&allocs, &heap).unwrap(), "inuse_space");
        let (cpu, both) = (types(&["cpu"], 0), types(&["cpu", "samples"], 1));
        assert_eq!(common_type(&cpu, &both).unwrap(), "cpu");
        assert_eq!(common_type(&both, &cpu).unwrap(), "cpu");
        let error = common_type(&cpu, &types(&["delay"], 0)).unwrap_err();
        assert!(error.contains("cpu in bytes") && error.contains("delay in bytes"), "{error}");
    }

    #[test]
    fn values_in_units_of_different_quantities_are_refused_with_what_can_be_compared() {
        let one = |kind: &str, unit: &str| ValueType { kind: kind.to_owned(), unit: unit.to_owned() };
        let before = (vec![one("delay", "nanoseconds"), one("contentions", "count")], 0);
        let after = (vec![one("delay", "bytes"), one("contentions", "count")], 0);
        let paths = [Path::new("a.pb.gz"), Path::new("b.pb.gz")];
        let types = [before.clone(), after.clone()];
        assert_eq!(
            require_comparable("delay", &types, paths).unwrap_err(),
            "cannot compare delay: it is in nanoseconds in a.pb.gz, and in bytes in b.pb.gz; these can be compared: --value \
             contentions"
        );
        assert!(require_comparable("contentions", &types, paths).is_ok());
        let error = common_type(&before, &after).unwrap_err();
        assert!(error.contains("delay in nanoseconds") && error.contains("delay in bytes"), "{error}");
        let coarse = (vec![one("delay", "ms")], 0);
        assert_eq!(common_type(&before, &coarse).unwrap(), "delay", "the units are of one quantity");
        let only = [coarse, (vec![one("delay", "bytes")], 0)];
        let error = require_comparable("delay", &only, paths).unwrap_err();
        assert!(error.ends_with("the files have no values that can be compared"), "{error}");
    }
}
