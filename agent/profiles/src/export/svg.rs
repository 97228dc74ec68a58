//! Writes a flame graph: one SVG file that opens in a browser, with search and zoom.
//!
//! Must not depend on: addresses, pprof. Containers choose the names. inferno escapes them for XML, and a test checks
//! that.

use std::io::Write;

use inferno::flamegraph::{self, Options, Palette, color::MultiPalette};

use super::{folded, loss_lines, title};
use podopsy_model::profile::Profile;

/// Writes `profile` as a flame graph (SVG), outermost frames at the bottom.
pub fn write(profile: &Profile, out: impl Write) -> anyhow::Result<()> {
    let mut options = Options::default();
    options.title = printable(&title(profile));
    options.subtitle = Some(printable(&subtitle(profile)));
    options.notes = printable(&loss_lines(profile).join("; "));
    // This palette colours by the suffixes of folded lines: kernel, inlined.
    options.colors = Palette::Multi(MultiPalette::Java);
    options.deterministic = true;
    let folded = folded::fold(profile);
    if folded.is_empty() {
        // inferno rejects an empty profile, and the profile of an idle pod may be empty.
        flamegraph::from_lines(&mut options, ["(no samples) 1"], out)?;
        return Ok(());
    }
    let lines: Vec<String> = folded.iter().map(|(stack, count)| format!("{stack} {count}")).collect();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)?;
    Ok(())
}

fn subtitle(profile: &Profile) -> String {
    let (start, seconds) = (profile.start, profile.duration.as_secs_f64());
    let (sampling, total) = (profile.sampling, profile.total());
    format!("{start:.0}, {seconds:.1} s, {total} samples {sampling}; {}", loss_lines(profile).join(", "))
}

/// Replaces control characters: XML cannot escape them.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::example;
    use podopsy_model::profile::Sampling;

    fn draw(profile: &Profile) -> String {
        let mut svg = Vec::new();
        write(profile, &mut svg).unwrap();
        String::from_utf8(svg).unwrap()
    }

    fn parse(svg: &str) -> roxmltree::Document<'_> {
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        roxmltree::Document::parse_with_options(svg, options).unwrap_or_else(|error| panic!("{error}\n{svg}"))
    }

    #[test]
    fn hostile_names_are_written_as_text_and_never_as_script() {
        let mut profile = example::profile();
        profile.node = example::HOSTILE.to_string();
        let svg = draw(&profile);
        let document = parse(&svg);
        let scripts =
            document.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "script")));
        let scripts: Vec<_> = scripts.filter_map(|node| node.text()).collect();
        assert_eq!(scripts.len(), 1, "only inferno's script may be there");
        assert!(!scripts[0].contains("alert(1)"));
        assert!(!svg.contains("<script>alert"));
        let titles: Vec<_> = document
            .descendants()
            .filter(|node| node.tag_name().name() == "title")
            .filter_map(|node| node.text())
            .collect();
        assert!(titles.iter().any(|title| title.starts_with("</text><script>alert(1)")), "{titles:?}");
        assert!(titles.contains(&"cart::total (30 samples, 66.67%)"), "{titles:?}");
    }

    #[test]
    fn the_flame_graph_has_search_and_zoom_and_fetches_nothing() {
        let svg = draw(&example::profile());
        let document = parse(&svg);
        let script = document.descendants().find(|node| node.tag_name().name() == "script").unwrap();
        let script = script.text().unwrap();
        for function in ["function zoom(", "function search(", "function search_prompt("] {
            assert!(script.contains(function), "{function} is not in the flame graph's script");
        }
        assert!(document.descendants().any(|node| node.attribute("id") == Some("search")));
        // The file must work offline: nothing in it may contact a server.
        for node in document.descendants() {
            for attribute in node.attributes() {
                let value = attribute.value();
                assert!(!value.contains("://") && !value.starts_with("//"), "{attribute:?}");
            }
        }
        for way in ["fetch(", "XMLHttpRequest", "import(", "@import", "url(http", ".src", "WebSocket"] {
            assert!(!script.contains(way), "{way}");
        }
    }

    #[test]
    fn the_flame_graph_shows_owners_time_and_losses() {
        let svg = draw(&example::profile());
        let document = parse(&svg);
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
        assert!(texts.contains(&"On-CPU: 2 workloads on node-1"), "{texts:?}");
        let subtitle = "2027-01-15T08:00:00Z, 15.0 s, 45 samples at 99 Hz; loss ring_full: 2";
        assert!(texts.contains(&subtitle), "{texts:?}");
        let growth = draw(&Profile { sampling: Sampling::Growth { every: 16 }, ..example::profile() });
        assert!(
            growth.contains("Growth: 2 workloads") && growth.contains("of one page fault in 16"),
            "{growth}"
        );
    }

    #[test]
    fn a_profile_without_samples_is_drawn_too() {
        let svg = draw(&Profile { samples: Vec::new(), ..example::profile() });
        assert!(parse(&svg).descendants().any(|node| node.text() == Some("On-CPU: nothing ran on node-1")));
    }
}
