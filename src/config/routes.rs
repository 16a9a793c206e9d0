//! Templates with placeholders: topics, routing keys, the envelope's source. What they can become is known when the configuration is read, so
//! a name that the broker would refuse never meets an event.

use std::collections::BTreeMap;

use super::reader::{Parsed, Section};
use super::suggest::did_you_mean;
use super::values::shown;
use super::{Account, Events, Routes};
use crate::normalize::{EventName, Group, Known};

impl Routes {
    /// The topic or routing key of one event.
    pub fn fill(&self, event: &str, group: &str, account: &str) -> String {
        let template = self.by_event.get(event).unwrap_or(&self.template);
        fill(template, event, group, account)
    }
}

fn fill(template: &str, event: &str, group: &str, account: &str) -> String {
    // Names hold no braces, so that what one replacement brings the next leaves alone.
    template.replace("{event}", event).replace("{group}", group).replace("{account}", account)
}

/// What may stand in a place of an event's name, with its group: the fifteen, `events.extra`, `unknown`.
pub(super) fn event_names(events: &Events) -> Vec<(String, Group)> {
    let known = Known::ALL.into_iter().map(EventName::Known);
    let extra = events.extra.iter().cloned().map(EventName::Extra);
    let all = known.chain(extra).chain([EventName::Unknown]);
    all.map(|name| (name.as_str().to_owned(), name.group())).collect()
}

/// The rules of a broker for a filled template.
pub(super) struct Rules {
    /// The key of the template, and of the table of templates for single events.
    pub keys: (&'static str, &'static str),
    pub default: &'static str,
    /// What is wrong with a filled text.
    pub fault: fn(&str) -> Option<&'static str>,
    /// Bytes.
    pub length_max: usize,
}

pub(super) const TOPICS: Rules = Rules {
    keys: ("topic", "topics"),
    default: "sipsim.{event}",
    fault: |topic| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        match topic {
            "" => Some("is empty"),
            "." | ".." => Some("is a name that Kafka refuses"),
            _ if !topic.bytes().all(allowed) => {
                Some("is no topic for Kafka, which takes letters, digits, `.`, `_` and `-`")
            }
            _ => None,
        }
    },
    length_max: 249,
};

pub(super) const ROUTING_KEYS: Rules = Rules {
    keys: ("routing_key", "routing_keys"),
    default: "sipsim.{group}.{event}",
    fault: |key| match key {
        "" => Some("is empty"),
        _ if key.chars().any(char::is_control) => Some("holds control characters"),
        _ if key.split('.').any(|word| matches!(word, "*" | "#")) => {
            Some("holds `*` or `#`, which stand for other words only where a queue is bound")
        }
        _ => None,
    },
    length_max: 255,
};

/// Reads both keys of an output, and tries every event and account on every template.
pub(super) fn read(output: &Section<'_>, rules: &Rules, events: &Events, accounts: &[Account]) -> Routes {
    let names = event_names(events);
    let checked = |names: &[(String, Group)], text: &str| -> Parsed<String> {
        placeholders(text, &["event", "group", "account"])?;
        for (event, group) in names {
            for account in
                accounts.iter().map(|account| account.name.as_str()).chain(accounts.is_empty().then_some("default"))
            {
                let filled = fill(text, event, group.as_str(), account);
                let becomes = if filled == text { String::new() } else { format!(" becomes {} and", shown(&filled)) };
                if let Some(fault) = (rules.fault)(&filled) {
                    return Err(format!("{}{becomes} {fault}", shown(text)));
                }
                if filled.len() > rules.length_max {
                    let (length, max) = (filled.len(), rules.length_max);
                    return Err(format!("{}{becomes} is {length} bytes long; at most {max} are possible", shown(text)));
                }
            }
        }
        Ok(text.to_owned())
    };
    let (one, each) = rules.keys;
    let template = output.read(one, rules.default, |text| checked(&names, text));
    let table = output.section(each);
    let mut by_event = BTreeMap::new();
    for event in table.keys() {
        let Some(name) = names.iter().find(|(name, _)| name == event) else {
            table.pass_over(event);
            let hint = did_you_mean(event, names.iter().map(|(name, _)| name.as_str()));
            table.problem(event, format!("{}{hint}", no_event(event)));
            continue;
        };
        if let Some(template) = table.optional(event, |text| checked(std::slice::from_ref(name), text)) {
            by_event.insert(event.to_owned(), template);
        }
    }
    Routes { template, by_event }
}

/// Why a text is no event's name.
pub(super) fn no_event(event: &str) -> String {
    format!("{} is none of SIPSIM's fifteen events, nor in events.extra, nor `unknown`", shown(event))
}

/// Checks that every brace belongs to a placeholder of `names`.
pub(super) fn placeholders(text: &str, names: &[&str]) -> Parsed<()> {
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let inside = rest[at..].strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let Some((name, after)) = inside else {
            return Err(format!("{} has a brace without its other half", shown(text)));
        };
        if !names.contains(&name) {
            let hint = did_you_mean(name, names.iter().copied());
            let known = names.iter().map(|name| format!("`{{{name}}}`")).collect::<Vec<_>>().join(", ");
            let known =
                if names.len() == 1 { format!("the only one is {known}") } else { format!("there are {known}") };
            return Err(format!("{} is no placeholder here; {known}{hint}", shown(&format!("{{{name}}}"))));
        }
        rest = after;
    }
    Ok(())
}

/// `envelope.source`: a URI-reference (RFC 3986) with no placeholder but `{account}`.
pub(super) fn source(text: &str) -> Parsed<String> {
    placeholders(text, &["account"])?;
    // What an account's name brings may stand anywhere in a URI.
    let filled = text.replace("{account}", "a");
    let wrong = |why: &str| Err(format!("{} is no URI-reference: {why}", shown(text)));
    if filled.is_empty() {
        return wrong("it is empty");
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._~:/?#@!$&'()*+,;=%".contains(c);
    if let Some(c) = filled.chars().find(|c| !allowed(*c)) {
        return wrong(&format!("it may not hold {}", shown(&c.to_string())));
    }
    let escaped = |tail: &str| tail.len() >= 2 && tail.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    if !filled.split('%').skip(1).all(escaped) {
        return wrong("`%` must be followed by two hexadecimal digits");
    }
    if filled.matches('#').count() > 1 {
        return wrong("it may hold one `#`");
    }
    let first = filled.split(['/', '?', '#']).next().unwrap_or("");
    if let Some((scheme, _)) = first.split_once(':') {
        let follows = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(follows) {
            return wrong("what stands before its first `:` is no scheme");
        }
    }
    Ok(text.to_owned())
}
