//! `--since` and `--until`: moments as a person types them.

use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, Time, UtcOffset};

use super::super::arguments::duration;
use crate::clock::Timestamp;

/// A moment as it was typed, before anybody asked what time it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Moment {
    At(Timestamp),
    /// A time of day.
    Daily(Time, UtcOffset),
    Ago(Duration),
}

pub const HELP: &str = "14:00 (UTC, today), 14:00+02:00, 2025-01-15, 2025-01-15T14:00:00Z, or 30m, 2h (so long ago)";

/// Takes what [`HELP`] shows; a time without offset is UTC.
pub fn moment(text: &str) -> Result<Moment, String> {
    let text = text.trim();
    if let Ok(ago) = duration(text) {
        return Ok(Moment::Ago(ago));
    }
    if let Some(daily) = daily(text) {
        return Ok(daily);
    }
    // From the shortest on: a day, a minute, a second, then with an offset.
    let whole = text.replacen(' ', "T", 1);
    for end in ["T00:00:00Z", ":00Z", "Z", ""] {
        if let Ok(at) = OffsetDateTime::parse(&format!("{whole}{end}"), &Rfc3339) {
            let micros = at.unix_timestamp_nanos() / 1_000;
            return Ok(Moment::At(Timestamp::from_micros(i64::try_from(micros).unwrap_or_default())));
        }
    }
    Err(format!("a moment: {HELP}"))
}

fn daily(text: &str) -> Option<Moment> {
    let (clock, offset) = match text.find(['+', '-', 'Z']) {
        Some(at) => text.split_at(at),
        None => (text, "Z"),
    };
    if !clock.contains(':') || clock.contains('T') {
        return None;
    }
    let seconds = if clock.matches(':').count() == 1 { ":00" } else { "" };
    let at = OffsetDateTime::parse(&format!("2000-01-01T{clock}{seconds}{offset}"), &Rfc3339).ok()?;
    Some(Moment::Daily(at.time(), at.offset()))
}

/// Both ends. Times of day are today's; if `since` would then lie ahead, both were meant of yesterday.
pub fn between(
    since: Option<&Moment>,
    until: Option<&Moment>,
    now: Timestamp,
) -> (Option<Timestamp>, Option<Timestamp>) {
    let resolve = |moment: &Moment, back: Duration| match moment {
        Moment::At(at) => *at,
        Moment::Ago(ago) => now.minus(*ago),
        Moment::Daily(time, offset) => {
            let Ok(utc) = OffsetDateTime::from_unix_timestamp(now.as_seconds()) else { return now };
            let at = utc.to_offset(*offset).replace_time(*time);
            Timestamp::from_micros(i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or_default()).minus(back)
        }
    };
    let day = Duration::from_secs(86_400);
    let back = match since {
        Some(since @ Moment::Daily(..)) if resolve(since, Duration::ZERO) > now => day,
        _ => Duration::ZERO,
    };
    (since.map(|moment| resolve(moment, back)), until.map(|moment| resolve(moment, back)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2025-01-15T10:30:00Z.
    const NOW: Timestamp = Timestamp::from_seconds(1_736_937_000);

    #[test]
    fn moments_are_taken_as_people_type_them() {
        let check = |text: &str, expected: &str| {
            let moment = moment(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let (since, _) = between(Some(&moment), None, NOW);
            assert_eq!(since.unwrap().rfc3339().as_str(), expected, "{text}");
        };
        check("10:00", "2025-01-15T10:00:00.000000Z");
        check("10:00:01.5", "2025-01-15T10:00:01.500000Z");
        check("10:00+02:00", "2025-01-15T08:00:00.000000Z");
        check("23:00", "2025-01-14T23:00:00.000000Z");
        check("2025-01-02", "2025-01-02T00:00:00.000000Z");
        check("2025-01-02 03:04", "2025-01-02T03:04:00.000000Z");
        check("2025-01-02T03:04:05", "2025-01-02T03:04:05.000000Z");
        check("2025-01-02T03:04:05.25+01:00", "2025-01-02T02:04:05.250000Z");
        check("30m", "2025-01-15T10:00:00.000000Z");
        for wrong in ["", "yesterday", "25:00", "14", "2025-13-01", "10:00:00:00"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn both_ends_are_of_one_day() {
        let ends = |since: &str, until: &str| {
            let (since, until) = (moment(since).unwrap(), moment(until).unwrap());
            let (since, until) = between(Some(&since), Some(&until), NOW);
            (since.unwrap().rfc3339().to_string(), until.unwrap().rfc3339().to_string())
        };
        assert_eq!(
            ends("10:00", "11:00"),
            ("2025-01-15T10:00:00.000000Z".into(), "2025-01-15T11:00:00.000000Z".into())
        );
        assert_eq!(
            ends("22:00", "23:00"),
            ("2025-01-14T22:00:00.000000Z".into(), "2025-01-14T23:00:00.000000Z".into())
        );
    }
}
