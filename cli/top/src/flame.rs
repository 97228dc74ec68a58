//! A flame graph in a terminal: the root at the top, each function as wide as its share.

use std::collections::HashMap;

use podopsy_model::profile::{Frame, Profile};
use podopsy_model::text::visible;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

/// Functions of a graph at most. What is deeper is counted on its caller.
const NODES_MAX: usize = 20_000;
const ROOT: usize = 0;

struct Node {
    name: String,
    is_kernel: bool,
    parent: usize,
    /// Samples in it or below it, and in itself.
    total: u64,
    own: u64,
    /// The largest first.
    children: Vec<usize>,
}

pub struct FlameGraph {
    title: String,
    nodes: Vec<Node>,
    /// What takes the whole width.
    zoomed: usize,
    selected: usize,
    is_cut: bool,
}

impl FlameGraph {
    pub fn new(title: &str, profile: &Profile) -> FlameGraph {
        let (nodes, is_cut) = build(profile);
        FlameGraph { title: visible(title), nodes, zoomed: ROOT, selected: ROOT, is_cut }
    }

    /// Takes the next profile; zoom and selection stay where the same functions are.
    pub fn update(&mut self, title: &str, profile: &Profile) {
        let next = FlameGraph::new(title, profile);
        let (zoomed, selected) = (next.find(&self.path(self.zoomed)), next.find(&self.path(self.selected)));
        *self = FlameGraph { zoomed, selected, ..next };
    }

    /// Whether the key closes it.
    pub fn handle(&mut self, code: KeyCode) -> bool {
        match code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Down | KeyCode::Char('j') => {
                self.selected = self.nodes[self.selected].children.first().copied().unwrap_or(self.selected);
            }
            KeyCode::Up | KeyCode::Char('k') if self.selected != self.zoomed => {
                self.selected = self.nodes[self.selected].parent;
            }
            KeyCode::Left => self.select_beside(-1),
            KeyCode::Right => self.select_beside(1),
            KeyCode::Enter => self.zoomed = self.selected,
            KeyCode::Backspace => {
                self.zoomed = self.nodes[self.zoomed].parent;
                self.selected = self.zoomed;
            }
            _ => {}
        }
        false
    }

    fn select_beside(&mut self, step: isize) {
        if self.selected == self.zoomed {
            return;
        }
        let siblings = &self.nodes[self.nodes[self.selected].parent].children;
        let at = siblings.iter().position(|&one| one == self.selected).unwrap_or(0) as isize + step;
        self.selected =
            usize::try_from(at).ok().and_then(|at| siblings.get(at)).copied().unwrap_or(self.selected);
    }

    /// The names from the root to a node, without the root's.
    fn path(&self, mut node: usize) -> Vec<&str> {
        let mut names = Vec::new();
        while node != ROOT {
            names.push(self.nodes[node].name.as_str());
            node = self.nodes[node].parent;
        }
        names.reverse();
        names
    }

    /// The node with this path, as far as there is one.
    fn find(&self, path: &[&str]) -> usize {
        let mut node = ROOT;
        for name in path {
            let child = self.nodes[node].children.iter().find(|&&child| self.nodes[child].name == *name);
            let Some(&child) = child else { return node };
            node = child;
        }
        node
    }

    pub fn draw(&self, buffer: &mut Buffer, area: Rect, has_colour: bool) {
        if area.height < 3 || area.width == 0 {
            return;
        }
        let width = usize::from(area.width);
        let bold = Style::new().add_modifier(Modifier::BOLD);
        buffer.set_stringn(area.x, area.y, &self.title, width, bold);
        let graph = Rect { y: area.y + 1, height: area.height - 2, ..area };
        self.draw_node(buffer, graph, self.zoomed, has_colour);
        let y = area.y + area.height - 1;
        buffer.set_stringn(area.x, y, self.status(), width, Style::new().add_modifier(Modifier::DIM));
    }

    fn status(&self) -> String {
        let all = self.nodes[ROOT].total;
        if all == 0 {
            return "no samples yet: the target uses no CPU; q closes".to_owned();
        }
        let node = &self.nodes[self.selected];
        let percent = |samples: u64| samples as f64 * 100.0 / all as f64;
        let cut = if self.is_cut { "; the deepest functions are left out" } else { "" };
        format!(
            "{}: {:.1} % in all, {:.1} % itself, {} of {all} samples{cut}; q closes",
            visible(&node.name),
            percent(node.total),
            percent(node.own),
            node.total
        )
    }

    /// Draws a node in the first line of `area`, and its callees below it.
    fn draw_node(&self, buffer: &mut Buffer, area: Rect, at: usize, has_colour: bool) {
        let node = &self.nodes[at];
        if area.height == 0 || area.width == 0 || node.total == 0 {
            return;
        }
        let mut style = if has_colour { colour(node) } else { Style::new().add_modifier(Modifier::REVERSED) };
        if at == self.selected {
            style = if has_colour { style.bg(Color::White) } else { Style::new() };
            style = style.add_modifier(Modifier::BOLD);
        }
        buffer.set_style(Rect { height: 1, ..area }, style);
        // The last column stays empty between two neighbours, if there is space for a name.
        let width = usize::from(area.width);
        let space = if width > 3 { width - 1 } else { width };
        buffer.set_stringn(area.x, area.y, visible(&node.name), space, style);
        if width > 3 {
            buffer.set_string(area.x + area.width - 1, area.y, " ", Style::reset());
        }
        let below = Rect { y: area.y + 1, height: area.height - 1, ..area };
        let mut before = 0_u64;
        for &child in &node.children {
            let column = |samples: u64| scaled(area.width, samples, node.total);
            let (from, to) = (column(before), column(before + self.nodes[child].total));
            before += self.nodes[child].total;
            let part = Rect { x: below.x + from, width: to - from, ..below };
            self.draw_node(buffer, part, child, has_colour);
        }
    }
}

