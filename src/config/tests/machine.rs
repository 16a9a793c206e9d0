//! What is found on the machine: files that are not there, secrets that are none, folders that others can read.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::super::{Inspected, inspect, warnings};
use super::{good, good_with, load};

const STRONG: &str = "0123456789abcdef0123456789abcdef";

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Writes `relay.toml` into a folder, `{dir}` standing for that folder, and looks at it as `check` does.
fn inspected(dir: &TempDir, text: &str) -> Inspected {
    let file = dir.path().join("relay.toml");
    fs::write(&file, text.replace("{dir}", dir.path().to_str().unwrap())).unwrap();
    inspect(Some(&file), std::iter::empty(), true)
}

/// The problems, with the folder's name taken out.
fn problems(dir: &TempDir, text: &str) -> Vec<String> {
    let found = inspected(dir, text).problems;
    found.iter().map(|problem| problem.to_string().replace(dir.path().to_str().unwrap(), "")).collect()
}

/// The warnings about one section, with the folder's name taken out.
fn warned(dir: &TempDir, text: &str, about: &str) -> Vec<String> {
    let found = inspected(dir, text);
    assert_eq!(found.problems, []);
    let about = found.warnings.iter().filter(|warning| warning.key.starts_with(about));
    about.map(|warning| warning.to_string().replace(dir.path().to_str().unwrap(), "")).collect()
}

#[test]
fn a_named_file_must_be_there_and_be_a_configuration() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("none.toml");
    let refused = |path: &Path| super::super::load(Some(path), std::iter::empty()).unwrap_err().to_string();
    assert_eq!(
        refused(&missing),
        format!("{}: cannot be read: No such file or directory (os error 2)", missing.display())
    );
    assert_eq!(inspect(Some(&missing), std::iter::empty(), true).problems.len(), 1);
    assert!(refused(dir.path()).contains("cannot be read: Is a directory"));
    let large = dir.path().join("large.toml");
    fs::write(&large, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(refused(&large).contains("larger than 1 MiB"));
    let binary = dir.path().join("binary.toml");
    fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(refused(&binary).contains("valid UTF-8"));
}

#[test]
fn every_account_without_a_secret_is_named_with_the_reason() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    write(&dir.path().join("blank/one"), " \n", 0o600);
    write(&dir.path().join("hidden/.one"), STRONG, 0o600);
    write(&dir.path().join("full/one"), STRONG, 0o600);
    let text = r#"
[accounts.a]
path = "/a"
secrets = "{dir}/none"
[accounts.b]
path = "/b"
secrets = "{dir}/empty"
[accounts.c]
path = "/c"
secrets = "{dir}/blank"
[accounts.d]
path = "/d"
secrets = "{dir}/hidden"
[accounts.e]
path = "/e"
secrets = "{dir}/full"
[accounts.f]
path = "/f"
secrets = "{dir}/full/one"
"#;
    let expected = [
        ("4", "a", "`/none` does not exist"),
        ("7", "b", "`/empty` holds no file"),
        ("10", "c", "what `/blank` holds is empty"),
        ("13", "d", "`/hidden` holds no file"),
    ]
    .map(|(line, name, why)| {
        let variable = format!("RELAY_ACCOUNTS__{}__SECRET", name.to_uppercase());
        format!(
            "/relay.toml:{line}: accounts.{name}.secrets: no secret: {why}; put the secret from SIPSIM's webhook settings into a \
             file there, or give it as {variable}"
        )
    });
    assert_eq!(problems(&dir, text), expected);
}

#[test]
fn secrets_are_looked_for_beside_other_problems() {
    let dir = TempDir::new().unwrap();
    let found = problems(&dir, "[accounts.a]\npath = \"a\"\nsecrets = \"{dir}/none\"\n[accounts.b]\npath = \"/b\"");
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[1].starts_with("/relay.toml:3: accounts.a.secrets: no secret: "), "{found:?}");
    assert!(found[2].starts_with("/relay.toml:4: accounts.b.secrets: missing: "), "{found:?}");
}

#[test]
fn the_environment_makes_up_for_missing_files() {
    let text = "accounts.a = { path = \"/a\", secrets = \"/nonexistent\" }\noutputs.kafka = {}";
    let loaded = load(text, &[("RELAY_ACCOUNTS__A__SECRET", STRONG)]).unwrap();
    assert_eq!(loaded.missing(), []);
    assert_eq!(loaded.config.accounts[0].count_secrets(), 1);
}

