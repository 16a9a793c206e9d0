//! The program itself: exit codes, what goes to stdout and what to stderr.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn relay(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sipsim-relay"));
    command.args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

fn check(arguments: &str, code: i32, on_stdout: &str, on_stderr: &str) {
    let Output { status, stdout, stderr } = relay(arguments).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert_eq!(status.code(), Some(code), "{arguments}: {stderr}");
    for (text, expected) in [(&stdout, on_stdout), (&stderr, on_stderr)] {
        assert!(text.contains(expected), "{arguments}: {expected:?} is not in {text:?}");
        assert!(!expected.is_empty() || text.is_empty(), "{arguments}: {text:?}");
    }
}

fn secret() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "example-secret").unwrap();
    file
}

#[test]
fn help_is_a_result_and_its_lack_wrong_usage() {
    check("--help", 0, "healthcheck", "");
    check("simulate --help", 0, "--tamper", "");
    check("--version", 0, "sipsim-relay ", "");
    check("", 2, "", "Usage: sipsim-relay");
    check("runn", 2, "", "similar subcommand exists: 'run'");
    check("simulate --to 127.0.0.1/w --secret-file s", 2, "", "must begin with http:// or https://");
    check("simulate --to http://127.0.0.1 --secret-file s", 2, "", "no path");
}

#[test]
fn completions_go_to_stdout_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        check(&format!("completions {shell}"), 0, "healthcheck", "");
    }
}

#[test]
fn a_simulation_says_what_is_wrong_before_it_sends() {
    let (secret, empty) = (secret(), tempfile::NamedTempFile::new().unwrap());
    let (secret, empty) = (secret.path().display(), empty.path().display());
    check("simulate --to http://h/w --secret-file /nonexistent", 1, "", "error: --secret-file /nonexistent: ");
    check(&format!("simulate --to http://h/w --secret-file {empty}"), 1, "", "it is empty");
    check(
        &format!("simulate --to http://h/w --secret-file {secret} --body /nonexistent"),
        1,
        "",
        "error: --body /nonexistent: ",
    );
    check(
        &format!("simulate --to https://h/w --secret-file {secret} --ca-file {secret}"),
        1,
        "",
        "holds no certificate",
    );
}

/// A folder with these files, to run the relay in.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

/// What a command prints to stdout and stderr in `dir`. It ends by itself, and within ten seconds.
fn output_in(dir: &tempfile::TempDir, arguments: &str, code: i32) -> String {
    let ports = ["RELAY_INGRESS__LISTEN", "RELAY_ADMIN__LISTEN"].map(|name| (name, "127.0.0.1:0"));
    let mut command = Command::new("timeout");
    command.args(["10", env!("CARGO_BIN_EXE_sipsim-relay")]).args(arguments.split_whitespace());
    let output = command.current_dir(dir).envs(ports).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
    text
}

#[test]
fn a_start_names_every_account_without_a_secret_beside_other_problems() {
    let dir = folder(&[(
        "relay.toml",
        "[log]\nlevel = \"loud\"\n[accounts.a]\npath = \"/a\"\n[accounts.b]\npath = \"/b\"\nsecrets = \"none\"\n",
    )]);
    let said = output_in(&dir, "run", 1);
    for place in
        ["relay.toml:2: log.level: ", "relay.toml:3: accounts.a.secrets: ", "relay.toml:7: accounts.b.secrets: "]
    {
        assert!(said.contains(place), "{place:?} is not in {said:?}");
    }
}

#[test]
fn a_secret_is_judged_before_the_start_as_it_is_after_it() {
    let dir = folder(&[("data/secrets/large", &"x".repeat(65 << 10))]);
    for command in ["check", "run"] {
        let said = output_in(&dir, command, 1);
        assert!(said.contains("larger than 64 KiB"), "{said}");
    }
    fs::remove_file(dir.path().join("data/secrets/large")).unwrap();
    let pipe = dir.path().join("data/secrets/pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let said = output_in(&dir, "check", 0);
    assert!(said.contains("no secret yet"), "{said}"); // A pipe in the folder is no file of it,
    fs::write(dir.path().join("relay.toml"), "accounts.default.secrets = \"data/secrets/pipe\"").unwrap();
    let said = output_in(&dir, "run", 1);
    assert!(said.contains("neither a file nor a folder"), "{said}"); // and one that is named is not waited for.
}

#[test]
fn what_is_a_problem_is_not_a_warning_too() {
    let tls = "[ingress.tls]\ncertificate_file = \"c\"\nprivate_key_file = \"k\"\n";
    let said = output_in(&folder(&[("relay.toml", tls)]), "check", 1);
    assert_eq!(said.matches("ingress.tls.private_key_file: `k` cannot be read").count(), 1, "{said}");
}

#[test]
fn a_trace_wants_a_call_an_event_or_a_time() {
    for arguments in ["--format json", "--until 14:00", "--event sms"] {
        check(&format!("journal trace {arguments}"), 2, "", "<--call <ID>|--id <ID>|--since <TIME>>");
    }
}

#[test]
fn the_last_word_is_on_the_last_refused_request() {
    let dir = folder(&[]);
    let mut relay = relay("run");
    relay.current_dir(&dir).env("RELAY_INGRESS__LISTEN", "127.0.0.1:0").env("RELAY_ADMIN__LISTEN", "127.0.0.1:0");
    let mut relay = relay.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(relay.stderr.take().unwrap()).lines();
    let line = log.find_map(|line| line.ok().filter(|line| line.contains("webhooks at http://"))).unwrap();
    let address = |after: &str| {
        let rest = line.split_once(after).unwrap().1;
        rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect::<String>()
    };
    // Both within a second, in which but one is looked into at once.
    for headers in ["", "X-Webhook-Timestamp: noon\r\nX-Webhook-Signature: a\r\n"] {
        let mut stream = TcpStream::connect(address("webhooks at http://")).unwrap();
        let head = format!(
            "POST /webhooks/sipsim HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}Content-Length: 2\r\n\r\n{{}}"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }
    let admin = address("metrics http://");
    let until = Instant::now() + Duration::from_secs(5);
    let said = loop {
        let mut verify = self::relay("verify --last");
        let output = verify.current_dir(&dir).env("RELAY_ADMIN__LISTEN", &admin).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if said.contains("malformed_header") || Instant::now() > until {
            break said;
        }
        thread::sleep(Duration::from_millis(50));
    };
    relay.kill().unwrap();
    relay.wait().unwrap();
    assert!(said.contains("malformed_header") && said.contains("X-Webhook-Timestamp is not Unix time"), "{said}");
}

#[test]
fn a_simulation_that_loses_something_is_exit_1() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let secret = secret();
    let simulate = format!("simulate --to http://{nobody}/w --secret-file {} --event test", secret.path().display());
    check(&simulate, 1, "A real SIPSIM would have lost 1 of 1", "");
    check(
        &format!("{simulate} --format json"),
        1,
        r#"{"sent":1,"answers":{},"errors":1,"lost":1,"latency_seconds":{"p50":null,"#,
        "nothing listens there",
    );
}

#[test]
fn ctrl_c_ends_a_simulation_with_its_table() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, secret) = (listener.local_addr().unwrap(), secret());
    let simulate =
        format!("simulate --to http://{address}/w --secret-file {} --rate 0.01 --count 9", secret.path().display());
    let child = relay(&simulate).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut request = BufReader::new(&stream);
    let mut line = String::new();
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        request.read_line(&mut line).unwrap();
        length = line.strip_prefix("Content-Length: ").map_or(length, |number| number.trim().parse().unwrap());
    }
    request.read_exact(&mut vec![0; length]).unwrap();
    (&stream).write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let output = child.wait_with_output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{table}");
    assert!(table.contains("answered     204  1") && table.contains("lost nothing"), "{table}");
}

