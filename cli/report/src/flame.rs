//! Flame graphs: stacks become a tree, which is bounded and written as JSON. `assets/report.js` draws it.

use std::collections::{BTreeMap, HashMap};

use maud::{Markup, PreEscaped, html};
use podopsy_model::text::visible;
use serde_json::json;

use super::sections::{self, Bounds, cut};
use super::{FlameGraph, Table};

/// Bounds of one graph. What is smaller than the smallest box that fits is summed up.
const BOXES_MAX: usize = 6000;
const NAMES_BYTES_MAX: usize = 250 << 10;
const NAME_MAX: usize = 200;
const DEPTH_MAX: usize = 200;
/// Rows of the table beside the graph.
const TOP: usize = 15;

/// A function on one path from the root.
#[derive(Debug, Default)]
struct Node {
    value: u64,
    children: BTreeMap<usize, Node>,
}

/// A graph, ready to be written.
pub struct Drawing<'a> {
    graph: &'a FlameGraph,
    total: u64,
    names: Vec<String>,
    /// Depth, index of the name and value of each box, in preorder.
    boxes: Vec<[u64; 3]>,
    /// The least value that has a box.
    smallest: u64,
    top: Table,
}

impl<'a> Drawing<'a> {
    pub fn new(graph: &'a FlameGraph, bounds: Bounds) -> Drawing<'a> {
        let (root, names) = tree(graph);
        let mut smallest = 1.max(root.value / 5000);
        loop {
            let mut boxes = Vec::new();
            collect(&root, 0, smallest, &mut boxes);
            let (used, kept) = kept_names(&names, &mut boxes);
            let bytes: usize = kept.iter().map(String::len).sum();
            let fits = boxes.len() <= BOXES_MAX / bounds.divisor && bytes <= NAMES_BYTES_MAX / bounds.divisor;
            if fits || used == 0 {
                return Drawing {
                    graph,
                    total: root.value,
                    names: kept,
                    boxes,
                    smallest,
                    top: top(graph, root.value),
                };
            }
            smallest = smallest.saturating_mul(2);
        }
    }

    pub fn markup(&self, at: usize) -> Markup {
        let graph = self.graph;
        let label = format!(
            "{}: {} {} as a flame graph. The table below has the functions that take the most.",
            graph.title, self.total, graph.unit
        );
        html! {
            article.flame-graph {
                h3 #{ "flame-title-" (at) } { (graph.title) }
                p.note { (cut(&graph.note, 1000)) }
                div.tools hidden {
                    label { "Search " input type="search" autocomplete="off" spellcheck="false"; }
                    button type="button" data-do="invert" aria-pressed="false" { "Invert" }
                    button type="button" data-do="reset" { "Reset zoom" }
                }
                div.flame tabindex="0" role="group" aria-labelledby={ "flame-title-" (at) } aria-describedby={ "flame-help-" (at) }
                    data-graph={ "flame-data-" (at) } data-label=(label) { noscript { p { "The graph needs the script of this file. The table has its largest functions." } } }
                p.readout role="status" {}
                p.note #{ "flame-help-" (at) } {
                    "Click a box, or move with the arrow keys and press Enter, to zoom; Escape zooms out. Inverted, each box stands below the function that it called. "
                    @if self.smallest > 1 { "Boxes of fewer than " (self.smallest) " " (graph.unit) " are left out. " }
                }
                (sections::table(&self.top))
                script type="application/json" #{ "flame-data-" (at) } { (PreEscaped(self.data())) }
            }
        }
    }

    /// JSON that cannot end its element: `<` and `&` are escaped.
    fn data(&self) -> String {
        let flat: Vec<u64> = self.boxes.iter().flatten().copied().collect();
        let data =
            json!({ "total": self.total, "unit": self.graph.unit, "names": self.names, "boxes": flat });
        data.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
    }
}

/// The tree of all stacks, and the names that its nodes refer to.
fn tree(graph: &FlameGraph) -> (Node, Vec<String>) {
    let mut ids: HashMap<&str, usize> = HashMap::new();
    let mut root = Node::default();
    let mut names = Vec::new();
    for (stack, value) in &graph.stacks {
        root.value = root.value.saturating_add(*value);
        let mut node = &mut root;
        for name in stack.iter().take(DEPTH_MAX) {
            let id = *ids.entry(name).or_insert_with(|| {
                names.push(short(name));
                names.len() - 1
            });
            node = node.children.entry(id).or_default();
            node.value = node.value.saturating_add(*value);
        }
    }
    (root, names)
}

/// A name that fits, without what the document would escape: JSON has other escapes.
fn short(name: &str) -> String {
    visible(&cut(name, NAME_MAX))
}

