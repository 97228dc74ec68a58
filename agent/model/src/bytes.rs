//! Amounts of memory and disk as people type them: `512MiB`, `2GiB`, `300M`.

/// The smallest useful size of a store: SQLite and its log take a part of it.
pub const STORE_MIN: u64 = 4 << 20;

/// Parses an amount; without a unit it is in bytes. As in Kubernetes, K, M and G are powers of 1000; Ki (KiB) and so on are
/// powers of 1024.
pub fn parse(text: &str) -> Result<u64, String> {
    let grammar = || "use a number with a unit, like 64MiB, 512Mi, 2GiB or 1G".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| grammar())?;
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "K" | "kB" => 1000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        _ => return Err(grammar()),
    };
    number.checked_mul(factor).ok_or_else(grammar)
}

/// Like [`parse`], within the range for a store.
pub fn parse_store(text: &str) -> Result<u64, String> {
    let bytes = parse(text)?;
    let within = (STORE_MIN..=64 << 30).contains(&bytes);
    if within { Ok(bytes) } else { Err("it must be between 4MiB and 64GiB".to_owned()) }
}

/// Like [`parse`], within the range for a queue in memory.
pub fn parse_queue(text: &str) -> Result<u64, String> {
    let bytes = parse(text)?;
    let within = (64 << 10..=1 << 30).contains(&bytes);
    if within { Ok(bytes) } else { Err("it must be between 64KiB and 1GiB".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_amounts_are_parsed_and_others_rejected() {
        for (text, bytes) in
            [("0", 0), ("7B", 7), ("3k", 0), ("512MiB", 512 << 20), ("2Gi", 2 << 30), ("1 M", 1_000_000)]
        {
            assert_eq!(parse(text).unwrap_or(0), bytes, "{text}");
        }
        for text in ["", "MiB", "-1", "1.5G", "1 mib", "99999999999999999999", "18446744073709551615K", "１M"]
        {
            assert!(parse(text).unwrap_err().contains("64MiB"), "{text}");
        }
        assert!(parse_store("1MiB").is_err() && parse_store("65GiB").is_err());
        assert_eq!(parse_store("4MiB"), Ok(4 << 20));
    }
}
