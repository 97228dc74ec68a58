//! Inputs that are text, or messages of a protocol.

use std::collections::HashMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use podopsy_runtime::cri::messages::{
    Container, ContainerMetadata, ContainerStatus, ContainerStatusResponse, ImageSpec,
    ListContainersResponse, ListPodSandboxResponse, PodSandbox, PodSandboxMetadata, PodSandboxNetworkStatus,
    PodSandboxStatus, PodSandboxStatusResponse, VersionResponse,
};
use prost::Message;

use super::Inputs;
use crate::joined;

pub fn inputs() -> Vec<(&'static str, Inputs)> {
    vec![
        ("demangle", names()),
        ("perf_map_names", perf_maps()),
        ("process_maps", maps()),
        ("process_mounts", mounts()),
        ("process_stat", stats()),
        ("cgroup_path", cgroup_paths()),
        ("process_cgroup", process_cgroups()),
        ("own_pod", own_pods()),
        ("resolv_conf", resolv_confs()),
        ("cri_messages", cri_messages()),
        ("escaped_text", texts()),
        ("dns_message", dns_messages()),
        ("dns_frame", dns_frames()),
        ("dns_stream", dns_streams()),
        ("api_query", queries()),
        ("pprof_import", profiles()),
        ("config_file", configs()),
        ("kernel_log", kernel_logs()),
    ]
}

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "0b7d2c34-8a53-4f0e-9d4e-0f4a6f1c2b3d";

/// A C++ name whose parts refer to the part before twice: each level doubles the text.
fn doubling(levels: usize) -> Vec<u8> {
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut name = b"_Z3sum4PairIiiE".to_vec();
    for &digit in digits.iter().take(levels) {
        name.extend([b"S_IS", &[digit][..], b"_S", &[digit], b"_E"].concat());
    }
    name
}

fn names() -> Inputs {
    let nested = [b"_Z1f".to_vec(), b"1AI".repeat(300), b"i".to_vec(), b"E".repeat(300)].concat();
    vec![
        ("c", b"main".to_vec()),
        ("cpp", b"_ZNSt6vectorIiSaIiEE9push_backERKi".to_vec()),
        ("cpp-lambda", b"_ZZN3foo3barEvENKUlvE_clEv".to_vec()),
        ("cpp-pack", b"_Z1fIJiddEEvDpT_".to_vec()),
        ("cpp-expression", b"_Z1fILi3EEvRAplT_Li1E_i".to_vec()),
        ("cpp-global", b"_GLOBAL__sub_I_main.cpp".to_vec()),
        ("rust-legacy", b"_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE".to_vec()),
        ("rust-v0", b"_RNvMs_NtCs1234_7mycrate3fooINtB4_3BarpE3baz".to_vec()),
        ("rust-v0-backreferences", b"_RNvYNtC3std4PathB2_NtB4_4JoinTB6_B6_B6_E4join".to_vec()),
        ("rust-v0-const", b"_RNvMC7mycrateINtB2_3ArrKj10_KcRe68656c6c6f_E3get".to_vec()),
        ("doubling", doubling(30)),
        ("nested", nested),
        ("nested-pointers", [&b"_Z1f"[..], &b"P".repeat(1500), b"i"].concat()),
        (
            "nested-functions",
            [b"_Z1f".to_vec(), b"PF".repeat(200), b"v".to_vec(), b"iE".repeat(200)].concat(),
        ),
        ("rust-v0-nested", [b"_RNvC1a".to_vec(), b"INtC1a1b".repeat(150), b"E".repeat(150)].concat()),
        ("damaged-nesting", [doubling(9), b"S_IS7_S_IS8_S8_ES_IS6_S6_E".repeat(20)].concat()),
        ("length-beyond-the-end", b"_Z99999999999999999999f".to_vec()),
        ("not-utf-8", b"_Z\xff\x1b[2J".to_vec()),
        ("long", vec![b'x'; 3000]),
    ]
}

