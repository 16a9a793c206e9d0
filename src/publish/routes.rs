//! Which topic or routing key an event goes to. No name is ever made from a request: an event's name is known, declared, or `unknown`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::config::Routes;
use crate::normalize::EventName;

impl Routes {
    /// The topic or routing key of one event: the template for its name, or the general one, with `{event}`, `{group}` and `{account}` filled in.
    /// `{event}` of an unknown event is `unknown`.
    pub fn route(&self, account: &str, event: &EventName) -> String {
        let template = self.by_event.get(event.as_str()).unwrap_or(&self.template);
        // Names of accounts and events hold no braces, so what one replacement brings the next leaves alone.
        template
            .replace("{event}", event.as_str())
            .replace("{group}", event.group().as_str())
            .replace("{account}", account)
    }
}

/// The lanes of one output: [`Routes::route`], filled in once for each account and event name.
pub struct Router {
    routes: Routes,
    /// By account, then by event name. As many as configuration names, or the journal still holds from an earlier one.
    filled: HashMap<String, HashMap<String, Arc<str>>>,
    /// Each lane's text once, so that events of one lane share it.
    lanes: HashSet<Arc<str>>,
}

impl Router {
    pub fn new(routes: Routes) -> Self {
        Self { routes, filled: HashMap::new(), lanes: HashSet::new() }
    }

    /// The lane of an event. Allocates only the first time that it meets the account and the name.
    pub fn lane(&mut self, account: &str, event: &EventName) -> Arc<str> {
        if let Some(lane) = self.filled.get(account).and_then(|events| events.get(event.as_str())) {
            return Arc::clone(lane);
        }
        let lane: Arc<str> = self.routes.route(account, event).into();
        let lane = match self.lanes.get(&lane) {
            Some(known) => Arc::clone(known),
            None => {
                self.lanes.insert(Arc::clone(&lane));
                lane
            }
        };
        self.filled.entry(account.to_owned()).or_default().insert(event.as_str().to_owned(), Arc::clone(&lane));
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalize::Known;

    fn routes(template: &str, by_event: &[(&str, &str)]) -> Routes {
        let by_event = by_event.iter().map(|(event, template)| (event.to_string(), template.to_string())).collect();
        Routes { template: template.to_owned(), by_event }
    }

    #[test]
    fn placeholders_are_filled_in() {
        let (speech, extra) = (EventName::Known(Known::Speech), EventName::Extra("fax".into()));
        for (template, event, expected) in [
            ("sipsim.{event}", &speech, "sipsim.speech"),
            ("sipsim.{group}.{event}", &speech, "sipsim.ai.speech"),
            ("{account}-{group}", &speech, "shop-ai"),
            ("sipsim.{group}.{event}", &extra, "sipsim.extra.fax"),
            ("sipsim.{group}.{event}", &EventName::Unknown, "sipsim.unknown.unknown"),
            ("all", &speech, "all"),
        ] {
            assert_eq!(routes(template, &[]).route("shop", event), expected, "{template}");
        }
    }

    #[test]
    fn an_event_may_have_a_template_of_its_own() {
        let routes = routes("sipsim.{event}", &[("sms", "texts.{account}"), ("unknown", "odd"), ("fax", "fax")]);
        assert_eq!(routes.route("shop", &EventName::Known(Known::Sms)), "texts.shop");
        assert_eq!(routes.route("shop", &EventName::Unknown), "odd");
        assert_eq!(routes.route("shop", &EventName::Extra("fax".into())), "fax");
        assert_eq!(routes.route("shop", &EventName::Known(Known::Tags)), "sipsim.tags");
    }

    #[test]
    fn a_lane_is_made_once_and_shared() {
        let mut router = Router::new(routes("sipsim.{group}", &[]));
        let first = router.lane("shop", &EventName::Known(Known::Tags));
        assert_eq!(&*first, "sipsim.call");
        for (account, event) in [("shop", Known::Tags), ("shop", Known::Voicemail), ("other", Known::Tags)] {
            assert!(Arc::ptr_eq(&first, &router.lane(account, &EventName::Known(event))), "{account} {event:?}");
        }
        assert_eq!(&*router.lane("shop", &EventName::Known(Known::Sms)), "sipsim.sms");
    }
}
