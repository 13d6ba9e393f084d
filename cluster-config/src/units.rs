//! Quantities with their units: `"250ms"`, `"3s"`, `"256MiB"`.

use std::time::Duration;

/// A span of time: a whole number and `ms`, `s`, `min` or `h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("{text:?} should be a whole number and its unit (ms, s, min, h), as in \"250ms\"")
    };
    let unit_at = text
        .find(|sign: char| !sign.is_ascii_digit())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let millis_each = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = number.checked_mul(millis_each).ok_or_else(wrong)?;
    Ok(Duration::from_millis(millis))
}

/// `span` as [`duration`] reads it, in milliseconds.
pub(crate) fn written(span: Duration) -> String {
    format!("{}ms", span.as_millis())
}

/// A number of bytes: a whole number and `B`, `KiB`, `MiB`, `GiB` or `TiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} should be a whole number and its unit (B, KiB, MiB, GiB), as in \"256MiB\""
        )
    };
    let unit_at = text
        .find(|sign: char| !sign.is_ascii_digit())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let (_, each) = BYTES
        .into_iter()
        .find(|(name, _)| *name == unit.trim_start())
        .ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(each).ok_or_else(wrong)
}

/// `bytes` as [`bytes`] reads it, in the largest unit that leaves no rest.
pub(crate) fn bytes_written(bytes: u64) -> String {
    let fits = BYTES
        .into_iter()
        .find(|(_, each)| bytes.is_multiple_of(*each));
    let (unit, each) = fits.unwrap_or(("B", 1));
    format!("{}{unit}", bytes / each)
}

const BYTES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_bytes_has_its_unit() {
        for (text, expected) in [
            ("0B", Some(0)),
            ("256MiB", Some(256 << 20)),
            ("1 GiB", Some(1 << 30)),
            ("3TiB", Some(3 << 40)),
            ("1536KiB", Some(1536 << 10)),
            ("256", None),
            ("256MB", None),
            ("MiB", None),
            ("-1B", None),
            ("1.5GiB", None),
            ("", None),
            ("1Mib", None),
            ("16777216TiB", None),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text:?}");
            if let Some(read) = expected {
                assert_eq!(bytes(&bytes_written(read)), Ok(read));
            }
        }
        assert_eq!(bytes_written(256 << 20), "256MiB");
        assert_eq!(bytes_written(1000), "1000B");
    }

    #[test]
    fn a_duration_is_a_whole_number_and_its_unit() {
        for (text, millis) in [
            ("250ms", Some(250)),
            ("3s", Some(3_000)),
            ("3 s", Some(3_000)),
            ("2min", Some(120_000)),
            ("1h", Some(3_600_000)),
            ("3", None),
            ("", None),
            ("s", None),
            ("3m", None),
            ("3S", None),
            ("0.5s", None),
            ("-3s", None),
            ("3s ", None),
            ("3sß", None),
            ("18446744073709551615h", None),
            ("18446744073709551616ms", None),
        ] {
            let read = duration(text).ok();
            assert_eq!(read, millis.map(Duration::from_millis), "{text:?}");
            if let Some(span) = read {
                assert_eq!(duration(&written(span)), Ok(span));
            }
        }
    }
}
