//! Arguments of `net`, `enter` and `core`, which are about one pod or process.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use podopsy_model::Target;

use super::{SheetArgs, examples};

/// The one TARGET of a command.
#[derive(Clone, Debug, Args)]
pub struct OneTargetArgs {
    /// A pod, a container or a process, such as shop/cart, shop/cart/app or pid:4242
    #[arg(value_name = "TARGET")]
    pub target: Target,

    /// The namespace of TARGET, if it names none
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// Show a pod's addresses, routes, resolv.conf, listeners and connections with their process, and what is conspicuous
///
/// Asks the kernel from within the pod's network namespace: the image needs no tool, and nothing is left behind. Names ports
/// that are declared and have no listener, connections that are not answered, full accept queues and retransmissions.
#[derive(Debug, Args)]
#[command(after_help = examples::NET)]
pub struct NetArgs {
    #[command(flatten)]
    pub target: OneTargetArgs,

    #[command(flatten)]
    pub sheet: SheetArgs,
}

/// Run a program of the host in namespaces of a pod; without --ns in its network namespace
///
/// Ends with the exit code of the program, with 128 and the signal's number if a signal ended it, and with 126 or 127 if it
/// cannot be started. The program has podopsy's own rights, not those of the container.
#[derive(Debug, Args)]
#[command(after_help = examples::ENTER)]
pub struct EnterArgs {
    #[command(flatten)]
    pub target: OneTargetArgs,

    /// The namespaces to enter, with commas between. With mnt, the program is looked for in the image
    #[arg(long = "ns", value_enum, value_name = "KIND", value_delimiter = ',', default_values_t = [NamespaceKind::Net])]
    pub namespaces: Vec<NamespaceKind>,

    /// The program and its arguments
    #[arg(value_name = "CMD", last = true, required = true)]
    pub command: Vec<OsString>,
}

/// A namespace that one thread can enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamespaceKind {
    Cgroup,
    Ipc,
    Uts,
    Net,
    Pid,
    Mnt,
}

/// Write an ELF core of a running process, which gdb opens; the process goes on after a short pause
///
/// The threads are stopped once, while their registers are read and their memory is copied. A core has everything that the
/// process has in memory: passwords, keys, tokens. Ctrl-C lets the process go on and removes the unfinished file.
#[derive(Debug, Args)]
#[command(after_help = examples::CORE)]
pub struct CoreArgs {
    #[command(flatten)]
    pub target: OneTargetArgs,

    /// The file to write; compressed with zstd if its name ends in .zst
    #[arg(short, long, value_name = "FILE")]
    pub write: PathBuf,

    /// Leave out what is unchanged in mapped files: gdb takes it from the files
    #[arg(long)]
    pub exclude_file_backed: bool,

    /// Write while the process is stopped: needs no memory for a copy, and pauses the process for longer
    #[arg(long)]
    pub stream: bool,
}
