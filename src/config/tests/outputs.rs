//! Kafka, RabbitMQ and the console: their keys, what goes with what, and what may not be set.

use super::super::{Config, Kafka, Mode, OutputKind, RabbitMq};
use super::{bad, bad_with, good, good_with};

fn kafka(text: &str) -> Kafka {
    match good(&format!("[outputs.kafka]\n{text}")).outputs.remove(0).kind {
        OutputKind::Kafka(kafka) => kafka,
        other => panic!("{other:?}"),
    }
}

fn rabbitmq(text: &str) -> RabbitMq {
    match good(&format!("[outputs.rabbitmq]\n{text}")).outputs.remove(0).kind {
        OutputKind::RabbitMq(rabbitmq) => rabbitmq,
        other => panic!("{other:?}"),
    }
}

/// One line of an output and what is wrong with it, without place and output.
fn bad_lines(output: &str, cases: &[(&str, &str)]) {
    for (line, message) in cases {
        bad(&format!("[outputs.{output}]\n{line}"), &[&format!("relay.toml:2: outputs.{output}.{message}")]);
    }
}

#[test]
fn the_type_is_the_name_unless_it_says_otherwise() {
    let kinds = |config: Config| {
        let kind = |kind: &OutputKind| match kind {
            OutputKind::Kafka(_) => "kafka",
            OutputKind::RabbitMq(_) => "rabbitmq",
            OutputKind::Console => "console",
        };
        config.outputs.iter().map(|output| format!("{}={}", output.name, kind(&output.kind))).collect::<Vec<_>>()
    };
    assert_eq!(kinds(good("")), ["console=console"]);
    assert_eq!(kinds(good("[outputs]")), ["console=console"]);
    assert_eq!(kinds(good("[outputs.kafka]\n[outputs.rabbitmq]")), ["kafka=kafka", "rabbitmq=rabbitmq"]);
    assert_eq!(kinds(good("[outputs.kafka]\ntype = \"console\"")), ["kafka=console"]);
    assert_eq!(kinds(good("[outputs.a]\ntype = \"kafka\"\n[outputs.b]\ntype = \"kafka\"")), ["a=kafka", "b=kafka"]);
    assert_eq!(kinds(good_with("", &[("RELAY_OUTPUTS__MAIN__TYPE", "rabbitmq")])), ["main=rabbitmq"]);
    bad(
        "[outputs.main]\ntype = \"kafak\"\nbrokers = \"nonsense\"",
        &["relay.toml:2: outputs.main.type: `kafak` is none of `kafka`, `rabbitmq`, `console`; did you mean `kafka`?"],
    );
    bad(
        "[outputs.rabbit]\nurls = []",
        &[
            "relay.toml:1: outputs.rabbit.type: missing: write one of `kafka`, `rabbitmq`, `console`; did you mean `rabbitmq`?",
        ],
    );
    bad(
        "[outputs.Main]\ntype = \"console\"",
        &[
            "relay.toml:1: outputs.Main: `Main` cannot be an output's name: 1 to 32 of `a` to `z`, `0` to `9`, `_` and `-`",
        ],
    );
    bad("outputs = \"kafka\"", &["relay.toml:1: outputs: is a section; write [outputs] and its keys below"]);
}

#[test]
fn a_key_of_another_type_is_told_from_one_that_nobody_has() {
    bad_lines(
        "kafka",
        &[
            ("urls = []", "urls: is a key of outputs of type rabbitmq, and this one's is kafka; here it is `brokers`"),
            (
                "username = \"a\"",
                "username: is a key of outputs of type rabbitmq, and this one's is kafka; here it is `security.username`",
            ),
            ("exchange = \"a\"", "exchange: is a key of outputs of type rabbitmq, and this one's is kafka"),
            ("topik = \"a\"", "topik: unknown key; did you mean `topic`?"),
        ],
    );
    bad_lines(
        "rabbitmq",
        &[
            (
                "topic = \"a\"",
                "topic: is a key of outputs of type kafka, and this one's is rabbitmq; here it is `routing_key`",
            ),
            ("mode = \"binary\"", "mode: is a key of outputs of type kafka, and this one's is rabbitmq"),
            (
                "security.ca_file = \"a\"",
                "security: is a key of outputs of type kafka, and this one's is rabbitmq; here its keys stand beside `urls`",
            ),
        ],
    );
    bad_lines("console", &[("topic = \"a\"", "topic: is a key of outputs of type kafka, and this one's is console")]);
}