fn perf_maps() -> Inputs {
    vec![
        ("node", b"7f00 10 LazyCompile:~handler /app/index.js:3\n7f20 8 Builtin:Call\n".to_vec()),
        ("prefix", b"0x7f00 0x10 java.lang.String::hashCode\r\n".to_vec()),
        ("overlap", b"7f08 8 old\n7f00 100 new\n7fff00000000 ffffffff far\n".to_vec()),
        ("whole-space", b"0 ffffffffffffffff everything\n1 ffffffffffffffff too much\n".to_vec()),
        ("controls", b"7f00 10 \x1b]0;title\x07\xff\xe2\x80\xae\n".to_vec()),
        ("long-name", [&b"7f00 10 "[..], &[0xff; 3000]].concat()),
        ("no-lines", vec![b' '; 500]),
        ("signs", b"+7f00 +10 a\n-1 10 b\n7f00 -1 c\n".to_vec()),
        ("same-place", b"7f00 10 f\n".repeat(200)),
    ]
}

fn maps() -> Inputs {
    let lines = b"55d0-55d1 r--p 00000000 fe:01 77   /usr/bin/sleep\n\
        55d1-55d5 r-xp 00001000 fe:01 77                         /usr/bin/sl\\012eep (deleted)\n\
        6000-6100 rwxp 00000000 00:00 0\n\
        7000-7100 r-xp 00000000 00:00 0                          [vdso]\n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]\n";
    let many: String = (1..60).map(|i| format!("{:x}-{:x} r-xp 0 0:0 0\n", i * 16, i * 16 + 16)).collect();
    vec![
        ("process", lines.to_vec()),
        ("sysv", b"8000-8100 r-xp 00000000 00:01 9 /SYSV00000000 (deleted)\n".to_vec()),
        ("not-utf-8", b"9000-9100 r-xp 00000000 00:01 9 /bin/\xff\xfe\x1b[2J\n".to_vec()),
        ("long-path", [&b"9000-9100 r-xp 0 00:01 9 /"[..], &b"d/".repeat(1500)].concat()),
        (
            "out-of-order",
            b"9000-9100 r-xp 0 0:1 9 /a\n8000-8100 r-xp 0 0:1 9 /b\n9080-9200 r-xp 0 0:1 9 /c\n".to_vec(),
        ),
        (
            "numbers",
            b"0-ffffffffffffffff r-xp ffffffffffffffff ffffffff:ffffffff 18446744073709551615 /x\n".to_vec(),
        ),
        ("many", many.into_bytes()),
        ("escapes", [&b"9000-9100 r-xp 0 0:1 9 "[..], &b"\\012".repeat(300)].concat()),
    ]
}

fn mounts() -> Inputs {
    vec![
        (
            "node",
            b"36 35 0:52 / /mnt/x rw,noatime shared:1 - fuse.sshfs host:/ rw\n\
            40 35 0:60 / / rw - overlay overlay rw,lowerdir=/a:/b - fuse x y\n\
            41 35 0:61 / /\\040-\\040overlay rw - tmpfs none rw\n\
            42 35 0:62 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n"
                .to_vec(),
        ),
        ("numbers", b"1 1 4294967296:-1 / / - fuse\n1 1 4294967295:4294967295 / / - fuse x\n".to_vec()),
        ("not-utf-8", b"1 1 0:7 / /\xff\xfe rw - fuse.\xff x\n".to_vec()),
        ("many", b"1 1 0:7 / / - fuse\n".repeat(100)),
    ]
}

fn stats() -> Inputs {
    vec![
        (
            "comm-with-parentheses",
            b"7 (a) b) R 1 2 3) S 1 2 3 4 5 2129984 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n".to_vec(),
        ),
        ("numbers", format!("7 (a) R {}\n", "18446744073709551615 ".repeat(30)).into_bytes()),
        ("short", b"7 (a".to_vec()),
        ("longest-time", format!("7 (a) S{}", " 18446744073709551615".repeat(20)).into_bytes()),
    ]
}

