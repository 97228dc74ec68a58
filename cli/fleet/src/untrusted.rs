//! Answers of agents as model types. An agent escapes text at its source; one that is compromised does not, so it is
//! escaped here again, which changes nothing that is escaped already.

use podopsy_model::text;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Parses JSON whose strings, and keys, are made safe to print. Unknown fields are ignored.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    // Only an escape or a character beyond ASCII can be anything but plain text, in JSON that is valid.
    if json.iter().all(|&byte| byte.is_ascii() && byte != b'\\' && byte != 0x7f) {
        return serde_json::from_slice(json);
    }
    let mut value: Value = serde_json::from_slice(json)?;
    escape(&mut value);
    serde_json::from_value(value)
}

/// Escapes every string in it.
pub fn escape(value: &mut Value) {
    match value {
        Value::String(string) => *string = text::visible(string),
        Value::Array(values) => values.iter_mut().for_each(escape),
        Value::Object(fields) => {
            let all = std::mem::take(fields);
            fields.extend(all.into_iter().map(|(key, mut value)| {
                escape(&mut value);
                (text::visible(&key), value)
            }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn text_of_an_agent_cannot_reach_a_terminal_as_it_is() {
        let parse = |json: &str| parse::<BTreeMap<String, String>>(json.as_bytes()).unwrap();
        let hostile = parse("{\"a\":\"\\u001b[2J\",\"b\u{202e}\":\"\u{9b}\",\"c\":\"\\\\x1b\"}");
        let plain: Vec<_> = hostile.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(plain, [("a", "\\x1b[2J"), ("b\\u{202e}", "\\u{9b}"), ("c", "\\x1b")]);
        assert_eq!(parse(r#"{"a":"café → x"}"#)["a"], "café → x");
    }
}