#[test]
fn templates_are_tried_with_every_event_and_account() {
    let routes =
        kafka("topic = \"{account}.{group}.{event}\"\ntopics.sms = \"texts\"\ntopics.unknown = \"rest-{group}\"")
            .topics;
    assert_eq!(routes.fill("voicemail", "call", "default"), "default.call.voicemail");
    assert_eq!(routes.fill("sms", "sms", "default"), "texts");
    assert_eq!(routes.fill("unknown", "unknown", "default"), "rest-unknown");
    let long = "a".repeat(240);
    bad_lines(
        "kafka",
        &[
            ("topic = \"\"", "topic: `` is empty"),
            ("topic = \"..\"", "topic: `..` is a name that Kafka refuses"),
            (
                "topic = \"a/{event}\"",
                "topic: `a/{event}` becomes `a/incoming_call_start` and is no topic for Kafka, which takes letters, digits, \
                 `.`, `_` and `-`",
            ),
            (
                "topic = \"{evnt}\"",
                "topic: `{evnt}` is no placeholder here; there are `{event}`, `{group}`, `{account}`; did you mean `event`?",
            ),
            ("topic = \"{event\"", "topic: `{event` has a brace without its other half"),
            (
                "topics.sms = \"a b\"",
                "topics.sms: `a b` is no topic for Kafka, which takes letters, digits, `.`, `_` and `-`",
            ),
            (
                "topics.sns = \"a\"",
                "topics.sns: `sns` is none of SIPSIM's fifteen events, nor in events.extra, nor `unknown`; did you mean `sms`?",
            ),
            ("topics = \"a\"", "topics: is a section; write [outputs.kafka.topics] and its keys below"),
        ],
    );
    let template = format!("{long}{{group}}-{{event}}");
    let becomes = format!("{}…", &long[..60]);
    bad_lines(
        "kafka",
        &[(
            &format!("topic = \"{template}\""),
            &format!("topic: `{becomes}` becomes `{becomes}` and is 264 bytes long; at most 249 are possible"),
        )],
    );
    // 249 bytes with the longest event's name, and one more with one that was added.
    let template = format!("{}{{event}}", "a".repeat(249 - 37));
    assert_eq!(kafka(&format!("topic = \"{template}\"")).topics.template, template);
    let longer = format!("events.extra = [\"{}\"]\noutputs.kafka.topic = \"{template}\"", "x".repeat(38));
    let becomes = format!("{}…", "a".repeat(60));
    bad(
        &longer,
        &[&format!(
            "relay.toml:2: outputs.kafka.topic: `{becomes}` becomes `{becomes}` and is 250 bytes long; at most 249 are possible"
        )],
    );
    // A template for one event is tried with that one alone.
    kafka(&format!("topics.sms = \"{}{{event}}\"", "a".repeat(246)));
    good("events.extra = [\"fax\"]\noutputs.kafka.topics.fax = \"fax\"");
}