/// `width * part / whole`, at most `width`.
fn scaled(width: u16, part: u64, whole: u64) -> u16 {
    let scaled = u128::from(width) * u128::from(part) / u128::from(whole.max(1));
    u16::try_from(scaled).map_or(width, |scaled| scaled.min(width))
}

/// Warm colours for the program, a cold one for the kernel; the same name has the same colour.
fn colour(node: &Node) -> Style {
    const WARM: [u8; 8] = [166, 172, 178, 208, 214, 215, 209, 180];
    let hash = node.name.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let background = if node.is_kernel { 110 } else { WARM[hash % WARM.len()] };
    Style::new().fg(Color::Black).bg(Color::Indexed(background))
}

/// The functions as a tree; true: it has too many, and the deepest are left out.
fn build(profile: &Profile) -> (Vec<Node>, bool) {
    let node = |name: String, is_kernel, parent| Node {
        name,
        is_kernel,
        parent,
        total: 0,
        own: 0,
        children: Vec::new(),
    };
    let mut nodes = vec![node("all".to_owned(), false, ROOT)];
    let mut children: HashMap<(usize, String), usize> = HashMap::new();
    let mut is_cut = false;
    for sample in &profile.samples {
        let mut at = ROOT;
        nodes[at].total += sample.count;
        for frame in sample.stack.iter().rev() {
            let key = (at, frame.display_name().into_owned());
            let known = children.get(&key).copied();
            if known.is_none() && nodes.len() >= NODES_MAX {
                is_cut = true;
                break;
            }
            let next = known.unwrap_or(nodes.len());
            if known.is_none() {
                nodes.push(node(key.1.clone(), is_kernel(frame), at));
                nodes[at].children.push(next);
                children.insert(key, next);
            }
            nodes[next].total += sample.count;
            at = next;
        }
        nodes[at].own += sample.count;
    }
    let order: Vec<(u64, String)> = nodes.iter().map(|node| (node.total, node.name.clone())).collect();
    for node in &mut nodes {
        node.children.sort_by(|&a, &b| order[b].0.cmp(&order[a].0).then_with(|| order[a].1.cmp(&order[b].1)));
    }
    (nodes, is_cut)
}

