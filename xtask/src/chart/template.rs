//! A YAML tree whose parts may depend on switches, and its text as a template of Helm's.

use std::fmt::Write as _;

use serde_yaml_ng::Value;

/// A switch's component; the part is there if any of them is on. None: always.
pub type Switches = Vec<String>;

#[derive(Clone, Debug)]
pub enum Node {
    /// A value without parts.
    Scalar(Value),
    /// Text of a template in place of a value.
    Template(String),
    /// In a list: all items of a value.
    Items(&'static str),
    Map(Vec<(String, Part)>),
    List(Vec<Part>),
    /// Values for switches, the first that is on, and the value without any.
    Choice(Vec<(Switches, Node)>, Box<Node>),
}

/// An entry of a map, or an item of a list.
#[derive(Clone, Debug)]
pub struct Part {
    /// Empty: always there.
    pub when: Switches,
    /// Not there if one of these is on.
    pub unless: Switches,
    pub node: Node,
}

impl Part {
    pub fn always(node: Node) -> Part {
        Part { when: Vec::new(), unless: Vec::new(), node }
    }
}

impl Node {
    pub fn from_yaml(value: &Value) -> Node {
        match value {
            Value::Mapping(map) if !map.is_empty() => {
                let entry = |(key, value): (&Value, &Value)| {
                    (key.as_str().unwrap_or_default().to_owned(), Part::always(Node::from_yaml(value)))
                };
                Node::Map(map.iter().map(entry).collect())
            }
            Value::Sequence(list) if !list.is_empty() => {
                Node::List(list.iter().map(|item| Part::always(Node::from_yaml(item))).collect())
            }
            _ => Node::Scalar(value.clone()),
        }
    }

    /// The whole object depends on a switch: a list of one part.
    pub fn when(node: Node, switch: &str) -> Node {
        Node::List(vec![Part { when: vec![switch.to_owned()], unless: Vec::new(), node }])
    }

    /// The template's text. A list at the top is an object that depends on switches.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if let Node::List(parts) = self {
            for part in parts {
                part.open(&mut out);
                part.node.write(&mut out, 0);
                part.close(&mut out);
            }
        } else {
            self.write(&mut out, 0);
        }
        out
    }

    fn write(&self, out: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        match self {
            Node::Scalar(_) | Node::Template(_) => {
                let _ = writeln!(out, "{indent}{}", self.inline());
            }
            Node::Items(_) => {}
            Node::Map(entries) => {
                for (key, part) in entries {
                    part.open(out);
                    part.node.write_after(out, &format!("{indent}{}:", quoted_key(key)), depth);
                    part.close(out);
                }
            }
            Node::List(parts) => {
                for part in parts {
                    part.open(out);
                    part.node.write_after(out, &format!("{indent}-"), depth);
                    part.close(out);
                }
            }
            Node::Choice(cases, otherwise) => {
                write_choice(out, cases, otherwise, &mut |out, node| node.write(out, depth));
            }
        }
    }

    /// Writes it as the value of a key or as an item: beside `start`, or below it.
    fn write_after(&self, out: &mut String, start: &str, depth: usize) {
        match self {
            Node::Scalar(_) | Node::Template(_) => {
                let _ = writeln!(out, "{start} {}", self.inline());
            }
            Node::Choice(cases, otherwise) => {
                write_choice(out, cases, otherwise, &mut |out, node| node.write_after(out, start, depth));
            }
            Node::Items(value) => {
                let _ = write!(
                    out,
                    "{{{{- range .Values.{value} }}}}\n{start} {{{{ toJson . }}}}\n{{{{- end }}}}\n"
                );
            }
            Node::Map(_) | Node::List(_) => {
                let _ = writeln!(out, "{start}");
                self.write(out, depth + 1);
            }
        }
    }

    /// JSON, which is YAML, with braces that Helm would take for its own as text.
    fn inline(&self) -> String {
        match self {
            Node::Template(text) => text.clone(),
            Node::Scalar(value) => {
                let json = serde_json::to_string(value).unwrap_or_default();
                json.replace("{{", "\u{0}").replace("}}", "{{ \"}}\" }}").replace('\u{0}', "{{ \"{{\" }}")
            }
            Node::Items(_) | Node::Map(_) | Node::List(_) | Node::Choice(..) => String::new(),
        }
    }
}

fn write_choice(
    out: &mut String,
    cases: &[(Switches, Node)],
    otherwise: &Node,
    write: &mut dyn FnMut(&mut String, &Node),
) {
    for (index, (switches, node)) in cases.iter().enumerate() {
        let word = if index == 0 { "if" } else { "else if" };
        let _ = writeln!(out, "{{{{- {word} {} }}}}", condition(switches));
        write(out, node);
    }
    out.push_str("{{- else }}\n");
    write(out, otherwise);
    out.push_str("{{- end }}\n");
}

impl Part {
    fn open(&self, out: &mut String) {
        if !self.unless.is_empty() {
            let _ = writeln!(out, "{{{{- if not ({}) }}}}", condition(&self.unless));
        }
        if !self.when.is_empty() {
            let _ = writeln!(out, "{{{{- if {} }}}}", condition(&self.when));
        }
    }

    fn close(&self, out: &mut String) {
        let open = usize::from(!self.when.is_empty()) + usize::from(!self.unless.is_empty());
        out.push_str(&"{{- end }}\n".repeat(open));
    }
}

fn condition(switches: &[String]) -> String {
    let one = |name: &String| format!("(index .Values.components \"{name}\")");
    let all: Vec<String> = switches.iter().map(one).collect();
    if all.len() == 1 { all[0].clone() } else { format!("or {}", all.join(" ")) }
}

/// Keys with characters that YAML might read otherwise are quoted.
fn quoted_key(key: &str) -> String {
    let is_plain = key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if is_plain && key.starts_with(|c: char| c.is_ascii_alphabetic()) {
        key.to_owned()
    } else {
        format!("{key:?}")
    }
}