#[test]
fn routing_keys_are_texts_of_255_bytes_that_bind_nothing() {
    let routes = rabbitmq("routing_key = \"{account}.é {event}\"\nrouting_keys.test = \"t\"").routing_keys;
    assert_eq!(routes.fill("sms", "sms", "default"), "default.é sms");
    let becomes = format!("{}…", "a".repeat(60));
    bad_lines(
        "rabbitmq",
        &[
            (
                "routing_key = \"sipsim.*\"",
                "routing_key: `sipsim.*` holds `*` or `#`, which stand for other words only where a queue is bound",
            ),
            ("routing_key = \"\"", "routing_key: `` is empty"),
            ("routing_keys.sms = \"a\\nb\"", "routing_keys.sms: `a\\nb` holds control characters"),
            (
                &format!("routing_key = \"{}\"", "a".repeat(256)),
                &format!("routing_key: `{becomes}` is 256 bytes long; at most 255 are possible"),
            ),
        ],
    );
}

#[test]
fn brokers_are_hosts_with_ports() {
    assert_eq!(
        kafka("brokers = \"a:1, b-c.d_e:65535 ,[::1]:9092,127.0.0.1:9\"").brokers,
        "a:1,b-c.d_e:65535,[::1]:9092,127.0.0.1:9"
    );
    let form = "write host:port, as in \"127.0.0.1:9092\"";
    for (broker, why) in [
        ("", form),
        ("a", form),
        ("a:0", form),
        ("a:65536", form),
        ("a:kafka", form),
        ("PLAINTEXT://a:9092", "leave out the protocol, which is `security.protocol`"),
        ("::1:9092", "put the address in brackets, as in \"[::1]:9092\""),
        (":9092", "its host is neither a name nor an address"),
        ("a b:9092", "its host is neither a name nor an address"),
        ("[x]:9092", "its host is neither a name nor an address"),
    ] {
        bad_lines(
            "kafka",
            &[(&format!("brokers = \"{broker}\""), &format!("brokers: `{broker}` is no broker: {why}"))],
        );
    }
    assert_eq!(kafka("mode = \"binary\"").mode, Mode::Binary);
    bad_lines("kafka", &[("mode = \"xml\"", "mode: `xml` is none of `structured`, `binary`")]);
}

#[test]
fn protocol_and_mechanism_fit_what_stands_beside_them() {
    let security = kafka(
        "security = { protocol = \"SASL_SSL\", mechanism = \"SCRAM-SHA-512\", username = \"a\", password_file = \"b\", ca_file = \"c\", \
         certificate_file = \"d\", private_key_file = \"e\" }",
    )
    .security;
    assert_eq!((security.protocol.as_str(), security.mechanism.as_deref()), ("SASL_SSL", Some("SCRAM-SHA-512")));
    kafka("security = { protocol = \"SSL\" }");
    let token = "client_id = \"a\", client_secret_file = \"b\", token_url = \"https://c/d\"";
    kafka(&format!("security = {{ protocol = \"SASL_SSL\", mechanism = \"OAUTHBEARER\", {token}, scope = \"e\" }}"));
    kafka(&format!(
        "security = {{ protocol = \"SASL_PLAINTEXT\", mechanism = \"OAUTHBEARER\", {token}, ca_file = \"x\" }}"
    ));

    for (security, message) in [
        (
            "protocol = \"SASL_SSL\"",
            "mechanism: missing: protocol SASL_SSL needs one of `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`",
        ),
        (
            "protocol = \"sasl_ssl\", mechanism = \"PLAIN\"",
            "protocol: `sasl_ssl` is none of `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT`, `SASL_SSL`; did you mean `SASL_SSL`?",
        ),
        (
            "protocol = \"SASL_SSL\", mechanism = \"GSSAPI\"",
            "mechanism: `GSSAPI` is none of `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`, `OAUTHBEARER`",
        ),
        (
            "protocol = \"SASL_SSL\", mechanism = \"PLAIN\", password_file = \"a\"",
            "username: missing: mechanism PLAIN needs `username`",
        ),
        (
            "protocol = \"SASL_SSL\", mechanism = \"SCRAM-SHA-256\", username = \"a\"",
            "password_file: missing: mechanism SCRAM-SHA-256 needs `password_file` or the variable \
             RELAY_OUTPUTS__KAFKA__SECURITY__PASSWORD",
        ),
        (
            "protocol = \"SASL_SSL\", mechanism = \"OAUTHBEARER\", client_id = \"a\", token_url = \"https://b\"",
            "client_secret_file: missing: mechanism OAUTHBEARER needs `client_secret_file` or the variable \
             RELAY_OUTPUTS__KAFKA__SECURITY__CLIENT_SECRET",
        ),
        (
            "protocol = \"SSL\", mechanism = \"PLAIN\"",
            "mechanism: has no effect: protocol SSL does not log in; write protocol = \"SASL_SSL\"",
        ),
        (
            "username = \"a\"",
            "username: has no effect: protocol PLAINTEXT does not log in; write protocol = \"SASL_SSL\" or \"SASL_PLAINTEXT\"",
        ),
        ("ca_file = \"a\"", "ca_file: has no effect: protocol PLAINTEXT does not encrypt; write protocol = \"SSL\""),
        ("protocol = \"SSL\", certificate_file = \"a\"", "certificate_file: needs `private_key_file` beside it"),
        ("protocol = \"SSL\", private_key_file = \"a\"", "private_key_file: needs `certificate_file` beside it"),
    ] {
        bad_lines("kafka", &[(&format!("security = {{ {security} }}"), &format!("security.{message}"))]);
    }
    for (url, message) in [
        ("login/token", "is no URL; it begins with https:// or http://"),
        ("https://a:b@login/token", "holds a username or password; leave them out, the output's own are used"),
        ("https:///token", "names no host"),
    ] {
        let security = format!(
            "protocol = \"SASL_SSL\", mechanism = \"OAUTHBEARER\", client_id = \"a\", client_secret_file = \"b\", token_url = \"{url}\""
        );
        bad_lines("kafka", &[(&format!("security = {{ {security} }}"), &format!("security.token_url: {message}"))]);
    }
}