fn is_kernel(frame: &Frame) -> bool {
    frame.module.as_deref() == Some("[kernel]")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use podopsy_model::profile::{Sample, Sampling};

    use super::*;

    fn profile(stacks: &[(&[&str], u64)]) -> Profile {
        let frame = |name: &&str| Frame {
            function: Some((*name).into()),
            module: Some(if name.starts_with("sys") { "[kernel]".into() } else { "/bin/app".into() }),
            ..Frame::default()
        };
        let samples = stacks.iter().map(|(stack, count)| Sample {
            stack: stack.iter().rev().map(frame).collect(),
            count: *count,
            pid: 1,
            tid: 1,
            thread: "t".into(),
            comm: "t".into(),
            owner: Arc::default(),
        });
        let sampling = Sampling::Cpu { frequency_hz: 99 };
        let base = Profile::empty(jiff::Timestamp::UNIX_EPOCH, Duration::from_secs(1), sampling, "n");
        Profile { samples: samples.collect(), ..base }
    }

    fn drawn(graph: &FlameGraph, (width, height): (u16, u16)) -> Vec<String> {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        graph.draw(&mut buffer, area, true);
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn press(graph: &mut FlameGraph, keys: &[KeyCode]) {
        for key in keys {
            assert!(!graph.handle(*key));
        }
    }

    #[test]
    fn functions_are_as_wide_as_their_share_and_below_their_callers() {
        let graph =
            FlameGraph::new("cart", &profile(&[(&["main", "price"], 75), (&["main", "sys_read"], 25)]));
        assert_eq!(
            drawn(&graph, (80, 5)),
            [
                "cart",
                "all",
                "main",
                "price                                                       sys_read",
                "all: 100.0 % in all, 0.0 % itself, 100 of 100 samples; q closes",
            ]
        );
        for width in 0..20 {
            for height in 0..6 {
                drawn(&graph, (width, height));
            }
        }
    }

    #[test]
    fn keys_select_and_zoom_and_both_outlive_the_next_profile() {
        let first = profile(&[(&["main", "price"], 60), (&["main", "hash", "mix"], 40)]);
        let mut graph = FlameGraph::new("cart", &first);
        press(&mut graph, &[KeyCode::Down, KeyCode::Down, KeyCode::Right]);
        assert!(graph.status().starts_with("hash: 40.0 % in all, 0.0 % itself"), "{}", graph.status());
        press(&mut graph, &[KeyCode::Enter, KeyCode::Left, KeyCode::Up]);
        assert_eq!(drawn(&graph, (40, 5))[1..3], ["hash", "mix"]);
        graph.update("cart", &profile(&[(&["main", "hash", "mix"], 5), (&["main", "new"], 95)]));
        assert!(graph.status().starts_with("hash: 5.0 %"), "{}", graph.status());
        graph.update("cart", &profile(&[(&["other"], 5)]));
        assert!(graph.status().starts_with("all: 100.0 %"), "{}", graph.status());
        press(&mut graph, &[KeyCode::Backspace, KeyCode::Backspace, KeyCode::Down, KeyCode::Down]);
        assert!(graph.status().starts_with("other"), "{}", graph.status());
        assert!(graph.handle(KeyCode::Esc));
    }

    #[test]
    fn hostile_names_and_giant_stacks_are_bounded() {
        let deep: Vec<String> = (0..NODES_MAX + 10).map(|n| format!("f{n}")).collect();
        let deep: Vec<&str> = deep.iter().map(String::as_str).collect();
        let graph = FlameGraph::new("cart", &profile(&[(&deep, 3), (&["\x1b[2J\u{202e}"], 5)]));
        assert!(graph.nodes.len() <= NODES_MAX && graph.is_cut);
        assert!(graph.status().contains("left out"));
        let few = FlameGraph::new("cart", &profile(&[(&["\x1b[2J\u{202e}"], 5)]));
        assert_eq!(drawn(&few, (40, 4))[2], "\\x1b[2J\\u{202e}");
        let none = FlameGraph::new("cart", &profile(&[]));
        assert!(drawn(&none, (70, 4))[3].contains("no samples yet"));
    }
}
