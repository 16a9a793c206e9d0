//! The bodies, compact, with the fields of PROTOCOL §4 in the order of its examples. Written by hand rather than by serde, since a load
//! generator must not be what a benchmark measures.

use std::fmt;
use std::io::Write;

use super::{Beat, Ending, Step};
use crate::clock::rfc3339_seconds;
use crate::normalize::Known;

/// Who can be rung: a number, and an extension (PROTOCOL §4.1: either may stand in `receiver`).
const MEMBERS: [&str; 2] = ["+33199001001", "102"];

/// Something to say beyond ASCII, and with what JSON must escape.
const SENTENCES: [&str; 5] = [
    "Bonjour, je voudrais savoir où en est ma commande.",
    "Bien sûr ! Pouvez-vous me donner votre numéro de client ?",
    "I'm looking for a \\\"business\\\" phone solution.",
    "Великолепно, спасибо большое!",
    "Could you call me back tomorrow, after 2 pm? 😊",
];

/// One call: what its events have in common.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Call {
    pub seed: u32,
    pub number: u64,
    /// Seconds since 1970.
    pub began: i64,
}

impl Call {
    /// Appends the body of one event of this call. Writing to a `Vec` cannot fail, so what `write!` returns is dropped.
    pub fn write(&self, step: Step, out: &mut Vec<u8>) {
        let (event, at) = (step.beat.event(), self.began + step.at);
        match step.beat {
            Beat::IncomingStart => self.incoming(event, None, at, out),
            Beat::Ring { member } | Beat::IncomingAnswer { member } => self.incoming(event, Some(member), at, out),
            Beat::RingEnd { member, status } => {
                // No documented body of this event exists (PROTOCOL §4.2). Known is that it has a status; the five common fields of the other
                // call events are an assumption.
                self.incoming(event, Some(member), at, out);
                more(out, format_args!(r#""status":"{status}""#));
            }
            Beat::IncomingEnd(ending) => {
                self.incoming(event, None, at, out);
                self.end(ending, out);
            }
            Beat::OutgoingStart | Beat::OutgoingAnswer => self.outgoing(event, at, out),
            Beat::OutgoingEnd(ending) => {
                self.outgoing(event, at, out);
                self.end(ending, out);
            }
            Beat::Voicemail { duration } => {
                self.incoming(event, None, at, out);
                let (seed, number) = (self.seed, self.number);
                more(
                    out,
                    format_args!(
                        r#""duration":{duration},"audio_path":"https://app.sipsim.com/recordings/vm_{seed:08x}{number:06x}.mp3""#
                    ),
                );
            }
            Beat::Tags(tags) => {
                self.incoming(event, None, at, out);
                more(out, format_args!(r#""tags":{tags}"#));
            }
            Beat::Speech => self.speech(out),
            Beat::Summary => self.summary(out),
            Beat::Rating => self.rating(out),
            Beat::Sms { direction } => self.sms(direction, at, out),
            Beat::Test => self.test(at, out),
        }
    }

    /// A number of the outside caller, of those that France's regulator keeps free for fiction (06 39 98 …).
    fn outside(&self) -> u64 {
        33_639_980_000 + self.number % 10_000
    }

    /// A number of the SIPSIM account, of those kept free for fiction too (01 99 00 …).
    fn line(&self) -> u64 {
        33_199_000_000 + self.number % 7
    }

    /// `call_id`, `summary.id`: an integer that stays exact in a double, which is what many JSON parsers make of it.
    fn call_id(&self) -> u64 {
        u64::from(self.seed % 1_000_000) * 1_000_000_000 + self.number
    }

    /// An object of the five common fields.
    fn common(&self, event: Known, caller: fmt::Arguments, receiver: fmt::Arguments, at: i64, out: &mut Vec<u8>) {
        let (event, time) = (event.as_str(), rfc3339_seconds(at));
        let (seed, number) = (self.seed, self.number);
        let _ = write!(
            out,
            r#"{{"event":"{event}","caller":"{caller}","receiver":"{receiver}","time":"{time}","pbx_id":"call_{seed:08x}{number:06x}"}}"#
        );
    }

    fn incoming(&self, event: Known, member: Option<usize>, at: i64, out: &mut Vec<u8>) {
        let (caller, line) = (self.outside(), self.line());
        match member.and_then(|member| MEMBERS.get(member)) {
            Some(member) => self.common(event, format_args!("+{caller}"), format_args!("{member}"), at, out),
            None => self.common(event, format_args!("+{caller}"), format_args!("+{line}"), at, out),
        }
    }

    fn outgoing(&self, event: Known, at: i64, out: &mut Vec<u8>) {
        self.common(event, format_args!("+{}", self.line()), format_args!("+{}", self.outside()), at, out);
    }

    fn end(&self, ending: Ending, out: &mut Vec<u8>) {
        let Ending { status, duration } = ending;
        let (seed, number) = (self.seed, self.number);
        match duration {
            0 => more(out, format_args!(r#""duration":0,"audio_path":null,"status":"{status}""#)),
            _ => more(
                out,
                format_args!(
                    r#""duration":{duration},"audio_path":"https://app.sipsim.com/recordings/call_{seed:08x}{number:06x}.mp3","status":"{status}""#
                ),
            ),
        }
    }

    fn speech(&self, out: &mut Vec<u8>) {
        let _ = write!(out, r#"{{"call_id":{},"speech_state":"speech_stored","payload":["#, self.call_id());
        for segment in 0..3 {
            let text = self.sentence(segment);
            let start = 3.5 * segment as f64 + 0.5; // Exact in binary, so it is written as short as the examples are.
            let end = start + 2.75;
            let channel = if segment % 2 == 0 { "left" } else { "right" };
            let comma = if segment == 0 { "" } else { "," };
            let _ = write!(
                out,
                r#"{comma}{{"text":"{text}","start":{start:?},"end":{end:?},"start_sec":{start:?},"channel":"{channel}"}}"#
            );
        }
        out.extend_from_slice(b"]}");
    }

    fn summary(&self, out: &mut Vec<u8>) {
        let call_id = self.call_id();
        let topic = self.sentence(0);
        let _ = write!(
            out,
            r#"{{"id":{call_id},"summary":"The caller said: {topic} The agent explained the Pro plan with unlimited calls and CRM integration, and answered every question about it. The caller asked for a follow-up email with pricing details for a team of fifteen. Next step: send a pricing proposal by Friday, under reference {:x}-{:x}.","call_id":{call_id}}}"#,
            self.seed, self.number
        );
    }

    fn rating(&self, out: &mut Vec<u8>) {
        let (call_id, score) = (self.call_id(), self.number % 10 + 1);
        let _ = write!(
            out,
            r#"{{"event":"rating","call_id":{call_id},"overall_score":{score},"criteria_scores":[{{"name":"Politeness","score":9,"feedback":"The agent maintained a friendly and professional tone throughout the call."}},{{"name":"Problem Resolution","score":{score},"feedback":"The issue was addressed but a follow-up action was left unconfirmed."}}],"highlights":["Excellent greeting and rapport building","Clear explanation of pricing options"],"improvements":["Confirm next steps before ending the call"]}}"#
        );
    }

    fn sms(&self, direction: &str, at: i64, out: &mut Vec<u8>) {
        let (outside, line) = (self.outside(), self.line());
        let (caller, receiver) = if direction == "inbound" { (outside, line) } else { (line, outside) };
        let (text, time) = (self.sentence(1), rfc3339_seconds(at));
        // The only thing that tells two messages of one second apart.
        let (seed, number) = (self.seed, self.number);
        let _ = write!(
            out,
            r#"{{"event":"sms","caller":"+{caller}","receiver":"+{receiver}","message":"{text} Réf. {seed:x}-{number:x}","time":"{time}","direction":"{direction}"}}"#
        );
    }

    fn test(&self, at: i64, out: &mut Vec<u8>) {
        let (time, seed, number) = (rfc3339_seconds(at), self.seed, self.number);
        let _ = write!(
            out,
            r#"{{"event":"test","message":"This is a simulated test webhook, number {seed:x}-{number:x}. If you receive this, your endpoint is configured correctly.","timestamp":"{time}","pbx_id":"test_000000"}}"#
        );
    }

    fn sentence(&self, shift: u64) -> &'static str {
        SENTENCES[((self.number + shift) % SENTENCES.len() as u64) as usize]
    }
}

/// Adds fields to the object that ends `out`.
fn more(out: &mut Vec<u8>, fields: fmt::Arguments) {
    if out.pop_if(|last| *last == b'}').is_some() {
        let _ = write!(out, ",{fields}}}");
    }
}