#[test]
fn a_panic_says_where_and_never_what() {
    let ourselves = std::env::current_exe().unwrap();
    let output = Command::new(ourselves)
        .args(["--exact", "cli::panics_with_content", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert_eq!(stderr.matches(concat!("panic at ", file!(), ":")).count(), 2, "{stderr}");
    assert!(stderr.contains("thread cli::panics_with_content") && stderr.contains("ERROR"), "{stderr}");
    assert!(!stderr.contains("+33639980000"), "{stderr}");
}

/// What the test above runs in a process of its own, as a panic's hook is the whole process's.
#[test]
#[ignore = "panics on purpose"]
fn panics_with_content() {
    use sipsim_relay::cli::logging;
    use sipsim_relay::config::{Log, LogFormat};
    logging::hush_panics();
    let before_the_log = std::panic::catch_unwind(|| panic!("caller +33639980000"));
    assert!(before_the_log.is_err());
    logging::start(&Log { format: LogFormat::Text, level: tracing::Level::ERROR });
    panic!("caller +33639980000");
}

/// SECURITY.md names the C code inside by its versions: those that are built in.
#[test]
fn security_md_has_the_versions_of_the_c_code_inside() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).expect(name);
    let (security, lock) = (read("SECURITY.md"), read("Cargo.lock"));
    let locked = |name: &str| {
        let package = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).expect(name).1;
        let version = package.split_once('"').expect("a quote").0;
        version.split_once('+').map_or(version, |(_, of_the_c_code)| of_the_c_code).to_owned()
    };
    for (name, version) in [
        ("librdkafka", locked("rdkafka-sys")),
        ("SQLite", rusqlite::version().to_owned()),
        ("ring", locked("ring")),
        ("OpenSSL", locked("openssl-src")),
    ] {
        assert!(security.contains(&format!("| {name} {version} |")), "SECURITY.md does not list {name} {version}");
    }
}

#[test]
fn a_secret_pasted_where_a_path_belongs_is_repeated_nowhere() {
    const PASTED: &str = "whsec_c2VjcmV0/b2Yvc2lwc2lt";
    let kafka = format!(
        "[outputs.kafka.security]\nprotocol = \"SASL_SSL\"\nmechanism = \"PLAIN\"\nusername = \"u\"\npassword_file = \"{PASTED}\"\n"
    );
    let file = |accounts: &str| folder(&[("relay.toml", &format!("{accounts}{kafka}"))]);
    for accounts in [
        format!("[accounts.default]\nsecrets = \"{PASTED}\"\n"),
        format!("[accounts.default]\nsecrets = \"/{PASTED}\"\n"),
    ] {
        for command in ["check", "check --format json", "run"] {
            let said = output_in(&file(&accounts), command, 1);
            assert!(said.contains("accounts.default.secrets") && said.contains("not shown"), "{command}: {said}");
            assert!(!said.contains("c2VjcmV0"), "{command}: {said}");
        }
    }
}

#[test]
fn what_is_hardly_a_secret_and_who_may_write_the_folder_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder(&[("data/secrets/password", "0123456789abcdef"), ("data/secrets/username", "sipsim")]);
    let set = |mode| fs::set_permissions(dir.path().join("data/secrets"), fs::Permissions::from_mode(mode)).unwrap();
    set(0o700);
    let said = output_in(&dir, "check", 0);
    assert!(
        said.contains("secrets/username` is called like a user name") && said.contains(", and is skipped"),
        "{said}"
    );
    assert!(!said.contains("can be written by everybody"), "{said}");
    set(0o777);
    let said = output_in(&dir, "check", 0);
    assert!(said.contains("`data/secrets` can be written by everybody on this machine"), "{said}");
}
