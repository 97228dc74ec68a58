//! The reader's loop: several questions at a time, until the agent closes the socket.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use podopsy_system::heap;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc};

use crate::client::{NodeRoot, RuntimeClient};
use crate::frames::{ANSWER_MAX, Answered, Asked, QUESTION_MAX, encode, receive};
use crate::jail;
use crate::question::{Answer, CallError, Question};
use crate::reader::ReaderOptions;

/// The first argument of a program that is to be the supervisor.
const ARGUMENT: &str = "--runtime-reader";
/// Questions that are worked on at a time. Of these, the client has four ask the runtime.
const CONCURRENT: usize = 16;

/// What follows the program's name: time limit in milliseconds, the node's root, and the socket. Empty: none.
pub(crate) fn arguments(options: &ReaderOptions) -> [OsString; 4] {
    let path = |path: &Option<PathBuf>| path.clone().unwrap_or_default().into_os_string();
    let timeout = options.timeout.as_millis().to_string().into();
    [ARGUMENT.into(), timeout, path(&options.node_root), path(&options.socket)]
}

/// Makes this process the supervisor if it was started as one, and returns its exit code at the end. To be called first of
/// all in `main`.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != *OsStr::new(ARGUMENT) {
        return None;
    }
    let timeout = arguments.next().and_then(|millis| millis.to_str()?.parse().ok()).unwrap_or(2000);
    let mut path = || arguments.next().filter(|path| !path.is_empty()).map(PathBuf::from);
    let (node_root, socket) = (path(), path());
    heap::keep_small();
    // Set in the jail, and used by readers, which are forked later.
    let root = std::cell::OnceCell::new();
    let enter = || {
        let (opened, failed) = jail::enter(node_root.as_deref());
        let _ = root.set(opened.zip(node_root.clone()).map(|(path, shown)| NodeRoot { path, shown }));
        failed
    };
    let work = |own: UnixStream| {
        jail::narrow(&own)?;
        let node_root = root.get().cloned().flatten();
        serve(own, RuntimeClient::new(socket.clone(), node_root, Duration::from_millis(timeout)))
    };
    Some(podopsy_helper::run(c"podopsy-runtime", enter, &work))
}

fn serve(socket: UnixStream, client: RuntimeClient) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(answer_all(socket, Arc::new(client)))
}

async fn answer_all(socket: UnixStream, client: Arc<RuntimeClient>) -> io::Result<()> {
    let (mut questions, mut answers) = tokio::net::UnixStream::from_std(socket)?.into_split();
    let (finished, mut frames) = mpsc::channel::<Vec<u8>>(1);
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if answers.write_all(&frame).await.is_err() {
                return;
            }
            drop(frame);
            heap::give_back();
        }
    });
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    while let Some(asked) = receive::<Asked>(&mut questions, QUESTION_MAX).await? {
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        let (client, finished) = (client.clone(), finished.clone());
        tokio::spawn(async move {
            let frame = answer(&client, asked).await;
            // The agent has closed its end.
            let _ = finished.send(frame).await;
            drop(slot);
        });
    }
    Ok(())
}

async fn answer(client: &RuntimeClient, asked: Asked) -> Vec<u8> {
    let Asked { id, question } = asked;
    let answer = ask(client, question).await;
    let status = client.status();
    let answered = |answer, status| Answered { id, answer, status };
    encode(&answered(answer, status.clone()), ANSWER_MAX).unwrap_or_else(|len| {
        let text = format!("an answer of {len} bytes exceeds the limit of {ANSWER_MAX} bytes");
        encode(&answered(Err(CallError::Refused(text)), status), ANSWER_MAX).unwrap_or_default()
    })
}

async fn ask(client: &RuntimeClient, question: Question) -> Result<Answer, CallError> {
    match question {
        #[cfg(feature = "testing")]
        Question::Hang => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        #[cfg(feature = "testing")]
        Question::TooMuch => {
            let one = crate::cri::messages::Container { id: "x".repeat(ANSWER_MAX), ..Default::default() };
            Ok(Answer::Containers(vec![one]))
        }
        question => client.ask(question).await,
    }
}
