//! An output for each way in, and for each way to get it wrong.

use std::net::SocketAddr;

use super::doors::{Doors, Files, PASSWORD};
use Who::{Certified, Client, Nobody, User};

pub const EXPIRED: &str = "its certificate has expired";

/// An output, by name: its configuration, and what its line in the log says if it is not let in.
pub struct Case {
    pub name: &'static str,
    pub config: String,
    pub refusal: Option<&'static str>,
}

/// Whom an output logs in as.
pub enum Who {
    Nobody,
    Certified,
    User(&'static str, &'static str),
    Client(SocketAddr),
}

/// A Kafka output with files of its own. Where it is, by the name `localhost` if that is the wrong one.
fn kafka(files: &Files, name: &'static str, at: String, who: Who, refusal: Option<&'static str>) -> Case {
    let own = |what: &str| files.path(&format!("{name}.{what}")).display().to_string();
    let (protocol, more) = match who {
        Nobody => ("SSL", String::new()),
        Certified => {
            ("SSL", format!("certificate_file = \"{}\"\nprivate_key_file = \"{}\"", own("certificate"), own("key")))
        }
        User(user, mechanism) => (
            "SASL_SSL",
            format!("mechanism = \"{mechanism}\"\nusername = \"{user}\"\npassword_file = \"{}\"", own("password")),
        ),
        Client(tokens) => (
            "SASL_SSL",
            format!(
                "mechanism = \"OAUTHBEARER\"\nclient_id = \"relay\"\nclient_secret_file = \"{}\"\ntoken_url = \"http://{tokens}/token\"",
                own("password")
            ),
        ),
    };
    let config = format!(
        "[outputs.{name}]\ntype = \"kafka\"\nbrokers = \"{at}\"\ntopic = \"{name}\"\n\
         [outputs.{name}.security]\nprotocol = \"{protocol}\"\nca_file = \"{}\"\n{more}\n",
        own("ca")
    );
    Case { name, config, refusal }
}

fn rabbitmq(files: &Files, name: &'static str, at: String, who: Who, refusal: Option<&'static str>) -> Case {
    let own = |what: &str| files.path(&format!("{name}.{what}")).display().to_string();
    let more = match who {
        User(user, _) => format!("username = \"{user}\"\npassword_file = \"{}\"", own("password")),
        _ => format!("certificate_file = \"{}\"\nprivate_key_file = \"{}\"", own("certificate"), own("key")),
    };
    let config = format!(
        "[outputs.{name}]\ntype = \"rabbitmq\"\nurls = [\"amqps://{at}/%2f\"]\nrouting_key = \"{name}\"\nca_file = \"{}\"\n{more}\n",
        own("ca")
    );
    Case { name, config, refusal }
}

/// All of them, with their files: as they should be, but for those that are to be refused.
pub fn cases(files: &Files, doors: &Doors, tokens: SocketAddr, traps: [SocketAddr; 2]) -> Vec<Case> {
    let by_name = |at: SocketAddr| format!("localhost:{}", at.port());
    let (tls, mutual, expired) = (doors.tls.to_string(), doors.mutual.to_string(), doors.expired.to_string());
    let (login, amqps) = (doors.login.to_string(), doors.amqps.to_string());
    let trapped = traps.map(|trap| trap.to_string());
    let (password, untrusted) = ("username` and the password", "an authority that is not trusted here");
    let host = "for another host name";
    let plain = doors.brokers.kafka().to_owned();
    let plain_amqp = doors.brokers.rabbitmq()["amqp://".len()..].trim_end_matches("/%2f").to_owned();
    let cases = vec![
        kafka(files, "k-tls", tls.clone(), Nobody, None),
        kafka(files, "k-mutual", mutual.clone(), Certified, None),
        kafka(files, "k-plain", login.clone(), User("relay", "PLAIN"), None),
        kafka(files, "k-scram-256", login.clone(), User("relay", "SCRAM-SHA-256"), None),
        kafka(files, "k-scram-512", login.clone(), User("rolling", "SCRAM-SHA-512"), None),
        kafka(files, "k-oauth", login.clone(), Client(tokens), None),
        kafka(files, "k-wrong-password", login.clone(), User("relay", "PLAIN"), Some(password)),
        kafka(files, "k-wrong-scram", login.clone(), User("relay", "SCRAM-SHA-512"), Some(password)),
        kafka(files, "k-wrong-secret", login, Client(tokens), Some("invalid_client")),
        kafka(files, "k-unknown-ca", tls, Nobody, Some(untrusted)),
        kafka(files, "k-wrong-host", by_name(doors.tls), Nobody, Some(host)),
        kafka(files, "k-expired", expired, Nobody, Some(EXPIRED)),
        kafka(files, "k-no-certificate", mutual, Nobody, Some("it may want a client certificate")),
        kafka(files, "k-no-tls", plain, User("relay", "PLAIN"), Some("TLS with the broker failed")),
        kafka(files, "k-trap", trapped[0].clone(), User("relay", "PLAIN"), Some("the broker is away")),
        rabbitmq(files, "r-password", amqps.clone(), User("rolling", ""), None),
        rabbitmq(files, "r-certificate", amqps.clone(), Certified, None),
        rabbitmq(files, "r-wrong-password", amqps.clone(), User("relay", ""), Some("username or password is wrong")),
        rabbitmq(files, "r-unknown-ca", amqps.clone(), User("relay", ""), Some(untrusted)),
        // RabbitMQ returns it whole, and lapin logs what is returned; the canaries in it must not get out.
        rabbitmq(files, "r-unbound", amqps, User("relay", ""), Some("no queue is bound for its routing key")),
        rabbitmq(files, "r-wrong-host", by_name(doors.amqps), User("relay", ""), Some(host)),
        rabbitmq(files, "r-no-tls", plain_amqp, User("relay", ""), Some("no TLS is spoken there")),
        rabbitmq(files, "r-trap", trapped[1].clone(), User("relay", ""), Some("the broker is away")),
    ];
    let (certificate, key) = files.certificate("127.0.0.1", "by-certificate", 2099);
    for Case { name, .. } in &cases {
        files.write(&format!("{name}.certificate"), &certificate);
        files.write(&format!("{name}.key"), &key);
        let knows = !name.contains("-wrong-") || name.ends_with("-host");
        files.write(&format!("{name}.password"), if knows { PASSWORD } else { "canary-wrong-password" });
        let strange = name.ends_with("-unknown-ca");
        files.write(&format!("{name}.ca"), &if strange { files.strange_authority() } else { files.authority() });
    }
    cases
}
