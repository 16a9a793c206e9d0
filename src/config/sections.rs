//! Every section but the outputs, each key on a line with its default and bounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::reader::{Parsed, Section};
use super::routes::{event_names, no_event, source};
use super::suggest::did_you_mean;
use super::values::{
    KIB, MIB, at_least, at_most, count, duration, memory, path, plain, shown, size, socket_address, word,
};
use super::{Account, Admin, Envelope, Events, Ingress, Journal, Log, LogFormat, Name, Shutdown, Tls};
use crate::normalize::Known;

/// Where the only account of a configuration that names none listens, and where its secrets are.
pub(super) const DEFAULT_ACCOUNT: &str = "default";
const DEFAULT_PATH: &str = "/webhooks/sipsim";
pub(super) const DEFAULT_SECRETS: &str = "data/secrets";

pub(super) fn instance(root: &Section<'_>) -> String {
    // It travels in Kafka's requests and in every envelope; host names have at most 64 bytes.
    root.read("instance", &host_name(), plain(255))
}

/// What the kernel says this machine is called; a container's is its id, a pod's its name.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    plain(255)(&name).unwrap_or_else(|_| "sipsim-relay".to_owned())
}

pub(super) fn ingress(section: &Section<'_>) -> Ingress {
    let body_max =
        at_least(memory, KIB as usize, "SIPSIM's smallest events alone are some hundred bytes; at least 1 KiB");
    // The envelope of a body that is not JSON is a third larger than the body, and neither a row of the journal nor a record of Kafka
    // may pass 1 GB.
    let body_max = at_most(
        body_max,
        512 * MIB as usize,
        "an envelope is up to a third larger, and Kafka's records end at 1 GB; at most 512 MiB",
    );
    let headers_max = at_least(memory, 8 * KIB as usize, "hyper reads headers into no less than 8 KiB");
    let headers_max = at_most(headers_max, MIB as usize, "each connection may fill it; at most 1 MiB");
    let deadline = at_least(
        duration,
        Duration::from_millis(10),
        "reading, syncing and answering take some milliseconds; at least 10ms",
    );
    let deadline = at_most(deadline, Duration::from_secs(60), "SIPSIM gives a webhook 2 s; at most 60s");
    let idle_timeout =
        at_least(duration, Duration::from_secs(1), "a load balancer reuses its connections after pauses; at least 1s");
    let ingress = Ingress {
        listen: section.read("listen", "127.0.0.1:8080", socket_address),
        body_max: section.measure("body_max", "8 MiB", body_max),
        headers_max: section.measure("headers_max", "16 KiB", headers_max),
        buffered_max: section.measure("buffered_max", "64 MiB", memory),
        deadline: section.measure("deadline", "1.8s", deadline),
        idle_timeout: section.measure("idle_timeout", "620s", idle_timeout),
        connections_max: section.measure("connections_max", "4096", count(1_000_000)),
        tls: tls(&section.section("tls")),
    };
    if section.sound(&["body_max", "buffered_max"]) && ingress.body_max > ingress.buffered_max / 2 {
        let key = if section.is_given("body_max") { "body_max" } else { "buffered_max" };
        section.problem(
            key,
            format!(
                "a body of ingress.body_max ({} bytes) finds no room: large bodies may take half of ingress.buffered_max ({} bytes); \
                 make buffered_max at least twice body_max",
                ingress.body_max, ingress.buffered_max
            ),
        );
    }
    ingress
}

fn tls(section: &Section<'_>) -> Option<Tls> {
    let certificate_file = section.optional("certificate_file", path);
    let private_key_file = section.optional("private_key_file", path);
    together(section, &["certificate_file", "private_key_file"]);
    Some(Tls { certificate_file: certificate_file?, private_key_file: private_key_file? })
}

/// A certificate and its key go together: one alone is a problem.
pub(super) fn together(section: &Section<'_>, keys: &[&str; 2]) {
    let [one, other] = keys;
    for (here, missing) in [(one, other), (other, one)] {
        if section.is_given(here) && !section.is_given(missing) {
            section.problem(here, format!("needs `{missing}` beside it"));
        }
    }
}

pub(super) fn accounts(section: &Section<'_>) -> Vec<Account> {
    let mut names: Vec<&str> = section.keys().collect();
    if names.is_empty() {
        names.push(DEFAULT_ACCOUNT);
    }
    let accounts: Vec<_> = names.into_iter().filter_map(|name| account(section, name)).collect();
    let mut paths: BTreeMap<&str, &Name> = BTreeMap::new();
    for account in accounts.iter().filter(|account| !account.path.is_empty()) {
        if let Some(other) = paths.get(account.path.as_str()) {
            let message = format!("{} is the path of account `{other}` too; each needs its own", shown(&account.path));
            section.section(account.name.as_str()).problem("path", message);
        }
        paths.entry(&account.path).or_insert(&account.name);
    }
    accounts
}

