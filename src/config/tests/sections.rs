//! Every section but the outputs.

use std::time::Duration;

use super::super::Config;
use super::{bad, bad_with, good, good_with};

#[test]
fn the_defaults_are_those_of_the_design() {
    let config = Config::defaults();
    assert_eq!(config.ingress.listen.to_string(), "127.0.0.1:8080");
    assert_eq!((config.ingress.body_max, config.ingress.headers_max), (8 << 20, 16 << 10));
    assert_eq!((config.ingress.buffered_max, config.ingress.connections_max), (64 << 20, 4096));
    assert_eq!(config.ingress.deadline, Duration::from_millis(1800));
    assert_eq!(config.ingress.idle_timeout, Duration::from_secs(620));
    assert!(config.ingress.tls.is_none());
    let [account] = &config.accounts[..] else { panic!("{:?}", config.accounts) };
    assert_eq!((account.name.as_str(), account.path.as_str()), ("default", "/webhooks/sipsim"));
    assert_eq!(account.secrets.as_deref().unwrap().to_str(), Some("data/secrets"));
    assert_eq!((account.tolerance, account.keep_refused), (Duration::from_secs(300), 4 << 20));
    assert_eq!(config.envelope.source, "/sipsim/{account}");
    assert_eq!(config.journal.path.to_str(), Some("data/journal.db"));
    assert_eq!((config.journal.size_max, config.journal.free_min), (8 << 30, 64 << 20));
    assert_eq!(config.journal.retention, Duration::from_secs(86_400));
    assert_eq!(config.journal.trail, Duration::from_secs(30 * 86_400));
    assert_eq!(config.outputs[0].name.as_str(), "console");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8081");
    assert_eq!((config.shutdown.delay, config.shutdown.drain), (Duration::ZERO, Duration::from_secs(20)));
    assert_eq!(config.log.level, tracing::Level::INFO);
    assert!(!config.instance.is_empty());
}

#[test]
fn the_instance_is_1_to_255_printable_bytes() {
    assert_eq!(good("instance = \"Büro 1\"").instance, "Büro 1");
    assert_eq!(good(&format!("instance = \"{}\"", "a".repeat(255))).instance.len(), 255);
    bad("instance = \"\"", &["relay.toml:1: instance: is empty"]);
    bad("instance = \"a\\tb\"", &["relay.toml:1: instance: `a\\tb` holds control characters"]);
    bad(
        &format!("instance = \"{}\"", "a".repeat(256)),
        &["relay.toml:1: instance: is 256 bytes long; at most 255 are possible"],
    );
}

#[test]
fn limits_of_the_ingress_say_why() {
    for (line, message) in [
        (
            "headers_max = \"8191 B\"",
            "headers_max: `8191 B` is too little: hyper reads headers into no less than 8 KiB",
        ),
        ("headers_max = \"2 MiB\"", "headers_max: `2 MiB` is too much: each connection may fill it; at most 1 MiB"),
        (
            "body_max = \"1023 B\"",
            "body_max: `1023 B` is too little: SIPSIM's smallest events alone are some hundred bytes; at least 1 KiB",
        ),
        (
            "body_max = \"33 MiB\"",
            "body_max: a body of ingress.body_max (34603008 bytes) finds no room: large bodies may take half of \
             ingress.buffered_max (67108864 bytes); make buffered_max at least twice body_max",
        ),
        (
            "buffered_max = \"15 MiB\"",
            "buffered_max: a body of ingress.body_max (8388608 bytes) finds no room: large bodies may take half of \
             ingress.buffered_max (15728640 bytes); make buffered_max at least twice body_max",
        ),
        (
            "deadline = 0",
            "deadline: `0` is too little: reading, syncing and answering take some milliseconds; at least 10ms",
        ),
        ("deadline = \"61s\"", "deadline: `61s` is too much: SIPSIM gives a webhook 2 s; at most 60s"),
        (
            "idle_timeout = \"999ms\"",
            "idle_timeout: `999ms` is too little: a load balancer reuses its connections after pauses; at least 1s",
        ),
        ("connections_max = 0", "connections_max: `0` is no number from 1 to 1000000"),
        ("connections_max = 1.5", "connections_max: `1.5` is no number from 1 to 1000000"),
        ("tls.certificate_file = \"a\"", "tls.certificate_file: needs `private_key_file` beside it"),
        ("tls.private_key_file = \"a\"", "tls.private_key_file: needs `certificate_file` beside it"),
        ("tls = { certificate_file = \"\", private_key_file = \"b\" }", "tls.certificate_file: is empty; name a path"),
    ] {
        bad(&format!("[ingress]\n{line}"), &[&format!("relay.toml:2: ingress.{message}")]);
    }
    let limits = good("[ingress]\nbody_max = \"32 MiB\"\nheaders_max = \"8 KiB\"\nidle_timeout = \"1s\"").ingress;
    assert_eq!((limits.body_max, limits.headers_max), (32 << 20, 8 << 10));
    assert!(good("[ingress.tls]\ncertificate_file = \"a\"\nprivate_key_file = \"b\"").ingress.tls.is_some());
}

