//! The texts that configuration values are, each read by one function into what cannot be wrong.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::Parsed;
use super::suggest::did_you_mean;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;

/// A text as it may stand in a message: control characters escaped, cut after 60 characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().count() > 60 {
        shown.push('…');
    }
    format!("`{shown}`")
}

const DURATIONS: &str =
    r#"write a number with its unit (ms, s, m, h or d), such as "1.8s", "500ms", "5m", "24h" or "30d""#;
const NANOS: [(&str, u64); 5] = [
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];
/// A hundred years: no wait is longer, and no arithmetic of microseconds overflows.
const DURATION_MAX: Duration = Duration::from_secs(36_525 * 86_400);

/// A duration with its unit, exact to the nanosecond, at most a hundred years. A bare 0 needs no unit.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let nanos = quantity(text, &NANOS, DURATIONS, "no duration")?;
    let nanos = u64::try_from(nanos).map(Duration::from_nanos);
    nanos.ok().filter(|duration| *duration <= DURATION_MAX).ok_or_else(|| format!("{} is over 100 years", shown(text)))
}

const SIZES: &str =
    r#"write a number with its unit (B, KiB, MiB, GiB, TiB, or kB, MB, GB, TB), such as "16 KiB", "8 MiB" or "8 GiB""#;
const BYTES: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", KIB),
    ("MiB", MIB),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];
/// What a file's length can be.
const SIZE_MAX: u64 = i64::MAX as u64;

/// A size in bytes with its unit. A bare 0 needs no unit.
pub(super) fn size(text: &str) -> Parsed<u64> {
    let bytes = quantity(text, &BYTES, SIZES, "no size")?;
    let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes <= SIZE_MAX);
    bytes.ok_or_else(|| format!("{} is more than any disk holds", shown(text)))
}

/// A size of something in memory.
pub(super) fn memory(text: &str) -> Parsed<usize> {
    usize::try_from(size(text)?).map_err(|_| format!("{} is more than memory can be", shown(text)))
}

/// A decimal number and a unit, perhaps with a space between.
fn quantity(text: &str, units: &[(&str, u64)], forms: &str, no_such: &str) -> Parsed<u128> {
    let wrong = || format!("{} is {no_such}; {forms}", shown(text));
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..end], trimmed[end..].trim_start());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 18 || fraction.len() > 9 || !digits(fraction) || number.ends_with('.') {
        return Err(wrong());
    }
    let number = |text: &str| if text.is_empty() { 0 } else { text.parse::<u128>().unwrap_or(0) }; // Digits, and few.
    if unit.is_empty() {
        let zero = number(whole) == 0 && number(fraction) == 0;
        return if zero { Ok(0) } else { Err(format!("{} has no unit; {forms}", shown(text))) };
    }
    match units.iter().find(|(name, _)| *name == unit) {
        Some((_, factor)) => {
            let factor = u128::from(*factor);
            // At most nine digits, so that the scale fits.
            let scale = 10_u128.pow(fraction.len() as u32);
            Ok(number(whole) * factor + number(fraction) * factor / scale)
        }
        None => {
            let meant = units.iter().find(|(name, _)| {
                name.eq_ignore_ascii_case(unit) || name.strip_suffix('B').is_some_and(|short| short == unit)
            });
            match meant {
                Some((name, _)) => Err(format!("{} has no known unit; did you mean `{name}`?", shown(text))),
                None => Err(wrong()),
            }
        }
    }
}

/// `ADDRESS:PORT`, numeric.
pub(super) fn socket_address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| {
        let forms = r#"write ADDRESS:PORT in numbers, such as "127.0.0.1:8080", or "0.0.0.0:8080" for all interfaces"#;
        let port = text.trim_start_matches(':');
        match port.parse::<u16>() {
            Ok(port) => format!("{} has no address; did you mean \"0.0.0.0:{port}\"?", shown(text)),
            Err(_) => format!("{} is no address to listen on; {forms}", shown(text)),
        }
    })
}

/// A count from 1 on.
pub(super) fn count(max: usize) -> impl Fn(&str) -> Parsed<usize> {
    move |text| {
        let count = text.trim().parse().ok().filter(|count| (1..=max).contains(count));
        count.ok_or_else(|| format!("{} is no number from 1 to {max}", shown(text)))
    }
}

/// One of a closed set of words.
pub(super) fn word<T: Copy>(words: &'static [(&'static str, T)]) -> impl Fn(&str) -> Parsed<T> {
    move |text| match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => {
            let names = || words.iter().map(|(word, _)| *word);
            let hint = did_you_mean(text, names());
            Err(format!("{} is none of {}{hint}", shown(text), alternatives(names())))
        }
    }
}

