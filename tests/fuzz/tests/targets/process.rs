//! What the agent reads of a process and of its container: files of /proc, memory of Python, cgroup paths, resolv.conf, the
//! container runtime's messages.

use podopsy_fuzz::memory_file;
use podopsy_model::text::{escape, escape_bytes};
use podopsy_parse::python::layouts_for_version;
use podopsy_pods::{fuzzing as pods, paths};
use podopsy_recorder::dns::lookups::ResolvConf;
use podopsy_runtime::cri::messages::{
    ContainerStatusResponse, ListContainersResponse, ListPodSandboxResponse, PodSandboxStatusResponse,
    VersionResponse,
};
use podopsy_runtime::{ContainerReport, SandboxReport};
use podopsy_stacks::fuzzing as stacks;
use prost::Message;

use crate::{assert_printable, parts, targets};

targets! {
    process_maps,
    process_mounts,
    process_stat,
    python_code,
    python_lines,
    cgroup_path,
    process_cgroup,
    own_pod,
    resolv_conf,
    cri_messages,
    escaped_text,
}

fn process_maps(input: &[u8]) {
    let found = stacks::maps(input);
    assert!(found.areas.len() <= 8192);
    assert!(found.areas.windows(2).all(|two| two[0].end <= two[1].start), "mappings out of order");
    for area in &found.areas {
        assert!(area.start < area.end && area.path.len() <= 1024 && area.file_path().len() <= 1024);
        assert_eq!(found.find(area.start), Some(area));
        assert_ne!(found.find(area.end), Some(area));
    }
}

fn process_mounts(input: &[u8]) {
    let mounts = stacks::mounts(input);
    mounts.filesystem((0, 52));
    mounts.has_remote();
}

fn process_stat(input: &[u8]) {
    if let Some(stat) = stacks::stat(input) {
        stat.is_expected_in(u64::MAX, 0);
        stat.is_expected_in(99, u64::MAX);
    }
}

/// The first byte is the minor version, the second one whether the address is one at which arithmetic goes wrong. The
/// process's memory follows, with the code object at its start.
fn python_code(input: &[u8]) {
    let Some((&[minor, far], memory)) = input.split_first_chunk() else { return };
    let Ok((_, layout)) = layouts_for_version((3, minor), memory) else { return };
    let code_type = memory.get(layout.object_type..).and_then(|rest| rest.first_chunk());
    let code_type = code_type.map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let address = if far == 0 { 0 } else { u64::MAX - u64::from(far) };
    if let Some((name, file)) = stacks::python_function(memory_file(memory), address, code_type, &layout) {
        for text in [name, file] {
            assert_printable(&text);
            assert!(text.len() <= 256 + '…'.len_utf8(), "a text of {} bytes", text.len());
        }
    }
}

/// The first byte tells the format; the first line and the position follow, and then the table.
fn python_lines(input: &[u8]) {
    let Some((&[format, first @ .., a, b, c, d], table)) = input.split_first_chunk::<9>() else { return };
    let (first, at) = (u32::from_le_bytes(first), u32::from_le_bytes([a, b, c, d]));
    for at in [at, 0, u32::MAX] {
        stacks::line_at(table, first, at, format & 1 == 1);
    }
}

fn cgroup_path(input: &[u8]) {
    let name = paths::parse(input);
    paths::level(input);
    assert!(name.containers.len() <= 4);
    let is_id = |id: &str| id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    assert!(name.containers.iter().all(|container| is_id(&container.container_id)));
    let uids = name.containers.iter().filter_map(|container| container.pod_uid.as_ref()).chain(&name.pod_uid);
    for uid in uids {
        let is_uid =
            (1..=64).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        assert!(is_uid, "{uid:?}");
    }
    assert_inside(&pods::cgroups_of_path(input));
}

