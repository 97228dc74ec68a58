//! Whether the machine is short of CPU or of disk, by its pressure stall information (Documentation/accounting/psi.rst).

use std::fs;

/// The share of the last ten seconds, in percent, in which some task waited.
const OVERLOADED: f64 = 25.0;

/// Whether tasks of this machine have waited for a CPU or for a disk for a large part of the last ten seconds. False if the kernel does not measure it.
pub fn is_overloaded() -> bool {
    ["cpu", "io"].into_iter().any(|resource| {
        let text = fs::read_to_string(format!("/proc/pressure/{resource}")).unwrap_or_default();
        stalled_percent(&text).is_some_and(|percent| percent >= OVERLOADED)
    })
}

/// `avg10` of the line `some` of a file in /proc/pressure.
fn stalled_percent(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_seconds_of_some_tasks_are_read() {
        let text = "some avg10=89.04 avg60=92.57 avg300=94.06 total=30997548539\n\
                    full avg10=1.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(stalled_percent(text), Some(89.04));
        for none in ["", "full avg10=1.00 avg60=0.00", "some avg10=x avg60=1.00"] {
            assert_eq!(stalled_percent(none), None, "{none}");
        }
    }
}
