//! The job: a text with one keyword and its arguments per line, written by `cargo xtask vm`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The job.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// `modules DIR`: the folder of the kernel's modules, on the shared root.
    pub modules: Option<PathBuf>,
    /// `env NAME=VALUE`: the tests' environment.
    pub environment: Vec<(String, String)>,
    /// `test SECONDS NAME PROGRAM`.
    pub tests: Vec<Test>,
}

/// One test of a libtest program.
#[derive(Debug, PartialEq, Eq)]
pub struct Test {
    /// The time limit.
    pub limit: Duration,
    /// `suite::name`
    pub name: String,
    pub program: PathBuf,
}

impl Job {
    pub fn parse(text: &str) -> Result<Job> {
        let mut job = Job::default();
        for (number, line) in text.lines().enumerate() {
            let parsed = job.line(line);
            parsed.with_context(|| format!("line {} of the job: {line}", number + 1))?;
        }
        Ok(job)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let (keyword, rest) = line.split_once(' ').context("expected a keyword and its arguments")?;
        match keyword {
            "modules" => self.modules = Some(rest.into()),
            "env" => {
                let (name, value) = rest.split_once('=').context("expected NAME=VALUE")?;
                self.environment.push((name.to_owned(), value.to_owned()));
            }
            "test" => {
                let mut fields = rest.splitn(3, ' ');
                let mut next = || fields.next().context("expected test SECONDS NAME PROGRAM");
                let limit = Duration::from_secs(next()?.parse().context("seconds")?);
                let name = next()?.to_owned();
                self.tests.push(Test { limit, name, program: next()?.into() });
            }
            _ => bail!("unknown keyword"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_parsed_and_an_error_names_its_line() {
        let job = Job::parse("modules /m x\nenv A=b=c\ntest 7 oom::a::b /p/q r\n").unwrap();
        assert_eq!(job.modules, Some("/m x".into()));
        assert_eq!(job.environment, [("A".to_owned(), "b=c".to_owned())]);
        let test = Test { limit: Duration::from_secs(7), name: "oom::a::b".into(), program: "/p/q r".into() };
        assert_eq!(job.tests, [test]);
        let error = format!("{:#}", Job::parse("env A=b\ntest x oom::a /p").unwrap_err());
        assert!(error.contains("line 2") && error.contains("seconds"), "{error}");
        assert!(Job::parse("reboot now").is_err());
    }
}