/// A path that is joined to the mount must not lead out of it.
fn assert_inside(paths: &[std::path::PathBuf]) {
    for path in paths {
        let is_plain = |component| matches!(component, std::path::Component::Normal(_));
        assert!(path.components().all(is_plain), "{path:?}");
    }
}

fn process_cgroup(input: &[u8]) {
    assert_inside(&pods::cgroups_of_process(input));
}

fn own_pod(input: &[u8]) {
    let [cgroup, mountinfo, resolv_conf] = parts(input).map(String::from_utf8_lossy);
    let [uid, ..] = pods::own_pod(&cgroup, &mountinfo, &resolv_conf);
    assert!(
        uid.is_none_or(|uid| uid.len() <= 64 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
    );
}

/// The file, and names that were asked for.
fn resolv_conf(input: &[u8]) {
    let [names, file] = parts(input);
    let conf = ResolvConf::parse(file);
    assert!(conf.search.len() <= 32 && conf.nameservers.len() <= 8);
    assert!(conf.ndots <= 15 && (1..=30).contains(&conf.timeout) && (1..=5).contains(&conf.attempts));
    conf.to_search().domains.iter().for_each(|domain| assert_printable(domain));
    let names = escape_bytes(names).to_ascii_lowercase();
    let names: Vec<&str> = names.split(' ').take(8).collect();
    for count in 0..=names.len() {
        conf.explain(&names[..count]);
    }
    assert!(conf.bases(names[0]).len() <= 33);
}

fn cri_messages(input: &[u8]) {
    let mut texts = Vec::new();
    if let Ok(version) = VersionResponse::decode(input) {
        texts.extend([version.runtime_name, version.runtime_version]);
    }
    if let Ok(list) = ListPodSandboxResponse::decode(input) {
        for sandbox in list.items {
            texts.extend(sandbox.metadata.map(|metadata| metadata.name));
            texts.extend(sandbox.labels.into_iter().flat_map(|(key, value)| [key, value]));
        }
    }
    if let Ok(list) = ListContainersResponse::decode(input) {
        texts.extend(list.containers.into_iter().filter_map(|container| Some(container.image?.image)));
    }
    if let Ok(answer) = PodSandboxStatusResponse::decode(input) {
        let report = SandboxReport::from(answer);
        texts.extend(report.status.and_then(|status| Some(status.network?.ip)));
        texts.extend(report.info.cgroups_path);
    }
    if let Ok(answer) = ContainerStatusResponse::decode(input) {
        let report = ContainerReport::from(answer);
        texts.extend(report.status.map(|status| status.reason));
        texts.extend(report.info.image);
    }
    for text in texts {
        let stored = pods::stored_text(&text);
        assert_printable(&stored);
        // A character is escaped by ten at most.
        assert!(stored.len() <= 10 * 512 + 3);
    }
}

/// An escaped text is printable, and only one text has this escape.
fn escaped_text(input: &[u8]) {
    let escaped = escape_bytes(input);
    assert_printable(&escaped);
    assert_eq!(unescape(&escaped), input);
    // A text that needs no escape stays as it is, so that an escaped text without a backslash is not escaped twice.
    if !escaped.contains('\\') {
        assert_eq!(escape(&escaped), escaped);
    }
}

/// The reverse of `escape_bytes`.
fn unescape(escaped: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), escaped);
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.extend(plain.bytes());
        if let Some(more) = escape.strip_prefix('\\') {
            out.push(b'\\');
            rest = more;
        } else if let Some(hex) = escape.strip_prefix('x') {
            out.push(u8::from_str_radix(&hex[..2], 16).unwrap());
            rest = &hex[2..];
        } else {
            let (hex, more) = escape.strip_prefix("u{").unwrap().split_once('}').unwrap();
            let number = u32::from_str_radix(hex, 16).unwrap();
            out.extend(char::from_u32(number).unwrap().to_string().bytes());
            rest = more;
        }
    }
    out.extend(rest.bytes());
    out
}
