//! The tools. Each is the type of its arguments; a tool's name, its description and the schemas of its arguments and answers are
//! in `docs/schema/mcp-tools.json`, which a test makes of these types.

mod arguments;
mod dns;
mod explain;
mod incidents;
mod profiles;
mod restarts;
mod timeline;

use std::sync::LazyLock;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use dns::DnsSummary;
pub use explain::Explain;
pub use incidents::{Autopsy, ListIncidents};
pub use profiles::{GrowthTop, ProfileTop};
pub use restarts::Restarts;
pub use timeline::Timeline;

use super::answer::{Rows, bounded};
use super::server::Server;
use crate::exit::Refusal;

const DEFINITIONS: &str = include_str!("../../../../docs/schema/mcp-tools.json");

/// What `tools/list` answers.
pub fn definitions() -> &'static Value {
    static PARSED: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(DEFINITIONS).unwrap_or_default());
    &PARSED
}

/// A tool with the arguments of a call.
pub trait Tool: DeserializeOwned + Send {
    const NAME: &'static str;
    /// For people.
    #[cfg(test)]
    const TITLE: &'static str;
    type Answer: Serialize;

    /// The list of the answer that is cut where the answer is too large.
    fn rows(&self) -> Rows;

    fn run(self, server: &Server) -> impl Future<Output = anyhow::Result<Self::Answer>> + Send;
}

/// The names of all tools.
pub const NAMES: [&str; 8] = [
    ListIncidents::NAME,
    Autopsy::NAME,
    Timeline::NAME,
    ProfileTop::NAME,
    GrowthTop::NAME,
    DnsSummary::NAME,
    Restarts::NAME,
    Explain::NAME,
];

/// A call of a tool that exists.
#[derive(Debug)]
pub struct Call {
    name: &'static str,
    arguments: Value,
}

impl Call {
    /// An error: there is no such tool.
    pub fn of(mut params: Value) -> Result<Call, String> {
        let asked = params["name"].as_str().ok_or("tools/call needs the name of a tool")?;
        let name = NAMES.into_iter().find(|name| *name == asked);
        let name =
            name.ok_or_else(|| format!("there is no tool {asked:?}; the tools are {}", NAMES.join(", ")))?;
        Ok(Call { name, arguments: params["arguments"].take() })
    }

    /// The answer, within its bounds.
    pub async fn run(self, server: &Server) -> anyhow::Result<Value> {
        let arguments = self.arguments;
        match self.name {
            ListIncidents::NAME => run::<ListIncidents>(arguments, server).await,
            Autopsy::NAME => run::<Autopsy>(arguments, server).await,
            Timeline::NAME => run::<Timeline>(arguments, server).await,
            ProfileTop::NAME => run::<ProfileTop>(arguments, server).await,
            GrowthTop::NAME => run::<GrowthTop>(arguments, server).await,
            DnsSummary::NAME => run::<DnsSummary>(arguments, server).await,
            Restarts::NAME => run::<Restarts>(arguments, server).await,
            _ => run::<Explain>(arguments, server).await,
        }
    }
}

async fn run<T: Tool>(arguments: Value, server: &Server) -> anyhow::Result<Value> {
    let arguments = if arguments.is_null() { Value::Object(Default::default()) } else { arguments };
    let tool: T = serde_json::from_value(arguments)
        .map_err(|error| Refusal(format!("the arguments of {} are wrong: {error}", T::NAME)))?;
    let rows = tool.rows();
    Ok(bounded(tool.run(server).await?, rows)?)
}
