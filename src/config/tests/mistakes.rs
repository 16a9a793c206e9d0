//! What somebody who sees the relay for the first time gets wrong, and what is said to it.

use super::{bad, bad_with, load};

#[test]
fn a_secret_in_the_file() {
    bad(
        "[accounts.default]\nsecret = \"hunter2hunter2hunter2\"",
        &[
            "relay.toml:2: accounts.default.secret: no secret may stand in the file; use `secrets`, a file or a folder of \
           files, or the variable RELAY_ACCOUNTS__DEFAULT__SECRET",
        ],
    );
}

#[test]
fn a_secret_as_a_section_of_the_file() {
    bad(
        "[accounts.default.secret]\nold = \"hunter2hunter2hunter2\"",
        &[
            "relay.toml:1: accounts.default.secret: no secret may stand in the file; use `secrets`, a file or a folder of \
           files, or the variable RELAY_ACCOUNTS__DEFAULT__SECRET",
        ],
    );
}

#[test]
fn a_key_misspelt() {
    bad(
        "[ingress]\nlisten = \"0.0.0.0:80\"\nlisen = \"0.0.0.0:81\"",
        &["relay.toml:3: ingress.lisen: unknown key; did you mean `listen`?"],
    );
}

#[test]
fn a_section_misspelt() {
    bad("[account.shop]\npath = \"/x\"", &["relay.toml:1: account: unknown key; did you mean `accounts`?"]);
}

#[test]
fn the_words_of_a_key_in_another_order_or_with_hyphens() {
    bad(
        "[ingress]\nmax_body = \"1 MiB\"\nidle-timeout = \"1s\"",
        &[
            "relay.toml:2: ingress.max_body: unknown key; did you mean `body_max`?",
            "relay.toml:3: ingress.idle-timeout: unknown key; did you mean `idle_timeout`?",
        ],
    );
}

#[test]
fn a_value_without_quotes() {
    bad(
        "[ingress]\nlisten = 127.0.0.1:8080\ndeadline = 1s",
        &[
            "relay.toml:2:15: not TOML: this value is neither a number, nor true or false, nor a text in quotes",
            "relay.toml:3:12: not TOML: this value is neither a number, nor true or false, nor a text in quotes",
        ],
    );
}

#[test]
fn a_number_without_unit() {
    bad(
        "[ingress]\nbody_max = 8388608\ndeadline = 2",
        &[
            "relay.toml:2: ingress.body_max: `8388608` has no unit; write a number with its unit (B, KiB, MiB, GiB, TiB, or \
             kB, MB, GB, TB), such as \"16 KiB\", \"8 MiB\" or \"8 GiB\"",
            "relay.toml:3: ingress.deadline: `2` has no unit; write a number with its unit (ms, s, m, h or d), such as \
             \"1.8s\", \"500ms\", \"5m\", \"24h\" or \"30d\"",
        ],
    );
}

#[test]
fn a_port_alone() {
    for port in ["8080", ":8080"] {
        bad(
            &format!("ingress.listen = \"{port}\""),
            &[&format!("relay.toml:1: ingress.listen: `{port}` has no address; did you mean \"0.0.0.0:8080\"?")],
        );
    }
}

#[test]
fn a_broker_as_a_section_of_its_own() {
    bad("[kafka]\nbrokers = \"kafka:9092\"", &["relay.toml:1: kafka: unknown key; did you mean `outputs.kafka`?"]);
}

#[test]
fn an_output_with_a_name_of_its_own_and_no_type() {
    bad(
        "[outputs.main]\nbrokers = \"kafka:9092\"",
        &["relay.toml:1: outputs.main.type: missing: write one of `kafka`, `rabbitmq`, `console`"],
    );
}

#[test]
fn brokers_as_a_list_or_without_port() {
    bad(
        "[outputs.kafka]\nbrokers = [\"a:9092\", \"b:9092\"]",
        &["relay.toml:2: outputs.kafka.brokers: must be one text, not a list"],
    );
    bad(
        "[outputs.kafka]\nbrokers = \"a:9092,kafka\"",
        &["relay.toml:2: outputs.kafka.brokers: `kafka` is no broker: write host:port, as in \"127.0.0.1:9092\""],
    );
}

