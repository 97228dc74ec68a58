//! How a list is printed: kubectl's formats.

use std::str::FromStr;

use clap::Args;

use crate::jsonpath::{JsonPath, Template};

#[derive(Clone, Debug, PartialEq)]
pub enum OutputFormat {
    Table,
    Wide,
    Json,
    Yaml,
    /// What later commands take: TARGETs, or ids.
    Name,
    JsonPath(Template),
    CustomColumns(Vec<CustomColumn>),
}

/// `HEADER:PATH`.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomColumn {
    pub header: String,
    pub path: JsonPath,
}

/// How one thing is printed that is no list.
#[derive(Clone, Debug, PartialEq)]
pub enum SheetFormat {
    Text,
    Json,
    Yaml,
    JsonPath(Template),
}

/// The option of every command that prints one thing.
#[derive(Clone, Debug, Args)]
pub struct SheetArgs {
    /// text, json, yaml or jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: SheetFormat,
}

impl FromStr for SheetFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<SheetFormat, String> {
        // The names of a list's formats are taken, too, so that one habit fits every command.
        match text.parse::<OutputFormat>() {
            Ok(OutputFormat::Table | OutputFormat::Wide) => Ok(SheetFormat::Text),
            Ok(OutputFormat::Json) => Ok(SheetFormat::Json),
            Ok(OutputFormat::Yaml) => Ok(SheetFormat::Yaml),
            Ok(OutputFormat::JsonPath(template)) => Ok(SheetFormat::JsonPath(template)),
            Err(reason) if text.starts_with("jsonpath=") => Err(reason),
            _ if text == "text" => Ok(SheetFormat::Text),
            _ => Err("the formats are text, json, yaml and jsonpath=TEMPLATE, such as jsonpath={.pod.name}"
                .to_owned()),
        }
    }
}

/// The options of every list.
#[derive(Clone, Debug, Args)]
pub struct OutputArgs {
    /// table, wide, json, yaml, name, jsonpath=TEMPLATE or custom-columns=HEADER:PATH,…
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,

    /// Leave out the table's header
    #[arg(long)]
    pub no_headers: bool,

    /// Sort by this JSONPath of each entry, such as .pod.name
    #[arg(long, value_name = "PATH")]
    pub sort_by: Option<JsonPath>,
}

impl FromStr for OutputFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<OutputFormat, String> {
        if let Some(template) = text.strip_prefix("jsonpath=") {
            let template = template.parse::<Template>();
            return template.map(OutputFormat::JsonPath).map_err(|error| error.to_string());
        }
        if let Some(columns) = text.strip_prefix("custom-columns=") {
            let columns: Result<_, _> = split_columns(columns).into_iter().map(column).collect();
            return columns.map(OutputFormat::CustomColumns);
        }
        Ok(match text {
            "table" => OutputFormat::Table,
            "wide" => OutputFormat::Wide,
            "json" => OutputFormat::Json,
            "yaml" => OutputFormat::Yaml,
            "name" => OutputFormat::Name,
            _ => {
                return Err("the formats are table, wide, json, yaml, name, jsonpath=TEMPLATE, such as \
                            jsonpath={.items[*].pod.name}, and custom-columns=HEADER:PATH,…, such as \
                            custom-columns=POD:.pod.name,NODE:.node"
                    .to_owned());
            }
        })
    }
}

/// Splits at commas that are in no bracket.
fn split_columns(text: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    text.split(|character| {
        depth += i32::from(character == '[') - i32::from(character == ']');
        character == ',' && depth == 0
    })
    .collect()
}

fn column(text: &str) -> Result<CustomColumn, String> {
    let (header, path) = text
        .split_once(':')
        .filter(|(header, _)| !header.is_empty())
        .ok_or_else(|| format!("{text:?}: a column is HEADER:PATH, such as POD:.pod.name"))?;
    let path = path.parse::<JsonPath>().map_err(|error| error.to_string())?;
    Ok(CustomColumn { header: header.to_owned(), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_has_the_formats_that_need_no_columns() {
        let format = |text: &str| text.parse::<SheetFormat>();
        for text in ["text", "table", "wide"] {
            assert_eq!(format(text), Ok(SheetFormat::Text));
        }
        assert!(matches!(format("jsonpath={.pod.name}"), Ok(SheetFormat::JsonPath(_))));
        for text in ["name", "custom-columns=A:.a", "xml"] {
            assert!(format(text).unwrap_err().contains("the formats are text"), "{text}");
        }
        assert!(format("jsonpath={").unwrap_err().contains("cannot read JSONPath"));
    }

    #[test]
    fn formats_are_those_of_kubectl() {
        for text in ["table", "wide", "json", "yaml", "name", "jsonpath={.items[0]}"] {
            assert!(text.parse::<OutputFormat>().is_ok(), "{text}");
        }
        let columns = "custom-columns=POD:.pod.name,LIMIT:.containers[?(@.a=='x,y')]['b','c']";
        let Ok(OutputFormat::CustomColumns(columns)) = columns.parse() else { panic!("{columns}") };
        let headers: Vec<&str> = columns.iter().map(|column| column.header.as_str()).collect();
        assert_eq!(headers, ["POD", "LIMIT"]);
        for text in [
            "xml",
            "jsonpath={",
            "custom-columns=",
            "custom-columns=A",
            "custom-columns=:.x",
            "go-template=x",
        ] {
            assert!(text.parse::<OutputFormat>().is_err(), "{text}");
        }
    }
}