/// The children of `node` and all below them, but for those that are too small.
fn collect(node: &Node, depth: u64, smallest: u64, boxes: &mut Vec<[u64; 3]>) {
    for (&name, child) in node.children.iter().filter(|(_, child)| child.value >= smallest) {
        boxes.push([depth, name as u64, child.value]);
        collect(child, depth + 1, smallest, boxes);
    }
}

/// The names that the boxes use, which get their indices among those; and their number.
fn kept_names(names: &[String], boxes: &mut [[u64; 3]]) -> (usize, Vec<String>) {
    let mut kept = Vec::new();
    let mut new: HashMap<u64, u64> = HashMap::new();
    for one in boxes {
        let name = one[1];
        one[1] = *new.entry(name).or_insert_with(|| {
            kept.push(names[name as usize].clone());
            kept.len() as u64 - 1
        });
    }
    (kept.len(), kept)
}

/// The functions with the largest values of their own.
fn top(graph: &FlameGraph, total: u64) -> Table {
    let mut own: HashMap<&str, (u64, u64)> = HashMap::new();
    for (stack, value) in &graph.stacks {
        let Some(last) = stack.last() else { continue };
        let entry = own.entry(last).or_default();
        entry.0 = entry.0.saturating_add(*value);
        let mut seen: Vec<&str> = stack.iter().map(String::as_str).collect();
        seen.sort_unstable();
        seen.dedup();
        for name in seen {
            let entry = own.entry(name).or_default();
            entry.1 = entry.1.saturating_add(*value);
        }
    }
    let mut rows: Vec<(&str, (u64, u64))> = own.into_iter().filter(|(_, (own, _))| *own > 0).collect();
    rows.sort_by_key(|&(name, (own, all))| (std::cmp::Reverse((own, all)), name));
    let percent = |value: u64| format!("{:.1} %", value as f64 * 100.0 / total.max(1) as f64);
    let row = |(name, (own, all)): (&str, (u64, u64))| vec![percent(own), percent(all), short(name)];
    Table {
        caption: format!("{}: the functions with the most {} of their own", graph.title, graph.unit),
        header: ["Own", "With callees", "Function"].map(str::to_owned).into(),
        rows: rows.into_iter().take(TOP).map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Bounds = Bounds { divisor: 1 };

    fn graph(stacks: &[(&[&str], u64)]) -> FlameGraph {
        let stack =
            |(names, value): &(&[&str], u64)| (names.iter().map(|&name| name.into()).collect(), *value);
        FlameGraph {
            unit: "samples".into(),
            stacks: stacks.iter().map(stack).collect(),
            ..FlameGraph::default()
        }
    }

    #[test]
    fn stacks_with_the_same_beginning_share_their_boxes() {
        let graph = graph(&[(&["main", "a"], 3), (&["main", "b"], 2), (&["main", "a", "c"], 1)]);
        let drawing = Drawing::new(&graph, ALL);
        assert_eq!(drawing.names, ["main", "a", "c", "b"]);
        assert_eq!(drawing.boxes, [[0, 0, 6], [1, 1, 4], [2, 2, 1], [1, 3, 2]]);
        assert_eq!(drawing.top.rows[0], ["50.0 %", "66.7 %", "a"]);
    }

    #[test]
    fn a_recursive_function_counts_once() {
        let graph = graph(&[(&["main", "f", "f", "f"], 4)]);
        assert_eq!(Drawing::new(&graph, ALL).top.rows[0], ["100.0 %", "100.0 %", "f"]);
    }

    #[test]
    fn the_smallest_boxes_of_a_graph_that_is_too_large_are_left_out() {
        let mut stacks = vec![(vec!["main".to_owned(), "hot".to_owned()], 1000)];
        stacks.extend((0..50_000).map(|at| (vec!["main".to_owned(), format!("f{at}")], 1 + at % 3)));
        let graph = FlameGraph { stacks, ..FlameGraph::default() };
        let drawing = Drawing::new(&graph, ALL);
        assert!(drawing.boxes.len() <= BOXES_MAX && drawing.names.contains(&"hot".to_owned()));
        assert!(drawing.markup(0).into_string().contains("are left out"));
    }

    #[test]
    fn the_data_cannot_end_its_element() {
        let graph = graph(&[(&["</script><script>alert(1)", "<!--", "\u{202e}\u{7}"], 1)]);
        let data = Drawing::new(&graph, ALL).data();
        assert!(!data.contains('<') && !data.contains('\u{202e}'), "{data}");
        let read: serde_json::Value = serde_json::from_str(&data).unwrap();
        assert_eq!(read["names"][0], "</script><script>alert(1)");
    }
}