#[test]
fn a_first_secret_is_made_for_the_console_alone() {
    let may = |text: &str, environment: &[(&str, &str)]| good_with(text, environment).first_secret_folder().is_some();
    assert!(may("", &[]));
    assert!(may("[accounts.default]\n[outputs.console]", &[]));
    assert!(!may("[outputs.kafka]", &[]));
    assert!(!may("[outputs.console]\n[outputs.rabbitmq]", &[]));
    assert!(!may("accounts.default.secrets = \"elsewhere\"", &[]));
    assert!(!may("accounts.shop = { path = \"/x\", secrets = \"data/secrets\" }", &[]));
    assert!(!may("", &[("RELAY_ACCOUNTS__DEFAULT__SECRET", STRONG)]));
}

#[test]
fn the_certificate_of_the_public_port_must_be_there() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("key"), "", 0o600);
    let text = "[ingress.tls]\ncertificate_file = \"{dir}/cert\"\nprivate_key_file = \"{dir}/key\"\n[accounts.a]\npath = \"/a\"\nsecrets = \"{dir}/key2\"";
    write(&dir.path().join("key2"), STRONG, 0o600);
    assert_eq!(
        problems(&dir, text),
        ["/relay.toml:2: ingress.tls.certificate_file: `/cert` cannot be read: No such file or directory (os error 2)"]
    );
}

#[test]
fn weak_shared_open_and_useless_secrets_are_worth_a_warning() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("a/good"), STRONG, 0o600);
    write(&dir.path().join("a/folder/none"), "short", 0o644);
    write(&dir.path().join("a/open"), "fedcba9876543210", 0o604);
    write(&dir.path().join("a/short"), "123456789012345", 0o600);
    write(&dir.path().join("a/void"), "", 0o600);
    write(&dir.path().join("b/same"), &format!("{STRONG}\n"), 0o640);
    let text = "[accounts.a]\npath = \"/a\"\nsecrets = \"{dir}/a\"\n[accounts.b]\npath = \"/b\"\nsecrets = \"{dir}/b\"";
    assert_eq!(
        warned(&dir, text, "accounts"),
        [
            "accounts.a.secrets: `/a/open` is readable by everybody on this machine; chmod 600, or in Kubernetes defaultMode: 0400",
            "accounts.a.secrets: `/a/short` is weak: 15 bytes, where 16 random ones are needed",
            "accounts.a.secrets: `/a/void` is empty and is skipped",
            "accounts.b.secrets: `/b/same` is a secret of account `a` too: each can then sign for the other",
        ]
    );
}

#[test]
fn a_mounted_kubernetes_secret_is_read_through_its_links() {
    let dir = TempDir::new().unwrap();
    let mount = dir.path().join("mount");
    write(&mount.join("..2025/sipsim"), STRONG, 0o400);
    symlink("..2025", mount.join("..data")).unwrap();
    symlink("..data/sipsim", mount.join("sipsim")).unwrap();
    let text = "[accounts.a]\npath = \"/a\"\nsecrets = \"{dir}/mount\"";
    let found = inspected(&dir, text);
    assert_eq!(found.problems, []);
    assert_eq!(found.secrets[0].1, 1);
    assert!(warned(&dir, text, "accounts").is_empty());
}

#[test]
fn files_of_outputs_may_come_later_but_are_missed() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("secret"), STRONG, 0o600);
    write(&dir.path().join("password"), "", 0o644);
    write(&dir.path().join("public"), "", 0o644);
    let text = "[accounts.a]\npath = \"/a\"\nsecrets = \"{dir}/secret\"\n[outputs.kafka.security]\nprotocol = \"SASL_SSL\"\n\
                mechanism = \"PLAIN\"\nusername = \"a\"\npassword_file = \"{dir}/password\"\nca_file = \"{dir}/ca\"\ncertificate_file = \"{dir}/public\"\nprivate_key_file = \"{dir}/secret\"";
    assert_eq!(
        warned(&dir, text, "outputs"),
        [
            "outputs.kafka.security.password_file: `/password` is readable by everybody on this machine; chmod 600, or in \
             Kubernetes defaultMode: 0400",
            "outputs.kafka.security.password_file: the password is empty",
            "outputs.kafka.security.ca_file: `/ca` cannot be read: No such file or directory (os error 2)",
        ]
    );
}