#[test]
fn properties_are_taken_dotted_or_nested() {
    let text = r#"properties = { "linger.ms" = 5, compression.codec = "lz4", socket.keepalive.enable = true, "client.rack" = "a" }"#;
    let properties = kafka(text).properties;
    let found: Vec<_> = properties.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(found, ["client.rack=a", "compression.type=lz4", "linger.ms=5", "socket.keepalive.enable=true"]);
    assert_eq!(kafka("properties.linger.ms = 0.5").properties["linger.ms"], "0.5");
    assert!(kafka("properties = {}").properties.is_empty());
}

#[test]
fn properties_that_could_break_the_promise_are_refused_by_name() {
    const PROMISE: &str = "may not be set: ";
    for (name, why) in [
        ("acks", "a confirmed event must be on all in-sync replicas, so it is always `all`"),
        ("enable.idempotence", "order without gaps depends on the idempotent producer, which the relay sets up itself"),
        ("queuing.strategy", "events leave in the order in which they were accepted"),
        ("message.timeout.ms", "an event that is given up leaves a gap in the order; the relay tries without end"),
        ("retries", "an event that is given up leaves a gap in the order; the relay tries without end"),
        ("partitioner", "a key must keep its partition, the same that Java's clients choose (murmur2_random)"),
        ("plugin.library.paths", "it loads foreign code into the relay"),
        ("ssl.engine.location", "it loads foreign code into the relay"),
        (
            "enable.ssl.certificate.verification",
            "anybody could pose as the broker; for a certificate authority of your own use `security.ca_file`",
        ),
        (
            "ssl.endpoint.identification.algorithm",
            "anybody could pose as the broker; for a certificate authority of your own use `security.ca_file`",
        ),
        (
            "debug",
            "librdkafka's messages may hold keys and content, and never reach the log; use `log.level` for the relay's own",
        ),
        (
            "sasl.password",
            "it holds a secret; use `security.password_file`, or the environment's …__SECURITY__PASSWORD",
        ),
        ("ssl.key.pem", "it holds a secret; use `security.private_key_file` with a key that has no password"),
        ("bootstrap.servers", "use `brokers`"),
        ("security.protocol", "use `security.protocol` of the output itself"),
        ("client.id", "use `instance`"),
        ("sasl.kerberos.kinit.cmd", "it runs a command, and Kerberos is not built in"),
        ("sasl.oauthbearer.method", "use `security.mechanism = \"OAUTHBEARER\"` and its keys"),
    ] {
        bad_lines(
            "kafka",
            &[
                (&format!("properties = {{ \"{name}\" = \"x\" }}"), &format!("properties.{name}: {PROMISE}{why}")),
                (&format!("properties.{name} = 1"), &format!("properties.{name}: {PROMISE}{why}")),
            ],
        );
    }
}

