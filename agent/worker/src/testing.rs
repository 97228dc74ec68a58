//! Workers that misbehave, to see what becomes of their agent.

use std::fs::File;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::job::{Answer, Job};
use crate::parser::{Failure, Parser};
use crate::{FileDescription, FileHandle, Tenant};

/// What a job does instead of parsing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Misbehaviour {
    Panic,
    UseCpu,
    Sleep,
    Allocate,
    OverflowStack,
    OpenFile,
    ConnectSocket,
    Fork,
    AnswerSomethingElse,
    /// Nothing: the answer is a description without content.
    None,
}

impl Misbehaviour {
    pub(crate) fn misbehave(self) -> Answer {
        match self {
            Misbehaviour::Panic => panic!("a file that makes the parser panic (this is a test)"),
            Misbehaviour::UseCpu => loop {
                std::hint::black_box(0);
            },
            Misbehaviour::Sleep => std::thread::sleep(Duration::from_secs(3600)),
            Misbehaviour::Allocate => {
                let mut all = Vec::new();
                loop {
                    all.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                }
            }
            Misbehaviour::OverflowStack => drop(recurse(0)),
            Misbehaviour::OpenFile => drop(File::open("/")),
            Misbehaviour::ConnectSocket => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
            // SAFETY: the filter ends the process before the call is made.
            Misbehaviour::Fork => drop(unsafe { nix::unistd::fork() }),
            Misbehaviour::AnswerSomethingElse => return Answer::Described(None),
            Misbehaviour::None => return Answer::Described(Some(FileDescription::default())),
        }
        Answer::Described(Some(FileDescription::default()))
    }
}

#[expect(unconditional_recursion, reason = "this is what the test is about")]
fn recurse(depth: u64) -> [u8; 4096] {
    let mut deeper = recurse(std::hint::black_box(depth + 1));
    deeper[(depth % 4096) as usize] += 1;
    std::hint::black_box(deeper)
}

impl Parser {
    /// Has the worker misbehave, with `file` as its input.
    pub fn misbehave(&mut self, tenant: Tenant, file: &FileHandle, how: Misbehaviour) -> Result<(), Failure> {
        self.run(tenant, Job::Misbehave(how), &[file], |answer| match answer {
            Answer::Described(Some(_)) => Some(()),
            _ => None,
        })
    }

    /// The pid of the worker, while there is one.
    pub fn worker_pid(&self) -> Option<i32> {
        self.current_pid()
    }
}