fn cgroup_paths() -> Inputs {
    let under = UID.replace('-', "_");
    let path = |text: String| text.into_bytes();
    vec![
        ("cgroupfs", path(format!("/kubepods/burstable/pod{UID}/{ID}"))),
        (
            "systemd",
            path(format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-{ID}.scope"
            )),
        ),
        ("cri-o", path(format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope/inner"))),
        ("joined", path(format!("/system.slice/kubepods-pod{under}.slice:cri-containerd:{ID}"))),
        ("kind", path(format!("/docker/{ID}/kubelet/kubepods/pod{UID}/{ID}/nested"))),
        ("nested", path(format!("/{ID}").repeat(20))),
        ("deep", path("/kubepods/pod1".repeat(200))),
        ("looks-like-a-pod", path(format!("/user.slice/kubepods/pod{UID}/{ID}"))),
        ("dots", path(format!("/../..//./kubepods/../pod{UID}/..{ID}"))),
        ("not-utf-8", [b"/kubepods/pod\xff/".to_vec(), ID.into()].concat()),
        ("only-dashes", path(format!("/kubepods-----.slice/kubepods-pod-.slice/-{ID}.scope"))),
        ("pod-without-a-uid", path("/kubepods/pod/.slice/kubepods-pod.slice".into())),
    ]
}

fn process_cgroups() -> Inputs {
    vec![
        ("v2", format!("0::/kubepods.slice/pod{UID}/{ID}\n").into_bytes()),
        ("v1", format!("12:cpu,cpuacct:/a\n11:memory:/docker/node/kubepods/pod{UID}/{ID}\n").into_bytes()),
        ("deleted", b"0::/system.slice/x.service (deleted)\n".to_vec()),
        ("outside", b"0::/../../other\n11:memory:/../../../..\n".to_vec()),
        ("not-utf-8", b"0::/\xff\xfe/./a//b\n:::::\n".to_vec()),
        ("long", [&b"0::"[..], &b"/a/..".repeat(600)].concat()),
    ]
}

fn own_pods() -> Inputs {
    let mounts = format!(
        "1 1 8:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw - ext4 /dev/sda rw\n\
        1 1 8:1 /var/lib/kubelet/pods/{UID}/containers/app/0a1b /dev/termination-log rw - ext4 x rw\n"
    );
    let resolv = b"search shop.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\n";
    vec![
        ("namespace", joined([b"0::/\n", mounts.as_bytes(), resolv])),
        ("path", joined([format!("11:memory:/kubepods/pod{UID}/{ID}\n").as_bytes(), b"", b"search \n"])),
        (
            "hostile",
            joined([b"0::/kubepods/pod../x\n", b"a b c /pods//containers/ /etc/hosts\n", b"search .svc.\n"]),
        ),
    ]
}

fn resolv_confs() -> Inputs {
    let names = b"api.shop.svc.cluster.local api.svc.cluster.local api";
    vec![
        (
            "pod",
            joined([
                &names[..],
                b"search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
            ]),
        ),
        ("link-local", joined([&b"x"[..], b"nameserver fe80::1%eth0\ndomain Example.COM. # comment\n"])),
        ("options", joined([&b"x."[..], b"options ndots:99999999999 timeout:0 attempts:-1 ndots: :\noptions ndots:4294967295\n"])),
        ("long-search", joined([&b"a.b"[..], &[&b"search"[..], &b" a.b".repeat(400)].concat()])),
        ("long-domain", joined([&b"a"[..], &[&b"search "[..], &b"a.".repeat(1000)].concat()])),
        ("controls", joined([&b"\x1b[2J"[..], b"search \x1b]0;x\x07 \xff\xfe \xe2\x80\xae ..\nnameserver ::\n"])),
        ("root", joined([&b". .."[..], b"search . .. \nsearch\ndomain\n"])),
    ]
}

fn cri_messages() -> Inputs {
    let metadata = || PodSandboxMetadata {
        name: "shop-\u{1b}[2J".into(),
        uid: UID.into(),
        namespace: "shop".into(),
        attempt: u32::MAX,
    };
    let labels = || HashMap::from([("app".to_owned(), "shop".to_owned())]);
    let sandbox = PodSandbox {
        id: ID.into(),
        metadata: Some(metadata()),
        state: i32::MIN,
        created_at: i64::MAX,
        labels: labels(),
    };
    let container = Container {
        id: ID.into(),
        pod_sandbox_id: ID.into(),
        metadata: Some(ContainerMetadata { name: "app".into(), attempt: 3 }),
        image: Some(ImageSpec { image: "x".repeat(900), user_specified_image: String::new() }),
        ..Container::default()
    };
    let status = ContainerStatus {
        id: ID.into(),
        reason: "OOMKilled\u{202e}".into(),
        exit_code: -1,
        ..Default::default()
    };
    let network = PodSandboxNetworkStatus { ip: "10.0.0.1".into(), additional_ips: Vec::new() };
    let sandbox_status = PodSandboxStatus {
        metadata: Some(metadata()),
        network: Some(network),
        labels: labels(),
        ..Default::default()
    };
    let info = HashMap::from([("info".to_owned(), r#"{"pid": 18446744073709551615}"#.to_owned())]);
    vec![
        (
            "version",
            VersionResponse { runtime_name: "containerd".into(), ..Default::default() }.encode_to_vec(),
        ),
        ("sandboxes", ListPodSandboxResponse { items: vec![sandbox.clone(), sandbox] }.encode_to_vec()),
        ("containers", ListContainersResponse { containers: vec![container] }.encode_to_vec()),
        (
            "container-status",
            ContainerStatusResponse { status: Some(status), info: info.clone() }.encode_to_vec(),
        ),
        ("sandbox-status", PodSandboxStatusResponse { status: Some(sandbox_status), info }.encode_to_vec()),
        ("groups", [0x0b].repeat(500)),
        ("length-beyond-the-end", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x".to_vec()),
        ("empty-messages", b"\x0a\x00".repeat(1000)),
    ]
}

fn texts() -> Inputs {
    vec![
        ("plain", b"checkout-api 1.2".to_vec()),
        ("words", "café 東京 Ελλάδα".into()),
        ("terminal", b"\x1b]0;title\x07\x1b[2J\r\n\t\0\x7f".to_vec()),
        ("escapes", br"\x1b \\ \u{202e} \".to_vec()),
        ("not-utf-8", b"\xff\xfe\xc3\xed\xa0\x80\xf4\x90\x80\x80".to_vec()),
        ("directions", "a\u{202e}b\u{200d}c\u{2066}d\u{e000}".into()),
        ("html", b"<script>\"&'`".to_vec()),
    ]
}

/// A name as it stands in a DNS message.
fn wire_name(name: &str) -> Vec<u8> {
    let mut out: Vec<u8> =
        name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    out.push(0);
    out
}

fn dns_question(name: &[u8], qtype: u16) -> Vec<u8> {
    [name, &qtype.to_be_bytes(), &[0, 1]].concat()
}

/// A message: flags, counts, and what follows the header.
fn dns(flags: u16, counts: [u16; 4], body: &[u8]) -> Vec<u8> {
    let head = [7, flags].into_iter().chain(counts).flat_map(u16::to_be_bytes);
    head.chain(body.iter().copied()).collect()
}

fn dns_messages() -> Inputs {
    let question = dns_question(&wire_name("api.shop.svc.cluster.local"), 1);
    let record = |name: &[u8], kind: u16, data: &[u8]| {
        [name, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 30], &(data.len() as u16).to_be_bytes(), data].concat()
    };
    let answer = |flags: u16, counts: [u16; 4], records: &[u8]| {
        joined([&question, &dns(flags, counts, &[&question, records].concat())])
    };
    let to_question = b"\xc0\x0c";
    let records = [
        record(to_question, 5, &wire_name("other.example")),
        record(to_question, 1, &[10, 0, 0, 1]),
        record(to_question, 28, &[7; 16]),
        record(to_question, 16, b"\x05hello"),
        record(to_question, 33, &[&[0, 1, 0, 2, 0, 80][..], &wire_name("srv")].concat()),
        record(to_question, 65, &[&[0, 1, 0][..], &[0, 1, 0, 3, 2, b'h', b'2']].concat()),
    ];
    let loops = [record(b"\xc0\x28", 1, &[1, 2, 3, 4]), record(b"\xc0\x0c", 5, b"\xc0\x3a")].concat();
    let long_label = [&[63][..], &[b'\\'; 63]].concat().repeat(3);
    let odd = dns_question(&[&long_label[..], &[0]].concat(), 65280);
    let opt = record(&[0], 41, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    vec![
        ("answered", answer(0x8180, [1, 1, 0, 0], &records[1])),
        ("kinds", answer(0x8180, [1, 6, 0, 0], &records.concat())),
        ("nxdomain", answer(0x8183, [1, 0, 0, 0], b"")),
        ("truncated", answer(0x8380, [1, 0, 0, 0], b"")),
        ("edns", answer(0x8180, [1, 0, 0, 1], &opt)),
        ("pointer-loop", answer(0x8180, [1, 2, 0, 0], &loops)),
        (
            "pointer-to-itself",
            joined([&b"\xc0\x0c\0\x01\0\x01"[..], &dns(0x8180, [1, 0, 0, 0], b"\xc0\x0c\0\x01\0\x01")]),
        ),
        ("counts", answer(0x8180, [1, 65535, 65535, 65535], b"")),
        ("binary-name", joined([&odd, &dns(0x8180, [1, 0, 0, 0], &odd)])),
        ("length-beyond-the-end", answer(0x8180, [1, 1, 0, 0], b"\xc0\x0c\0\x01\0\x01\0\0\0\0\xff\xff")),
        ("no-question", joined([&question, &dns(0x8182, [0, 0, 0, 0], b"")])),
        ("long", answer(0x8180, [1, 20, 0, 0], &records[1].repeat(60))),
    ]
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u16 + 8;
    [source, destination, len, 0]
        .into_iter()
        .flat_map(u16::to_be_bytes)
        .chain(payload.iter().copied())
        .collect()
}

fn ipv4(protocol: u8, rest: &[u8]) -> Vec<u8> {
    let len = (rest.len() as u16 + 20).to_be_bytes();
    let head = [0x45, 0, len[0], len[1], 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    [&head[..], rest].concat()
}

fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
    let len = (rest.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, len[0], len[1], next, 64][..], &[1; 16], &[2; 16], rest].concat()
}

fn dns_frames() -> Inputs {
    let query = dns(0x0100, [1, 0, 0, 0], &dns_question(&wire_name("api.test"), 1));
    let frame = |flags: u8, bytes: Vec<u8>| [&[flags][..], &bytes].concat();
    let (out, into) = (0, 1);
    let quoted = ipv4(17, &udp(4000, 53, &query));
    let tcp = [&[0x0f, 0xa0, 0, 53, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0][..], &query].concat();
    let extensions =
        [&[60, 0, 0, 0, 0, 0, 0, 0][..], &[44, 0, 0, 0, 0, 0, 0, 0], &[17, 0, 0, 0, 0, 0, 0, 1]].concat();
    vec![
        ("ipv4-udp", frame(out, ipv4(17, &udp(4000, 53, &query)))),
        ("ipv4-answer", frame(into, ipv4(17, &udp(53, 4000, &query)))),
        ("ipv6-udp", frame(out, ipv6(17, &udp(4000, 53, &query)))),
        ("ipv6-extensions", frame(out, ipv6(0, &[&extensions[..], &udp(4000, 53, &query)].concat()))),
        ("tcp", frame(out, ipv4(6, &tcp))),
        ("unreachable", frame(into, ipv4(1, &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat()))),
        (
            "unreachable-ipv6",
            frame(into, ipv6(58, &[&[1, 4, 0, 0, 0, 0, 0, 0][..], &ipv6(17, &udp(4000, 53, b""))].concat())),
        ),
        ("cut", frame(0xf0, ipv4(17, &udp(4000, 53, &query))[..30].to_vec())),
        ("endless-extensions", frame(out, ipv6(0, &[0_u8; 8].repeat(20)))),
        ("udp-length-of-zero", frame(out, ipv4(17, &[0x0f, 0xa0, 0, 53, 0, 0, 0, 0]))),
    ]
}

fn dns_streams() -> Inputs {
    let query = dns(0x0100, [1, 0, 0, 0], &dns_question(&wire_name("api.test"), 1));
    let message = [&(query.len() as u16).to_be_bytes()[..], &query].concat();
    let segment =
        |kind: u8, sequence: u8, bytes: &[u8]| [&[kind, sequence, bytes.len() as u8][..], bytes].concat();
    let (one, two) = message.split_at(9);
    let syn = || segment(8, 0, b"");
    vec![
        ("whole", [syn(), segment(0, 1, &message)].concat()),
        ("in-two", [syn(), segment(0, 1, one), segment(0, 10, two)].concat()),
        ("repeated", [syn(), segment(0, 1, one), segment(0, 1, &message)].concat()),
        ("out-of-order", [syn(), segment(0, 10, two), segment(0, 1, one)].concat()),
        ("from-the-middle", segment(0, 77, &message)),
        ("wraps", [segment(0x18, 127, b""), segment(0x10, 128, &message)].concat()),
        ("length-of-nothing", [syn(), segment(0, 1, &[0, 0, 0, 0])].concat()),
        ("cut", [syn(), segment(0x20, 1, &message)].concat()),
        ("many", (0..100).flat_map(|i| segment(i & 0x3f, i, &message)).collect()),
    ]
}

fn queries() -> Inputs {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        (
            "events",
            text("from=15m&kind=oom.kill&kind=dns.failure&namespace=shop&label=app=x&order=oldest&limit=10"),
        ),
        ("times", text("from=2026-01-31T23:59:00Z&until=2026-02-01T00:00:00%2B02:00")),
        ("cursor", text("cursor=1767225600000000000-17&limit=1000")),
        ("long-times", text("from=99999999999999999999999d&until=-262143-01-01T00:00:00Z")),
        ("units", text("from=1h1m1s1ms&until=0s")),
        ("unknown", text("%1b%5b2J=%ff%fe&a")),
        ("many", text(&"label=a=b&".repeat(100))),
        ("long-value", text(&format!("pod={}", "x".repeat(1100)))),
        ("nul", text("pod=a%00b")),
        ("twice", text("pod=a&pod=b")),
        ("percent", text("pod=%&namespace=%f&container=%zz&limit=%31")),
    ]
}

/// A field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat()
}

fn profile() -> Vec<u8> {
    let texts = ["", "cpu", "nanoseconds", "main", "work\u{1b}[2J", "/usr/bin/app"];
    let mut out = field(1, &[8, 1, 16, 2]);
    out.extend(field(2, &field(1, &[1, 2]).into_iter().chain(field(2, &[9])).collect::<Vec<_>>()));
    out.extend(field(3, &[8, 1, 16, 0, 24, 0x80, 0x20, 40, 5]));
    out.extend(field(4, &[&[8, 1, 16, 1, 24, 0x80, 0x10][..], &field(4, &[8, 1, 16, 7])].concat()));
    out.extend(field(4, &[8, 2, 16, 1, 24, 0x90, 0x10]));
    out.extend(field(5, &[8, 1, 16, 3, 24, 4]));
    out.extend(texts.iter().flat_map(|text| field(6, text.as_bytes())));
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("a buffer in memory");
    encoder.finish().expect("a buffer in memory")
}

fn profiles() -> Inputs {
    let twice = [profile(), profile()].concat();
    vec![
        ("plain", profile()),
        ("packed", gzip(&profile())),
        ("two-members", [gzip(&profile()), gzip(&profile())].concat()),
        ("twice", twice),
        ("bomb", gzip(&vec![0x32; 1 << 20])),
        ("empty-texts", [profile(), b"\x32\x00".repeat(1000)].concat()),
        ("length-beyond-the-end", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7fx".to_vec()),
        (
            "negative",
            [profile(), field(2, &[10, 1, 1, 18, 10, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1])]
                .concat(),
        ),
        ("legacy", b"heap profile: 1: 2 [ 3: 4] @ heap/1048576\n".to_vec()),
        ("cut", gzip(&profile())[..30].to_vec()),
    ]
}

fn configs() -> Inputs {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        (
            "settings",
            text("# comment\ndns-timeout = \"2s\"\nalways-on = true\nloki = [\"http://a\", \"http://b\"]\n"),
        ),
        ("kinds", text("a = 1\nb = 1.5\nc = 1979-05-27T07:32:00Z\nd = [[1]]\n")),
        ("table", text("[agent]\na = 1\n")),
        ("damaged", text("a = \"\u{1b}[2J\nb = ")),
        ("nested-arrays", text(&format!("a = {}", "[".repeat(1500)))),
        ("nested-tables", text(&format!("a = {}", "{a=".repeat(700)))),
        ("dotted", text(&format!("{} = 1\n", ["a"; 800].join(".")))),
        ("twice", text("a = 1\n\"a\" = 2\n")),
        ("numbers", text("a = 99999999999999999999\nb = 0xffffffffffffffff\nc = 1e999\nd = -inf\ne = nan\n")),
        ("escapes", text("\"\\u001b[2J\" = \"\\U0010FFFF\"\n")),
    ]
}

fn kernel_logs() -> Inputs {
    let kill = format!(
        "6,100,5000,-;python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0\n\
        6,101,5001,-;CPU: 1 PID: 4711 Comm: python3 Not tainted 6.1.0\n\
        6,102,5002,-;memory: usage 65536kB, limit 65536kB, failcnt 1391\n\
        6,103,5003,-;swap: usage 0kB, limit 9007199254740988kB, failcnt 0\n\
        6,104,5004,-;[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name\n\
        6,105,5005,-;[   4711]     0  4711    44966    13460   143360        0             0 python3\n\
        6,106,5006,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset={ID},mems_allowed=0,oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/{ID},task=python3,pid=4711,uid=0\n\
        3,107,5007,-;Memory cgroup out of memory: Killed process 4711 (python3) total-vm:179864kB, anon-rss:49792kB, file-rss:4096kB, shmem-rss:0kB, UID:0 pgtables:140kB oom_score_adj:0\n"
    );
    let group = "6,200,1,-;Tasks in /a are going to be killed due to memory.oom.group set\n\
        3,201,2,-;Memory cgroup out of memory: OOM victim 7 (x) is already exiting. Skip killing the task\n";
    let forged = "6,300,1,-;a) total-vm:1kB invoked oom-killer: gfp_mask=0, order=99999999999\n\
        3,301,2,-;Out of memory: Killed process 1 (a) total-vm:1kB, anon-rss:9) total-vm:-1kB, anon-rss:-5kB, file-rss:1kB, shmem-rss:1kB\n\
        6,302,3,-;oom-kill:constraint=X,nodemask=,cpuset=,cpuset=,task=,task=a,pid=1,pid=2,uid=3,uid=4\n";
    let continued = format!("6,1,1,c;{}\n", "x".repeat(60)).repeat(30);
    vec![
        ("kill", kill.into_bytes()),
        ("group", group.into()),
        ("forged", forged.into()),
        ("continued", continued.into_bytes()),
        ("escapes", br"6,1,1,-;\x1b\x0a\x \xzz\x5c oom-kill:constraint=".to_vec()),
        ("user-space", b"14,1,1,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=a,pid=1,uid=2\n".to_vec()),
        ("numbers", b"6,18446744073709551615,18446744073709551615,-;memory: usage 18446744073709551615kB, limit 18446744073709551615kB, failcnt 1\n".to_vec()),
        ("columns", b"6,1,1,-;[ pid ] uid uid uid uid name\n6,2,2,-;[ 1] 1 2 3 4 x\n6,3,3,-;[1] 1 2\n".to_vec()),
    ]
}
