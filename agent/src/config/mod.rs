//! One list of settings, four places to set them: flag, environment (`PODOPSY_*`), file, default; in that order.
//!
//! The list is the command line's: each flag `--dns-timeout` is also `PODOPSY_DNS_TIMEOUT` and, in the file,
//! `dns-timeout`. What the file says is read by the flag's own parser. Must not know: what any of them means.

mod file;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};

use file::Entry;

/// Read if it is there and nothing else is named.
pub const FILE: &str = "/etc/podopsy/agent.toml";
/// Not settings, but about them.
const ABOUT: [&str; 4] = ["config", "print_config", "help", "version"];

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment(String),
    /// And the line, from 1.
    File(PathBuf, usize),
    Default,
}

/// A setting as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As in the file.
    pub name: String,
    /// None: it is not set.
    pub values: Vec<String>,
    /// It takes any number of values.
    pub list: bool,
    /// It may hold a password: it is used, and never shown.
    pub secret: bool,
    pub origin: Origin,
}

/// All settings, and the arguments that they make.
#[derive(Debug)]
pub struct Loaded<A> {
    pub args: A,
    pub settings: Vec<Setting>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line's own, or a request for help.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    #[error("{0}")]
    File(String),
}

/// Reads the command line (`argv[0]` first), the environment and the file.
pub fn load<A: CommandFactory + FromArgMatches>(argv: &[OsString]) -> Result<Loaded<A>, Error> {
    let command = everywhere(A::command());
    let matches = command.clone().try_get_matches_from(argv)?;
    let (mut argv, mut from_file) = (argv.to_vec(), Vec::new());
    if let Some((path, entries)) = read_file(&matches)? {
        for entry in entries {
            let arg = known(&command, &path, &entry)?;
            if !matches!(matches.value_source(arg.get_id().as_str()), None | Some(ValueSource::DefaultValue))
            {
                continue;
            }
            let flags: Vec<OsString> =
                entry.values.iter().map(|value| format!("--{}={value}", entry.name).into()).collect();
            // Alone first: an error is this line's.
            let alone = command.clone().ignore_errors(false).try_get_matches_from(argv.iter().chain(&flags));
            if let Err(error) = alone {
                return Err(Error::File(said_of(&path, &entry, &error)));
            }
            argv.extend(flags);
            from_file.push((arg.get_id().to_string(), path.clone(), entry.line));
        }
    }
    let matches = command.clone().try_get_matches_from(argv)?;
    let args = A::from_arg_matches(&matches)?;
    let settings = command.get_arguments().filter(|arg| is_setting(arg));
    let settings = settings.map(|arg| setting(arg, &matches, &from_file)).collect();
    Ok(Loaded { args, settings })
}

/// Gives each flag its variable, and those that are on or off a value: what a file turns on, a flag can turn off.
fn everywhere(command: Command) -> Command {
    command.mut_args(|arg| {
        let Some(name) =
            arg.get_long().map(str::to_owned).filter(|_| is_setting(&arg) || arg.get_id() == "config")
        else {
            return arg;
        };
        let arg = match arg.get_env() {
            Some(_) => arg,
            // Once for each flag of the program: there is no other owner for it.
            None => arg.env(&*format!("PODOPSY_{}", name.to_uppercase().replace('-', "_")).leak()),
        };
        match arg.get_action() {
            ArgAction::SetTrue => arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .default_value("false")
                .hide_default_value(true)
                .value_name("BOOL")
                .hide_possible_values(true)
                .value_parser(BoolishValueParser::new()),
            ArgAction::Append => arg.value_delimiter(','),
            _ => arg,
        }
    })
}

fn is_setting(arg: &Arg) -> bool {
    arg.get_long().is_some() && !ABOUT.contains(&arg.get_id().as_str())
}

fn read_file(matches: &ArgMatches) -> Result<Option<(PathBuf, Vec<Entry>)>, Error> {
    let named = matches.try_get_one::<PathBuf>("config").ok().flatten().cloned();
    let path = named.clone().unwrap_or_else(|| FILE.into());
    match file::read(&path) {
        Ok(None) if named.is_none() => Ok(None),
        Ok(None) => Err(Error::File(format!("there is no {} (--config)", path.display()))),
        Ok(Some(entries)) => Ok(Some((path, entries))),
        Err(error) => Err(Error::File(error)),
    }
}

