//! `explain`: the glossary.

use serde::{Deserialize, Serialize};

use super::Tool;
use crate::cmd::explain;
use crate::mcp::answer::{Kept, Rows, Truncation};
use crate::mcp::server::Server;

/// Define a term as podopsy uses it, from its glossary. Without a topic, list all terms.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explain {
    /// A term, or a part of one, such as victim or search-path miss
    topic: Option<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TermList {
    terms: Vec<Term>,
    /// What is left out; null: nothing.
    truncated: Option<Truncation>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Term {
    name: &'static str,
    section: &'static str,
    /// Null in the list of all terms.
    definition: Option<String>,
}

impl Tool for Explain {
    const NAME: &'static str = "explain";
    #[cfg(test)]
    const TITLE: &'static str = "The glossary";
    type Answer = TermList;

    fn rows(&self) -> Rows {
        Rows { field: "terms", kept: Kept::First, max: usize::MAX, hint: "a whole term" }
    }

    async fn run(self, _: &Server) -> anyhow::Result<Self::Answer> {
        let terms = match &self.topic {
            Some(topic) => explain::find(topic)?,
            None => explain::terms().collect(),
        };
        let is_list = self.topic.is_none();
        let term = |term: explain::Term<'static>| Term {
            name: term.name,
            section: term.section,
            definition: (!is_list).then(|| explain::plain(term.definition)),
        };
        Ok(TermList { terms: terms.into_iter().map(term).collect(), truncated: None })
    }
}
