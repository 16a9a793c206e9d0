//! Which lane an event goes to: its topic or routing key, made once for each account and event name.

use std::sync::Arc;

use crate::config::{AccountName, Routes};
use crate::normalize::EventName;

/// The lanes of one output. As many as accounts times event names, so a look through them is as quick as a map.
#[derive(Debug)]
pub struct Router {
    routes: Routes,
    known: Vec<(AccountName, EventName, Arc<str>)>,
}

impl Router {
    pub fn new(routes: Routes) -> Self {
        Self { routes, known: Vec::new() }
    }

    pub fn route(&mut self, account: &AccountName, event: &EventName) -> Arc<str> {
        if let Some((.., lane)) = self.known.iter().find(|(a, e, _)| e == event && a == account) {
            return Arc::clone(lane);
        }
        let filled = self.routes.fill(event.as_str(), event.group().as_str(), account.as_str());
        // Events that share a topic share its lane.
        let same = self.known.iter().find(|(.., lane)| **lane == *filled).map(|(.., lane)| Arc::clone(lane));
        let lane = same.unwrap_or_else(|| filled.into());
        self.known.push((account.clone(), event.clone(), Arc::clone(&lane)));
        lane
    }

    /// Tells whether lanes that were named earlier have other names now.
    pub fn fingerprint(&self) -> String {
        let overrides = self.routes.by_event.iter().map(|(event, template)| format!(" {event}={template}"));
        self.routes.template.clone() + &overrides.collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Name;
    use crate::normalize::Known;

    #[test]
    fn events_that_share_a_topic_share_its_lane() {
        let routes = Routes {
            template: "sipsim.{group}".into(),
            by_event: [("speech".to_owned(), "private.{account}".to_owned())].into(),
        };
        let mut router = Router::new(routes);
        let account = Name::new("a").unwrap();
        let start = router.route(&account, &EventName::Known(Known::IncomingCallStart));
        let tags = router.route(&account, &EventName::Known(Known::Tags));
        assert_eq!(&*start, "sipsim.call");
        assert!(Arc::ptr_eq(&start, &tags));
        assert_eq!(&*router.route(&account, &EventName::Known(Known::Speech)), "private.a");
        assert_eq!(&*router.route(&account, &EventName::Extra("new".into())), "sipsim.extra");
    }
}
