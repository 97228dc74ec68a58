//! The document in a real browser: Debian's chromium, headless. `PODOPSY_SCREENSHOTS=DIR` keeps the pictures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::testing::{HOSTILE, example};
use super::{Report, write};

/// Seconds after which a browser that hangs is ended; it needs two.
const TIMEOUT: &str = "90";

/// Runs in the page, and leaves what it found in an attribute.
const DRIVER: &str = r#"
const found = {};
const area = document.querySelector('.flame');
const article = area.closest('article');
const boxes = () => area.querySelectorAll('g').length;
const key = (name) => area.dispatchEvent(new KeyboardEvent('keydown', { key: name, bubbles: true }));
const readout = () => article.querySelector('.readout').textContent;
found.boxes = boxes();
const search = article.querySelector('input');
search.value = 'REMEMBER';
search.dispatchEvent(new Event('input'));
found.hits = area.querySelectorAll('g.hit').length;
found.share = readout().split(' of ')[0];
search.value = '';
search.dispatchEvent(new Event('input'));
for (const name of ['ArrowDown', 'ArrowDown', 'Enter']) key(name);
found.zoomed = readout();
found.above = area.querySelectorAll('g.above').length;
key('Escape');
found.reset = boxes();
article.querySelector('[data-do=invert]').click();
key('ArrowDown');
found.inverted = readout();
article.querySelector('[data-do=invert]').click();
document.querySelector('[data-theme=dark]').click();
const colour = () => getComputedStyle(document.body).backgroundColor;
found.dark = colour();
document.querySelector('[data-theme=light]').click();
found.light = colour();
found.images = document.images.length;
found.scripts = document.scripts.length;
found.handlers = [...document.querySelectorAll('*')].filter((one) => [...one.attributes].some((a) => a.name.startsWith('on'))).length;
found.headings = [...document.querySelectorAll('h2')].map((one) => one.textContent).join(' ');
found.landmarks = ['header', 'nav', 'main', 'footer'].filter((name) => document.querySelector(name)).length;
found.pictures = [...document.querySelectorAll('svg')].every((one) => one.getAttribute('role') === 'img' && (one.getAttribute('aria-label') || one.querySelector('title')));
found.scoped = [...document.querySelectorAll('th')].every((one) => one.scope);
found.ids = new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size === document.querySelectorAll('[id]').length;
found.wide = document.documentElement.scrollWidth > innerWidth;
document.documentElement.dataset.found = JSON.stringify(found);
"#;

/// One run of the browser on a document.
struct Browser {
    folder: tempfile::TempDir,
}

impl Browser {
    fn open(document: &str) -> Browser {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("report.html"), document).unwrap();
        Browser { folder }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", TIMEOUT, "chromium"]);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        command.args(["--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr"]);
        command.arg(format!("--user-data-dir={}", self.folder.path().join("profile").display()));
        command.args(arguments).arg(format!("file://{}", self.folder.path().join("report.html").display()));
        let output = command.output().expect("chromium runs: cargo xtask setup test installs it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// The document after its script, and what the console has.
    fn dom(&self, arguments: &[&str]) -> (String, Vec<String>) {
        let output = self.run(&[&["--dump-dom", "--virtual-time-budget=2000"], arguments].concat());
        let log = String::from_utf8_lossy(&output.stderr);
        let console = log.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
        (String::from_utf8_lossy(&output.stdout).into_owned(), console)
    }

    fn screenshot(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let folder = std::env::var_os("PODOPSY_SCREENSHOTS").map(PathBuf::from);
        let path = folder.unwrap_or_else(|| self.folder.path().to_owned()).join(format!("{name}.png"));
        self.run(&[&[&*format!("--screenshot={}", path.display())], arguments].concat());
        path
    }
}

/// The document with the driver, which its policy allows.
fn with_driver(report: &Report) -> String {
    let hash = STANDARD.encode(Sha256::digest(DRIVER));
    let document = write(report).replacen("script-src '", &format!("script-src 'sha256-{hash}' '"), 1);
    document.replacen("</body>", &format!("<script>{DRIVER}</script></body>"), 1)
}

/// What the driver found, and the console.
fn found(report: &Report, arguments: &[&str]) -> (serde_json::Value, Vec<String>) {
    let (dom, console) = Browser::open(&with_driver(report)).dom(arguments);
    let attribute = dom.split("data-found=\"").nth(1).and_then(|rest| rest.split('"').next());
    let json =
        attribute.unwrap_or_else(|| panic!("the driver did not end: {console:?}")).replace("&quot;", "\"");
    (serde_json::from_str(&json.replace("&amp;", "&")).unwrap(), console)
}

fn works_in_a_browser() {
    let (found, console) = found(&example("cart"), &["--window-size=1200,900"]);
    assert!(console.is_empty(), "{console:?}");
    assert_eq!(found["boxes"], 13, "{found}");
    assert_eq!((&found["hits"], &found["share"]), (&1.into(), &"41.3 %".into()), "{found}");
    assert_eq!(found["zoomed"], "main: 390 samples, 94.7 %");
    assert_eq!((&found["above"], &found["reset"]), (&2.into(), &13.into()));
    assert!(found["inverted"].as_str().unwrap().contains("::insert: 170 samples, 41.3 %"), "{found}");
    assert_ne!(found["dark"], found["light"]);
    assert_eq!(found["headings"], "Verdict Timeline Memory Profiles DNS Autopsies Losses Raw facts");
    assert_eq!(found["landmarks"], 4);
    for name in ["pictures", "scoped", "ids"] {
        assert_eq!(found[name], true, "{name}");
    }
}

fn hostile_names_are_harmless() {
    let (found, console) = found(&example(HOSTILE), &["--window-size=1200,900"]);
    assert!(console.is_empty(), "{console:?}");
    // The page's own, the data of two graphs, and the driver.
    assert_eq!((&found["images"], &found["handlers"], &found["scripts"]), (&0.into(), &0.into(), &4.into()));
    assert_eq!(found["boxes"], 13, "{found}");
}

fn foreign_script_does_not_run() {
    let injected = "<script>document.documentElement.dataset.ran = 'yes'</script><b onclick='x' style='color:red'>b</b></body>";
    let document = write(&example("cart")).replacen("</body>", injected, 1);
    let (dom, console) = Browser::open(&document).dom(&[]);
    assert!(!dom.contains("data-ran"), "the policy let a foreign script run");
    // And a refusal is seen by this test.
    assert!(console.iter().any(|line| line.contains("Content Security Policy")), "{console:?}");
}

fn pictures_are_taken(name: &str, scheme: &str, size: &str) {
    let browser = Browser::open(&write(&example("checkout-7d9c5b6f4-x2v8p")));
    let path = browser.screenshot(
        name,
        &[&format!("--window-size={size}"), &format!("--blink-settings=preferredColorScheme={scheme}")],
    );
    assert!(is_picture(&path), "{name}");
}

fn is_picture(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x89PNG") && bytes.len() > 30_000)
}

#[test]
#[ignore = "needs chromium: cargo xtask setup test installs it"]
fn a_report_works_in_chromium() {
    let works: Vec<fn()> = vec![
        works_in_a_browser,
        hostile_names_are_harmless,
        foreign_script_does_not_run,
        || pictures_are_taken("light", "1", "1200,3900"),
        || pictures_are_taken("dark", "0", "1200,3900"),
        || pictures_are_taken("phone", "1", "390,4800"),
    ];
    let threads: Vec<_> = works.into_iter().map(thread::spawn).collect();
    for thread in threads {
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}
