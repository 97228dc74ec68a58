//! What is drawn of a dashboard's definition: the parts of Grafana's JSON that podopsy.json uses.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use super::unit::Unit;
use super::variables;

#[derive(Debug, Deserialize)]
pub struct Dashboard {
    pub title: String,
    pub panels: Vec<Panel>,
    templating: Templating,
}

#[derive(Debug, Deserialize)]
struct Templating {
    list: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Variable {
    name: String,
    all_value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Panel {
    pub title: String,
    #[serde(rename = "type")]
    kind: String,
    datasource: DataSource,
    pub grid_pos: GridPos,
    #[serde(default)]
    pub field_config: FieldConfig,
    #[serde(default)]
    pub targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct DataSource {
    #[serde(rename = "type")]
    kind: String,
}

/// In cells; a dashboard has 24 columns.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct GridPos {
    pub x: u32,
    pub y: u32,
    pub w: u32,
    pub h: u32,
}

#[derive(Debug, Default, Deserialize)]
pub struct FieldConfig {
    pub defaults: Defaults,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Defaults {
    pub unit: Unit,
    pub min: Option<f64>,
    custom: Custom,
    thresholds: Thresholds,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Custom {
    draw_style: DrawStyle,
    thresholds_style: ThresholdsStyle,
    scale_distribution: ScaleDistribution,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum DrawStyle {
    #[default]
    Line,
    Bars,
}

#[derive(Debug, Default, Deserialize)]
struct ScaleDistribution {
    #[serde(rename = "type")]
    kind: Distribution,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Distribution {
    #[default]
    Linear,
    Log,
}

#[derive(Debug, Default, Deserialize)]
struct ThresholdsStyle {
    mode: ThresholdsMode,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum ThresholdsMode {
    #[default]
    Off,
    Dashed,
}

#[derive(Debug, Default, Deserialize)]
struct Thresholds {
    steps: Vec<Threshold>,
}

#[derive(Debug, Deserialize)]
struct Threshold {
    /// The first step has none.
    value: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    #[serde(default)]
    expr: String,
    #[serde(default)]
    pub legend_format: String,
}

impl Dashboard {
    /// The queries to Prometheus, of all panels that are drawn.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.panels.iter().filter(|panel| panel.obstacle().is_none()).flat_map(|panel| &panel.targets)
    }

    /// The query that Grafana sends.
    pub fn query(&self, target: &Target) -> Result<String> {
        let mut values = variables::built_in();
        for variable in &self.templating.list {
            values.extend(variable.all_value.clone().map(|value| (variable.name.clone(), value)));
        }
        variables::substitute(&target.expr, &values)
    }
}

impl Panel {
    /// Why the panel is not drawn.
    pub fn obstacle(&self) -> Option<String> {
        match (self.datasource.kind.as_str(), self.kind.as_str()) {
            ("prometheus", "timeseries") => None,
            ("prometheus", kind) => Some(format!("a panel of type {kind}: not drawn here")),
            (source, _) => Some(format!("needs {source}: not drawn here")),
        }
    }

    pub fn draw_style(&self) -> DrawStyle {
        self.field_config.defaults.custom.draw_style
    }

    /// Whether the axis of values is logarithmic.
    pub fn is_logarithmic(&self) -> bool {
        self.field_config.defaults.custom.scale_distribution.kind == Distribution::Log
    }

    /// The thresholds that are drawn as lines.
    pub fn thresholds(&self) -> Vec<f64> {
        let defaults = &self.field_config.defaults;
        if defaults.custom.thresholds_style.mode == ThresholdsMode::Off {
            return Vec::new();
        }
        defaults.thresholds.steps.iter().filter_map(|step| step.value).collect()
    }
}

impl Target {
    /// The legend of a series; a label that it does not have is empty, as in Grafana.
    pub fn legend(&self, labels: &BTreeMap<String, String>) -> String {
        let mut pieces = self.legend_format.split("{{");
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (name, rest) = piece.split_once("}}").unwrap_or((piece, ""));
            out.push_str(labels.get(name.trim()).map_or("", String::as_str));
            out.push_str(rest);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_panel_of_the_dashboard_has_a_drawing() {
        let dashboard = super::super::definition().unwrap();
        assert!(dashboard.panels.len() >= 12);
        for panel in &dashboard.panels {
            assert_eq!(panel.obstacle(), None, "{}", panel.title);
            assert!(!panel.targets.is_empty(), "{}", panel.title);
            for target in &panel.targets {
                let query = dashboard.query(target).unwrap();
                assert!(!query.contains('$'), "{query}");
            }
        }
    }

    #[test]
    fn the_thresholds_are_those_of_the_alerts() {
        let rules = std::fs::read_to_string(crate::sh::root().join(super::super::prometheus::RULES)).unwrap();
        let dashboard = super::super::definition().unwrap();
        let expected = [
            ("Time until the memory limit", "podopsy:memory_limit:seconds < "),
            ("Failed lookups", "podopsy:dns_lookups_failed:rate5m{pod!=\"\"} > "),
        ];
        let mut drawn: Vec<&Panel> = dashboard.panels.iter().collect();
        drawn.retain(|panel| !panel.thresholds().is_empty());
        assert_eq!(drawn.len(), expected.len());
        for (panel, (title, alert)) in drawn.iter().zip(expected) {
            assert_eq!(panel.title, title);
            let line = format!("expr: {alert}{}\n", panel.thresholds()[0]);
            assert!(rules.contains(&line), "no alert has {line}");
        }
    }

    #[test]
    fn a_legend_has_the_labels_that_a_series_has() {
        let target =
            Target { expr: String::new(), legend_format: "{{namespace}}/{{ pod }} {{other}}!".into() };
        let labels = [("namespace", "shop"), ("pod", "basket")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(target.legend(&labels), "shop/basket !");
    }
}
