//! The document.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use podopsy_model::text::visible;
use sha2::{Digest as _, Sha256};

use super::flame::Drawing;
use super::sections::{self, Bounds, date};
use super::{BYTES_MAX, Heading, Report};

const STYLE: &str = include_str!("assets/report.css");
/// Flame graphs that a report has at most.
const GRAPHS_MAX: usize = 4;
const SCRIPT: &str = include_str!("assets/report.js");

/// The whole document, below [`BYTES_MAX`].
pub fn write(report: &Report) -> String {
    let document = |divisor| document(report, Bounds { divisor });
    let fits = |document: &String| document.len() < BYTES_MAX;
    [1, 4, 16].into_iter().map(document).find(fits).unwrap_or_else(|| document(64))
}

fn document(report: &Report, bounds: Bounds) -> String {
    let graphs: Vec<Drawing> =
        report.flames.iter().take(GRAPHS_MAX).map(|graph| Drawing::new(graph, bounds)).collect();
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            (head(&report.heading))
            body {
                a.skip href="#content" { "Skip to the report" }
                (banner(&report.heading))
                (contents(report))
                main #content {
                    (sections::verdict(report, bounds))
                    (sections::timeline(report, bounds))
                    (sections::memory(report, bounds))
                    (sections::flames(&graphs))
                    (sections::dns(&report.dns, bounds))
                    (sections::autopsies(&report.autopsies, bounds))
                    (sections::losses(report, bounds))
                    (sections::facts(&report.facts, bounds))
                }
                footer { p { "Written by podopsy " (report.heading.version) " at " (date(report.heading.written)) ". This file loads nothing." } }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    printable(&document.into_string())
}

/// Escapes control characters and marks that reorder text, wherever they stand. Lines stay lines.
fn printable(document: &str) -> String {
    document.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

fn head(heading: &Heading) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta http-equiv="Content-Security-Policy" content=(policy());
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="referrer" content="no-referrer";
            meta name="color-scheme" content="light dark";
            title { (heading.subject) " – podopsy" }
            style { (PreEscaped(STYLE)) }
        }
    }
}

/// Nothing is loaded, and nothing runs but this very script.
fn policy() -> String {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

fn banner(heading: &Heading) -> Markup {
    html! {
        header {
            h1 { span.product { "podopsy report" } " " span.subject { bdi { (heading.subject) } } }
            p.origin {
                "Node " bdi { (heading.node) } " · " (date(heading.from)) " to " (date(heading.until))
                " · from " bdi { (heading.source) }
            }
            div.theme role="group" aria-label="Colours" hidden {
                button type="button" data-theme="auto" aria-pressed="true" { "Auto" }
                button type="button" data-theme="light" aria-pressed="false" { "Light" }
                button type="button" data-theme="dark" aria-pressed="false" { "Dark" }
            }
        }
    }
}

fn contents(report: &Report) -> Markup {
    let sections = [
        ("verdict", "Verdict", true),
        ("timeline", "Timeline", true),
        ("memory", "Memory", true),
        ("profiles", "Profiles", true),
        ("dns", "DNS", true),
        ("autopsies", "Autopsies", !report.autopsies.is_empty()),
        ("losses", "Losses", true),
        ("facts", "Raw facts", true),
    ];
    html! {
        nav aria-label="Sections" {
            ul { @for (id, title, _) in sections.iter().filter(|section| section.2) { li { a href={ "#" (id) } { (title) } } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HOSTILE, example, huge};

    #[test]
    fn the_policy_has_the_hashes_of_the_script_and_the_style_that_are_written() {
        let document = write(&example("cart"));
        for (tag, text) in [("script", SCRIPT), ("style", STYLE)] {
            assert!(document.contains(&format!("<{tag}>{text}</{tag}>")), "{tag} was changed");
            let hash = STANDARD.encode(Sha256::digest(text));
            assert!(document.contains(&format!("{tag}-src 'sha256-{hash}'")), "{tag}");
        }
        assert!(document.contains("default-src 'none'"));
        for load in ["http://", "https://", " src=", "@import", "url(", " onload", " style=\""] {
            let own = document.replace("http://www.w3.org/2000/svg", "");
            assert!(!own.contains(load), "{load}");
        }
    }

    #[test]
    fn hostile_names_are_text_everywhere() {
        let document = write(&example(HOSTILE));
        assert!(document.matches("\\u{202e}").count() > 10, "the name is in few places");
        for part in ["<img", "<script>alert", "</script><script", "\u{202e}", "\u{7}", "\u{200b}"] {
            assert!(!document.contains(part), "{part:?}");
        }
        // The page's own script, and the data of two graphs.
        assert_eq!(document.matches("</script>").count(), 3);
    }

    #[test]
    fn a_report_stays_below_its_bound_and_names_what_is_left_out() {
        let document = write(&huge());
        assert!(document.len() < BYTES_MAX, "{} bytes", document.len());
        assert!(document.contains("are not in this file"), "what is left out is not named");
    }

    #[test]
    fn an_empty_report_has_its_sections() {
        let document = write(&Report::default());
        for text in ["No entry", "No memory", "No profile", "No DNS", "Nothing was lost"] {
            assert!(document.contains(text), "{text}");
        }
    }
}
