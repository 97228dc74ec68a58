//! JSON-RPC 2.0, and the two ways in which clients agree with a server on a version of the protocol: `initialize`, or
//! `server/discover` with the version in each request (from 2026-07-28 on).
//!
//! Older versions than 2025-06-18 have no structured results, and one of them has batches: they are not offered.

use serde_json::{Map, Value, json};

/// Versions that begin with `initialize`, oldest first.
const WITH_INITIALIZE: [&str; 2] = ["2025-06-18", "2025-11-25"];
/// The version that each request names.
const IN_REQUESTS: &str = "2026-07-28";

const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
const SERVER_KEY: &str = "io.modelcontextprotocol/serverInfo";

/// A line of the client.
#[derive(Debug, PartialEq)]
pub enum Message {
    Request(Request),
    /// It has no response.
    Notification {
        method: String,
        params: Value,
    },
    /// A response: this server asks its client nothing.
    Response,
}

#[derive(Debug, PartialEq)]
pub struct Request {
    /// A string or a whole number.
    pub id: Value,
    pub method: String,
    pub params: Value,
    /// The request names its version itself.
    has_version: bool,
}

/// Why a request gets an error of JSON-RPC and no result.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum RpcError {
    #[error("this is no JSON: {0}")]
    Parse(String),
    #[error("{0}")]
    InvalidRequest(String),
    #[error("there is no method {0:?}")]
    NoMethod(String),
    #[error("{0}")]
    InvalidParams(String),
    #[error("version {0:?} of the protocol is not supported")]
    Version(String),
    #[error("this is a bug in podopsy, please report it: the call has ended without a result")]
    Internal,
}

impl RpcError {
    fn code(&self) -> i32 {
        match self {
            RpcError::Parse(_) => -32700,
            RpcError::InvalidRequest(_) => -32600,
            RpcError::NoMethod(_) => -32601,
            RpcError::InvalidParams(_) => -32602,
            RpcError::Internal => -32603,
            RpcError::Version(_) => -32022,
        }
    }

    /// The response to the request with this id; null where the id could not be read.
    pub fn response(&self, id: &Value) -> Value {
        let mut error = json!({ "code": self.code(), "message": self.to_string() });
        if let RpcError::Version(requested) = self {
            error["data"] = json!({ "supported": versions(), "requested": requested });
        }
        json!({ "jsonrpc": "2.0", "id": id, "error": error })
    }
}

/// All versions, the newest first.
pub fn versions() -> Vec<&'static str> {
    let older = WITH_INITIALIZE.iter().rev().copied();
    std::iter::once(IN_REQUESTS).chain(older).collect()
}

/// The version that `initialize` agrees on: the client's, or the newest that there is.
pub fn agreed(requested: &str) -> &'static str {
    let newest = WITH_INITIALIZE[WITH_INITIALIZE.len() - 1];
    WITH_INITIALIZE.into_iter().find(|version| *version == requested).unwrap_or(newest)
}

/// This program, as clients show it.
pub fn server_info() -> Value {
    json!({ "name": "podopsy", "title": "podopsy: what happened to this pod", "version": env!("CARGO_PKG_VERSION") })
}

impl Message {
    /// Reads a line. An error has the id that it is about.
    pub fn read(line: &[u8]) -> Result<Message, (Value, RpcError)> {
        let value: Value = serde_json::from_slice(line)
            .map_err(|error| (Value::Null, RpcError::Parse(error.to_string())))?;
        let invalid = |id: &Value, reason: &str| (id.clone(), RpcError::InvalidRequest(reason.to_owned()));
        let Value::Object(mut fields) = value else {
            return Err(invalid(&Value::Null, "a message is one JSON object; batches are not supported"));
        };
        let id = fields.remove("id");
        let shown = id.clone().filter(is_id).unwrap_or(Value::Null);
        if fields.get("jsonrpc") != Some(&json!("2.0")) {
            return Err(invalid(&shown, "the message has no jsonrpc \"2.0\""));
        }
        let method = match fields.remove("method") {
            Some(Value::String(method)) => method,
            None if fields.contains_key("result") || fields.contains_key("error") => {
                return Ok(Message::Response);
            }
            _ => return Err(invalid(&shown, "the message has no method")),
        };
        let params = fields.remove("params").unwrap_or_else(|| Value::Object(Map::new()));
        let Some(id) = id else { return Ok(Message::Notification { method, params }) };
        if !is_id(&id) {
            return Err(invalid(&Value::Null, "an id is a string or a whole number"));
        }
        let has_version = has_version(&params).map_err(|error| (id.clone(), error))?;
        Ok(Message::Request(Request { id, method, params, has_version }))
    }
}