#[test]
fn a_wrong_buffered_max_is_one_problem_and_not_two() {
    let text = "[ingress]\nbody_max = \"40 MiB\"\nbuffered_max = \"100 megs\"";
    bad(
        text,
        &[
            "relay.toml:3: ingress.buffered_max: `100 megs` is no size; write a number with its unit (B, KiB, MiB, GiB, TiB, or \
           kB, MB, GB, TB), such as \"16 KiB\", \"8 MiB\" or \"8 GiB\"",
        ],
    );
}

#[test]
fn the_account_default_is_there_only_while_none_is_named() {
    let names = |config: Config| config.accounts.iter().map(|account| account.name.to_string()).collect::<Vec<_>>();
    let shop = "[accounts.shop]\npath = \"/shop\"\nsecrets = \"shop\"\n";
    assert_eq!(names(good("")), ["default"]);
    assert_eq!(names(good("[accounts]")), ["default"]);
    assert_eq!(names(good(shop)), ["shop"]);
    assert_eq!(names(good(&format!("{shop}[accounts.default]"))), ["default", "shop"]);
    let secret = [("RELAY_ACCOUNTS__DEFAULT__SECRET", "0123456789abcdef")];
    assert_eq!(names(good_with(shop, &secret)), ["default", "shop"]);
}

#[test]
fn an_account_with_a_secret_in_the_environment_needs_no_files() {
    let secret = [("RELAY_ACCOUNTS__SHOP__SECRET", "0123456789abcdef")];
    let config = good_with("accounts.shop.path = \"/shop\"", &secret);
    assert_eq!(config.accounts[0].secrets, None);
    assert!(config.accounts[0].environment_secret.is_some());
}

#[test]
fn an_account_is_told_what_it_lacks() {
    bad(
        "[accounts.shop]\ntolerance = \"1m\"",
        &[
            "relay.toml:1: accounts.shop.path: missing: every account but `default` names its own, such as \"/webhooks/shop\"",
            "relay.toml:1: accounts.shop.secrets: missing: name a file or a folder of files, or give the secret as \
             RELAY_ACCOUNTS__SHOP__SECRET",
        ],
    );
    bad(
        "[accounts.shop]\npath = \"/x\"\nsecrets = \"a\"\n[accounts.store]\npath = \"/x\"\nsecrets = \"b\"",
        &["relay.toml:5: accounts.store.path: `/x` is the path of account `shop` too; each needs its own"],
    );
    bad(
        "[accounts.default]\n[accounts.shop]\npath = \"/webhooks/sipsim\"\nsecrets = \"a\"",
        &[
            "relay.toml:3: accounts.shop.path: `/webhooks/sipsim` is the path of account `default` too; each needs its own",
        ],
    );
    for name in ["Shop", "my shop", "é", "a23456789012345678901234567890123"] {
        bad(
            &format!("[accounts.\"{name}\"]\npath = \"/x\"\nsecrets = \"a\""),
            &[&format!(
                "relay.toml:1: accounts.{name}: `{name}` cannot be an account's name: 1 to 32 of `a` to `z`, `0` to `9`, `_` and `-`"
            )],
        );
    }
    bad(
        "[accounts.default]\ntolerance = 0",
        &["relay.toml:2: accounts.default.tolerance: `0` is too little: every webhook would be refused; at least 1s"],
    );
    assert_eq!(good("accounts.default.keep_refused = 0").accounts[0].keep_refused, 0);
    bad(
        "accounts.default.journal_max = \"0 B\"",
        &[
            "relay.toml:1: accounts.default.journal_max: `0 B` is too little: a few of SIPSIM's larger events would fill it; at least 1 MiB",
        ],
    );
    assert_eq!(good("accounts.default.journal_max = \"1 GiB\"").accounts[0].journal_max, Some(1 << 30));
}

