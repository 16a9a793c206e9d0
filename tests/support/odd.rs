//! Genuine but odd bodies, and what DESIGN §5 makes of each: written down by hand.

/// One body and what has to become of it.
#[derive(Clone, Debug)]
pub struct Odd {
    pub what: &'static str,
    pub body: Vec<u8>,
    pub event: &'static str,
    pub group: &'static str,
    pub subject: Option<String>,
    /// `None`: the time of signing.
    pub time: Option<&'static str>,
    pub call_status: Option<&'static str>,
    /// The JSON text in the envelope; `None`: `data_base64`, which decodes to the body.
    pub data: Option<Vec<u8>>,
}

/// A body that is JSON, is sent on as it is, and says nothing else that we understand.
fn odd(what: &'static str, body: impl Into<Vec<u8>>) -> Odd {
    let body = body.into();
    let data = Some(body.clone());
    Odd { what, body, event: "unknown", group: "unknown", subject: None, time: None, call_status: None, data }
}

impl Odd {
    fn named(self, event: &'static str, group: &'static str) -> Self {
        Self { event, group, ..self }
    }

    fn test(self) -> Self {
        self.named("test", "test")
    }

    fn subject(self, subject: &str) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    fn time(self, time: &'static str) -> Self {
        Self { time: Some(time), ..self }
    }

    fn status(self, status: &'static str) -> Self {
        Self { call_status: Some(status), ..self }
    }

    fn data(self, data: &str) -> Self {
        Self { data: Some(data.into()), ..self }
    }

    fn opaque(self) -> Self {
        Self { data: None, ..self }
    }
}

/// `open` × n, then `close` × n.
fn nested(open: &str, close: &str, depth: usize) -> String {
    open.repeat(depth) + &close.repeat(depth)
}

/// What `events.extra` has to name for [`odd_bodies`].
pub const EXTRA: &str = "[events]\nextra = [\"fax_received\"]\n";

/// All different. The largest has a little over 1 MiB.
pub fn odd_bodies() -> Vec<Odd> {
    let mut all = names();
    all.extend(other_json());
    all.extend(no_json());
    all.extend(keys_and_numbers());
    all.extend(subjects());
    all.extend(times());
    all.extend(statuses());
    all
}