/// `a, b, c`, each in backticks.
pub(super) fn alternatives<'w>(words: impl Iterator<Item = &'w str>) -> String {
    words.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The path of a file or folder.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    match text {
        "" => Err("is empty; name a path".to_owned()),
        text if text.contains('\0') => Err("a path holds no zero character".to_owned()),
        text => Ok(PathBuf::from(text)),
    }
}

/// A text of 1 to `max` bytes without control characters.
pub(super) fn plain(max: usize) -> impl Fn(&str) -> Parsed<String> {
    move |text| {
        let length = text.len();
        if length == 0 {
            Err("is empty".to_owned())
        } else if length > max {
            Err(format!("is {length} bytes long; at most {max} are possible"))
        } else if text.chars().any(char::is_control) {
            Err(format!("{} holds control characters", shown(text)))
        } else {
            Ok(text.to_owned())
        }
    }
}

/// `parse`, and then no less than `min`, for the reason given.
pub(super) fn at_least<T: PartialOrd + Copy>(
    parse: impl Fn(&str) -> Parsed<T>,
    min: T,
    reason: &'static str,
) -> impl Fn(&str) -> Parsed<T> {
    move |text| match parse(text)? {
        value if value < min => Err(format!("{} is too little: {reason}", shown(text))),
        value => Ok(value),
    }
}

/// `parse`, and then no more than `max`, for the reason given.
pub(super) fn at_most<T: PartialOrd + Copy>(
    parse: impl Fn(&str) -> Parsed<T>,
    max: T,
    reason: &'static str,
) -> impl Fn(&str) -> Parsed<T> {
    move |text| match parse(text)? {
        value if value > max => Err(format!("{} is too much: {reason}", shown(text))),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_units_and_are_exact() {
        for (text, nanos) in [
            ("1.8s", 1_800_000_000),
            ("500ms", 500_000_000),
            ("5m", 300_000_000_000),
            ("24h", 86_400_000_000_000),
            ("30d", 2_592_000_000_000_000),
            ("0.5 ms", 500_000),
            (" 2 s ", 2_000_000_000),
            ("0.000000001s", 1),
            ("0", 0),
            ("0.0", 0),
            ("0d", 0),
            ("36525d", 3_155_760_000_000_000_000),
        ] {
            assert_eq!(duration(text).map(|duration| duration.as_nanos()), Ok(nanos), "{text}");
        }
        for text in [
            "",
            " ",
            "s",
            "5",
            "1.",
            ".5s",
            "1.2.3s",
            "-1s",
            "+1s",
            "1e3s",
            "1sec",
            "1M",
            "5 minutes",
            "1h30m",
            "36526d",
            "９s",
            "0.0000000001s",
            "1234567890123456789s",
            "999999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_carry_units_and_are_exact() {
        for (text, bytes) in [
            ("8 MiB", 8 << 20),
            ("16 KiB", 16 << 10),
            ("8 GiB", 8 << 30),
            ("1TiB", 1 << 40),
            ("1.5 KiB", 1536),
            ("1 kB", 1000),
            ("1 MB", 1_000_000),
            ("1 GB", 1_000_000_000),
            ("1 TB", 1_000_000_000_000),
            ("7 B", 7),
            ("0", 0),
            ("0 B", 0),
            ("8388607 TiB", 8_388_607 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "8", "MiB", "8 mib", "8 M", "-1 B", "8,5 MiB", "1 PiB", "8388608 TiB", "1 KiB 2 B"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_slip_in_a_unit_is_told() {
        for (text, unit) in
            [("8 mib", "MiB"), ("8 Mi", "MiB"), ("8Gi", "GiB"), ("8M", "MB"), ("8k", "kB"), ("8KB", "kB")]
        {
            let message = format!("`{text}` has no known unit; did you mean `{unit}`?");
            assert_eq!(size(text), Err(message), "{text}");
        }
        assert_eq!(duration("5S"), Err("`5S` has no known unit; did you mean `s`?".to_owned()));
    }

    #[test]
    fn what_is_shown_cannot_disturb_a_terminal_or_fill_it() {
        assert_eq!(shown("\u{1b}[31m\n"), "`\\u{1b}[31m\\n`");
        assert_eq!(shown(&"é".repeat(61)), format!("`{}…`", "é".repeat(60)));
    }
}
