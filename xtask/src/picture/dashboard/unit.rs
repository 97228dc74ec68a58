//! Grafana's units, as far as podopsy.json uses them.

use serde::Deserialize;

/// A unit, by Grafana's id.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    #[default]
    Short,
    /// Bytes by 1024.
    Bytes,
    /// Bytes per second by 1024.
    #[serde(rename = "binBps")]
    BinBps,
    /// Seconds.
    S,
    /// Requests per second.
    Reqps,
    /// 1 is 100 %.
    #[serde(rename = "percentunit")]
    Share,
}

/// What an axis counts in: so many of the query's units, and their name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub factor: f64,
    pub name: &'static str,
}

const KIB: f64 = 1024.0;

impl Unit {
    /// From small to large.
    fn scales(self) -> &'static [(f64, &'static str)] {
        match self {
            Unit::Short => &[(1.0, ""), (1e3, "K"), (1e6, "M")],
            Unit::Bytes => &[(1.0, "B"), (KIB, "KiB"), (KIB * KIB, "MiB"), (KIB * KIB * KIB, "GiB")],
            Unit::BinBps => &[(1.0, "B/s"), (KIB, "KiB/s"), (KIB * KIB, "MiB/s"), (KIB * KIB * KIB, "GiB/s")],
            Unit::S => &[(1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h")],
            Unit::Reqps => &[(1.0, "req/s"), (1e3, "K req/s")],
            Unit::Share => &[(0.01, "%")],
        }
    }

    /// The text at a tick of a logarithmic axis, each of which has its own scale.
    pub fn label(self, value: f64) -> String {
        let scales = self.scales();
        let (factor, name) = *scales.iter().rev().find(|(factor, _)| value >= *factor).unwrap_or(&scales[0]);
        Scale { factor, name }.label(value / factor)
    }

    /// The scale of an axis that ends at `max`: the largest in which it is at least 2.
    pub fn scale(self, max: f64) -> Scale {
        let scales = self.scales();
        let fits = scales.iter().rev().find(|(factor, _)| max >= 2.0 * factor);
        let (factor, name) = *fits.unwrap_or(&scales[0]);
        Scale { factor, name }
    }
}

impl Scale {
    /// The text at a tick; `value` is in this scale.
    pub fn label(self, value: f64) -> String {
        let number = format!("{value:.3}");
        let number = number.trim_end_matches('0').trim_end_matches('.');
        let number = if number == "-0" { "0" } else { number };
        format!("{number} {}", self.name).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_counts_in_what_its_end_is_a_few_of() {
        let shown = |unit: Unit, max: f64| {
            let scale = unit.scale(max);
            scale.label(max / scale.factor)
        };
        assert_eq!(shown(Unit::Bytes, 40.0 * KIB * KIB), "40 MiB");
        assert_eq!(shown(Unit::BinBps, 1.5 * KIB * KIB), "1536 KiB/s");
        assert_eq!(shown(Unit::S, 0.000_4), "400 µs");
        assert_eq!(shown(Unit::S, 95.0), "95 s");
        assert_eq!(shown(Unit::S, 900.0), "15 min");
        assert_eq!(shown(Unit::Reqps, 0.25), "0.25 req/s");
        assert_eq!(shown(Unit::Share, 0.013), "1.3 %");
        assert_eq!(shown(Unit::Short, 3.0), "3");
        assert_eq!(shown(Unit::Short, 0.0), "0");
    }

    #[test]
    fn a_logarithmic_axis_has_a_scale_for_each_tick() {
        assert_eq!([10.0, 60.0, 36_000.0].map(|value| Unit::S.label(value)), ["10 s", "1 min", "10 h"]);
    }

    #[test]
    fn units_have_the_ids_of_grafana() {
        let ids = r#"["short", "bytes", "binBps", "s", "reqps", "percentunit"]"#;
        let units: Vec<Unit> = serde_json::from_str(ids).unwrap();
        let expected = [Unit::Short, Unit::Bytes, Unit::BinBps, Unit::S, Unit::Reqps, Unit::Share];
        assert_eq!(units, expected);
        assert!(serde_json::from_str::<Unit>("\"volt\"").is_err());
    }
}