fn known<'a>(command: &'a Command, path: &Path, entry: &Entry) -> Result<&'a Arg, Error> {
    let mut settings = command.get_arguments().filter(|arg| is_setting(arg));
    settings.find(|arg| arg.get_long() == Some(&entry.name)).ok_or_else(|| {
        let dashed = entry.name.replace('_', "-").to_ascii_lowercase();
        let names = command.get_arguments().filter(|arg| is_setting(arg)).filter_map(Arg::get_long);
        let near =
            names.max_by_key(|name| name.bytes().zip(dashed.bytes()).take_while(|(a, b)| a == b).count());
        let shared =
            near.map_or(0, |name| name.bytes().zip(dashed.bytes()).take_while(|(a, b)| a == b).count());
        let hint = match near.filter(|_| shared >= 3) {
            Some(name) => format!("is {name} meant? "),
            None => String::new(),
        };
        let key = podopsy_model::text::escape(&entry.name);
        let place = place(path, entry.line);
        Error::File(format!(
            "{place}: there is no setting {key}; {hint}podopsy-agent --print-config lists them"
        ))
    })
}

fn place(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

/// clap's words without its usage lines.
fn said_of(path: &Path, entry: &Entry, error: &clap::Error) -> String {
    let said = error.to_string();
    let first = said.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    format!("{}: {}: {first}", place(path, entry.line), entry.name)
}

fn setting(arg: &Arg, matches: &ArgMatches, from_file: &[(String, PathBuf, usize)]) -> Setting {
    let id = arg.get_id().as_str();
    let values = matches.get_raw(id).into_iter().flatten().map(|raw| raw.to_string_lossy().into_owned());
    let in_file = from_file.iter().find(|(name, _, _)| name == id);
    let origin = match (in_file, matches.value_source(id)) {
        (Some((_, path, line)), _) => Origin::File(path.clone(), *line),
        (None, Some(ValueSource::CommandLine)) => Origin::Flag,
        (None, Some(ValueSource::EnvVariable)) => {
            Origin::Environment(arg.get_env().unwrap_or_default().to_string_lossy().into_owned())
        }
        _ => Origin::Default,
    };
    let name = arg.get_long().unwrap_or_default().to_owned();
    let list = matches!(arg.get_action(), ArgAction::Append);
    // clap does not show it in --help for the same reason.
    let secret = arg.is_hide_env_values_set();
    Setting { name, values: values.collect(), list, secret, origin }
}

/// As a file that says the same, with where each value comes from.
pub fn print(settings: &[Setting]) -> String {
    let mut out = String::new();
    for Setting { name, values, list, secret, origin } in settings {
        let from = match origin {
            Origin::Flag => "a flag".to_owned(),
            Origin::Environment(variable) => variable.clone(),
            Origin::File(path, line) => place(path, *line),
            Origin::Default => "default".to_owned(),
        };
        let quoted: Vec<String> = values.iter().map(|value| quote(value)).collect();
        let _ = match (quoted.as_slice(), list) {
            ([], _) => writeln!(out, "# {name} is not set"),
            _ if *secret => writeln!(out, "# {name} is set, and not shown # {from}"),
            (many, true) => writeln!(out, "{name} = [{}] # {from}", many.join(", ")),
            ([one], false) => writeln!(out, "{name} = {one} # {from}"),
            (many, false) => writeln!(out, "{name} = {} # {from}", quote(&many.concat())),
        };
    }
    out
}

/// Numbers and booleans as they are; a JSON string is a TOML string.
fn quote(value: &str) -> String {
    let number = !value.is_empty() && value.len() < 16 && value.bytes().all(|byte| byte.is_ascii_digit());
    if value == "true" || value == "false" || (number && (value == "0" || !value.starts_with('0'))) {
        return value.to_owned();
    }
    serde_json::Value::from(value).to_string()
}

/// Settings that differ, by name: what a reload has to do.
pub fn changed<'a>(before: &[Setting], after: &'a [Setting]) -> Vec<&'a Setting> {
    let same = |one: &&Setting| before.iter().any(|old| old.name == one.name && old.values == one.values);
    after.iter().filter(|one| !same(one)).collect()
}
