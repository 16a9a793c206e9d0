//! The few fields of a body that say what it is, as raw JSON. Everything else is passed over unread.

use std::borrow::Cow;
use std::fmt;

use memchr::{memchr, memchr2_iter};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Content;

/// Deeper nesting breaks consumers' parsers. serde_json's own limit, the lowest in common use.
const DEPTH_MAX: usize = 128;
/// Longer numbers break consumers' parsers: Jackson takes 1,000 digits, Python 4,300. In characters as written, with sign, point and exponent.
const NUMBER_MAX: usize = 1000;

/// Top-level fields as they stand in the body, without white space around. Of doubled keys the last.
#[derive(Default)]
pub struct Fields<'a> {
    pub event: Option<&'a str>,
    pub pbx_id: Option<&'a str>,
    pub call_id: Option<&'a str>,
    pub time: Option<&'a str>,
    pub timestamp: Option<&'a str>,
    pub status: Option<&'a str>,
    pub speech_state: Option<&'a str>,
    pub payload: Option<&'a str>,
    pub summary: Option<&'a str>,
}

/// Whether `body` is JSON for a consumer, and its fields if it is a JSON object, however deep.
pub fn read(body: &[u8]) -> (Content, Fields<'_>) {
    let Some(fields) = str::from_utf8(body).ok().and_then(fields) else { return (Content::Opaque, Fields::default()) };
    let breaks_parsers = is_deeper(body, DEPTH_MAX) || has_longer_number(body, NUMBER_MAX);
    (if breaks_parsers { Content::Opaque } else { Content::Json }, fields)
}

/// `None` if this is no JSON. serde_json skips values without recursion, so that no depth can overflow the stack, and looks at no number's size and
/// no escape's surrogates.
fn fields(text: &str) -> Option<Fields<'_>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let fields = match text.trim_start_matches([' ', '\t', '\n', '\r']).starts_with('{') {
        true => json.deserialize_map(FieldsVisitor),
        false => IgnoredAny::deserialize(&mut json).map(|_| Fields::default()),
    };
    fields.and_then(|fields| json.end().map(|()| fields)).ok()
}

/// The text of a raw value that is a string; a lone surrogate comes as three bytes that are not UTF-8. `None` for any other value.
pub fn text_bytes(raw: &str) -> Option<Cow<'_, [u8]>> {
    let text = raw.strip_prefix('"')?.strip_suffix('"')?;
    if memchr(b'\\', text.as_bytes()).is_none() {
        return Some(Cow::Borrowed(text.as_bytes())); // Nearly every key and value.
    }
    serde_json::Deserializer::from_str(raw).deserialize_bytes(BytesVisitor).ok()
}

/// The same for what is text in Unicode: `None` also if it has a lone surrogate.
pub fn text(raw: &str) -> Option<String> {
    String::from_utf8(text_bytes(raw)?.into_owned()).ok()
}

/// The members of a JSON object in order, keys and values raw.
pub fn members(object: &str) -> Option<Vec<(&str, &str)>> {
    serde_json::Deserializer::from_str(object).deserialize_map(MembersVisitor).ok()
}

/// Whether valid JSON nests arrays and objects deeper than `max`.
pub fn is_deeper(json: &[u8], max: usize) -> bool {
    if memchr2_iter(b'[', b'{', json).take(max + 1).count() <= max {
        return false; // Nearly every body.
    }
    let mut depth = 0_usize;
    outside_texts(json).any(|byte| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > max
    })
}

/// Whether valid JSON holds a number of more than `max` characters.
pub fn has_longer_number(json: &[u8], max: usize) -> bool {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    // One that is longer covers one of these places, wherever it begins. Most bodies have none, and of the others most only a letter e.
    let mut places = (max..json.len()).step_by(max + 1);
    let may_have = places.any(|place| {
        let (before, from) = json.split_at(place);
        let longest = max + 1;
        from.first().is_some_and(is_part)
            && before.iter().rev().take(longest).take_while(|byte| is_part(byte)).count()
                + from.iter().take(longest).take_while(|byte| is_part(byte)).count()
                > max
    });
    let mut length = 0;
    may_have
        && outside_texts(json).any(|byte| {
            length = if is_part(&byte) { length + 1 } else { 0 };
            length > max
        })
}

/// The bytes of valid JSON that stand in none of its texts, the quotes of which are given.
fn outside_texts(json: &[u8]) -> impl Iterator<Item = u8> {
    let (mut in_text, mut is_escaped) = (false, false);
    json.iter().copied().filter(move |byte| match byte {
        _ if is_escaped => {
            is_escaped = false;
            false
        }
        b'\\' => {
            is_escaped = true; // Only ever inside a text.
            false
        }
        b'"' => {
            in_text = !in_text;
            true
        }
        _ => !in_text,
    })
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        // Raw: read as text, serde_json would fail on a lone surrogate (`"\ud800"`), which RFC 8259's grammar allows; read as bytes, it would let
        // control characters pass, which it forbids.
        while let Some(key) = map.next_key::<&RawValue>()? {
            let field = match &*text_bytes(key.get()).unwrap_or_default() {
                b"event" => &mut fields.event,
                b"pbx_id" => &mut fields.pbx_id,
                b"call_id" => &mut fields.call_id,
                b"time" => &mut fields.time,
                b"timestamp" => &mut fields.timestamp,
                b"status" => &mut fields.status,
                b"speech_state" => &mut fields.speech_state,
                b"payload" => &mut fields.payload,
                b"summary" => &mut fields.summary,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *field = Some(map.next_value::<&RawValue>()?.get());
        }
        Ok(fields)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Vec<(&'de str, &'de str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((key, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            members.push((key.get(), value.get()));
        }
        Ok(members)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Cow<'de, [u8]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(bytes))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Cow::Owned(bytes.to_vec()))
    }
}
