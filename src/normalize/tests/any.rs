//! What holds of any bytes, any JSON and any moment.

use proptest::prelude::*;

use super::*;

/// Bodies that look like JSON often enough to get past the first byte.
fn almost_json() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\\u",
        "d800",
        "\"event\"",
        "\"sms\"",
        "\"time\"",
        "\"pbx_id\"",
        "1",
        "-",
        ".5",
        "e9",
        "null",
        " ",
        "\n",
        "é",
        "\u{feff}",
        "\"2025-01-15T10:30:00",
        "+02",
        ":00\"",
        "\"status\"",
        "\"call_id\"",
        "\"payload\"",
        "\u{0}",
    ]);
    prop::collection::vec(fragment, 0..40).prop_map(|fragments| fragments.concat().into_bytes())
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        let key = prop_oneof![
            any::<String>(),
            prop::sample::select(vec!["event", "time", "call_id", "payload"]).prop_map(str::to_owned)
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(serde_json::Value::from),
            prop::collection::hash_map(key, inner, 0..8)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_at_all_are_refused_or_changed(body in prop_oneof![prop::collection::vec(any::<u8>(), 0..300), almost_json()]) {
        let event = event_of(&body);
        prop_assert_eq!(&event.body[..], &body[..]);
        // A parser of another kind agrees on what is JSON, apart from what it cannot hold: lone surrogates, and numbers past a double.
        if serde_json::from_slice::<serde_json::Value>(&body).is_ok() {
            prop_assert_eq!(event.content, Content::Json);
        } else if serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_err() {
            prop_assert_eq!(event.content, Content::Opaque);
        }
    }

    #[test]
    fn whatever_is_json_is_json(value in json(), pretty: bool) {
        let body = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        let event = event_of(&body);
        prop_assert_eq!(event.content, Content::Json);
        let by_name = value.get("event").and_then(|event| event.as_str()).filter(|event| !event.is_empty());
        if let Some(name) = by_name {
            prop_assert_eq!(event.name.as_str(), Known::from_name(name).map_or("unknown", Known::as_str));
        }
    }

    #[test]
    fn a_moment_is_told_as_another_library_tells_it(seconds in -62_135_596_800_i64..253_402_300_800, offset in -1439_i32..1440) {
        use time::format_description::well_known::Rfc3339;
        let utc = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let there = utc.checked_to_offset(time::UtcOffset::from_whole_seconds(offset * 60).unwrap());
        // Near the ends the year there is one that RFC 3339 cannot write.
        let text = there.and_then(|there| there.format(&Rfc3339).ok()).filter(|text| !text.starts_with("0000"));
        if let Some(text) = text {
            prop_assert_eq!(moment::utc(text.as_bytes()).unwrap().to_string(), utc.format(&Rfc3339).unwrap());
            if let Some((front, minutes)) = text.rsplit_once(':').filter(|_| !text.ends_with('Z')) {
                prop_assert_eq!(moment::utc(format!("{front}{minutes}").replace('T', " ").as_bytes()).unwrap().to_string(), utc.format(&Rfc3339).unwrap());
            }
        }
    }
}
