//! A fake runtime on a Unix socket, by an independent implementation of gRPC. The tests of podopsy-pods have it, too.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tonic::codegen::http;

use podopsy_runtime::cri::messages::{self as cri, *};

pub const APP: &str = "3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e884";
pub const OLD: &str = "3f2affff51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e884";
pub const PAUSE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// The sandbox that died, in which [`OLD`] ran.
pub const FORMER_PAUSE: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
pub const UID: &str = "8c1ee0a4-5f3b-4c1e-9f0a-0a1b2c3d4e5f";

pub fn strings(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// A runtime with one pod: the number of its calls, and the ids that it does not know yet.
#[derive(Default)]
pub struct FakeRuntime {
    pub calls: AtomicUsize,
    pub hidden: Mutex<Vec<&'static str>>,
    /// The folder that it reports for its cgroups; None: it does not report it, like cri-dockerd.
    pub cgroup_parent: Mutex<Option<String>>,
    /// The pod's first sandbox died, and the kubelet made another one.
    pub has_former_sandbox: AtomicBool,
}

type Reply<T> = Result<tonic::Response<T>, tonic::Status>;

impl FakeRuntime {
    fn knows(&self, id: &str, known: &[&str]) -> Result<(), tonic::Status> {
        let hidden = self.hidden.lock().unwrap().contains(&id);
        if hidden || !known.contains(&id) { Err(tonic::Status::not_found("no such")) } else { Ok(()) }
    }

    fn meta() -> Option<PodSandboxMetadata> {
        let (namespace, name, uid) = ("finance".into(), "pricing-7f9c".into(), UID.into());
        Some(PodSandboxMetadata { name, uid, namespace, attempt: 0 })
    }

    fn labels() -> HashMap<String, String> {
        strings(&[("app", "pricing"), ("evil", "\x1b[2J"), ("io.kubernetes.pod.uid", UID)])
    }

    /// The end of a verbose answer.
    fn runtime_spec(&self, id: &str) -> String {
        let parent = self.cgroup_parent.lock().unwrap();
        let spec = parent.as_ref().map(|parent| {
            format!(r#", "runtimeSpec": {{"linux": {{"cgroupsPath": "{parent}/pod{UID}/{id}"}}}}"#)
        });
        spec.unwrap_or_default()
    }

    fn sandbox(&self, request: PodSandboxStatusRequest) -> Reply<PodSandboxStatusResponse> {
        self.knows(&request.pod_sandbox_id, &[PAUSE])?;
        let network = PodSandboxNetworkStatus {
            ip: "10.0.0.7".into(),
            additional_ips: vec![PodIp { ip: "fd00::7".into() }],
        };
        let status = PodSandboxStatus {
            id: PAUSE.into(),
            metadata: FakeRuntime::meta(),
            network: Some(network),
            labels: FakeRuntime::labels(),
            ..Default::default()
        };
        let spec = self.runtime_spec(PAUSE);
        let info = strings(&[("info", &format!(r#"{{"pid": 4242{spec}}}"#))]);
        Ok(tonic::Response::new(PodSandboxStatusResponse { status: Some(status), info }))
    }

    fn container(&self, request: ContainerStatusRequest) -> Reply<ContainerStatusResponse> {
        let id = request.container_id.as_str();
        self.knows(id, &[APP, OLD])?;
        let running = id == APP;
        let image = "sha256:3f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e8843f2a9c0d51b7e884";
        let status = ContainerStatus {
            id: id.into(),
            metadata: Some(ContainerMetadata { name: "app".into(), attempt: running.into() }),
            state: if running { 1 } else { 2 },
            started_at: 1_700_000_000_000_000_000,
            exit_code: 137,
            reason: if running { "" } else { "OOMKilled" }.into(),
            image: Some(ImageSpec { image: image.into(), ..Default::default() }),
            image_ref: "registry/pricing@sha256:00".into(),
            annotations: strings(&[("io.kubernetes.container.restartCount", "3")]),
            ..Default::default()
        };
        let spec = self.runtime_spec(id);
        let info = format!(
            r#"{{"sandboxID": "{PAUSE}", "pid": 17, "config": {{"image": {{"user_specified_image": "registry/pricing:1.2"}}}}{spec}}}"#
        );
        let info = strings(&[("info", &info)]);
        Ok(tonic::Response::new(ContainerStatusResponse { status: Some(status), info }))
    }

    fn containers(&self) -> Vec<cri::Container> {
        let one = |id: &str, sandbox: &str| cri::Container {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            ..Default::default()
        };
        let former = if self.has_former_sandbox.load(Relaxed) { FORMER_PAUSE } else { PAUSE };
        vec![one(OLD, former), one(APP, PAUSE)]
    }

    fn sandboxes(&self) -> Vec<PodSandbox> {
        let one = |id: &str, state, created_at| PodSandbox {
            id: id.into(),
            metadata: FakeRuntime::meta(),
            labels: FakeRuntime::labels(),
            state,
            created_at,
        };
        let former = self.has_former_sandbox.load(Relaxed).then(|| one(FORMER_PAUSE, 1, 1));
        former.into_iter().chain([one(PAUSE, 0, 2)]).collect()
    }

    async fn answer<B>(&self, request: http::Request<B>) -> http::Response<tonic::body::Body>
    where
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        self.calls.fetch_add(1, Relaxed);
        macro_rules! unary {
            ($request:ty, $answer:expr) => {{
                let codec = tonic_prost::ProstCodec::default();
                let service = tower::service_fn(|r: tonic::Request<$request>| {
                    let reply = $answer(r.into_inner());
                    async move { reply }
                });
                tonic::server::Grpc::new(codec).unary(service, request).await
            }};
        }
        match request.uri().path() {
            VERSION => unary!(VersionRequest, |_| Ok(tonic::Response::new(VersionResponse {
                runtime_name: "fake".into(),
                runtime_version: "1.0".into(),
                ..Default::default()
            }))),
            CONTAINER_STATUS => unary!(ContainerStatusRequest, |r| self.container(r)),
            POD_SANDBOX_STATUS => unary!(PodSandboxStatusRequest, |r| self.sandbox(r)),
            LIST_CONTAINERS => {
                unary!(ListContainersRequest, |_| Ok(tonic::Response::new(ListContainersResponse {
                    containers: self.containers()
                })))
            }
            _ => unary!(ListPodSandboxRequest, |_| Ok(tonic::Response::new(ListPodSandboxResponse {
                items: self.sandboxes()
            }))),
        }
    }
}

pub fn serve(socket: &Path) -> Arc<FakeRuntime> {
    let fake = Arc::new(FakeRuntime::default());
    let listener = UnixListener::bind(socket).unwrap();
    let runtime = fake.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let runtime = runtime.clone();
            tokio::spawn(async move {
                let service = tower::service_fn(move |request| {
                    let runtime = runtime.clone();
                    async move { Ok::<_, Infallible>(runtime.answer(request).await) }
                });
                let server = auto::Builder::new(TokioExecutor::new()).http2_only();
                let _ =
                    server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
            });
        }
    });
    fake
}
