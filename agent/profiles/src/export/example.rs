//! The profile that the tests of the formats write: one pod with inlining, kernel frames and hostile names, and one
//! host process.
//!
//! Must not depend on: any format.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use podopsy_model::owner::{CgroupRef, ContainerRef, KnownBy, Owner, PodRef};
use podopsy_model::profile::{Frame, Mapping, Profile, Sample, Sampling};

pub const HOSTILE: &str = "</text><script>alert(1)</script>;\n& 5";
pub const CONTAINER_ID: &str = "4bf0c1e2d3a4958677685948372615049382716059483726150493827160ffee";

pub fn frame(function: &str, offset: u64) -> Frame {
    Frame {
        function: Some(function.into()),
        module: Some("/app/checkout".into()),
        build_id: Some("c0ffee".into()),
        offset,
        ..Frame::default()
    }
}

pub fn profile() -> Profile {
    let source = |line| Some((Arc::from("/src/cart.rs"), line));
    let kernel = Frame {
        function: Some("schedule".into()),
        module: Some("[kernel]".into()),
        offset: 0xffff_ffff_8100_0000,
        ..Frame::default()
    };
    let inlined = Frame { inlined: true, source: source(7), ..frame("cart::price", 0x1234) };
    let checkout = Sample {
        stack: vec![
            kernel,
            inlined,
            Frame { source: source(40), ..frame("cart::total", 0x1234) },
            Frame { function: None, ..frame("", 0x1500) },
            frame("main", 0x1600),
        ],
        count: 30,
        pid: 4242,
        tid: 4243,
        thread: "tokio-worker".into(),
        comm: "checkout".into(),
        owner: Arc::new(checkout()),
    };
    let hostile = Sample {
        stack: vec![frame(HOSTILE, 0x1700), frame("main", 0x1600)],
        count: 12,
        comm: "ev;il\n".into(),
        ..checkout.clone()
    };
    let host = Sample {
        stack: vec![Frame { offset: 0x7f00, ..Frame::default() }],
        count: 3,
        pid: 1,
        tid: 1,
        thread: "systemd".into(),
        comm: "systemd".into(),
        owner: Arc::new(Owner { known_by: KnownBy::Host, ..Owner::default() }),
    };
    Profile {
        start: jiff::Timestamp::from_second(1_800_000_000).unwrap(),
        duration: Duration::from_secs(15),
        sampling: Sampling::Cpu { frequency_hz: 99 },
        node: "node-1".into(),
        samples: vec![checkout, hostile, host],
        mappings: vec![Mapping {
            name: "/app/checkout".into(),
            build_id: Some("c0ffee".into()),
            start: 0x40_1000,
            end: 0x40_3000,
            file_offset: 0x1000,
        }],
        losses: BTreeMap::from([("ring_full".to_string(), 2)]),
        quality: Vec::new(),
        unwind: Default::default(),
    }
}

fn checkout() -> Owner {
    Owner {
        pod: Some(PodRef {
            namespace: "shop".into(),
            name: "checkout-0".into(),
            uid: "3f7c".into(),
            labels: BTreeMap::new(),
        }),
        container: Some(ContainerRef {
            name: "api".into(),
            id: CONTAINER_ID.into(),
            image: "registry/checkout:1".into(),
            attempt: 0,
        }),
        cgroup: CgroupRef { id: 99, path: Some("/pods.slice/x".into()) },
        known_by: KnownBy::Cri,
    }
}