#[test]
fn the_journals_folder_is_for_nobody_else() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("secret"), STRONG, 0o600);
    let journal = dir.path().join("journal");
    fs::create_dir(&journal).unwrap();
    let text = "journal.path = \"{dir}/journal/j.db\"\n[accounts.a]\npath = \"/a\"\nsecrets = \"{dir}/secret\"";
    for (mode, expected) in [(0o700, false), (0o750, true), (0o755, true)] {
        fs::set_permissions(&journal, Permissions::from_mode(mode)).unwrap();
        let warning = format!(
            "journal.path: its folder `/journal` is open to others (mode {mode:o}); it holds calls and messages: chmod 700"
        );
        assert_eq!(warned(&dir, text, "journal").contains(&warning), expected, "{mode:o}");
    }
}

#[test]
fn a_place_where_no_journal_can_be_is_a_problem() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("secret"), STRONG, 0o600);
    for (path, message) in [
        ("", "`` is a folder; name the journal's file in it"),
        ("/secret/journal.db", "`/secret` is no folder, so no journal can be in it"),
        ("/secret/new/journal.db", "`/secret` is no folder, so no journal can be in it"),
    ] {
        let text = "journal.path = \"{dir}{path}\"\n[accounts.a]\npath = \"/a\"\nsecrets = \"{dir}/secret\"";
        let name = dir.path().to_str().unwrap();
        let file = dir.path().join("relay.toml");
        fs::write(&file, text.replace("{path}", path).replace("{dir}", name)).unwrap();
        let found = inspect(Some(&file), std::iter::empty(), true).problems;
        let told: Vec<_> = found.iter().map(|one| (one.key.as_str(), one.message.replace(name, ""))).collect();
        assert_eq!(told, [("journal.path", message.to_owned())]);
    }
}

#[test]
fn a_console_that_nobody_sees_is_worth_a_warning() {
    let config = good("[outputs.lines]\ntype = \"console\"");
    let about = |terminal: bool| warnings(&config, terminal).iter().filter(|one| one.key == "outputs.lines").count();
    assert_eq!((about(true), about(false)), (0, 1));
}

#[test]
fn values_that_work_but_hardly_as_wanted_are_worth_a_warning() {
    let sasl = "outputs.kafka.security = { protocol = \"SASL_PLAINTEXT\", mechanism";
    for (text, key) in [
        ("ingress.deadline = \"2s\"", "ingress.deadline"),
        ("journal.size_max = \"15 MiB\"", "ingress.body_max"),
        ("journal.free_min = 0", "journal.free_min"),
        ("accounts.default.journal_max = \"8 MiB\"", "accounts.default.journal_max"),
        ("outputs.rabbitmq = { urls = [\"amqp://a@b\"], password_file = \"c\" }", "outputs.rabbitmq.urls"),
        (
            &format!("{sasl} = \"PLAIN\", username = \"a\", password_file = \"b\" }}\noutputs.kafka.brokers = \"c:1\""),
            "outputs.kafka.security.protocol",
        ),
        (
            &format!(
                "{sasl} = \"OAUTHBEARER\", client_id = \"a\", client_secret_file = \"b\", token_url = \"http://c/d\" }}"
            ),
            "outputs.kafka.security.token_url",
        ),
    ] {
        let warnings: Vec<String> = load(text, &[]).unwrap().warnings.into_iter().map(|warning| warning.key).collect();
        assert_eq!(warnings, [key], "{text}");
    }
    for text in [
        "ingress.deadline = \"1.9s\"",
        "accounts.default.journal_max = \"9 MiB\"",
        "outputs.rabbitmq = { urls = [\"amqp://a@127.0.0.1:5672\", \"amqps://b\"], password_file = \"c\" }",
        &format!(
            "{sasl} = \"SCRAM-SHA-256\", username = \"a\", password_file = \"b\" }}\noutputs.kafka.brokers = \"c:1\""
        ),
        &format!(
            "{sasl} = \"PLAIN\", username = \"a\", password_file = \"b\" }}\noutputs.kafka.brokers = \"localhost:1\""
        ),
    ] {
        assert_eq!(load(text, &[]).unwrap().warnings, [], "{text}");
    }
}
