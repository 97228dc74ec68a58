//! An agent's socket with pods: it answers for the list of pods, and passes everything else on to an agent.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podopsy_model::testing::owner;
use podopsy_pods::{ContainerDetails, PodDetails};

/// A pod of one container, `app`.
pub fn pod(namespace: &str, name: &str, restarts: u32) -> PodDetails {
    let owner = owner(namespace, name, &[("app", name)]);
    let container = ContainerDetails {
        container: owner.container.unwrap(),
        state: "running".into(),
        reason: String::new(),
        exit_code: None,
        started_at: None,
        finished_at: None,
        restarts,
        pid: None,
        pids: Vec::new(),
        namespaces: Default::default(),
        cgroup_path: None,
        cgroup_ids: Vec::new(),
        memory_limit_bytes: None,
        memory_usage_bytes: None,
        cpu_limit_millis: None,
        ports: Vec::new(),
    };
    PodDetails {
        pod: owner.pod.unwrap(),
        sandbox_id: String::new(),
        state: "ready".into(),
        created_at: None,
        ips: Vec::new(),
        netns: None,
        containers: vec![container],
    }
}

/// Listens until the test ends. Returns the path of the socket.
pub fn serve(folder: &Path, agent: &Path, pods: &[PodDetails]) -> PathBuf {
    let path = folder.join("pods.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let body = serde_json::json!({ "pods": pods }).to_string();
    let (agent, body) = (agent.to_owned(), Arc::<str>::from(body));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (agent, body) = (agent.clone(), body.clone());
            std::thread::spawn(move || answer(stream, &agent, &body));
        }
    });
    path
}

/// One request: the client makes a connection for each.
fn answer(mut stream: UnixStream, agent: &Path, body: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    if !head.starts_with("GET /api/v1/pods") {
        let mut agent = UnixStream::connect(agent)?;
        agent.write_all(head.replace("host: agent", "host: agent\r\nconnection: close").as_bytes())?;
        io::copy(&mut agent, &mut stream)?;
        return stream.shutdown(Shutdown::Both);
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}
