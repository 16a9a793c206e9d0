//! The variables: their names, and how their texts are read.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::super::load::parse;
use super::super::{Config, Kafka, LogFormat, OutputKind, RabbitMq};
use super::{bad_with, good_with};

fn kafka(config: &Config) -> &Kafka {
    config
        .outputs
        .iter()
        .find_map(|output| if let OutputKind::Kafka(kafka) = &output.kind { Some(kafka) } else { None })
        .unwrap()
}

fn rabbitmq(config: &Config) -> &RabbitMq {
    let found = config.outputs.iter().find_map(|output| match &output.kind {
        OutputKind::RabbitMq(rabbitmq) => Some(rabbitmq),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn it_goes_before_the_file_key_by_key() {
    let text = "[ingress]\nlisten = \"127.0.0.1:1\"\nbody_max = \"1 MiB\"\n[log]\nformat = \"json\"";
    let config = good_with(text, &[("RELAY_INGRESS__LISTEN", "0.0.0.0:8080"), ("RELAY_INSTANCE", "one")]);
    assert_eq!(config.ingress.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.ingress.body_max, 1 << 20);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.instance, "one");
}

#[test]
fn values_are_texts_without_quotes_whatever_they_look_like() {
    let environment = [
        ("RELAY_INSTANCE", "0123"),
        ("RELAY_OUTPUTS__KAFKA__BROKERS", "127.0.0.1:9092"),
        ("RELAY_OUTPUTS__KAFKA__PROPERTIES__LINGER__MS", "5"),
        ("RELAY_OUTPUTS__RABBITMQ__DECLARE", "false"),
        ("RELAY_INGRESS__CONNECTIONS_MAX", "10"),
        ("RELAY_JOURNAL__RETENTION", "0"),
    ];
    let config = good_with("", &environment);
    assert_eq!(config.instance, "0123");
    assert_eq!(kafka(&config).brokers, "127.0.0.1:9092");
    assert_eq!(kafka(&config).properties["linger.ms"], "5");
    assert!(!rabbitmq(&config).declare);
    assert_eq!(config.ingress.connections_max, 10);
    assert!(config.journal.retention.is_zero());
}

#[test]
fn lists_are_written_as_in_the_file_or_between_commas() {
    for (text, expected) in [
        (r#"["sms", "tags"]"#, vec!["sms", "tags"]),
        ("sms,tags", vec!["sms", "tags"]),
        (" sms , tags, ", vec!["sms", "tags"]),
        ("sms", vec!["sms"]),
        ("", vec![]),
        ("[]", vec![]),
    ] {
        assert_eq!(good_with("", &[("RELAY_EVENTS__DISCARD", text)]).events.discard, expected, "{text}");
    }
    bad_with(
        "",
        &[("RELAY_EVENTS__DISCARD", "[sms]"), ("RELAY_EVENTS__EXTRA", "[1]")],
        &[
            "RELAY_EVENTS__DISCARD: events.discard: is no list; write [\"a\", \"b\"], or a,b without brackets",
            "RELAY_EVENTS__EXTRA: events.extra: a list of texts: each must be in quotes",
        ],
    );
}

#[test]
fn secrets_are_taken_as_they_are() {
    for secret in ["0123", "[x", "{a=1}", "\"quoted\"", "true", "a,b", "$(x)", "1e3", "é"] {
        let environment = [
            ("RELAY_ACCOUNTS__DEFAULT__SECRET", secret),
            ("RELAY_OUTPUTS__KAFKA__SECURITY__PROTOCOL", "SASL_SSL"),
            ("RELAY_OUTPUTS__KAFKA__SECURITY__MECHANISM", "PLAIN"),
            ("RELAY_OUTPUTS__KAFKA__SECURITY__USERNAME", "relay"),
            ("RELAY_OUTPUTS__KAFKA__SECURITY__PASSWORD", secret),
            ("RELAY_OUTPUTS__RABBITMQ__USERNAME", "relay"),
            ("RELAY_OUTPUTS__RABBITMQ__PASSWORD", secret),
        ];
        let config = good_with("", &environment);
        let bytes = secret.as_bytes();
        assert_eq!(config.accounts[0].environment_secret.as_ref().unwrap().expose(), bytes);
        assert_eq!(kafka(&config).security.password.environment.as_ref().unwrap().expose(), bytes);
        assert_eq!(rabbitmq(&config).password.environment.as_ref().unwrap().expose(), bytes);
    }
    let token = [
        ("RELAY_OUTPUTS__KAFKA__SECURITY__PROTOCOL", "SASL_SSL"),
        ("RELAY_OUTPUTS__KAFKA__SECURITY__MECHANISM", "OAUTHBEARER"),
        ("RELAY_OUTPUTS__KAFKA__SECURITY__CLIENT_ID", "relay"),
        ("RELAY_OUTPUTS__KAFKA__SECURITY__CLIENT_SECRET", "00"),
        ("RELAY_OUTPUTS__KAFKA__SECURITY__TOKEN_URL", "https://login.example/token"),
    ];
    assert_eq!(kafka(&good_with("", &token)).security.client_secret.environment.as_ref().unwrap().expose(), b"00");
}

#[test]
fn a_secret_need_not_be_utf_8_and_anything_else_must() {
    let variable = |name: &str| (OsString::from(name), OsString::from_vec(vec![0xff, 0x00, b'\n']));
    let config = parse(None, [variable("RELAY_ACCOUNTS__DEFAULT__SECRET")].into_iter()).unwrap().config;
    assert_eq!(config.accounts[0].environment_secret.as_ref().unwrap().expose(), [0xff, 0x00]);
    let problems = parse(None, [variable("RELAY_INSTANCE")].into_iter()).unwrap_err();
    assert_eq!(problems.to_string(), "RELAY_INSTANCE: instance: not UTF-8");
}

#[test]
fn names_are_read_in_either_case_and_give_lower_case() {
    let environment =
        [("relay_accounts__My-Shop__Path", "/shop"), ("Relay_Accounts__MY-SHOP__SECRET", "0123456789abcdef")];
    let config = good_with("", &environment);
    assert_eq!(config.accounts[0].name.as_str(), "my-shop");
    assert_eq!(config.accounts[0].path, "/shop");
    bad_with(
        "",
        &[("RELAY_INSTANCE", "a"), ("relay_instance", "b")],
        &["relay_instance: instance: given twice, the other time as RELAY_INSTANCE; keep one"],
    );
}

#[test]
fn what_kubernetes_makes_for_a_service_called_relay_is_ignored() {
    let environment = [
        ("RELAY_PORT", "tcp://10.0.0.1:8080"),
        ("RELAY_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("RELAY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("RELAY_SERVICE_HOST", "10.0.0.1"),
        ("RELAY_SERVICE_PORT_HTTP", "8080"),
        ("RELAYS", "none of ours"),
        ("PATH", "/bin"),
    ];
    good_with("", &environment);
    bad_with(
        "",
        &[("RELAY_ADMIN_SERVICE_HOST", "10.0.0.1")],
        &["RELAY_ADMIN_SERVICE_HOST: admin_service_host: unknown key; if Kubernetes makes it for a Service, set \
           `enableServiceLinks: false` in the pod"],
    );
}

#[test]
fn problems_name_the_variable() {
    bad_with(
        "[ingress]\nlisten = \"127.0.0.1:1\"",
        &[
            ("RELAY_ACCOUNTS__DEFAULT__SECRET", " \n"),
            ("RELAY_INGRESS__LISTEN", "localhost"),
            ("RELAY_INGRESS__LISEN", "x"),
            ("RELAY_OUTPUTS__KAFKA__SECURITY", "SSL"),
            ("RELAY_SHUTDOWN", "1s"),
            ("RELAY_SHUTDOWN__DELAY", "1s"),
        ],
        &[
            "RELAY_ACCOUNTS__DEFAULT__SECRET: accounts.default.secret: is empty; give the secret, or unset the variable",
            "RELAY_INGRESS__LISEN: ingress.lisen: unknown key; did you mean `listen`?",
            "RELAY_INGRESS__LISTEN: ingress.listen: `localhost` is no address to listen on; write ADDRESS:PORT in numbers, such \
             as \"127.0.0.1:8080\", or \"0.0.0.0:8080\" for all interfaces",
            "RELAY_OUTPUTS__KAFKA__SECURITY: outputs.kafka.security: is a section; give its keys one by one, as in \
             RELAY_OUTPUTS__KAFKA__SECURITY__KEY",
            "RELAY_SHUTDOWN: shutdown: is a section; give its keys one by one, as in RELAY_SHUTDOWN__KEY",
            "RELAY_SHUTDOWN__DELAY: shutdown.delay: another variable gives a value to what this one takes for a section, or the \
             other way round",
        ],
    );
}

#[test]
fn a_secret_for_an_account_that_the_file_spells_otherwise() {
    bad_with(
        "[accounts.my-shop]\npath = \"/shop\"\nsecrets = \"shop\"",
        &[("RELAY_ACCOUNTS__MY_SHOP__SECRET", "0123456789abcdef")],
        &[
            "RELAY_ACCOUNTS__MY_SHOP__SECRET: accounts.my_shop.path: missing: every account but `default` names its own, such as \
           \"/webhooks/my_shop\"; did you mean `my-shop`?",
        ],
    );
}

#[test]
fn the_environment_does_not_excuse_a_secret_in_the_file() {
    bad_with(
        "[accounts.default]\n\nsecret = \"x\"",
        &[("RELAY_ACCOUNTS__DEFAULT__SECRET", "0123456789abcdef")],
        &[
            "relay.toml:3: accounts.default.secret: no secret may stand in the file; use `secrets`, a file or a folder of files, \
           or the variable RELAY_ACCOUNTS__DEFAULT__SECRET",
        ],
    );
}

#[test]
fn without_a_file_nothing_names_one() {
    let variable = (OsString::from("RELAY_LOG__FORMAT"), OsString::from("xml"));
    let problems = parse(None, [variable].into_iter()).unwrap_err();
    assert_eq!(problems.to_string(), "RELAY_LOG__FORMAT: log.format: `xml` is none of `text`, `json`");
    let file = parse(Some((Path::new("x.toml"), "")), std::iter::empty()).unwrap().file;
    assert_eq!(file.as_deref(), Some(Path::new("x.toml")));
}
