//! Time as the relay writes it: microseconds since 1970 UTC, and the one place that asks what time it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, PrimitiveDateTime};

/// A moment in microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The last second that RFC 3339 can write: 9999-12-31T23:59:59Z.
const SECONDS_MAX: i64 = 253_402_300_799;
/// The first second of the year 1, the earliest that an envelope writes.
const SECONDS_MIN: i64 = -62_135_596_800;

impl Timestamp {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds, rounded down.
    pub const fn as_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    pub fn as_seconds_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// How far apart two moments are, whichever came first.
    pub fn abs_diff(self, other: Self) -> Duration {
        Duration::from_micros(self.0.abs_diff(other.0))
    }

    /// The time from `earlier` to this; zero if the clock went back meanwhile.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// RFC 3339 in UTC with six digits of fraction: `2025-01-15T10:30:00.123456Z`. Moments outside the years 1 to 9999, which
    /// RFC 3339 cannot write, come out as the nearest that it can.
    pub fn rfc3339(self) -> String {
        let mut text = rfc3339_seconds(self.as_seconds());
        text.pop();
        text.push('.');
        push_digits(&mut text, self.0.rem_euclid(1_000_000), 6);
        text.push('Z');
        text
    }
}

/// RFC 3339 in UTC of whole seconds since 1970: `2025-01-15T10:30:00Z`, clamped to the years 1 to 9999.
pub fn rfc3339_seconds(seconds: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(seconds.clamp(SECONDS_MIN, SECONDS_MAX))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH); // Cannot be: the clamp keeps to what the type holds.
    rfc3339_utc(PrimitiveDateTime::new(moment.date(), moment.time()), "")
}

/// RFC 3339 of a moment in UTC in the years 1 to 9999: its whole seconds, with `fraction` behind them, which is empty or begins with a point.
pub fn rfc3339_utc(moment: PrimitiveDateTime, fraction: &str) -> String {
    let mut text = String::with_capacity("2025-01-15T10:30:00.123456789Z".len());
    push_digits(&mut text, moment.year().into(), 4);
    for (before, number) in [
        ('-', u8::from(moment.month())),
        ('-', moment.day()),
        ('T', moment.hour()),
        (':', moment.minute()),
        (':', moment.second()),
    ] {
        text.push(before);
        push_digits(&mut text, number.into(), 2);
    }
    text.push_str(fraction);
    text.push('Z');
    text
}

/// The last `width` digits of a number that is not negative. By hand, since each event has two moments and `format!` showed in the profile.
fn push_digits(text: &mut String, number: i64, width: u32) {
    for place in (0..width).rev() {
        let digit = number / 10_i64.pow(place) % 10;
        text.push(char::from(b'0' + digit as u8));
    }
}

/// What time it is. Decisions take the time as an argument; only the edges of the program call this.
pub fn now() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
        Err(before) => Timestamp(-i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc3339() {
        assert_eq!(Timestamp::from_micros(1_736_937_000_000_042).rfc3339(), "2025-01-15T10:30:00.000042Z");
        assert_eq!(Timestamp::from_micros(-1).rfc3339(), "1969-12-31T23:59:59.999999Z");
        assert_eq!(rfc3339_seconds(i64::MAX), "9999-12-31T23:59:59Z");
    }
}
