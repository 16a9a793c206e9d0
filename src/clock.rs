//! Time as the relay writes it: microseconds since 1970 UTC, and the one place that asks what time it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrayvec::ArrayString;
use time::{OffsetDateTime, PrimitiveDateTime};

/// A moment in microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// More digits of a second than consumers can hold.
pub const FRACTION_DIGITS_MAX: usize = 9;
/// A moment as RFC 3339 writes it in UTC. In place, since each event has three of them.
pub type Rfc3339 = ArrayString<{ "2025-01-15T10:30:00.Z".len() + FRACTION_DIGITS_MAX }>;

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
    pub fn rfc3339(self) -> Rfc3339 {
        let mut fraction = *b".000000";
        put_digits(&mut fraction[1..], self.0.rem_euclid(1_000_000) as u64);
        rfc3339_utc(utc(self.as_seconds()), str::from_utf8(&fraction).unwrap_or_default())
    }
}

/// RFC 3339 in UTC of whole seconds since 1970: `2025-01-15T10:30:00Z`, clamped to the years 1 to 9999.
pub fn rfc3339_seconds(seconds: i64) -> Rfc3339 {
    rfc3339_utc(utc(seconds), "")
}

/// Clamped to the years 1 to 9999.
fn utc(seconds: i64) -> PrimitiveDateTime {
    let moment = OffsetDateTime::from_unix_timestamp(seconds.clamp(SECONDS_MIN, SECONDS_MAX))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH); // Cannot be: the clamp keeps to what the type holds.
    PrimitiveDateTime::new(moment.date(), moment.time())
}

/// RFC 3339 of a moment in UTC in the years 1 to 9999: its whole seconds, with `fraction` behind them, which is empty or a point and at most
/// [`FRACTION_DIGITS_MAX`] digits. Panics if it is longer.
pub fn rfc3339_utc(moment: PrimitiveDateTime, fraction: &str) -> Rfc3339 {
    let mut seconds = *b"0000-00-00T00:00:00";
    put_digits(&mut seconds[..4], moment.year() as u64);
    for (place, number) in [
        (5, u8::from(moment.month())),
        (8, moment.day()),
        (11, moment.hour()),
        (14, moment.minute()),
        (17, moment.second()),
    ] {
        put_digits(&mut seconds[place..place + 2], number.into());
    }
    let mut text = Rfc3339::new();
    for part in [str::from_utf8(&seconds).unwrap_or_default(), fraction, "Z"] {
        text.push_str(part);
    }
    text
}

/// Writes the last digits of a number over zeros, from behind. By hand, since each event has more than a dozen numbers and `format!` showed in
/// the profile.
pub fn put_digits(zeros: &mut [u8], mut number: u64) {
    for digit in zeros.iter_mut().rev() {
        if number == 0 {
            break;
        }
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
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
        let text = |micros| Timestamp::from_micros(micros).rfc3339().to_string();
        assert_eq!(text(1_736_937_000_000_042), "2025-01-15T10:30:00.000042Z");
        assert_eq!(text(i64::MIN), "0001-01-01T00:00:00.224192Z");
        assert_eq!(text(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(rfc3339_seconds(i64::MAX).as_str(), "9999-12-31T23:59:59Z");
    }
}