#[test]
fn a_path_is_what_stands_in_the_request_line() {
    for (path, why) in [
        ("webhooks", "it begins with `/`"),
        ("", "it begins with `/`"),
        ("https://example.com/webhooks", "leave out scheme and host; it begins with `/`"),
        ("/a?b=c", "it ends before `?` and `#`; queries are ignored"),
        ("/a b", "spaces and letters beyond ASCII are percent-encoded in it"),
        ("/é", "spaces and letters beyond ASCII are percent-encoded in it"),
    ] {
        bad(
            &format!("accounts.default.path = \"{path}\""),
            &[&format!("relay.toml:1: accounts.default.path: `{path}` is no path of a URL: {why}")],
        );
    }
    assert_eq!(good("accounts.default.path = \"/\"").accounts[0].path, "/");
}

#[test]
fn events_are_named_from_closed_sets() {
    let config = good("[events]\nextra = [\"fax\", \"a_1\"]\ndiscard = [\"test\", \"fax\", \"unknown\"]");
    assert_eq!(config.events.discard, ["test", "fax", "unknown"]);
    assert_eq!(config.events.extra.len(), 2);
    bad(
        "[events]\nextra = [\n\"sms\",\n\"unknown\",\n\"Fax\",\n\"a\",\n\"a\",\n\"\",\n1]\ndiscard = [\"fax\", \"tag\"]",
        &[
            "relay.toml:3: events.extra: `sms` is known already; leave it out",
            "relay.toml:4: events.extra: `unknown` stands for all that nobody named; leave it out",
            "relay.toml:5: events.extra: `Fax` cannot be an event's name here: 1 to 64 of `a` to `z`, `0` to `9` and `_`",
            "relay.toml:7: events.extra: `a` stands twice",
            "relay.toml:8: events.extra: `` cannot be an event's name here: 1 to 64 of `a` to `z`, `0` to `9` and `_`",
            "relay.toml:9: events.extra: a list of texts: each must be in quotes",
            "relay.toml:10: events.discard: `fax` is none of SIPSIM's fifteen events, nor in events.extra, nor `unknown`",
            "relay.toml:10: events.discard: `tag` is none of SIPSIM's fifteen events, nor in events.extra, nor `unknown`; did \
             you mean `tags`?",
        ],
    );
    bad(
        "events.discard = \"sms\"",
        &["relay.toml:1: events.discard: must be a list; put it in brackets, as in [\"a\"]"],
    );
    bad("events.discard = 5", &["relay.toml:1: events.discard: must be a list of texts, such as [\"a\", \"b\"]"]);
    let many: Vec<String> = (0..257).map(|number| format!("\"e{number}\"")).collect();
    bad(
        &format!("events.extra = [{}]", many.join(", ")),
        &["relay.toml:1: events.extra: names 257 events; at most 256 are possible"],
    );
}

