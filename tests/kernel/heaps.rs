//! OOM kills of JVMs and of Node.js in real pods: what is known of the heap, and what the autopsy says that it had to do with the kill.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support;
use podopsy_harness::{ContainerSpec, Node, PodSpec};
use podopsy_model::heap::{HeapVerdict, RuntimeHeap};
use podopsy_model::incident::OomIncident;
use podopsy_recorder::RecorderOptions;
use support::dns_sandbox::packages;
use support::{Recording, node, options, pods_of};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(120);
const JVM: &str = "usr/lib/jvm/java-17-openjdk-amd64";
const CONFIGURATION: &str = "etc/java-17-openjdk";

/// The tests' Java programs, compiled, and a folder for `/tmp` in a container.
struct Java {
    classes: TempDir,
    tmp: TempDir,
}

impl Java {
    fn new() -> Java {
        let classes = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel/heaps/Memory.java");
        let javac = packages().join(JVM).join("bin/javac");
        let compiled = Command::new(javac).arg("-d").arg(classes.path()).arg(source).status();
        assert!(compiled.expect("run javac: `cargo xtask setup test` unpacks it").success());
        Java { classes, tmp: tempfile::tempdir().expect("a folder") }
    }

    /// A container with one JVM.
    fn container(&self, image: &str, args: &[&str]) -> ContainerSpec {
        let command = ["/jvm/bin/java", "-cp", "/classes"].into_iter().chain(args.iter().copied());
        with_libraries(ContainerSpec::new("app", image).command(command))
            .mount_read_only(packages().join(JVM), "/jvm")
            .mount_read_only(packages().join(CONFIGURATION), format!("/{CONFIGURATION}"))
            .mount_read_only(self.classes.path(), "/classes")
            .mount(self.tmp.path(), "/tmp")
    }
}

/// With the host's libraries: the image has none.
fn with_libraries(container: ContainerSpec) -> ContainerSpec {
    container.mount_read_only("/usr/lib", "/lib").mount_read_only("/usr/lib64", "/lib64")
}

/// The incident of the only kill.
fn incident<'a>(recording: &'a mut Recording, pod: &str) -> &'a OomIncident {
    recording.until("the incident", SOON, |seen| seen.iter().any(|event| event.incident.is_some()));
    let event = recording.seen.iter().find(|event| event.incident.is_some()).expect("just found");
    assert_eq!(event.pod.as_ref().map(|of| of.name.as_str()), Some(pod));
    event.incident.as_deref().expect("just found")
}

/// Runs a JVM until it is killed, and hands its heap and the advice to `check`.
fn check(name: &str, limit: u64, args: &[&str], check: impl FnOnce(&RuntimeHeap, &str)) {
    let (node, image) = node();
    let java = Java::new();
    check_container(&node, name, java.container(&image, args).memory_limit(limit as i64), check);
}

fn check_container(
    node: &Node,
    name: &str,
    container: ContainerSpec,
    check: impl FnOnce(&RuntimeHeap, &str),
) {
    let recording = RecorderOptions { dns: None, ..options() };
    let mut recording = Recording::start(recording, pods_of(node));
    let pod = node.run_pod(PodSpec::new("shop", name).container(container)).expect("run the pod");
    let incident = incident(&mut recording, name);
    let heap = incident.heap.as_ref().unwrap_or_else(|| panic!("{incident:?}: {:?}", pod.log("app")));
    assert_eq!(heap.pid, incident.victims[0].task.pid);
    let advice = incident.advice.as_deref().unwrap_or_default();
    eprintln!("{name}: {advice}\n{heap:?}");
    check(heap, advice);
}

#[test]
fn a_heap_that_may_grow_beyond_the_limit_had_to_meet_it() {
    let args = ["-XX:+UseSerialGC", "-Xmx400m", "-Dpassword=secret", "Memory", "heap"];
    check("small", 200 * MIB, &args, |heap, advice| {
        assert_eq!(heap.verdict, Some(HeapVerdict::LimitBelowMaximum));
        assert!(advice.contains("the limit of 200 MiB: the limit is too small for it"), "{advice}");
        let figures = heap.figures.as_ref().expect("figures");
        assert!(heap.runtime.starts_with("OpenJDK 64-Bit Server VM 17."), "{}", heap.runtime);
        // The survivor space that is empty does not count.
        let max = figures.max_bytes.expect("a maximum") / MIB;
        assert!((380..=400).contains(&max), "{max}");
        assert_eq!(heap.options, ["-XX:+UseSerialGC", "-Xmx400m"]);
    });
}

#[test]
fn native_memory_is_not_taken_for_the_heap() {
    let args = ["-Xmx64m", "-XX:MaxDirectMemorySize=1g", "Memory", "native"];
    check("native", 192 * MIB, &args, |heap, advice| {
        assert_eq!(heap.verdict, Some(HeapVerdict::OutsideOfHeap));
        assert!(
            advice.contains("native memory filled the limit of 192 MiB, the heap does not leak"),
            "{advice}"
        );
        let figures = heap.figures.as_ref().expect("figures");
        assert_eq!(figures.max_bytes, Some(64 * MIB));
        assert!(figures.used_bytes < 32 * MIB && figures.threads >= Some(5), "{figures:?}");
    });
}

#[test]
fn a_heap_that_collecting_does_not_empty_is_called_a_leak() {
    let args = ["-XX:+UseSerialGC", "-Xmx176m", "-XX:MaxDirectMemorySize=1g", "Memory", "full", "164"];
    check("full", 288 * MIB, &args, |heap, advice| {
        assert_eq!(heap.verdict, Some(HeapVerdict::HeapLeak));
        assert!(advice.contains("a leak in the heap, or a heap that is too small"), "{advice}");
        let figures = heap.figures.as_ref().expect("figures");
        assert!(figures.recent_collections > 10 && figures.recent_collection_share > 0.1, "{figures:?}");
    });
}

#[test]
fn a_jvm_without_counters_is_called_that() {
    let args = ["-XX:-UsePerfData", "-Xmx64m", "-XX:MaxDirectMemorySize=1g", "Memory", "native"];
    // Long enough for podopsy to be sure that no counters come.
    check("silent", 512 * MIB, &args, |heap, _| {
        assert_eq!((heap.figures.as_ref(), heap.verdict), (None, None));
        assert!(heap.why_not.as_deref().is_some_and(|why| why.contains("-XX:-UsePerfData")), "{heap:?}");
    });
}

#[test]
fn nodes_maximum_above_the_limit_is_named() {
    // At once, by one call: near its limit, a program that grows by many calls reads its code again and again instead.
    const FILL: &str = "setTimeout(() => Buffer.alloc(1 << 30, 1), 8000)";
    let (node, image) = node();
    let command = ["/node", "--max-old-space-size=4096", "-e", FILL];
    let container = with_libraries(ContainerSpec::new("app", &image).command(command))
        .mount_read_only("/usr/bin/node", "/node")
        .env("TOKEN", "secret")
        .memory_limit(128 * MIB as i64);
    check_container(&node, "node", container, |heap, advice| {
        assert_eq!(heap.verdict, Some(HeapVerdict::LimitBelowMaximum));
        assert_eq!(
            advice,
            "Node.js: --max-old-space-size=4096 lets it grow to 4096 MiB, which does not fit below the limit of 128 MiB"
        );
        assert!(!format!("{heap:?}").contains("secret"));
    });
}
