//! SIPSIM's times: RFC 3339 and what comes close to it, into RFC 3339 UTC.

use time::{Date, Duration, Month, PrimitiveDateTime, Time};

use crate::clock::{FRACTION_DIGITS_MAX, Rfc3339, rfc3339_utc};

/// `text` in UTC with its fraction as sent, cut after 9 digits; `None` unless it has a date, a time with seconds and an offset, as RFC 3339 writes
/// them or with a space for the `T` or without the colon in the offset, and lies in the years 1 to 9999 both as written and in UTC.
///
/// A leap second is taken for the second after it, as Unix time does: most consumers' parsers know no 60.
pub fn utc(text: &[u8]) -> Option<Rfc3339> {
    let mut rest = Rest(text);
    let year = rest.number(4)?;
    rest.one_of(b"-")?;
    let month = rest.number(2)?;
    rest.one_of(b"-")?;
    let day = rest.number(2)?;
    rest.one_of(b"Tt ")?;
    let hour = rest.number(2)?;
    rest.one_of(b":")?;
    let minute = rest.number(2)?;
    rest.one_of(b":")?;
    let second = rest.number(2)?;
    let fraction = rest.fraction()?;
    let offset = rest.offset()?;
    if !rest.0.is_empty() || year == 0 {
        return None;
    }

    let leap = second == 60;
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(i32::from(year), month, u8::try_from(day).ok()?).ok()?;
    let second = if leap { 59 } else { u8::try_from(second).ok()? };
    let time = Time::from_hms(u8::try_from(hour).ok()?, u8::try_from(minute).ok()?, second).ok()?;
    let mut utc = PrimitiveDateTime::new(date, time).checked_sub(Duration::minutes(i64::from(offset)))?;
    if leap {
        // They are put in at the end of a day in UTC, nowhere else (RFC 3339 §5.7).
        if (utc.hour(), utc.minute()) != (23, 59) {
            return None;
        }
        utc = utc.checked_add(Duration::SECOND)?;
    }
    if !(1..=9999).contains(&utc.year()) {
        return None;
    }
    Some(rfc3339_utc(utc, fraction))
}

/// What is left to read. Each method takes what it names off the front, or gives `None`.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// Exactly so many digits, at most four.
    fn number(&mut self, digits: usize) -> Option<u16> {
        let (number, rest) = self.0.split_at_checked(digits)?;
        self.0 = rest;
        number.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u16::from(byte - b'0')))
    }

    fn one_of(&mut self, allowed: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        allowed.contains(first).then_some(*first)
    }

    /// A point and its digits, cut; or nothing, as an empty text.
    fn fraction(&mut self) -> Option<&'a str> {
        if self.0.first() != Some(&b'.') {
            return Some("");
        }
        let digits = self.0[1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (fraction, rest) = self.0.split_at(1 + digits);
        self.0 = rest;
        let kept = &fraction[..fraction.len().min(1 + FRACTION_DIGITS_MAX)];
        str::from_utf8(kept).ok().filter(|kept| kept.len() > 1)
    }

    /// `Z`, `+02:00` or `+0200`, in minutes.
    fn offset(&mut self) -> Option<i16> {
        let sign = match self.one_of(b"Zz+-")? {
            b'+' => 1,
            b'-' => -1,
            _ => return Some(0),
        };
        let hours = self.number(2)?;
        if self.0.first() == Some(&b':') {
            self.one_of(b":")?;
        }
        let minutes = self.number(2)?;
        let valid = hours <= 23 && minutes <= 59;
        valid.then(|| i16::try_from(hours * 60 + minutes).ok()).flatten().map(|offset| sign * offset)
    }
}
