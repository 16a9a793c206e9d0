//! What works, but hardly as somebody wants it. Nothing here stops the relay.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::problem::Warning;
use super::secrets;
use super::values::MIB;
use super::{Config, Kafka, OutputKind, RabbitMq};
use crate::secret::{PasswordSource, Secret};

/// From when on SIPSIM takes a delivery as failed.
const SENDER_TIMEOUT: Duration = Duration::from_secs(2);

struct Warnings(Vec<Warning>);

impl Warnings {
    fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Warning { key: key.into(), message: message.into() });
    }
}

/// What the values alone give reason for.
pub(super) fn of_values(config: &Config) -> Vec<Warning> {
    let mut found = Warnings(Vec::new());
    let Config { ingress, journal, .. } = config;
    if ingress.deadline >= SENDER_TIMEOUT {
        found.add("ingress.deadline", "SIPSIM gives up after 2 s: an answer at or past that comes too late");
    }
    if ingress.body_max as u64 > journal.size_max / 2 {
        found.add(
            "ingress.body_max",
            "a body of this size may never fit in journal.size_max: the answer would be 503 for ever",
        );
    }
    if journal.free_min < MIB {
        found.add("journal.free_min", "on a disk this full there may be no room to note what was published");
    }
    for account in &config.accounts {
        if account.journal_max.is_some_and(|most| most <= ingress.body_max as u64) {
            found.add(
                format!("accounts.{}.journal_max", account.name),
                "one body of ingress.body_max takes more: it is kept only while nothing else of this account is undelivered, else answered 503",
            );
        }
    }
    for output in &config.outputs {
        let key = format!("outputs.{}", output.name);
        match &output.kind {
            OutputKind::Kafka(kafka) => unencrypted_kafka(&key, kafka, &mut found),
            OutputKind::RabbitMq(rabbitmq) => unencrypted_rabbitmq(&key, rabbitmq, &mut found),
            OutputKind::Console => {}
        }
    }
    found.0
}

fn unencrypted_kafka(key: &str, kafka: &Kafka, found: &mut Warnings) {
    let away = kafka.brokers.split(',').any(|broker| !is_loopback(broker));
    // SCRAM proves the password without sending it.
    let sent = matches!(kafka.security.mechanism.as_deref(), Some("PLAIN" | "OAUTHBEARER"));
    if kafka.security.protocol == "SASL_PLAINTEXT" && sent && away {
        found.add(
            format!("{key}.security.protocol"),
            "the password or token crosses the network unencrypted; SASL_SSL encrypts it",
        );
    }
    if kafka.security.token_url.as_deref().is_some_and(|url| {
        url.strip_prefix("http://").is_some_and(|rest| !is_loopback(rest.split('/').next().unwrap_or("")))
    }) {
        found.add(
            format!("{key}.security.token_url"),
            "the client secret crosses the network unencrypted; https:// encrypts it",
        );
    }
}

fn unencrypted_rabbitmq(key: &str, rabbitmq: &RabbitMq, found: &mut Warnings) {
    let open = |url: &String| {
        url.strip_prefix("amqp://").is_some_and(|rest| {
            let authority = rest.split('/').next().unwrap_or("");
            !is_loopback(authority.rsplit('@').next().unwrap_or(""))
        })
    };
    if rabbitmq.password.is_given() && rabbitmq.urls.iter().any(open) {
        found.add(format!("{key}.urls"), "the password crosses the network unencrypted; amqps:// encrypts it");
    }
}

/// Whether `host:port` is this machine, as far as the text says.
fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host == "localhost" || host == "[::1]" || host.starts_with("127.")
}