fn is_id(id: &Value) -> bool {
    id.is_string() || id.is_i64() || id.is_u64()
}

/// Whether the request names a version. An error: one that is not supported.
fn has_version(params: &Value) -> Result<bool, RpcError> {
    match &params["_meta"][VERSION_KEY] {
        Value::Null => Ok(false),
        Value::String(version) if version == IN_REQUESTS => Ok(true),
        version => {
            let text = version.as_str().map_or_else(|| version.to_string(), str::to_owned);
            Err(RpcError::Version(text))
        }
    }
}

/// The response with a result. Results that a client may keep say so in the versions that know it.
pub struct Results {
    id: Value,
    has_version: bool,
}

impl Results {
    pub fn of(request: &Request) -> Results {
        Results { id: request.id.clone(), has_version: request.has_version }
    }

    pub fn id(&self) -> &Value {
        &self.id
    }

    pub fn response(&self, mut result: Value) -> Value {
        if self.has_version {
            result["resultType"] = json!("complete");
            result["_meta"] = json!({ SERVER_KEY: server_info() });
        }
        json!({ "jsonrpc": "2.0", "id": self.id, "result": result })
    }

    /// For what stays the same while this process runs.
    pub fn lasting_response(&self, mut result: Value) -> Value {
        if self.has_version {
            result["ttlMs"] = json!(3_600_000);
            result["cacheScope"] = json!("private");
        }
        self.response(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(line: &str) -> (Value, i32) {
        let (id, error) = Message::read(line.as_bytes()).unwrap_err();
        let response = error.response(&id);
        (response["id"].clone(), i32::try_from(response["error"]["code"].as_i64().unwrap()).unwrap())
    }

    #[test]
    fn a_malformed_message_gets_the_code_of_json_rpc() {
        assert_eq!(error_of("{"), (Value::Null, -32700));
        assert_eq!(error_of("\u{feff}{}"), (Value::Null, -32700));
        assert_eq!(error_of(&"[".repeat(100_000)), (Value::Null, -32700));
        assert_eq!(error_of("[]"), (Value::Null, -32600));
        assert_eq!(error_of("{}"), (Value::Null, -32600));
        assert_eq!(error_of(r#"{"id":1,"method":"ping"}"#), (json!(1), -32600));
        assert_eq!(error_of(r#"{"jsonrpc":"2.0","id":"a"}"#), (json!("a"), -32600));
        assert_eq!(error_of(r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#), (Value::Null, -32600));
        assert_eq!(error_of(r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#), (Value::Null, -32600));
        let unknown = r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2"}}}"#;
        assert_eq!(error_of(unknown), (json!(1), -32022));
    }

    #[test]
    fn requests_notifications_and_responses_are_distinguished() {
        let read = |line: &str| Message::read(line.as_bytes()).unwrap();
        let request = read(r#"{"jsonrpc":"2.0","id":"a","method":"ping"}"#);
        assert!(matches!(request, Message::Request(Request { id, .. }) if id == "a"));
        let method = "notifications/initialized".to_owned();
        let notification = read(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        assert_eq!(notification, Message::Notification { method, params: json!({}) });
        assert_eq!(read(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), Message::Response);
    }

    #[test]
    fn the_clients_version_is_agreed_on_where_it_is_supported() {
        assert_eq!(agreed("2025-06-18"), "2025-06-18");
        assert_eq!(agreed("2024-11-05"), "2025-11-25");
        assert_eq!(agreed("2026-07-28"), "2025-11-25", "that version has no initialize");
        assert_eq!(versions(), ["2026-07-28", "2025-11-25", "2025-06-18"]);
    }

    #[test]
    fn only_a_request_that_names_its_version_gets_the_fields_of_that_version() {
        let results = |has_version| Results { id: json!(1), has_version };
        assert_eq!(results(false).lasting_response(json!({}))["result"], json!({}));
        let result = results(true).lasting_response(json!({}))["result"].clone();
        assert_eq!((&result["resultType"], &result["cacheScope"]), (&json!("complete"), &json!("private")));
        assert_eq!(result["_meta"][SERVER_KEY]["name"], "podopsy");
    }
}