#[test]
fn properties_have_their_ranges() {
    bad_lines(
        "kafka",
        &[
            ("properties.linger.ms = 5000", "properties.linger.ms: `5000` is not a number from 0 to 1000"),
            (
                "properties.socket.timeout.ms = \"1s\"",
                "properties.socket.timeout.ms: `1s` is not a whole number from 1000 to 300000",
            ),
            (
                "properties.compression.type = \"gzip\"",
                "properties.compression.type: `gzip` is not one of `none`, `lz4`, `snappy`",
            ),
            ("properties.socket.keepalive.enable = 1", "properties.socket.keepalive.enable: `1` is not true or false"),
            ("properties.client.rack = \"\"", "properties.client.rack: `` is not a text without control characters"),
            ("properties.client.rack = [\"a\"]", "properties.client.rack: must be one value, not a list"),
            ("properties = 5", "properties: is a section; write [outputs.kafka.properties] and its keys below"),
            (
                "properties.linger = 5",
                "properties.linger: is not among the properties of librdkafka that the relay passes on",
            ),
            (
                "properties.lingr.ms = 5",
                "properties.lingr.ms: is not among the properties of librdkafka that the relay passes on; did you mean `linger.ms`?",
            ),
            (
                "properties.group.id = \"a\"",
                "properties.group.id: is not among the properties of librdkafka that the relay passes on",
            ),
        ],
    );
    bad(
        "[outputs.kafka.properties]\n\"linger.ms\" = 1\n\"queue.buffering.max.ms\" = 2",
        &["relay.toml:3: outputs.kafka.properties.queue.buffering.max.ms: `linger.ms` is given twice"],
    );
}

#[test]
fn urls_of_rabbitmq_are_complete_and_without_password() {
    let both = rabbitmq("urls = [\"amqp://a\", \"amqps://b:1/c\"]\nca_file = \"d\"");
    assert_eq!(both.urls, ["amqp://a", "amqps://b:1/c"]);
    assert_eq!(rabbitmq("urls = [\"amqp://xn--bcher-kva.example\"]").urls, ["amqp://xn--bcher-kva.example"]);
    const FORM: &str = "write amqp://host:port/vhost, such as \"amqp://127.0.0.1:5672/%2f\", or amqps:// for TLS";
    const PASSWORD: &str = "holds a password, which lists of processes and logs would show; use `password_file`, or the variable \
                            RELAY_OUTPUTS__RABBITMQ__PASSWORD";
    for (url, message) in [
        ("localhost:5672", format!("is no URL; {FORM}")),
        ("http://a", format!("is no URL of RabbitMQ: it begins with neither amqp:// nor amqps://; {FORM}")),
        ("amqp://a:b@c", PASSWORD.to_owned()),
        ("amqp://a:@c", PASSWORD.to_owned()),
        (
            "amqp://a?heartbeat=5",
            "holds a query; heartbeat and timeouts are set by the relay, so leave out what follows `?`".to_owned(),
        ),
        (
            "amqp://[::1]:5672",
            "names an IPv6 address, which the AMQP client cannot take; name the host instead".to_owned(),
        ),
        ("amqp:///%2f", format!("names no host; {FORM}")),
        (
            "amqp://a/",
            "ends with `/`, which means a virtual host without name; for the default one write `/%2f`".to_owned(),
        ),
        ("amqp://a/b/c", "holds a further `/`; one within a virtual host's name is written `%2f`".to_owned()),
        (
            "amqp://bücher.example:5672",
            "names a host with letters beyond ASCII; write the name's ASCII form, which begins with `xn--`".to_owned(),
        ),
        ("amqp://a:x", format!("is no URL of RabbitMQ (invalid port number); {FORM}")),
    ] {
        bad_lines("rabbitmq", &[(&format!("urls = [\"{url}\"]"), &format!("urls: {message}"))]);
    }
    bad_lines(
        "rabbitmq",
        &[
            ("urls = []", "urls: is empty; name at least one, such as \"amqp://127.0.0.1:5672/%2f\""),
            ("urls = \"amqp://a\"", "urls: must be a list; put it in brackets, as in [\"a\"]"),
        ],
    );
}