/// What this machine gives reason for, as it is now: secrets that are weak, shared or readable by all, files that cannot be read, the
/// journal's folder and file system, and a console that nobody sees. Reads the files of secrets; shows nothing of them.
pub fn warnings(config: &Config, stdout_is_terminal: bool) -> Vec<Warning> {
    let mut found = Warnings(Vec::new());
    of_secrets(config, &mut found);
    of_journal(&config.journal.path, &mut found);
    for output in &config.outputs {
        let key = format!("outputs.{}", output.name);
        match &output.kind {
            OutputKind::Kafka(kafka) => of_kafka_files(&format!("{key}.security"), kafka, &mut found),
            OutputKind::RabbitMq(rabbitmq) => of_rabbitmq_files(&key, rabbitmq, &mut found),
            OutputKind::Console if !stdout_is_terminal => found.add(
                key,
                "events go to the standard output, which is no terminal: each counts as published once it is written there",
            ),
            OutputKind::Console => {}
        }
    }
    if let Some(tls) = &config.ingress.tls {
        of_file("ingress.tls.private_key_file", Some(&tls.private_key_file), true, &mut found);
    }
    found.0
}

fn of_secrets(config: &Config, found: &mut Warnings) {
    if let Some(first) = config.first_secret_file() {
        let message = format!("no secret yet; the first start makes one in `{}`", first.display());
        found.add("accounts.default.secrets", message);
    }
    let mut owners: Vec<(Secret, &str)> = Vec::new();
    for account in &config.accounts {
        let name = account.name.as_str();
        let key = format!("accounts.{name}.secrets");
        if let Some(place) = account.secrets.as_deref().filter(|place| secrets::is_writable_by_all(place)) {
            let message = format!(
                "`{}` can be written by everybody on this machine, who then can sign; chmod o-w",
                place.display()
            );
            found.add(&key, message);
        }
        let files = account.secrets.as_deref().map(secrets::files).and_then(Result::ok).unwrap_or_default();
        let of_files = files.iter().filter_map(|file| file.secret.as_ref().ok());
        let all = of_files.chain(&account.environment_secret);
        let is_alone = all.filter(|secret| !secret.is_empty()).all(Secret::is_short);
        let mut one = |label: &str, name_of_file: &str, secret: &Secret, found: &mut Warnings| {
            if let Some(doubt) = secret.doubt(name_of_file) {
                let skipped = if secret.is_short() && !is_alone { ", and is skipped" } else { "" };
                found.add(&key, format!("{label} {doubt}{skipped}"));
            }
            match owners.iter().find(|(other, _)| other == secret) {
                Some((_, owner)) if *owner != name => {
                    found.add(
                        &key,
                        format!("{label} is a secret of account `{owner}` too: each can then sign for the other"),
                    );
                }
                Some(_) => {}
                None => owners.push((secret.clone(), name)),
            }
        };
        if let Some(secret) = &account.environment_secret {
            one("the one from the environment", "", secret, found);
        }
        for file in &files {
            let label = format!("`{}`", file.path.display());
            match &file.secret {
                Err(error) => {
                    found.add(&key, format!("{} cannot be read and is skipped: {error}", secrets::quoted(&file.path)))
                }
                Ok(secret) if secret.is_empty() => found.add(&key, format!("{label} is empty and is skipped")),
                Ok(secret) => {
                    let name_of_file = file.path.file_name().unwrap_or_default().to_string_lossy();
                    one(&label, &name_of_file, secret, found);
                }
            }
            if file.readable_by_all {
                found.add(&key, format!("{label} is readable by everybody on this machine; chmod 600, or in Kubernetes defaultMode: 0400"));
            }
        }
    }
}

fn of_kafka_files(key: &str, kafka: &Kafka, found: &mut Warnings) {
    let security = &kafka.security;
    of_password(&format!("{key}.password_file"), &security.password, found);
    of_password(&format!("{key}.client_secret_file"), &security.client_secret, found);
    of_file(&format!("{key}.ca_file"), security.ca_file.as_deref(), false, found);
    of_file(&format!("{key}.certificate_file"), security.certificate_file.as_deref(), false, found);
    of_file(&format!("{key}.private_key_file"), security.private_key_file.as_deref(), true, found);
}

