//! Arguments: `--flag VALUE`, `--switch`, and positional ones. Without clap, because the victims must stay small.

use std::time::Duration;

/// The arguments that have not been taken yet.
#[derive(Debug)]
pub struct Args {
    rest: Vec<String>,
    usage: &'static str,
}

impl Args {
    /// The process's own arguments; `--help` prints `usage` and exits.
    pub fn new(usage: &'static str) -> Self {
        let rest: Vec<String> = std::env::args().skip(1).collect();
        if rest.iter().any(|arg| arg == "--help" || arg == "-h") {
            println!("{usage}");
            std::process::exit(0);
        }
        Self { rest, usage }
    }

    /// Takes `--name`; whether it was there.
    pub fn switch(&mut self, name: &str) -> bool {
        let found = self.rest.iter().position(|arg| arg == name);
        if let Some(at) = found {
            self.rest.remove(at);
        }
        found.is_some()
    }

    /// Takes `--name` and the value after it, which `read` parses.
    pub fn value<T>(&mut self, name: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let at = self.rest.iter().position(|arg| arg == name)?;
        if at + 1 >= self.rest.len() {
            self.fail(&format!("{name} needs a value"));
        }
        self.rest.remove(at);
        let text = self.rest.remove(at);
        match read(&text) {
            Some(value) => Some(value),
            None => self.fail(&format!("{name}: cannot read {text:?}")),
        }
    }

    /// Takes the positional arguments, which must be all that is left; an unknown `--flag` ends the program.
    pub fn positional(self) -> Vec<String> {
        if let Some(unknown) = self.rest.iter().find(|arg| arg.starts_with("--")) {
            self.fail(&format!("unknown argument {unknown}"));
        }
        self.rest
    }

    /// Prints the message and the usage, and exits with 2.
    pub fn fail(&self, message: &str) -> ! {
        eprintln!("{message}\n{}", self.usage);
        std::process::exit(2);
    }
}

/// A number.
pub fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// Bytes: `4096`, `512KiB`, `1MiB`, `2GiB`.
pub fn bytes(text: &str) -> Option<usize> {
    let (digits, shift) = if let Some(digits) = text.strip_suffix("KiB") {
        (digits, 10)
    } else if let Some(digits) = text.strip_suffix("MiB") {
        (digits, 20)
    } else if let Some(digits) = text.strip_suffix("GiB") {
        (digits, 30)
    } else {
        (text, 0)
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// A time: `250` and `250ms` are milliseconds, `2s` is seconds.
pub fn time(text: &str) -> Option<Duration> {
    if let Some(digits) = text.strip_suffix("ms") {
        return digits.parse().ok().map(Duration::from_millis);
    }
    if let Some(digits) = text.strip_suffix('s') {
        return digits.parse().ok().map(Duration::from_secs);
    }
    text.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(bytes("1MiB"), Some(1 << 20));
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("1MB"), None);
        assert_eq!(time("250"), Some(Duration::from_millis(250)));
        assert_eq!(time("2s"), Some(Duration::from_secs(2)));
        assert_eq!(time("20ms"), Some(Duration::from_millis(20)));
    }
}