#[test]
fn the_source_is_a_uri_reference_with_one_placeholder() {
    for source in
        ["/sipsim/{account}", "https://example.com/{account}?a=b#c", "urn:sipsim:{account}", "{account}", "%20"]
    {
        assert_eq!(good(&format!("envelope.source = \"{source}\"")).envelope.source, source);
    }
    for (source, message) in [
        ("", "`` is no URI-reference: it is empty"),
        ("/a b", "`/a b` is no URI-reference: it may not hold ` `"),
        ("/%4g", "`/%4g` is no URI-reference: `%` must be followed by two hexadecimal digits"),
        ("1a:b", "`1a:b` is no URI-reference: what stands before its first `:` is no scheme"),
        ("#a#b", "`#a#b` is no URI-reference: it may hold one `#`"),
        ("/{event}", "`{event}` is no placeholder here; the only one is `{account}`"),
        ("/{acount}", "`{acount}` is no placeholder here; the only one is `{account}`; did you mean `account`?"),
        ("/{account", "`/{account` has a brace without its other half"),
        ("/account}", "`/account}` has a brace without its other half"),
    ] {
        bad(&format!("envelope.source = \"{source}\""), &[&format!("relay.toml:1: envelope.source: {message}")]);
    }
}

#[test]
fn the_rest_has_its_bounds_too() {
    for (line, message) in [
        (
            "journal.size_max = \"1 MB\"",
            "journal.size_max: `1 MB` is too little: the journal's own tables and write-ahead log take some of it; at least 1 MiB",
        ),
        ("journal.path = \"\"", "journal.path: is empty; name a path"),
        ("journal = \"data\"", "journal: is a section; write [journal] and its keys below"),
        (
            "admin.listen = \"127.0.0.1:8080\"",
            "admin.listen: 127.0.0.1:8080 is the port of ingress.listen too; the public port shows nothing of the relay",
        ),
        (
            "ingress.listen = \"127.0.0.1:8081\"", // Where the file has but one of them, that one is named.
            "ingress.listen: 127.0.0.1:8081 is the port of admin.listen too; the public port shows nothing of the relay",
        ),
        (
            "ingress.listen = \"[::]:8081\"",
            "ingress.listen: [::]:8081 is the port of admin.listen too; the public port shows nothing of the relay",
        ),
        (
            "admin.hosts = [\"relay.example\", \"http://relay:8081/\"]",
            "admin.hosts: `http://relay:8081/` is no host name; leave out scheme, port and path",
        ),
        (
            "shutdown.drain = \"2h\"",
            "shutdown.drain: `2h` is too much: whoever stops the relay does not wait that long; at most 1h",
        ),
        (
            "log.level = \"INFO\"",
            "log.level: `INFO` is none of `error`, `warn`, `info`, `debug`, `trace`; did you mean `info`?",
        ),
        ("log.format = true", "log.format: must be a text, not true or false"),
        ("log.format = { a = 1 }", "log.format: must be a value, not a section"),
    ] {
        bad(line, &[&format!("relay.toml:1: {message}")]);
    }
    good("shutdown.drain = \"1h\"");
    good("ingress.listen = \"0.0.0.0:9\"\nadmin.listen = \"[::1]:9\"");
    good("ingress.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:0\"");
    let config = good("journal = { retention = 0, trail = \"0s\", free_min = 0, size_max = \"1 MiB\" }");
    assert!(config.journal.retention.is_zero() && config.journal.free_min == 0);
    bad_with(
        "ingress.listen = \"127.0.0.1:9\"",
        &[("RELAY_ADMIN__LISTEN", "127.0.0.1:9")],
        &[
            "RELAY_ADMIN__LISTEN: admin.listen: 127.0.0.1:9 is the port of ingress.listen too; the public port shows nothing of the relay",
        ],
    );
}

#[test]
fn what_is_no_toml_is_named_by_line_and_column() {
    bad("[log\n", &["relay.toml:1:5: not TOML: unclosed table, expected `]`"]);
    bad("a = \"b", &["relay.toml:1:7: not TOML: invalid basic string, expected `\"`"]);
    bad("[log]\nlevel = \"info\"\nlevel = \"warn\"", &["relay.toml:3:1: not TOML: duplicate key"]);
}
