//! The outputs: Kafka, RabbitMQ, console. Keys of another type's are told apart from keys that nobody has.

use std::path::PathBuf;

use super::reader::{Parsed, Section};
use super::sections::{no_name, together};
use super::suggest::did_you_mean;
use super::values::{alternatives, path, plain, shown, size, word};
use super::{Account, Events, Kafka, KafkaSecurity, Mode, Name, Output, OutputKind, RabbitMq, properties, routes, url};
use crate::secret::PasswordSource;

/// The types, each with the keys that it has and some other has not.
const TYPES: [(&str, &[&str]); 3] = [
    ("kafka", &["topic", "topics", "mode", "brokers", "security", "record_max", "properties"]),
    (
        "rabbitmq",
        &[
            "urls",
            "username",
            "password",
            "password_file",
            "ca_file",
            "certificate_file",
            "private_key_file",
            "exchange",
            "routing_key",
            "routing_keys",
            "declare",
            "management_url",
        ],
    ),
    ("console", &[]),
];

pub(super) fn outputs(section: &Section<'_>, instance: &str, events: &Events, accounts: &[Account]) -> Vec<Output> {
    let mut names = section.keys().peekable();
    if names.peek().is_none() && section.sound_here() {
        return Name::new("console").map(|name| Output { name, kind: OutputKind::Console }).into_iter().collect();
    }
    names.filter_map(|name| output(section, name, instance, events, accounts)).collect()
}

fn output(outputs: &Section<'_>, name: &str, instance: &str, events: &Events, accounts: &[Account]) -> Option<Output> {
    let section = outputs.section(name);
    let output_name = Name::new(name);
    if output_name.is_none() {
        outputs.problem(name, no_name("an output's", name));
    }
    let types = || TYPES.iter().map(|(name, _)| *name);
    let given = section.optional("type", |text| match types().find(|known| *known == text) {
        Some(known) => Ok(known),
        None => Err(format!("{} is none of {}{}", shown(text), alternatives(types()), did_you_mean(text, types()))),
    });
    let kind = match given.or_else(|| types().find(|known| *known == name)) {
        Some(kind) => kind,
        None => {
            if !section.is_given("type") && output_name.is_some() {
                let hint = did_you_mean(name, types());
                section.problem("type", format!("missing: write one of {}{hint}", alternatives(types())));
            }
            // Whatever its keys are, they cannot be judged.
            outputs.pass_over(name);
            return None;
        }
    };
    if types().any(|known| known == name) {
        section.read("type", name, |text| Ok::<_, String>(text.to_owned()));
    }
    refuse_foreign(&section, kind);
    let kind = match kind {
        "kafka" => OutputKind::Kafka(kafka(&section, instance, events, accounts)),
        "rabbitmq" => OutputKind::RabbitMq(rabbitmq(&section, instance, events, accounts)),
        _ => OutputKind::Console,
    };
    Some(Output { name: output_name?, kind })
}

/// Keys that would be right if the type were another.
fn refuse_foreign(section: &Section<'_>, kind: &str) {
    let own = TYPES.iter().find(|(name, _)| *name == kind).map(|(_, keys)| *keys).unwrap_or_default();
    for key in section.keys() {
        let Some((owner, _)) = TYPES.iter().find(|(_, keys)| keys.contains(&key)) else { continue };
        if own.contains(&key) {
            continue;
        }
        section.pass_over(key);
        let here = match (kind, key) {
            ("kafka", "urls") => "; here it is `brokers`".to_owned(),
            ("kafka", "routing_key") => "; here it is `topic`".to_owned(),
            ("kafka", "routing_keys") => "; here it is `topics`".to_owned(),
            ("kafka", "password") => "; here it is `security.password_file`, or …__SECURITY__PASSWORD".to_owned(),
            ("kafka", "username" | "password_file" | "ca_file" | "certificate_file" | "private_key_file") => {
                format!("; here it is `security.{key}`")
            }
            ("rabbitmq", "brokers") => "; here it is `urls`".to_owned(),
            ("rabbitmq", "topic") => "; here it is `routing_key`".to_owned(),
            ("rabbitmq", "topics") => "; here it is `routing_keys`".to_owned(),
            ("rabbitmq", "security") => "; here its keys stand beside `urls`".to_owned(),
            _ => String::new(),
        };
        section.problem(key, format!("is a key of outputs of type {owner}, and this one's is {kind}{here}"));
    }
}

fn kafka(section: &Section<'_>, instance: &str, events: &Events, accounts: &[Account]) -> Kafka {
    Kafka {
        instance: instance.to_owned(),
        topics: routes::read(section, &routes::TOPICS, events, accounts),
        mode: section.read("mode", "structured", word(&[("structured", Mode::Structured), ("binary", Mode::Binary)])),
        brokers: section.read("brokers", "127.0.0.1:9092", brokers),
        security: security(&section.section("security")),
        record_max: section.optional("record_max", record_max),
        properties: properties::read(section),
    }
}

