//! The classic BPF program (Documentation/networking/filter.rst) that leaves packets in the kernel which are no DNS.

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET,
    BPF_W, sock_filter,
};

/// `<linux/filter.h>`: loads at these offsets read the packet's properties, not its bytes.
const SKF_AD_OFF: i32 = -0x1000;
const SKF_AD_PROTOCOL: i32 = 0;
const SKF_AD_PKTTYPE: i32 = 4;
const OUTGOING: u32 = libc::PACKET_OUTGOING as u32;
/// All of a packet.
const WHOLE: u32 = 0x0004_0000;

/// Where a test goes on; always further down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Ipv4,
    Ipv6,
    Ports4,
    Out4,
    Icmp4,
    Ports6,
    Out6,
    Icmp6,
    Compare,
    Accept,
    Drop,
}

enum Step {
    Here(To),
    /// Code and operand.
    Do(u32, u32),
    /// Code, operand, where to go if it holds and if not.
    Test(u32, u32, To, To),
}

/// Takes queries that leave, answers that come in, and ICMP errors that come in; IPv6 packets with extension headers are
/// left to user space. On a socket of type SOCK_DGRAM packets begin at the network header.
pub(super) fn program(ports: &[u16]) -> Vec<sock_filter> {
    use Step::{Do, Here, Test};
    use To::*;
    const EQ: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    let special = |what: i32| Do(BPF_LD | BPF_W | BPF_ABS, (SKF_AD_OFF + what) as u32);
    let byte = |at: u32| Do(BPF_LD | BPF_B | BPF_ABS, at);
    let half = |at: u32| Do(BPF_LD | BPF_H | BPF_ABS, at);
    let mut steps = vec![
        special(SKF_AD_PROTOCOL),
        Test(EQ, libc::ETH_P_IP as u32, Ipv4, Next),
        Test(EQ, libc::ETH_P_IPV6 as u32, Ipv6, Drop),
        Here(Ipv4),
        byte(9),
        Test(EQ, 17, Ports4, Next),
        Test(EQ, 6, Ports4, Next),
        Test(EQ, 1, Icmp4, Drop),
        Here(Ports4),
        // A later fragment has no ports.
        half(6),
        Test(BPF_JMP | BPF_JSET | BPF_K, 0x1fff, Drop, Next),
        Do(BPF_LDX | BPF_B | BPF_MSH, 0),
        special(SKF_AD_PKTTYPE),
        Test(EQ, OUTGOING, Out4, Next),
        Do(BPF_LD | BPF_H | BPF_IND, 0),
        Test(EQ, 0, Compare, Compare),
        Here(Out4),
        Do(BPF_LD | BPF_H | BPF_IND, 2),
        Test(EQ, 0, Compare, Compare),
        Here(Icmp4),
        special(SKF_AD_PKTTYPE),
        Test(EQ, OUTGOING, Drop, Next),
        Do(BPF_LDX | BPF_B | BPF_MSH, 0),
        Do(BPF_LD | BPF_B | BPF_IND, 0),
        Test(EQ, 3, Accept, Drop),
        Here(Ipv6),
        byte(6),
        Test(EQ, 17, Ports6, Next),
        Test(EQ, 6, Ports6, Next),
        Test(EQ, 58, Icmp6, Next),
        Test(EQ, 0, Accept, Next),
        Test(EQ, 43, Accept, Next),
        Test(EQ, 44, Accept, Next),
        Test(EQ, 60, Accept, Drop),
        Here(Ports6),
        special(SKF_AD_PKTTYPE),
        Test(EQ, OUTGOING, Out6, Next),
        half(40),
        Test(EQ, 0, Compare, Compare),
        Here(Out6),
        half(42),
        Test(EQ, 0, Compare, Compare),
        Here(Icmp6),
        special(SKF_AD_PKTTYPE),
        Test(EQ, OUTGOING, Drop, Next),
        byte(40),
        Test(EQ, 1, Accept, Drop),
        Here(Compare),
    ];
    steps.extend(ports.iter().filter(|&&port| port != 0).map(|&port| Test(EQ, port.into(), Accept, Next)));
    steps.extend([Here(Drop), Do(BPF_RET | BPF_K, 0), Here(Accept), Do(BPF_RET | BPF_K, WHOLE)]);
    assemble(&steps)
}

fn assemble(steps: &[Step]) -> Vec<sock_filter> {
    let mut places = Vec::new();
    let mut length = 0u8;
    for step in steps {
        match step {
            Step::Here(label) => places.push((*label, length)),
            _ => length += 1,
        }
    }
    let place = |to: To, next: u8| match to {
        To::Next => 0,
        _ => places.iter().find(|(label, _)| *label == to).map_or(0, |(_, at)| at.saturating_sub(next)),
    };
    let mut program: Vec<sock_filter> = Vec::new();
    for step in steps {
        let next = program.len() as u8 + 1;
        match *step {
            Step::Here(_) => {}
            Step::Do(code, k) => program.push(sock_filter { code: code as u16, jt: 0, jf: 0, k }),
            Step::Test(code, k, yes, no) => {
                let (jt, jf) = (place(yes, next), place(no, next));
                program.push(sock_filter { code: code as u16, jt, jf, k });
            }
        }
    }
    program
}
