//! Tests that all formats agree about one profile: the sum of samples, the frames of a stack, and why it ended, with
//! hostile names in it.

use std::collections::BTreeMap;
use std::io::Read;

use pprof::protos::Message;
use serde_json::Value;

use super::{Format, example};
use podopsy_model::profile::{Frame, Profile, Sample};

const END: &str = "[unwind: no table yet for libfoo.so]";

/// Names as a container could choose them. `model/text.rs` escapes names before; a format must not rely on it.
const NAMES: [&str; 8] = [
    "</script><script>alert(1)</script>",
    "]]></script>",
    "a;b 17",
    "\"}],\"profiles\":[]",
    "line\nbreak\r\u{2028}",
    "<!-- &amp; --> & \u{1b}[2J",
    "# comment 3",
    "",
];

fn hostile() -> Profile {
    let mut profile = example::profile();
    let plain = profile.samples[0].clone();
    for (name, count) in NAMES.iter().zip(100..) {
        let end = Frame { function: Some(END.into()), ..Frame::default() };
        profile.samples.push(Sample {
            stack: vec![example::frame(name, 0x1234), example::frame("main", 0x1600), end],
            count,
            thread: (*name).into(),
            comm: (*name).into(),
            ..plain.clone()
        });
    }
    profile
}

fn written(format: Format, profile: &Profile) -> Vec<u8> {
    let mut bytes = Vec::new();
    format.write(profile, &mut bytes).unwrap();
    bytes
}

/// The number of samples, and of those whose outermost frame is [`END`].
fn sums(format: Format, profile: &Profile) -> (u64, u64) {
    let bytes = written(format, profile);
    match format {
        Format::Pprof => pprof_sums(&bytes),
        Format::Folded => folded_sums(&bytes),
        Format::Svg => svg_sums(&bytes),
        Format::Speedscope => speedscope_sums(&bytes),
        Format::Firefox => firefox_sums(&bytes),
    }
}

fn pprof_sums(bytes: &[u8]) -> (u64, u64) {
    let mut raw = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut raw).unwrap();
    let read = pprof::protos::Profile::decode(raw.as_slice()).unwrap();
    let ends = |sample: &&pprof::protos::Sample| {
        let outermost = *sample.location_id.last().unwrap() as usize - 1;
        let function = read.location[outermost].line.last().unwrap().function_id as usize - 1;
        read.string_table[read.function[function].name as usize] == END
    };
    let sum = |samples: &mut dyn Iterator<Item = &pprof::protos::Sample>| {
        samples.map(|sample| sample.value[0] as u64).sum()
    };
    (sum(&mut read.sample.iter()), sum(&mut read.sample.iter().filter(ends)))
}

fn folded_sums(bytes: &[u8]) -> (u64, u64) {
    let text = std::str::from_utf8(bytes).unwrap();
    let lines = || text.lines().map(|line| line.rsplit_once(' ').unwrap());
    let count = |(_, count): (&str, &str)| count.parse::<u64>().unwrap();
    // The owner and the process stand before the outermost frame.
    let ends = |(stack, _): &(&str, &str)| stack.split(';').nth(2) == Some(END);
    (lines().map(count).sum(), lines().filter(ends).map(count).sum())
}

fn svg_sums(bytes: &[u8]) -> (u64, u64) {
    let svg = std::str::from_utf8(bytes).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(svg, options).unwrap();
    let titles =
        document.descendants().filter(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "title")));
    let sum_of = |wanted: &str| -> u64 {
        let counts = titles.clone().filter_map(|title| {
            let (name, rest) = title.text()?.rsplit_once(" (")?;
            (name == wanted).then(|| rest.split(' ').next()?.replace(',', "").parse::<u64>().ok())?
        });
        counts.sum()
    };
    (sum_of("all"), sum_of(END))
}

fn speedscope_sums(bytes: &[u8]) -> (u64, u64) {
    let period = 1_000_000_000 / 99;
    let read: Value = serde_json::from_slice(bytes).unwrap();
    let (mut all, mut ended) = (0, 0);
    for profile in read["profiles"].as_array().unwrap() {
        let weights = profile["weights"].as_array().unwrap();
        for (stack, weight) in profile["samples"].as_array().unwrap().iter().zip(weights) {
            let outermost = stack[0].as_u64().unwrap() as usize;
            let samples = weight.as_u64().unwrap() / period;
            all += samples;
            ended += if read["shared"]["frames"][outermost]["name"] == END { samples } else { 0 };
        }
    }
    (all, ended)
}

fn firefox_sums(bytes: &[u8]) -> (u64, u64) {
    let read: Value = serde_json::from_slice(bytes).unwrap();
    let (mut all, mut ended) = (0, 0);
    for thread in read["threads"].as_array().unwrap() {
        let samples = &thread["samples"];
        for (stack, weight) in
            samples["stack"].as_array().unwrap().iter().zip(samples["weight"].as_array().unwrap())
        {
            let mut stack = stack.as_u64().unwrap() as usize;
            while let Some(prefix) = thread["stackTable"]["prefix"][stack].as_u64() {
                stack = prefix as usize;
            }
            let frame = thread["stackTable"]["frame"][stack].as_u64().unwrap() as usize;
            let function = thread["frameTable"]["func"][frame].as_u64().unwrap() as usize;
            let name = thread["funcTable"]["name"][function].as_u64().unwrap() as usize;
            all += weight.as_u64().unwrap();
            ended += if thread["stringArray"][name] == END { weight.as_u64().unwrap() } else { 0 };
        }
    }
    (all, ended)
}

#[test]
fn every_format_has_the_same_sums_and_ends_with_hostile_names() {
    let profile = hostile();
    let ended = (100..).take(NAMES.len()).sum::<u64>();
    let found: BTreeMap<&str, (u64, u64)> =
        Format::ALL.iter().map(|format| (format.as_str(), sums(*format, &profile))).collect();
    let expected = Format::ALL.iter().map(|format| (format.as_str(), (profile.total(), ended))).collect();
    assert_eq!(found, expected);
    assert_eq!(profile.total(), 45 + ended);
}

#[test]
fn no_name_is_written_as_markup() {
    let svg = String::from_utf8(written(Format::Svg, &hostile())).unwrap();
    assert!(!svg.contains("<script>alert"));
    assert_eq!(svg.matches("<script").count(), 1, "only inferno's script may be there");
    assert_eq!(svg.matches("</script>").count(), 1);
    let lines = written(Format::Folded, &hostile());
    assert_eq!(lines.split(|&byte| byte == b'\n').count() - 1, 3 + NAMES.len());
}

#[test]
fn a_name_or_a_file_extension_selects_the_format() {
    for format in Format::ALL {
        assert_eq!(Format::from_name(format.as_str()), Some(format));
        assert_eq!(Format::from_file_name(format!("x{}", format.extension()).as_bytes()), Some(format));
        assert_eq!(
            Format::from_file_name(format.extension().as_bytes()),
            None,
            "a hidden file without an extension"
        );
    }
    assert_eq!((Format::from_file_name(b"x.json"), Format::from_name("json")), (None, None));
}