/// An envelope has some 1 KiB beside its data; less would leave no record that can be sent.
fn record_max(text: &str) -> Parsed<usize> {
    match usize::try_from(size(text)?) {
        Ok(bytes) if bytes >= 4096 => Ok(bytes),
        _ => Err(format!("{} is too small: at least 4 KiB, since an envelope alone has over 1 KiB", shown(text))),
    }
}

fn brokers(text: &str) -> Parsed<String> {
    let one = |broker: &str| -> Parsed<String> {
        let broker = broker.trim();
        let wrong = |why: &str| Err(format!("{} is no broker: {why}", shown(broker)));
        if broker.contains('@') {
            return Err("holds an `@`; username and password have keys of their own in `security`".to_owned());
        }
        if broker.contains("://") {
            return wrong("leave out the protocol, which is `security.protocol`");
        }
        let Some((host, port)) = broker.rsplit_once(':') else {
            return wrong(r#"write host:port, as in "127.0.0.1:9092""#);
        };
        if !matches!(port.parse::<u16>(), Ok(1..)) {
            return wrong(r#"write host:port, as in "127.0.0.1:9092""#);
        }
        let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        match inside {
            Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => Ok(broker.to_owned()),
            None if !host.is_empty() && host.bytes().all(named) => Ok(broker.to_owned()),
            None if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                wrong(r#"put the address in brackets, as in "[::1]:9092""#)
            }
            _ => wrong("its host is neither a name nor an address"),
        }
    };
    let brokers: Result<Vec<String>, String> = text.split(',').map(one).collect();
    Ok(brokers?.join(","))
}

fn security(section: &Section<'_>) -> KafkaSecurity {
    const PROTOCOLS: &[(&str, &str)] =
        &[("PLAINTEXT", "PLAINTEXT"), ("SSL", "SSL"), ("SASL_PLAINTEXT", "SASL_PLAINTEXT"), ("SASL_SSL", "SASL_SSL")];
    const MECHANISMS: &[(&str, &str)] = &[
        ("PLAIN", "PLAIN"),
        ("SCRAM-SHA-256", "SCRAM-SHA-256"),
        ("SCRAM-SHA-512", "SCRAM-SHA-512"),
        ("OAUTHBEARER", "OAUTHBEARER"),
    ];
    let protocol = section.read("protocol", "PLAINTEXT", word(PROTOCOLS));
    let mechanism = section.optional("mechanism", word(MECHANISMS));
    let security = KafkaSecurity {
        protocol: protocol.to_owned(),
        mechanism: mechanism.map(str::to_owned),
        username: section.optional("username", plain(1024)),
        password: password(section, "password", "password_file"),
        ca_file: section.optional("ca_file", path),
        certificate_file: section.optional("certificate_file", path),
        private_key_file: section.optional("private_key_file", path),
        client_id: section.optional("client_id", plain(1024)),
        client_secret: password(section, "client_secret", "client_secret_file"),
        token_url: section.optional("token_url", url::http),
        scope: section.optional("scope", plain(1024)),
    };
    if section.sound(&["protocol", "mechanism"]) {
        check_combination(section, protocol, mechanism);
    }
    together(section, &["certificate_file", "private_key_file"]);
    security
}

/// `KEY` from the environment, or `KEY_file`.
fn password(section: &Section<'_>, key: &str, file_key: &str) -> PasswordSource {
    let file: Option<PathBuf> = section.optional(file_key, path);
    let environment = section.secret(key, &format!("`{file_key}`"));
    if file.is_some() && environment.is_some() {
        section.problem(file_key, format!("and `{key}` from the environment are both given; keep one"));
    }
    PasswordSource { file, environment }
}

const PASSWORD_KEYS: [&str; 3] = ["username", "password_file", "password"];
const TOKEN_KEYS: [&str; 5] = ["client_id", "client_secret_file", "client_secret", "token_url", "scope"];
const TLS_KEYS: [&str; 3] = ["ca_file", "certificate_file", "private_key_file"];

/// What a protocol and a mechanism need, and what does nothing with them: a key without effect is most often a forgotten protocol, and the
/// password then travels in the clear, or the broker is not verified.
fn check_combination(section: &Section<'_>, protocol: &str, mechanism: Option<&str>) {
    let sasl = protocol.starts_with("SASL");
    let require = |keys: &[&str], whom: &str| {
        if !keys.iter().any(|key| section.is_given(key)) {
            let alternatives = keys.iter().map(|key| match *key {
                "password" | "client_secret" => {
                    let path = section.path.join("__").to_uppercase();
                    format!("the variable RELAY_{path}__{}", key.to_uppercase())
                }
                key => format!("`{key}`"),
            });
            section
                .problem(keys[0], format!("missing: {whom} needs {}", alternatives.collect::<Vec<_>>().join(" or ")));
        }
    };
    let useless = |keys: &[&str], why: &str| {
        for key in keys.iter().filter(|key| section.is_given(key)) {
            section.problem(key, format!("has no effect: {why}"));
        }
    };
    match (sasl, mechanism) {
        (true, None) => {
            let all = "`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`";
            section.problem("mechanism", format!("missing: protocol {protocol} needs one of {all}"));
        }
        (true, Some("OAUTHBEARER")) => {
            for keys in [&["client_id"][..], &["client_secret_file", "client_secret"], &["token_url"]] {
                require(keys, "mechanism OAUTHBEARER");
            }
            useless(&PASSWORD_KEYS, "mechanism OAUTHBEARER has `client_id` and `client_secret_file` instead");
        }
        (true, Some(mechanism)) => {
            for keys in [&["username"][..], &["password_file", "password"]] {
                require(keys, &format!("mechanism {mechanism}"));
            }
            useless(&TOKEN_KEYS, &format!("it is for mechanism OAUTHBEARER, and this is {mechanism}"));
        }
        (false, _) => {
            let secure = if protocol == "SSL" { r#""SASL_SSL""# } else { r#""SASL_SSL" or "SASL_PLAINTEXT""# };
            let why = format!("protocol {protocol} does not log in; write protocol = {secure}");
            useless(&["mechanism"], &why);
            useless(&PASSWORD_KEYS, &why);
            useless(&TOKEN_KEYS, &why);
        }
    }
    // The token's endpoint is asked over HTTPS, whatever the brokers speak.
    let token = mechanism == Some("OAUTHBEARER");
    if !protocol.ends_with("SSL") {
        let secure = if sasl { "SASL_SSL" } else { "SSL" };
        let why = format!("protocol {protocol} does not encrypt; write protocol = \"{secure}\"");
        useless(if token { &TLS_KEYS[1..] } else { &TLS_KEYS }, &why);
    }
}

fn rabbitmq(section: &Section<'_>, instance: &str, events: &Events, accounts: &[Account]) -> RabbitMq {
    let mut urls = Vec::new();
    for (index, text) in section.list("urls", &["amqp://127.0.0.1:5672/%2f"]).into_iter().enumerate() {
        let path = section.path.join("__").to_uppercase();
        match url::amqp(&text, &format!("`password_file`, or the variable RELAY_{path}__PASSWORD")) {
            Ok(url) => urls.push((text, url)),
            Err(message) => section.problem_in_list("urls", index, message),
        }
    }
    if urls.is_empty() && section.sound(&["urls"]) {
        section.problem("urls", r#"is empty; name at least one, such as "amqp://127.0.0.1:5672/%2f""#);
    }
    let tls = urls.iter().any(|(_, url)| url.tls);
    let url_username = urls.iter().find_map(|(_, url)| url.username.clone());
    let username = section.optional("username", plain(255));
    let password = password(section, "password", "password_file");
    if section.is_given("username") && url_username.is_some() {
        section.problem("username", "stands in a URL too; keep one");
    }
    let named = section.is_given("username") || url_username.is_some();
    if named && !password.is_given() && section.sound(&["password", "password_file", "urls"]) {
        let variable = format!("RELAY_{}__PASSWORD", section.path.join("__").to_uppercase());
        section
            .problem("password_file", format!("missing: a username needs `password_file`, or the variable {variable}"));
    }
    if password.is_given() && !named && section.sound(&["username", "urls"]) {
        section.problem("username", "missing: a password needs the name that it belongs to");
    }
    let rabbitmq = RabbitMq {
        instance: instance.to_owned(),
        username: username.or(url_username),
        password,
        ca_file: section.optional("ca_file", path),
        certificate_file: section.optional("certificate_file", path),
        private_key_file: section.optional("private_key_file", path),
        exchange: section.read("exchange", "sipsim", plain(255)),
        routing_keys: routes::read(section, &routes::ROUTING_KEYS, events, accounts),
        declare: section.flag("declare", true),
        management_url: section.optional("management_url", url::http),
        urls: urls.into_iter().map(|(text, _)| text).collect(),
    };
    together(section, &["certificate_file", "private_key_file"]);
    if !tls && section.sound(&["urls"]) {
        for key in TLS_KEYS.iter().filter(|key| section.is_given(key)) {
            section.problem(key, "has no effect: no URL begins with `amqps://`");
        }
    }
    rabbitmq
}
