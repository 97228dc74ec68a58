//! One list of settings, four places to set them: flag, environment (`PODOPSY_*`), file, default; in that order.
//!
//! The list is the command line's: each flag `--dns-timeout` is also `PODOPSY_DNS_TIMEOUT` and, in the file,
//! `dns-timeout`. The flag's own parser reads the values of the file. This module must not depend on the meaning of any
//! setting.

mod file;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};

use file::FileEntry;

#[cfg(feature = "fuzzing")]
pub(crate) fn fuzzing(text: &str) -> Result<Vec<String>, (usize, String)> {
    file::parse(text).map(|entries| entries.into_iter().map(|entry| entry.name).collect())
}

/// The file that is read if it exists and `--config` names no other.
pub const FILE: &str = "/etc/podopsy/agent.toml";
/// Flags that are not settings.
const NOT_SETTINGS: [&str; 4] = ["config", "print_config", "help", "version"];

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Flag,
    Environment(String),
    /// The path and the line, from 1.
    File(PathBuf, usize),
    Default,
}

/// A setting with its current values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The name in the file.
    pub name: String,
    /// Empty: it is not set.
    pub values: Vec<String>,
    /// Whether it accepts any number of values.
    pub list: bool,
    /// Whether it may contain a password. Such a value is never shown.
    pub secret: bool,
    pub origin: Origin,
}

/// All settings, and the arguments parsed from them.
#[derive(Debug)]
pub struct LoadedConfig<A> {
    pub args: A,
    pub settings: Vec<Setting>,
}

/// Why the configuration could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An error in the command line, or a request for help.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    #[error("{0}")]
    File(String),
}

/// Reads the command line (`argv[0]` first), the environment and the file.
pub fn load<A: CommandFactory + FromArgMatches>(argv: &[OsString]) -> Result<LoadedConfig<A>, ConfigError> {
    let command = with_environment(A::command());
    let matches = command.clone().try_get_matches_from(argv)?;
    let (mut argv, mut from_file) = (argv.to_vec(), Vec::new());
    if let Some((path, entries)) = read_file(&matches)? {
        for entry in entries {
            let arg = find_setting(&command, &path, &entry)?;
            if !matches!(matches.value_source(arg.get_id().as_str()), None | Some(ValueSource::DefaultValue))
            {
                continue;
            }
            let flags: Vec<OsString> =
                entry.values.iter().map(|value| format!("--{}={value}", entry.name).into()).collect();
            // Parse this line without the other lines first, so that an error belongs to it.
            let alone = command.clone().ignore_errors(false).try_get_matches_from(argv.iter().chain(&flags));
            if let Err(error) = alone {
                return Err(ConfigError::File(line_error(&path, &entry, &error)));
            }
            argv.extend(flags);
            from_file.push((arg.get_id().to_string(), path.clone(), entry.line));
        }
    }
    let matches = command.clone().try_get_matches_from(argv)?;
    let args = A::from_arg_matches(&matches)?;
    let settings = command.get_arguments().filter(|arg| is_setting(arg));
    let settings = settings.map(|arg| setting(arg, &matches, &from_file)).collect();
    Ok(LoadedConfig { args, settings })
}

/// Gives each flag its environment variable. A boolean flag accepts a value, so that a flag can turn off what the file
/// turns on.
fn with_environment(command: Command) -> Command {
    command.mut_args(|arg| {
        let Some(name) =
            arg.get_long().map(str::to_owned).filter(|_| is_setting(&arg) || arg.get_id() == "config")
        else {
            return arg;
        };
        let arg = match arg.get_env() {
            Some(_) => arg,
            // Leaked once for each flag: clap needs a static string.
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
    arg.get_long().is_some() && !NOT_SETTINGS.contains(&arg.get_id().as_str())
}

fn read_file(matches: &ArgMatches) -> Result<Option<(PathBuf, Vec<FileEntry>)>, ConfigError> {
    let named = matches.try_get_one::<PathBuf>("config").ok().flatten().cloned();
    let path = named.clone().unwrap_or_else(|| FILE.into());
    match file::read(&path) {
        Ok(None) if named.is_none() => Ok(None),
        Ok(None) => Err(ConfigError::File(format!("there is no {} (--config)", path.display()))),
        Ok(Some(entries)) => Ok(Some((path, entries))),
        Err(error) => Err(ConfigError::File(error)),
    }
}

fn find_setting<'a>(command: &'a Command, path: &Path, entry: &FileEntry) -> Result<&'a Arg, ConfigError> {
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
        let position = position(path, entry.line);
        ConfigError::File(format!(
            "{position}: there is no setting {key}; {hint}podopsy-agent --print-config lists them"
        ))
    })
}

fn position(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

/// clap's message without its usage lines.
fn line_error(path: &Path, entry: &FileEntry, error: &clap::Error) -> String {
    let message = error.to_string();
    let first = message.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    format!("{}: {}: {first}", position(path, entry.line), entry.name)
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
    // The same flag of clap hides the value in --help.
    let secret = arg.is_hide_env_values_set();
    Setting { name, values: values.collect(), list, secret, origin }
}

/// Renders the settings as a configuration file, with the source of each value as a comment.
pub fn print(settings: &[Setting]) -> String {
    let mut out = String::new();
    for Setting { name, values, list, secret, origin } in settings {
        let from = match origin {
            Origin::Flag => "a flag".to_owned(),
            Origin::Environment(variable) => variable.clone(),
            Origin::File(path, line) => position(path, *line),
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

/// Leaves numbers and booleans as they are. Anything else becomes a JSON string, which is also a TOML string.
fn quote(value: &str) -> String {
    let number = !value.is_empty() && value.len() < 16 && value.bytes().all(|byte| byte.is_ascii_digit());
    if value == "true" || value == "false" || (number && (value == "0" || !value.starts_with('0'))) {
        return value.to_owned();
    }
    serde_json::Value::from(value).to_string()
}

/// The settings of `after` whose values differ from `before`.
pub fn changed<'a>(before: &[Setting], after: &'a [Setting]) -> Vec<&'a Setting> {
    let same = |one: &&Setting| before.iter().any(|old| old.name == one.name && old.values == one.values);
    after.iter().filter(|one| !same(one)).collect()
}
