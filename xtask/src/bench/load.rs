//! The load for profilers: two busy programs without frame pointers, or a crowd of small ones.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::sh;

/// Python's interpreter is C, 20 calls deep; each takes some C frames.
const PYTHON: &str =
    "def f(n):\n    return sum(i * i for i in range(500)) if n == 0 else f(n - 1) + 1\nwhile True: f(20)";
/// How many of them run at a time.
const COMPILERS: usize = 4;

/// Running programs; dropping it ends them.
pub struct Load {
    children: Vec<Child>,
}

impl Load {
    /// A C++ program 41 frames deep, and Debian's Python: both call themselves by these names.
    pub fn two(folder: &Path) -> Result<Load> {
        let deep = folder.join("deep");
        let source = sh::root().join("tests/victims/native/deep.cc");
        let mut compiler = Command::new("g++");
        compiler.args(["-O2", "-fomit-frame-pointer", "-g1", "-o"]).arg(&deep).arg(source);
        sh::run(&mut compiler)?;
        let mut load = Load { children: Vec::new() };
        load.start(Command::new(deep))?;
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", PYTHON]);
        load.start(python)?;
        Ok(load)
    }

    /// Starts `processes` of them, from `binaries` distinct files with different code. Together they use one CPU.
    pub fn crowd(folder: &Path, processes: usize, binaries: usize) -> Result<Load> {
        let files = compile(folder, binaries)?;
        let mut load = Load { children: Vec::new() };
        // Each works for 200 µs and then sleeps.
        let nap = (processes * 200).to_string();
        for file in files.iter().cycle().take(processes) {
            let mut command = Command::new(file);
            command.arg(&nap);
            load.start(command)?;
        }
        Ok(load)
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("start {}", sh::show(&command)))?;
        self.children.push(child);
        Ok(())
    }

    /// The process ID of the first program.
    pub fn first(&self) -> u32 {
        self.children.first().map_or(0, Child::id)
    }

    /// The CPU time that the programs, or the first of them, have used so far.
    pub fn cpu(&self, only_first: bool) -> Duration {
        let count = if only_first { 1 } else { self.children.len() };
        self.children.iter().take(count).map(|child| cpu(child.id())).sum()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.children.iter_mut().for_each(|child| {
            let _ = child.kill();
        });
        self.children.iter_mut().for_each(|child| {
            let _ = child.wait();
        });
    }
}

fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}

/// Programs with 40 functions each. Frame sizes differ between programs, so that no two programs share a table.
fn compile(folder: &Path, binaries: usize) -> Result<Vec<PathBuf>> {
    let path = |index: usize| folder.join(format!("crowd-{index}"));
    let missing: Vec<usize> = (0..binaries).filter(|index| !path(*index).is_file()).collect();
    sh::progress(format_args!("compiling {} programs", missing.len()));
    for some in missing.chunks(COMPILERS) {
        let mut running = Vec::new();
        for &index in some {
            let source = folder.join(format!("crowd-{index}.c"));
            std::fs::write(&source, program(index)?)?;
            let mut compiler = Command::new("gcc");
            compiler.args(["-O1", "-fomit-frame-pointer", "-fno-inline", "-o"]).arg(path(index)).arg(source);
            running.push(compiler.stdin(Stdio::null()).spawn().context("start gcc")?);
        }
        for mut compiler in running {
            anyhow::ensure!(compiler.wait()?.success(), "gcc failed");
        }
    }
    Ok((0..binaries).map(path).collect())
}

fn program(index: usize) -> Result<String> {
    let mut text = String::from("#include <stdlib.h>\n#include <time.h>\n#include <unistd.h>\n");
    text.push_str("static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); ");
    text.push_str("return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }\n");
    text.push_str("static int f0(double until) { int n = 0; while (now() < until) n++; return n; }\n");
    for depth in 1..=40 {
        let size = 16 + 8 * ((index * 31 + depth * 7) % 97);
        writeln!(
            text,
            "static int f{depth}(double until) {{ char buffer[{size}]; asm volatile(\"\" : : \"r\"(buffer) : \"memory\"); \
             int n = f{}(until) + {index}; asm volatile(\"\" : : \"r\"(buffer) : \"memory\"); return n; }}",
            depth - 1
        )?;
    }
    text.push_str("int main(int n, char **arguments) { int nap = n > 1 ? atoi(arguments[1]) : 1000; ");
    text.push_str("for (;;) { f40(now() + 200); usleep(nap); } }\n");
    Ok(text)
}
