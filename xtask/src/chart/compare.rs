//! Compares an object with and without a component, and makes the difference depend on the component's switch.

use serde_yaml_ng::Value;

use super::template::{Node, Part};

/// Adds what `after` has in place of `before`, which `node` was made from, under `switch`.
pub fn add(node: &mut Node, before: &Value, after: &Value, switch: &str) {
    if before == after {
        return;
    }
    match (node, before, after) {
        (Node::Map(entries), Value::Mapping(old), Value::Mapping(new)) => {
            for (key, value) in new {
                let key = key.as_str().unwrap_or_default();
                match old.get(key) {
                    Some(before) => {
                        let entry =
                            entries.iter_mut().find(|(name, part)| name == key && part.when.is_empty());
                        if let Some((_, part)) = entry {
                            add(&mut part.node, before, value, switch);
                        }
                    }
                    None => add_entry(entries, key, value, switch),
                }
            }
            let is_gone = |name: &str| old.contains_key(name) && !new.contains_key(name);
            for (_, part) in entries.iter_mut().filter(|(name, part)| part.when.is_empty() && is_gone(name)) {
                part.unless.push(switch.to_owned());
            }
        }
        (Node::List(parts), Value::Sequence(old), Value::Sequence(new)) => add_items(parts, old, new, switch),
        (Node::Choice(cases, _), ..) => add_case(cases, after, switch),
        (node, ..) => {
            let otherwise = Box::new(node.clone());
            *node = Node::Choice(vec![(vec![switch.to_owned()], Node::from_yaml(after))], otherwise);
        }
    }
}

/// An object, or an entry, that another component has brought already.
pub fn enable(node: &mut Node, switch: &str) {
    if let Node::List(parts) = node {
        parts.iter_mut().for_each(|part| part.when.push(switch.to_owned()));
    }
}

fn add_case(cases: &mut Vec<(Vec<String>, Node)>, after: &Value, switch: &str) {
    let text = Node::from_yaml(after).text();
    match cases.iter_mut().find(|(_, node)| node.text() == text) {
        Some((switches, _)) => switches.push(switch.to_owned()),
        None => cases.push((vec![switch.to_owned()], Node::from_yaml(after))),
    }
}

fn add_entry(entries: &mut Vec<(String, Part)>, key: &str, value: &Value, switch: &str) {
    let node = Node::from_yaml(value);
    let same = entries.iter_mut().find(|(name, part)| name == key && part.node.text() == node.text());
    match same {
        Some((_, part)) => part.when.push(switch.to_owned()),
        None => {
            entries.push((key.to_owned(), Part { when: vec![switch.to_owned()], unless: Vec::new(), node }))
        }
    }
}

/// Items are the same if they are equal, or have the same `name`.
fn add_items(parts: &mut Vec<Part>, old: &[Value], new: &[Value], switch: &str) {
    let counterpart = |item: &Value, among: &[Value]| {
        among
            .iter()
            .position(|other| other == item || (item["name"].is_string() && other["name"] == item["name"]))
    };
    for item in new {
        let Some(at) = counterpart(item, old) else {
            let node = Node::from_yaml(item);
            match parts.iter_mut().find(|part| !part.when.is_empty() && part.node.text() == node.text()) {
                Some(part) => part.when.push(switch.to_owned()),
                None => parts.push(Part { when: vec![switch.to_owned()], unless: Vec::new(), node }),
            }
            continue;
        };
        // The parts of the base come first, in its order.
        add(&mut parts[at].node, &old[at], item, switch);
    }
    for (at, item) in old.iter().enumerate() {
        if counterpart(item, new).is_none() {
            parts[at].unless.push(switch.to_owned());
        }
    }
}

/// Puts values in place of what the base has, in a DaemonSet's pod; the image's name and the variables, too.
pub fn use_values(node: &mut Node, values: &[(&[&str], &str)]) {
    let Some(pod) = find(node, &["spec", "template", "spec"]) else { return };
    for (path, value) in values {
        if let Some(part) = find(pod, path) {
            *part = Node::Template(format!("{{{{ toJson .Values.{value} }}}}"));
        }
    }
    if let Some(image) = find(pod, &["containers", "agent", "image"]) {
        *image = Node::Template("\"{{ .Values.image.repository }}:{{ .Values.image.tag }}\"".to_owned());
    }
    if let Some(Node::List(env)) = find(pod, &["containers", "agent", "env"]) {
        // Last, so that it wins over a component's variable of the same name.
        env.push(Part::always(Node::Items("extraEnv")));
    }
}

/// The node at a path of keys, and of names in lists; a choice has none.
fn find<'a>(node: &'a mut Node, path: &[&str]) -> Option<&'a mut Node> {
    let Some((first, rest)) = path.split_first() else { return Some(node) };
    let next = match node {
        Node::Map(entries) => {
            entries.iter_mut().find(|(name, _)| name == first).map(|(_, part)| &mut part.node)
        }
        Node::List(parts) => parts.iter_mut().map(|part| &mut part.node).find(|node| has_name(node, first)),
        _ => None,
    };
    find(next?, rest)
}

fn has_name(node: &Node, name: &str) -> bool {
    let Node::Map(entries) = node else { return false };
    entries.iter().any(|(key, part)| {
        key == "name" && matches!(&part.node, Node::Scalar(value) if value.as_str() == Some(name))
    })
}