fn account(accounts: &Section<'_>, name: &str) -> Option<Account> {
    let section = accounts.section(name);
    let tolerance = at_least(duration, Duration::from_secs(1), "every webhook would be refused; at least 1s");
    let tolerance = section.measure("tolerance", "5m", tolerance);
    let journal_max = at_least(size, MIB, "a few of SIPSIM's larger events would fill it; at least 1 MiB");
    let journal_max = section.optional("journal_max", journal_max);
    let keep_refused = section.measure("keep_refused", "4 MiB", memory);
    let environment_secret = section.secret("secret", "`secrets`, a file or a folder of files");
    let (url_path, secrets) = if name == DEFAULT_ACCOUNT {
        (Some(section.read("path", DEFAULT_PATH, webhook_path)), Some(section.read("secrets", DEFAULT_SECRETS, path)))
    } else {
        (section.optional("path", webhook_path), section.optional("secrets", path))
    };
    let Some(account_name) = Name::new(name) else {
        accounts.problem(name, no_name("an account's", name));
        return None;
    };
    if name != DEFAULT_ACCOUNT && !section.is_given("path") {
        // Most often a variable whose name missed the account of the file.
        let hint = if section.is_in_file() { String::new() } else { did_you_mean(name, others(accounts, name)) };
        let form = format!("every account but `default` names its own, such as \"/webhooks/{name}\"");
        section.problem("path", format!("missing: {form}{hint}"));
    }
    if name != DEFAULT_ACCOUNT && !section.is_given("secrets") && environment_secret.is_none() {
        let variable = format!("RELAY_ACCOUNTS__{}__SECRET", name.to_uppercase());
        section
            .problem("secrets", format!("missing: name a file or a folder of files, or give the secret as {variable}"));
    }
    // Without a path that is in order there is a problem, and nobody gets this account; its secrets are looked at all the same.
    let path = url_path.unwrap_or_default();
    Some(Account { name: account_name, path, secrets, environment_secret, tolerance, journal_max, keep_refused })
}

/// The other accounts that have a path, which a variable's name may have missed.
fn others<'r>(accounts: &Section<'r>, name: &str) -> impl Iterator<Item = &'r str> {
    accounts.keys().filter(move |other| *other != name && accounts.section(other).is_given("path"))
}

/// Why a text is no NAME.
pub(super) fn no_name(whose: &str, name: &str) -> String {
    format!("{} cannot be {whose} name: 1 to 32 of `a` to `z`, `0` to `9`, `_` and `-`", shown(name))
}

fn webhook_path(text: &str) -> Parsed<String> {
    let wrong = |why: &str| Err(format!("{} is no path of a URL: {why}", shown(text)));
    if text.contains("://") {
        wrong("leave out scheme and host; it begins with `/`")
    } else if !text.starts_with('/') {
        wrong("it begins with `/`")
    } else if text.contains(['?', '#']) {
        wrong("it ends before `?` and `#`; queries are ignored")
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        wrong("spaces and letters beyond ASCII are percent-encoded in it")
    } else if text.len() > 1024 {
        wrong("it is longer than 1024 bytes")
    } else {
        Ok(text.to_owned())
    }
}

pub(super) fn events(section: &Section<'_>) -> Events {
    let mut extra: Vec<Arc<str>> = Vec::new();
    for (index, name) in section.list("extra", &[]).into_iter().enumerate() {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let fault = if !(1..=64).contains(&name.len()) || !name.bytes().all(allowed) {
            "cannot be an event's name here: 1 to 64 of `a` to `z`, `0` to `9` and `_`"
        } else if Known::from_name(&name).is_some() {
            "is known already; leave it out"
        } else if name == "unknown" {
            "stands for all that nobody named; leave it out"
        } else if extra.iter().any(|other| **other == *name) {
            "stands twice"
        } else {
            extra.push(name.into());
            continue;
        };
        section.problem_in_list("extra", index, format!("{} {fault}", shown(&name)));
    }
    // Each makes a series in several metrics for every output and account.
    if extra.len() > 256 {
        section.problem("extra", format!("names {} events; at most 256 are possible", extra.len()));
    }
    let mut events = Events { discard: Vec::new(), extra };
    let names = event_names(&events);
    for (index, name) in section.list("discard", &[]).into_iter().enumerate() {
        if names.iter().any(|(known, _)| *known == name) {
            events.discard.push(name);
        } else {
            let hint = did_you_mean(&name, names.iter().map(|(known, _)| known.as_str()));
            section.problem_in_list("discard", index, format!("{}{hint}", no_event(&name)));
        }
    }
    events
}

pub(super) fn envelope(section: &Section<'_>) -> Envelope {
    Envelope { source: section.read("source", "/sipsim/{account}", source) }
}

pub(super) fn journal(section: &Section<'_>) -> Journal {
    let size_max = at_least(size, MIB, "the journal's own tables and write-ahead log take some of it; at least 1 MiB");
    Journal {
        path: section.read("path", "data/journal.db", path),
        size_max: section.measure("size_max", "8 GiB", size_max),
        free_min: section.measure("free_min", "64 MiB", size),
        retention: section.measure("retention", "24h", duration),
        trail: section.measure("trail", "30d", duration),
    }
}

pub(super) fn admin(section: &Section<'_>) -> Admin {
    let hosts = section.list("hosts", &[]);
    for (index, name) in hosts.iter().enumerate() {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !(1..=253).contains(&name.len()) || !name.bytes().all(allowed) {
            let message = format!("{} is no host name; leave out scheme, port and path", shown(name));
            section.problem_in_list("hosts", index, message);
        }
    }
    Admin { listen: section.read("listen", "127.0.0.1:8081", socket_address), hosts }
}

pub(super) fn shutdown(section: &Section<'_>) -> Shutdown {
    let bounded =
        || at_most(duration, Duration::from_secs(3600), "whoever stops the relay does not wait that long; at most 1h");
    Shutdown { delay: section.measure("delay", "0s", bounded()), drain: section.measure("drain", "20s", bounded()) }
}

pub(super) fn log(section: &Section<'_>) -> Log {
    use tracing::Level;
    const LEVELS: &[(&str, Level)] = &[
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    Log {
        format: section.read("format", "text", word(&[("text", LogFormat::Text), ("json", LogFormat::Json)])),
        level: section.read("level", "info", word(LEVELS)),
    }
}