fn names() -> Vec<Odd> {
    vec![
        odd("an unknown name", r#"{"event":"fax","pbx_id":"call_1"}"#).subject("call_1"),
        odd("a name of events.extra", r#"{"event":"fax_received","pbx_id":"call_1"}"#)
            .named("fax_received", "extra")
            .subject("call_1"),
        odd("a name in another case", r#"{"event":"Test"}"#),
        odd("a name with a space", r#"{"event":"test "}"#),
        odd("a key in another case", r#"{"Event":"test"}"#),
        odd("a name that would be a path", r#"{"event":"../../etc/passwd"}"#),
        odd("a name that would be a binding", r##"{"event":"sms.#"}"##),
        odd("a name that is our own word", r#"{"event":"unknown"}"#),
        odd("a name with an escape", r#"{"event":"t\u0065st"}"#).test(),
        odd("a key with an escape", r#"{"\u0065vent":"test"}"#).test(),
        odd("an event that is a number", r#"{"event":7}"#),
        odd("an event inside something", r#"{"payload":{"event":"test"}}"#),
        odd("fields that nobody knows", r#"{"event":"test","new":{"a":[1,{"b":null}]},"":""}"#).test(),
        odd("speech by its state", r#"{"call_id":5,"speech_state":"x"}"#).named("speech", "ai").subject("5"),
        odd("speech by its payload", r#"{"payload":[],"call_id":"c5"}"#).named("speech", "ai").subject("c5"),
        odd("speech before summary", r#"{"call_id":5,"summary":"s","payload":[]}"#).named("speech", "ai").subject("5"),
        odd("a payload that is no array", r#"{"call_id":5,"payload":{}}"#).subject("5"),
        odd("a summary by its text", r#"{"call_id":5,"summary":""}"#).named("summary", "ai").subject("5"),
        odd("a summary that is no text", r#"{"call_id":5,"summary":["s"]}"#).subject("5"),
        odd("a summary without a call", r#"{"summary":"s"}"#),
        odd("an empty event goes by shape", r#"{"event":"","call_id":6,"summary":"s"}"#)
            .named("summary", "ai")
            .subject("6"),
        odd("an event that is null goes by shape", r#"{"event":null,"call_id":6,"summary":"s"}"#)
            .named("summary", "ai")
            .subject("6"),
        odd("a summary that says so", r#"{"event":"summary"}"#).named("summary", "ai"),
        odd("an unknown name before the shape", r#"{"event":"x","call_id":6,"summary":"s"}"#).subject("6"),
    ]
}

fn other_json() -> Vec<Odd> {
    vec![
        odd("an array", r#"[{"event":"test"}]"#),
        odd("a number", "42"),
        odd("a text", r#""event""#),
        odd("true", "true"),
        odd("null", "null"),
        odd("an empty object", "{}"),
        odd("white space around", " \r\n\t{\"event\":\"test\"}\n\n \t").test().data(r#"{"event":"test"}"#),
        odd("white space within", "{ \"event\" :\n\t\"test\" ,\r\n \"a\" : [ ] }").test(),
        odd("128 deep", format!(r#"{{"event":"test","a":{}}}"#, nested("[", "]", 127))).test(),
        odd("129 deep", format!(r#"{{"event":"test","a":{}}}"#, nested("[", "]", 128))).test().opaque(),
        odd("128 deep, all arrays", nested("[", "]", 128)),
        odd("129 deep, all arrays", nested("[", "]", 129)).opaque(),
        odd("brackets in a text", format!(r#"{{"event":"test","message":"\"{}"}}"#, "[".repeat(200))).test(),
        odd("10,000 deep", nested("[", "]", 10_000)).opaque(),
        odd(
            "10,000 deep in a field",
            format!(
                r#"{{"event":"tags","pbx_id":"deep","tags":{}1{}}}"#,
                r#"{"a":"#.repeat(10_000),
                "}".repeat(10_000)
            ),
        )
        .named("tags", "call")
        .subject("deep")
        .opaque(),
        odd("a number of 1,000 characters", format!(r#"{{"event":"test","n":0.{}}}"#, "1".repeat(998))).test(),
        odd("a number of 1,001 characters", format!(r#"{{"event":"test","n":0.{}}}"#, "1".repeat(999))).test().opaque(),
        odd("an integer of 4,301 digits", format!(r#"{{"event":"rating","call_id":5,"n":{}}}"#, "1".repeat(4301)))
            .named("rating", "ai")
            .subject("5")
            .opaque(),
        odd("1,001 digits in a text", format!(r#"{{"event":"test","message":"{}"}}"#, "1".repeat(1001))).test(),
        odd("one MiB", format!(r#"{{"event":"sms","message":"{}"}}"#, "m".repeat(1 << 20))).named("sms", "sms"),
    ]
}

fn no_json() -> Vec<Odd> {
    let opaque = |what, body: &[u8]| odd(what, body).opaque();
    vec![
        opaque("nothing", b""),
        opaque("white space alone", b" \n"),
        opaque("plain text", b"hello"),
        opaque("a form", b"event=test&pbx_id=call_1"),
        opaque("XML", b"<event>test</event>"),
        opaque("an object cut off", br#"{"event":"test""#),
        opaque("something after the object", br#"{"event":"test"}x"#),
        opaque("two objects", br#"{"event":"test"}{"event":"test"}"#),
        opaque("a comma too many", br#"{"event":"test",}"#),
        opaque("a comment", br#"{"event":"test"}/* */"#),
        opaque("a number that JSON has not", br#"{"event":"test","n":NaN}"#),
        opaque("a leading zero", br#"{"event":"test","n":012}"#),
        opaque("a raw line break in a text", b"{\"event\":\"test\",\"message\":\"a\nb\"}"),
        opaque("a raw control character in a key", b"{\"event\":\"test\",\"a\x01b\":1}"),
        opaque("form feed is no white space", b"{\"event\":\"test\"}\x0c"),
        opaque("a BOM", b"\xef\xbb\xbf{\"event\":\"test\"}"),
        opaque("UTF-16", b"{\0\"\0e\0\"\0:\x001\0}\0"),
        opaque("a byte that is no UTF-8", b"{\"event\":\"test\",\"message\":\"\xff\"}"),
        opaque("a surrogate as UTF-8", b"{\"event\":\"test\",\"message\":\"\xed\xa0\x80\"}"),
        opaque("an overlong slash", b"{\"event\":\"test\",\"message\":\"\xc0\xaf\"}"),
        opaque("zero bytes", b"\0\0\0"),
        opaque("every byte", &(0..=255).collect::<Vec<u8>>()),
    ]
}

fn keys_and_numbers() -> Vec<Odd> {
    vec![
        odd("doubled keys", r#"{"event":"test","event":"tags","pbx_id":"a","pbx_id":"b"}"#)
            .named("tags", "call")
            .subject("b"),
        odd("a doubled key whose last is no name", r#"{"event":"test","event":1}"#),
        odd("large and exact numbers", r#"{"event":"test","n":[1e400,-0,1E+2,0.10000000000000000000000000000000001]}"#)
            .test(),
        odd("a call number of 30 digits", r#"{"event":"rating","call_id":123456789012345678901234567890}"#)
            .named("rating", "ai")
            .subject("123456789012345678901234567890"),
        odd("a lone surrogate", r#"{"event":"test","message":"\ud800"}"#).test(),
        odd("a lone surrogate in a key", r#"{"event":"test","\udfff":1}"#).test(),
        odd("a lone surrogate in a call", r#"{"event":"test","pbx_id":"\ud800","call_id":8}"#).test().subject("8"),
        odd("a lone surrogate in the name", r#"{"event":"test\ud800"}"#),
        odd("a pair of surrogates", r#"{"event":"test","pbx_id":"\ud83d\ude00"}"#).test().subject("😀"),
        odd("escapes stay as they are", r#"{"event":"test","message":"\/\u00e9é\n"}"#).test(),
    ]
}

fn subjects() -> Vec<Odd> {
    let pbx_id = |id: &str| format!(r#"{{"event":"test","pbx_id":{id},"call_id":9}}"#);
    let letters = |count| "é".repeat(count);
    vec![
        odd("128 characters", pbx_id(&format!(r#""{}""#, letters(128)))).test().subject(&letters(128)),
        odd("129 characters", pbx_id(&format!(r#""{}""#, letters(129)))).test().subject("9"),
        odd("a call without a name", pbx_id(r#""""#)).test().subject("9"),
        odd("a call that is null", pbx_id("null")).test().subject("9"),
        odd("a control character", pbx_id(r#""a\u0007""#)).test().subject("9"),
        odd("a zero", pbx_id(r#""a\u0000""#)).test().subject("9"),
        odd("a delete", pbx_id("\"a\u{7f}\"")).test().subject("9"),
        odd("an array for a call", pbx_id("[1]")).test().subject("9"),
        odd("true for a call", pbx_id("true")).test().subject("9"),
        odd("a call with a fraction", pbx_id("1.0")).test().subject("9"),
        odd("a call with an exponent", pbx_id("1e3")).test().subject("9"),
        odd("a call that is a number", pbx_id("77")).test().subject("77"),
        odd("129 digits", pbx_id(&"1".repeat(129))).test().subject("9"),
        odd("quotes and a backslash", pbx_id(r#""a\"\\b""#)).test().subject(r#"a"\b"#),
        odd("no call at all", r#"{"event":"sms","pbx_id":"","call_id":1.5}"#).named("sms", "sms"),
    ]
}

fn times() -> Vec<Odd> {
    let time = |what, time: &str| odd(what, format!(r#"{{"event":"test","time":{time}}}"#)).test();
    vec![
        time("an offset", r#""2025-01-15T10:30:00+02:00""#).time("2025-01-15T08:30:00Z"),
        time("an offset over midnight", r#""2025-01-01T00:10:00+0200""#).time("2024-12-31T22:10:00Z"),
        time("a space for T", r#""2025-01-15 10:30:00Z""#).time("2025-01-15T10:30:00Z"),
        time("a fraction", r#""2025-01-15T10:30:00.120Z""#).time("2025-01-15T10:30:00.120Z"),
        time("a fraction of 12 digits", r#""2025-01-15T10:30:00.123456789999-01:30""#)
            .time("2025-01-15T12:00:00.123456789Z"),
        time("no offset", r#""2025-01-15T10:30:00""#),
        time("a day alone", r#""2025-01-15""#),
        time("a day that is none", r#""2025-02-30T10:30:00Z""#),
        time("the year 0", r#""0000-01-15T10:30:00Z""#),
        time("over the last year", r#""9999-12-31T23:30:00-01:00""#),
        time("seconds", "1736937000"),
        odd("the second of the two", r#"{"event":"test","time":"soon","timestamp":"2025-01-15T10:30:00Z"}"#)
            .test()
            .time("2025-01-15T10:30:00Z"),
        odd(
            "the first of the two",
            r#"{"event":"test","timestamp":"2025-01-15T10:30:00Z","time":"2025-01-15T11:30:00Z"}"#,
        )
        .test()
        .time("2025-01-15T11:30:00Z"),
    ]
}

fn statuses() -> Vec<Odd> {
    let end = |status: &str| {
        odd("a status", format!(r#"{{"event":"incoming_call_end","status":{status}}}"#))
            .named("incoming_call_end", "call")
    };
    vec![
        end(r#""ANSWER""#).status("answered"),
        end(r#""answer""#).status("answered"),
        end(r#""Missed""#).status("missed"),
        end(r#""BUSY""#).status("busy"),
        end(r#""noanswer""#).status("no_answer"),
        end(r#""cancel""#).status("cancelled"),
        end(r#""unavailable""#).status("unavailable"),
        end(r#""other""#).status("other"),
        end(r#""TRANSFERRED""#).status("other"),
        end(r#""""#).status("other"),
        end("null"),
        end("3"),
        odd("a status that is no call's", r#"{"event":"sms","status":"ANSWER"}"#).named("sms", "sms"),
    ]
}
