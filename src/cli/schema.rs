//! `schema`: the files of `schemas/`, as they were when the program was built. Consumers read events by them, editors complete `relay.toml`.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::normalize::Known;

/// What there is a schema of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Event(Known),
    Envelope,
    Configuration,
}

const ENVELOPE: &str = "envelope";
const CONFIGURATION: &str = "configuration";

macro_rules! event_schema {
    ($name:literal) => {
        include_str!(concat!("../../schemas/events/", $name, ".schema.json"))
    };
}

impl Of {
    /// The JSON Schema (2020-12), with a line break at its end. Its `$id` is what envelopes call it in `dataschema`.
    pub const fn text(self) -> &'static str {
        use Known::*;
        match self {
            Self::Event(event) => match event {
                IncomingCallStart => event_schema!("incoming_call_start"),
                IncomingCallStartChainMemberCall => event_schema!("incoming_call_start_chain_member_call"),
                IncomingCallEndChainMemberCall => event_schema!("incoming_call_end_chain_member_call"),
                IncomingCallAnswer => event_schema!("incoming_call_answer"),
                IncomingCallEnd => event_schema!("incoming_call_end"),
                OutgoingCallStart => event_schema!("outgoing_call_start"),
                OutgoingCallAnswer => event_schema!("outgoing_call_answer"),
                OutgoingCallEnd => event_schema!("outgoing_call_end"),
                Voicemail => event_schema!("voicemail"),
                Tags => event_schema!("tags"),
                Speech => event_schema!("speech"),
                Summary => event_schema!("summary"),
                Sms => event_schema!("sms"),
                Rating => event_schema!("rating"),
                Test => event_schema!("test"),
            },
            Self::Envelope => include_str!("../../schemas/envelope.schema.json"),
            Self::Configuration => include_str!("../../schemas/relay.toml.schema.json"),
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        match name {
            ENVELOPE => Some(Self::Envelope),
            CONFIGURATION => Some(Self::Configuration),
            event => Known::from_name(event).map(Self::Event),
        }
    }
}

/// For clap: the name of one of the fifteen events, `envelope` or `configuration`.
pub fn parser() -> impl TypedValueParser<Value = Of> {
    let names = Known::ALL.map(Known::as_str).into_iter().chain([ENVELOPE, CONFIGURATION]);
    PossibleValuesParser::new(names).try_map(|name| Of::from_name(&name).ok_or("there is no schema of it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_schema_is_json_and_is_called_what_envelopes_call_it() {
        let events = Known::ALL.map(|event| (Of::Event(event), event.as_str()));
        for (of, name) in events.into_iter().chain([(Of::Envelope, ENVELOPE), (Of::Configuration, CONFIGURATION)]) {
            let schema: serde_json::Value = serde_json::from_str(of.text()).unwrap();
            assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
            assert_eq!(schema["$id"], format!("urn:sipsim-relay:schema:{name}:1"));
            assert_eq!(Of::from_name(name), Some(of));
            assert!(of.text().ends_with("}\n"), "{name}");
        }
        assert_eq!(Of::from_name("unknown"), None);
    }
}
