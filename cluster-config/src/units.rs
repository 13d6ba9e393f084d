//! Quantities with their units: `"250ms"`, `"3s"`.

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

#[cfg(test)]
mod tests {
    use super::*;

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
