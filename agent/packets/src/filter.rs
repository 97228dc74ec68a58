//! The classic BPF program (Documentation/networking/filter.rst) that keeps packets that are not DNS in the kernel.

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET,
    BPF_W, sock_filter,
};

/// `<linux/filter.h>`: loads at these offsets read the packet's properties, not its bytes.
const SKF_AD_OFF: i32 = -0x1000;
const SKF_AD_PROTOCOL: i32 = 0;
const SKF_AD_PKTTYPE: i32 = 4;
const OUTGOING: u32 = libc::PACKET_OUTGOING as u32;
/// Accept all bytes of a packet.
const WHOLE: u32 = 0x0004_0000;

/// A jump target; always further down.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    /// The next instruction.
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

/// A line of the program before labels are resolved.
enum Line {
    /// The label of the next instruction.
    At(Label),
    /// An instruction without a jump: code and operand.
    Op(u32, u32),
    /// A conditional jump: code, operand, target if it is true, target if it is false.
    Jump(u32, u32, Label, Label),
}

/// A filter that accepts queries that leave, answers that come in, and ICMP errors that come in. It also accepts IPv6
/// packets with extension headers, which user space parses. On a socket of type SOCK_DGRAM packets begin at the network
/// header.
pub(super) fn program(ports: &[u16]) -> Vec<sock_filter> {
    use Label::*;
    use Line::{At, Jump, Op};
    const EQ: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    let property = |what: i32| Op(BPF_LD | BPF_W | BPF_ABS, (SKF_AD_OFF + what) as u32);
    let byte = |at: u32| Op(BPF_LD | BPF_B | BPF_ABS, at);
    let half = |at: u32| Op(BPF_LD | BPF_H | BPF_ABS, at);
    let mut lines = vec![
        property(SKF_AD_PROTOCOL),
        Jump(EQ, libc::ETH_P_IP as u32, Ipv4, Next),
        Jump(EQ, libc::ETH_P_IPV6 as u32, Ipv6, Drop),
        At(Ipv4),
        byte(9),
        Jump(EQ, 17, Ports4, Next),
        Jump(EQ, 6, Ports4, Next),
        Jump(EQ, 1, Icmp4, Drop),
        At(Ports4),
        // A later fragment has no ports.
        half(6),
        Jump(BPF_JMP | BPF_JSET | BPF_K, 0x1fff, Drop, Next),
        Op(BPF_LDX | BPF_B | BPF_MSH, 0),
        property(SKF_AD_PKTTYPE),
        Jump(EQ, OUTGOING, Out4, Next),
        Op(BPF_LD | BPF_H | BPF_IND, 0),
        Jump(EQ, 0, Compare, Compare),
        At(Out4),
        Op(BPF_LD | BPF_H | BPF_IND, 2),
        Jump(EQ, 0, Compare, Compare),
        At(Icmp4),
        property(SKF_AD_PKTTYPE),
        Jump(EQ, OUTGOING, Drop, Next),
        Op(BPF_LDX | BPF_B | BPF_MSH, 0),
        Op(BPF_LD | BPF_B | BPF_IND, 0),
        Jump(EQ, 3, Accept, Drop),
        At(Ipv6),
        byte(6),
        Jump(EQ, 17, Ports6, Next),
        Jump(EQ, 6, Ports6, Next),
        Jump(EQ, 58, Icmp6, Next),
        Jump(EQ, 0, Accept, Next),
        Jump(EQ, 43, Accept, Next),
        Jump(EQ, 44, Accept, Next),
        Jump(EQ, 60, Accept, Drop),
        At(Ports6),
        property(SKF_AD_PKTTYPE),
        Jump(EQ, OUTGOING, Out6, Next),
        half(40),
        Jump(EQ, 0, Compare, Compare),
        At(Out6),
        half(42),
        Jump(EQ, 0, Compare, Compare),
        At(Icmp6),
        property(SKF_AD_PKTTYPE),
        Jump(EQ, OUTGOING, Drop, Next),
        byte(40),
        Jump(EQ, 1, Accept, Drop),
        At(Compare),
    ];
    lines.extend(ports.iter().filter(|&&port| port != 0).map(|&port| Jump(EQ, port.into(), Accept, Next)));
    lines.extend([At(Drop), Op(BPF_RET | BPF_K, 0), At(Accept), Op(BPF_RET | BPF_K, WHOLE)]);
    assemble(&lines)
}

/// Resolves the labels.
fn assemble(lines: &[Line]) -> Vec<sock_filter> {
    let mut labels = Vec::new();
    let mut length = 0u8;
    for line in lines {
        match line {
            Line::At(label) => labels.push((*label, length)),
            _ => length += 1,
        }
    }
    // Jumps count from the instruction after the jump.
    let offset = |target: Label, next: u8| match target {
        Label::Next => 0,
        _ => labels.iter().find(|(label, _)| *label == target).map_or(0, |(_, at)| at.saturating_sub(next)),
    };
    let mut program: Vec<sock_filter> = Vec::new();
    for line in lines {
        let next = program.len() as u8 + 1;
        match *line {
            Line::At(_) => {}
            Line::Op(code, k) => program.push(sock_filter { code: code as u16, jt: 0, jf: 0, k }),
            Line::Jump(code, k, yes, no) => {
                let (jt, jf) = (offset(yes, next), offset(no, next));
                program.push(sock_filter { code: code as u16, jt, jf, k });
            }
        }
    }
    program
}