#[test]
fn a_password_in_a_url() {
    let text = "[outputs.rabbitmq]\nurls = [\n  \"amqp://one/%2f\",\n  \"amqp://relay:hunter2@two/%2f\",\n]";
    bad(
        text,
        &["relay.toml:4: outputs.rabbitmq.urls: holds a password, which lists of processes and logs would show; use \
           `password_file`, or the variable RELAY_OUTPUTS__RABBITMQ__PASSWORD"],
    );
}

#[test]
fn a_key_of_the_top_below_a_section() {
    bad(
        "[log]\nlevel = \"info\"\ninstance = \"a\"",
        &[
            "relay.toml:3: log.instance: unknown key; `instance` stands at the top of the file, before the first [section]",
        ],
    );
}

#[test]
fn a_key_in_the_wrong_section() {
    bad("[admin]\ndeadline = \"1s\"", &["relay.toml:2: admin.deadline: unknown key; did you mean `ingress.deadline`?"]);
}

#[test]
fn one_underscore_in_a_variable() {
    bad_with(
        "",
        &[("RELAY_INGRESS_LISTEN", "0.0.0.0:8080")],
        &[
            "RELAY_INGRESS_LISTEN: ingress_listen: unknown key; did you mean RELAY_INGRESS__LISTEN? Two underscores stand \
           between levels",
        ],
    );
}

#[test]
fn everything_at_once_by_line_and_then_by_variable() {
    let text = r#"
instance = 5
[ingress]
lisen = "x"
tls = "yes"
deadline = "fast"
[accounts.shop]
[outputs.kafka]
topic = "sms message"
colour = oops
"#;
    let environment = [("RELAY_LOG__LEVEL", "loud"), ("RELAY_INGRESS__BODY_MAX", "1")];
    bad_with(
        text,
        &environment,
        &[
            "relay.toml:2: instance: must be a text; put it in quotes",
            "relay.toml:4: ingress.lisen: unknown key; did you mean `listen`?",
            "relay.toml:5: ingress.tls: is a section; write [ingress.tls] and its keys below",
            "relay.toml:6: ingress.deadline: `fast` is no duration; write a number with its unit (ms, s, m, h or d), such as \
             \"1.8s\", \"500ms\", \"5m\", \"24h\" or \"30d\"",
            "relay.toml:7: accounts.shop.path: missing: every account but `default` names its own, such as \"/webhooks/shop\"",
            "relay.toml:7: accounts.shop.secrets: missing: name a file or a folder of files, or give the secret as \
             RELAY_ACCOUNTS__SHOP__SECRET",
            "relay.toml:9: outputs.kafka.topic: `sms message` is no topic for Kafka, which takes letters, digits, `.`, `_` and `-`",
            "relay.toml:10:10: not TOML: this value is neither a number, nor true or false, nor a text in quotes",
            "RELAY_INGRESS__BODY_MAX: ingress.body_max: `1` has no unit; write a number with its unit (B, KiB, MiB, GiB, TiB, \
             or kB, MB, GB, TB), such as \"16 KiB\", \"8 MiB\" or \"8 GiB\"",
            "RELAY_LOG__LEVEL: log.level: `loud` is none of `error`, `warn`, `info`, `debug`, `trace`",
        ],
    );
}

#[test]
fn no_message_repeats_a_secret() {
    let text = r#"
secret = "hunter2"
[accounts.default]
secret = "hunter2"
token = "hunter2"
[outputs.kafka]
password = "hunter2"
[outputs.kafka.security]
password = "hunter2"
client_secret = "hunter2"
[outputs.kafka.properties]
"sasl.password" = "hunter2"
[outputs.rabbitmq]
password = "hunter2"
management_url = "http://admin:hunter2@localhost"
urls = ["amqp://relay:hunter2@localhost/%2f", "amqps://hunter2", "hunter2", "amqp://relay:hunter2@"]
[outputs.second]
type = "rabbitmq"
urls = "amqp://relay:hunter2@localhost"
[outputs.third]
type = "kafka"
brokers = "relay:hunter2@localhost:9092"
"#;
    let problems = load(text, &[("RELAY_ACCOUNTS__HUNTER__SECRET", "hunter2")]).unwrap_err();
    assert!(problems.0.len() >= 10, "{problems}");
    assert!(!problems.to_string().contains("hunter2"), "{problems}");
}