fn of_rabbitmq_files(key: &str, rabbitmq: &RabbitMq, found: &mut Warnings) {
    of_password(&format!("{key}.password_file"), &rabbitmq.password, found);
    of_file(&format!("{key}.ca_file"), rabbitmq.ca_file.as_deref(), false, found);
    of_file(&format!("{key}.certificate_file"), rabbitmq.certificate_file.as_deref(), false, found);
    of_file(&format!("{key}.private_key_file"), rabbitmq.private_key_file.as_deref(), true, found);
}

fn of_password(key: &str, password: &PasswordSource, found: &mut Warnings) {
    of_file(key, password.file.as_deref(), true, found);
    if password.read().is_ok_and(|password| password.is_some_and(|password| password.is_empty())) {
        found.add(key, "the password is empty");
    }
}

/// A file of an output. The relay starts without it, since it may come later; until then that output does not connect.
fn of_file(key: &str, path: Option<&Path>, confidential: bool, found: &mut Warnings) {
    let Some(path) = path else { return };
    if let Err(error) = fs::File::open(path) {
        found.add(key, format!("{} cannot be read: {error}", secrets::quoted(path)));
    } else if confidential && secrets::is_readable_by_all(path) {
        let chmod = "chmod 600, or in Kubernetes defaultMode: 0400";
        found.add(key, format!("`{}` is readable by everybody on this machine; {chmod}", path.display()));
    }
}

/// File systems that are somebody else's disk: a sync is only as good as the server's word, locks may be lost, and SQLite's write-ahead log
/// needs memory shared with whoever else has the file open. The numbers are Linux's (linux/magic.h and statfs(2)).
const NETWORK: [(u32, &str); 13] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
];
const TMPFS: u32 = 0x0102_1994;
const OVERLAY: u32 = 0x794c_7630;

fn of_journal(path: &Path, found: &mut Warnings) {
    const KEY: &str = "journal.path";
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if let Ok(metadata) = fs::metadata(folder) {
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let folder = folder.display();
            found.add(
                KEY,
                format!(
                    "its folder `{folder}` is open to others (mode {mode:o}); it holds calls and messages: chmod 700"
                ),
            );
        }
    }
    // What is not there yet is made on the file system of what is.
    let there = folder.ancestors().find(|folder| folder.exists()).filter(|folder| *folder != Path::new(""));
    let Ok(system) = rustix::fs::statfs(there.unwrap_or(Path::new("."))) else { return };
    if let Some(message) = of_file_system(system.f_type as u32) {
        found.add(KEY, message);
    }
}

/// What is to be said of a file system with this number, if anything.
fn of_file_system(magic: u32) -> Option<String> {
    match magic {
        TMPFS => Some("lies in memory (tmpfs): a restart of the machine loses what was accepted".to_owned()),
        OVERLAY => Some("lies in a container's own layer and goes with the container; mount a volume there".to_owned()),
        magic => NETWORK.iter().find(|(number, _)| *number == magic).map(|(_, name)| {
            format!("lies on a network file system ({name}): whether a sync or a lock holds is out of our hands; use a local disk")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::of_file_system;

    #[test]
    fn a_journal_on_somebody_elses_disk_is_worth_a_word() {
        for (magic, word) in [
            (0x6969, Some("(NFS)")),
            (0xfe53_4d42, Some("(SMB2)")),
            (0x6573_5546, Some("(FUSE)")),
            (0x0102_1994, Some("tmpfs")),
            (0x794c_7630, Some("container")),
            (0xef53, None),      // ext4
            (0x5846_5342, None), // XFS
        ] {
            let message = of_file_system(magic);
            match word {
                Some(word) => {
                    assert!(message.as_deref().is_some_and(|text| text.contains(word)), "{magic:x}: {message:?}")
                }
                None => assert_eq!(message, None, "{magic:x}"),
            }
        }
    }
}