#[test]
fn who_logs_in_to_rabbitmq_is_said_once_and_whole() {
    assert_eq!(rabbitmq("username = \"a\"\npassword_file = \"b\"").username.as_deref(), Some("a"));
    assert_eq!(rabbitmq("urls = [\"amqp://a%40b@c\"]\npassword_file = \"b\"").username.as_deref(), Some("a@b"));
    let external = "urls = [\"amqps://a\"]\ncertificate_file = \"b\"\nprivate_key_file = \"c\"";
    assert_eq!(rabbitmq(external).username, None);
    bad_lines(
        "rabbitmq",
        &[
            ("ca_file = \"a\"", "ca_file: has no effect: no URL begins with `amqps://`"),
            ("exchange = \"\"", "exchange: is empty"),
            ("declare = \"true\"", "declare: must be true or false, without quotes"),
            ("management_url = \"localhost:15672\"", "management_url: is no URL; it begins with https:// or http://"),
        ],
    );
    bad(
        "[outputs.rabbitmq]\nusername = \"a\"",
        &["relay.toml:1: outputs.rabbitmq.password_file: missing: a username needs `password_file`, or the variable \
           RELAY_OUTPUTS__RABBITMQ__PASSWORD"],
    );
    bad(
        "[outputs.rabbitmq]\npassword_file = \"a\"",
        &["relay.toml:1: outputs.rabbitmq.username: missing: a password needs the name that it belongs to"],
    );
    bad(
        "[outputs.rabbitmq]\nurls = [\"amqp://a@b\"]\nusername = \"a\"\npassword_file = \"c\"",
        &["relay.toml:3: outputs.rabbitmq.username: stands in a URL too; keep one"],
    );
    bad_with(
        "[outputs.rabbitmq]\nusername = \"a\"\npassword_file = \"c\"",
        &[("RELAY_OUTPUTS__RABBITMQ__PASSWORD", "x")],
        &["relay.toml:3: outputs.rabbitmq.password_file: and `password` from the environment are both given; keep one"],
    );
}

#[test]
fn the_largest_record_is_given_with_a_unit_and_is_none_by_default() {
    assert_eq!(kafka("").record_max, None);
    assert_eq!(kafka("record_max = \"1 MB\"").record_max, Some(1_000_000));
    bad_lines(
        "kafka",
        &[
            (
                "record_max = \"1 kB\"",
                "record_max: `1 kB` is too small: at least 4 KiB, since an envelope alone has over 1 KiB",
            ),
            ("record_max = 1000000", "record_max: must be a text; put it in quotes"),
        ],
    );
    bad(
        "[outputs.rabbitmq]\nrecord_max = \"1 MB\"",
        &["relay.toml:2: outputs.rabbitmq.record_max: is a key of outputs of type kafka, and this one's is rabbitmq"],
    );
}
