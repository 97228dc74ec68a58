//! stub until the cli branch comes in
pub struct ProbeCheck { pub name: String, pub outcome: Result<String, String>, pub mend: Option<String> }
