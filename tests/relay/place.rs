//! The journal's place on the disk: its name, what lies beside it, who else has it open, and what becomes of it when it is deleted, replaced or copied.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::alone::Alone;
use crate::support::shim::{EIO, Knob};
use crate::support::{Relay, free_address, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn wait_until_ready(relay: &Relay) {
    wait_until("/readyz to say 200", SOON, || relay.get("/readyz").is_some_and(|answer| answer.status == 200));
}

fn post(relay: &Relay, number: usize) {
    let answer = relay.post(format!(r#"{{"event":"sms","n":{number}}}"#).as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A console, and a Kafka where nobody listens, so that all is pending there.
fn with_debt(more: &str) -> String {
    format!("[outputs.console]\n[outputs.kafka]\nbrokers = \"{}\"\n[shutdown]\ndrain = \"0s\"\n{more}", free_address())
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn journals_of_one_folder_share_nothing_and_version_0_1_is_kept_out() {
    let mut one = Relay::start("[journal]\npath = \"data/a.db\"");
    let other = Relay::start(&format!("[journal]\npath = \"{}\"", one.path("data/a.sqlite").display()));
    for relay in [&one, &other] {
        wait_until_ready(relay);
        post(relay, 1);
    }
    // As version 0.1 locks both: alone.
    let lock =
        File::options().create(true).append(true).open(one.path("data/a.lock")).expect("the lock of version 0.1");
    let alone = || flock(&lock, FlockOperation::NonBlockingLockExclusive);
    assert!(alone().is_err(), "a process of version 0.1 could write the same journal");
    drop(other);
    one.kill9();
    alone().expect("nobody has it any more");
    let output = one.finish(&["run"]);
    assert!(output.status.code() == Some(1) && said(&output).contains("another relay"), "{}", said(&output));
    drop(lock);
    // Its doubt is honoured, and what has content under that name is not its.
    fs::write(one.path("data/a.doubt"), "").expect("a file");
    one.run();
    wait_until_ready(&one);
    assert!(!one.path("data/a.doubt").exists(), "the doubt was settled");
    one.kill9();
    fs::write(one.path("data/a.doubt"), "a journal, perhaps").expect("a file");
    one.run();
    wait_until_ready(&one);
    assert!(one.path("data/a.doubt").exists(), "what has content is never removed");
}

#[test]
fn a_link_to_the_journal_is_the_journal() {
    let relay = Relay::start("");
    wait_until_ready(&relay);
    let other = Relay::prepare("");
    std::os::unix::fs::symlink(relay.path("data/journal.db"), other.path("data/journal.db")).expect("a link");
    let mut run = other.command(&["run"]).stderr(Stdio::piped()).spawn().expect("it starts");
    wait_until("it to say that another relay has it", SOON, || {
        other.get("/readyz").is_some_and(|answer| answer.text().contains("journal.db-lock"))
            || run.try_wait().is_ok_and(|ended| ended.is_some())
    });
    let _ = run.kill();
    let output = run.wait_with_output().expect("it ends");
    assert!(said(&output).contains("journal.db-lock"), "{}", said(&output));
}

#[test]
fn a_journal_is_not_named_as_files_beside_one() {
    for name in [
        "x.doubt",
        "x.lock",
        "x.db-wal",
        "x.db-shm",
        "x.db-journal",
        "x-lock",
        "x-doubt",
        "x-relay-saving",
        "x-relay-saved",
        "x.db.console",
    ] {
        let relay = Relay::prepare(&format!("[journal]\npath = \"data/{name}\""));
        for command in ["check", "run"] {
            let output = relay.finish(&[command]);
            let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), said(&output));
            assert_eq!(output.status.code(), Some(1), "{command} {name}: {text}");
            assert!(
                text.contains("journal.path") && text.contains(&format!("`{name}` ends in")),
                "{command} {name}: {text}"
            );
        }
        assert!(!relay.path("data").join(name).exists(), "{name}");
    }
    for (name, why) in
        [("x.db/", "names a folder"), (&*"n".repeat(201), "has 201 bytes"), ("/dev/null", "no ordinary file")]
    {
        let relay = Relay::prepare(&format!("[journal]\npath = \"{name}\""));
        let output = relay.finish(&["check"]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), said(&output));
        assert!(output.status.code() == Some(1) && text.contains(why), "{name}: {text}");
    }
    for name in [":memory:", "file:x.db?mode=memory"] {
        let relay = Relay::prepare(&format!("[journal]\npath = \"{name}\""));
        let output = relay.finish(&["run"]);
        assert!(output.status.code() == Some(1) && said(&output).contains("means something else to SQLite"), "{name}");
    }
}

/// Until it is noticed, and until events are accepted again; then what was pending is in the file that was saved, and nothing is lost or in both.
fn is_gone_and_saved(relay: &Relay, before: usize, what: &str) {
    let gone = || relay.metrics().get("sipsim_relay_journal_gone", &[]) == 1.0;
    wait_until(&format!("{what} to be noticed"), SOON, gone);
    let ready = relay.get("/readyz").expect("an answer");
    assert!(ready.status == 503 && ready.text().contains("no longer at its path"), "{what}: {}", ready.text());
    assert_eq!(relay.post(br#"{"event":"sms","n":"refused"}"#).status, 503, "{what}");
    let refused = relay.metrics().get("sipsim_relay_unavailable_total", &[("reason", "disk")]);
    assert!(refused >= 1.0, "{what}");
    wait_until_ready(relay);
    post(relay, before + 1);
    let metrics = relay.metrics();
    assert_eq!(metrics.get("sipsim_relay_journal_gone", &[]), 0.0, "{what}");
    assert_eq!(metrics.get("sipsim_relay_journal_set_aside", &[]), 1.0, "{what}");
}

fn set_aside(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder").filter_map(Result::ok).map(|entry| entry.path());
    let is_one = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.contains(".set-aside-") && !name.ends_with("-wal") && !name.ends_with("-shm")
    };
    entries.filter(is_one).collect()
}

/// Drains the saved file to the console: the numbers of what was pending for Kafka.
fn drain(relay: &Relay, file: &Path) -> Vec<Value> {
    let config = format!("[journal]\npath = \"{}\"\n[outputs.kafka]\ntype = \"console\"\n", file.display());
    fs::write(relay.path("aside.toml"), config).expect("a file");
    let mut drain = crate::support::program(&relay.path(""));
    let output = crate::support::finish(drain.args(["drain", "--config", "aside.toml", "--timeout", "20s"]), SOON * 2);
    let lines = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    let numbers = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["data"]["n"].clone());
    let numbers: Vec<_> = numbers.collect();
    assert!(
        said(&output).contains("console: 0 pending") || said(&output).contains("nothing is pending"),
        "{}",
        said(&output)
    );
    numbers
}

#[test]
fn a_journal_that_is_deleted_or_replaced_is_noticed_saved_and_begun_anew() {
    let remove = |relay: &Relay, names: &[&str]| {
        names.iter().for_each(|name| fs::remove_file(relay.path("data").join(name)).expect("it is there"));
    };
    type Fault<'a> = (&'a str, Box<dyn Fn(&Relay) + 'a>);
    let faults: [Fault; 4] = [
        ("the journal deleted", Box::new(|relay| remove(relay, &["journal.db", "journal.db-wal", "journal.db-shm"]))),
        ("its log left behind", Box::new(|relay| remove(relay, &["journal.db"]))),
        (
            "another file in its place",
            Box::new(|relay| {
                fs::write(relay.path("data/other"), "no journal").expect("a file");
                fs::rename(relay.path("data/other"), relay.path("data/journal.db")).expect("it takes the place");
            }),
        ),
        ("its log deleted", Box::new(|relay| remove(relay, &["journal.db-wal"]))),
    ];
    for (what, fault) in faults {
        eprintln!("-- {what}");
        let mut relay = Relay::start(&with_debt(""));
        wait_until_ready(&relay);
        (1..=12).for_each(|number| post(&relay, number));
        wait_until("the console to have all", SOON, || relay.envelopes().len() == 12);
        fault(&relay);
        is_gone_and_saved(&relay, 12, what);
        wait_until("the new one's event to come", SOON, || relay.envelopes().len() == 13);
        let envelopes = relay.envelopes();
        assert_ne!(envelopes[0]["relayjournal"], envelopes[12]["relayjournal"], "{what}");
        assert_eq!(relay.stderr().matches(" ERROR ").filter(|_| true).count().min(1), 1, "{what}: it is said");
        let aside = set_aside(&relay.path("data"));
        let journal = aside.iter().find(|file| fs::read(file).is_ok_and(|bytes| bytes.starts_with(b"SQLite")));
        let journal = journal.unwrap_or_else(|| panic!("{what}: {aside:?}\n{}", relay.stderr()));
        assert_eq!(fs::metadata(journal).expect("it").mode() & 0o777, 0o600, "{what}");
        assert_eq!(drain(&relay, journal), (1..=12).map(Value::from).collect::<Vec<_>>(), "{what}");
        assert!(relay.finish(&["journal", "verify"]).status.success(), "{what}");
        relay.kill9();
    }
}

#[test]
fn a_folder_that_is_deleted_is_made_again_and_a_file_that_comes_back_is_taken_back() {
    let relay = Relay::start(&with_debt("[journal]\npath = \"data/j/journal.db\"\n"));
    wait_until_ready(&relay);
    (1..=3).for_each(|number| post(&relay, number));
    // Moved away and back, as by somebody who notices the mistake.
    fs::rename(relay.path("data/j/journal.db"), relay.path("data/j/moved")).expect("moved");
    wait_until("it to be noticed", SOON, || relay.metrics().get("sipsim_relay_journal_gone", &[]) == 1.0);
    fs::rename(relay.path("data/j/moved"), relay.path("data/j/journal.db")).expect("moved back");
    wait_until_ready(&relay);
    post(&relay, 4);
    assert!(relay.stderr().contains("the journal is at its path again"), "{}", relay.stderr());
    assert_eq!(set_aside(&relay.path("data/j")).len(), 0);
    fs::remove_dir_all(relay.path("data/j")).expect("the folder");
    is_gone_and_saved(&relay, 4, "the folder deleted");
    let aside = set_aside(&relay.path("data/j"));
    assert_eq!(drain(&relay, &aside[0]), (1..=4).map(Value::from).collect::<Vec<_>>());
    assert_eq!(fs::metadata(relay.path("data/j")).expect("the folder").mode() & 0o777, 0o700);
}

#[test]
fn a_stop_just_after_the_journal_was_deleted_saves_it_or_says_what_is_lost() {
    let mut relay = Relay::start(&with_debt(""));
    wait_until_ready(&relay);
    (1..=3).for_each(|number| post(&relay, number));
    fs::remove_file(relay.path("data/journal.db")).expect("it is there");
    relay.terminate(SOON);
    let log = relay.stderr();
    assert!(!log.contains("the next start goes on with them"), "{log}");
    assert!(log.contains("end with it"), "{log}");
    let aside = set_aside(&relay.path("data"));
    assert_eq!(aside.len(), 1, "{log}");
    assert_eq!(drain(&relay, &aside[0]), (1..=3).map(Value::from).collect::<Vec<_>>());
}

#[test]
fn a_lock_that_is_deleted_is_taken_anew() {
    let relay = Relay::start("");
    wait_until_ready(&relay);
    for name in ["journal.db-lock", "journal.lock"] {
        fs::remove_file(relay.path("data").join(name)).expect("the lock");
        wait_until("it to be there again", SOON, || relay.path("data").join(name).exists());
        wait_until("it to be held", SOON, || {
            let lock = File::open(relay.path("data").join(name)).expect("the lock");
            flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
        });
    }
    let output = relay.finish(&["drain"]);
    assert!(said(&output).contains("another relay or drain holds this journal"), "{}", said(&output));
    post(&relay, 1);
}

fn journal_and_sequence(relay: &Relay) -> (String, String) {
    let envelopes = relay.envelopes();
    let text = |key: &str| envelopes.last().expect("an envelope")[key].as_str().expect("a text").to_owned();
    (text("relayjournal"), text("relaysequence"))
}

#[test]
fn a_journal_that_was_put_back_goes_on_under_another_id_once_that_is_ordered() {
    let mut relay = Relay::start("");
    wait_until_ready(&relay);
    post(&relay, 1);
    wait_until("it to come", SOON, || relay.envelopes().len() == 1);
    relay.terminate(SOON);
    let copied = Command::new("cp").arg("-a").arg(relay.path("data")).arg(relay.path("copy")).status();
    assert!(copied.expect("cp runs").success());
    relay.run();
    wait_until_ready(&relay);
    assert!(!relay.stderr().contains("the journal is a copy"), "{}", relay.stderr());
    post(&relay, 2);
    wait_until("it to come", SOON, || relay.envelopes().len() == 2);
    let original = journal_and_sequence(&relay);
    relay.terminate(SOON);
    // The copy is put in the original's place, and does not know of the second event.
    fs::rename(relay.path("data"), relay.path("lost")).expect("moved");
    fs::rename(relay.path("copy"), relay.path("data")).expect("put back");
    relay.run();
    wait_until_ready(&relay);
    assert!(relay.stderr().contains("the journal is a copy"), "a file that was copied shows: {}", relay.stderr());
    // Beside a running relay the order waits for the next start.
    let output = relay.finish(&["journal", "new-id"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("restart it now"), "{text}{}", said(&output));
    let before = relay.stderr().len();
    relay.terminate(SOON);
    relay.run();
    wait_until_ready(&relay);
    let log = relay.stderr()[before..].to_owned();
    assert!(log.contains("goes on with the id") && !log.contains("the journal is a copy"), "{log}");
    post(&relay, 3);
    wait_until("it to come", SOON, || relay.envelopes().len() == 3);
    let (journal, sequence) = journal_and_sequence(&relay);
    assert_eq!((original.1.as_str(), sequence.as_str()), ("00000000000000000002", "00000000000000000002"));
    assert_ne!(original.0, journal, "two events have one relayjournal and one relaysequence");
    // Once only.
    relay.terminate(SOON);
    relay.run();
    wait_until_ready(&relay);
    post(&relay, 4);
    wait_until("it to come", SOON, || relay.envelopes().len() == 4);
    assert_eq!(journal_and_sequence(&relay), (journal, "00000000000000000003".to_owned()));
}

#[test]
fn what_another_process_wrote_while_the_lock_was_lost_is_neither_sent_again_nor_lost() {
    let relay = Relay::start("");
    wait_until_ready(&relay);
    (1..=3).for_each(|number| post(&relay, number));
    wait_until("them to come", SOON, || relay.envelopes().len() == 3);
    // And noted: what is not would come again.
    let is_noted = || relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0;
    wait_until("that to be noted", SOON, is_noted);
    for name in ["journal.db-lock", "journal.lock"] {
        fs::remove_file(relay.path("data").join(name)).expect("it is there");
    }
    let printed = File::create(relay.path("other.out")).expect("a file");
    let (ingress, admin) = (free_address(), free_address());
    let mut other = relay.command(&["run"]);
    other.env("RELAY_INGRESS__LISTEN", ingress.to_string()).env("RELAY_ADMIN__LISTEN", admin.to_string());
    let mut other = other.stdout(printed).spawn().expect("it starts");
    let to = format!("http://{ingress}/webhooks/sipsim");
    wait_until("the first one to give way", SOON, || relay.get("/readyz").is_some_and(|answer| answer.status == 503));
    wait_until("the other to accept", SOON, || {
        let mut simulate = crate::support::program(&relay.path(""));
        simulate.args(["simulate", "--to", &to, "--secret-file", "data/secrets/sipsim", "--event", "sms"]);
        crate::support::finish(&mut simulate, SOON).status.success()
    });
    let lines = || fs::read_to_string(relay.path("other.out")).expect("a file").lines().count();
    wait_until("the other to publish it", SOON, || lines() > 0);
    other.kill().expect("it can be killed");
    other.wait().expect("it ends");
    wait_until_ready(&relay);
    post(&relay, 4);
    wait_until("the last one to come", SOON, || relay.envelopes().iter().any(|envelope| envelope["data"]["n"] == 4));
    wait_until("nothing to be pending", SOON, || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0
    });
    let numbers: Vec<_> = relay.envelopes().iter().map(|envelope| envelope["data"]["n"].clone()).collect();
    // What the other was about to note when it was killed may come once more.
    let own: Vec<_> = numbers.into_iter().filter(|number| !number.is_null()).collect();
    assert_eq!(own, [1, 2, 3, 4].map(Value::from));
}

/// Whatever reads what a command prints may hang; the command has the journal closed by then.
#[test]
fn a_command_that_prints_to_nobody_does_not_keep_the_relay_at_503_after_a_fault_of_the_disk() {
    let mut scene = Alone::prepare("[outputs.console]\n[shutdown]\ndrain = \"0s\"\n");
    scene.relay.run();
    wait_until_ready(&scene.relay);
    for number in 0..40 {
        let body = format!(r#"{{"event":"sms","n":{number},"text":"{}"}}"#, "x".repeat(8_000));
        assert_eq!(scene.relay.post(body.as_bytes()).status, 200);
    }
    // Its pipe takes 64 KiB.
    let mut export = scene.relay.command(&["journal", "export"]).stdout(Stdio::piped()).spawn().expect("it starts");
    let pid = export.id();
    wait_until("it to wait for its reader", SOON, || {
        fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|place| place.contains("pipe"))
    });
    scene.shim.set(Knob::SyncError, EIO);
    let body = scene.body();
    assert_eq!(scene.relay.post(body.as_bytes()).status, 503);
    scene.shim.set(Knob::SyncError, 0);
    scene.assert_back();
    assert!(export.try_wait().expect("it can be asked").is_none(), "it still waits");
    export.kill().expect("it can be killed");
    export.wait().expect("it ends");
}

#[test]
fn a_long_read_by_another_process_is_named_and_costs_no_history() {
    let relay = Relay::start("[journal]\nsize_max = \"4 MiB\"\nfree_min = \"0\"\n");
    wait_until_ready(&relay);
    post(&relay, 0);
    let other = rusqlite::Connection::open(relay.path("data/journal.db")).expect("the journal");
    other.execute_batch("BEGIN; SELECT count(*) FROM events").expect("a read");
    let body = |number: usize| format!(r#"{{"event":"sms","n":{number},"text":"{}"}}"#, "x".repeat(2_000));
    let mut accepted = 0;
    wait_until("the log to fill the journal", SOON * 3, || {
        accepted += 1;
        relay.post(body(accepted).as_bytes()).status == 503
    });
    wait_until("it to be named", SOON, || {
        relay.get("/readyz").is_some_and(|answer| answer.text().contains("its log fills journal.size_max"))
    });
    assert!(relay.stderr().contains("another process has read the journal"), "{}", relay.stderr());
    assert!(!relay.stderr().contains("full of events"), "{}", relay.stderr());
    wait_until("all to be published", SOON, || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0
    });
    relay.signal(Signal::CONT); // It lives.
    other.execute_batch("COMMIT").expect("the end of the read");
    wait_until_ready(&relay);
    post(&relay, accepted + 1);
    let list = relay.finish(&["journal", "list"]);
    assert!(
        String::from_utf8_lossy(&list.stdout).starts_with("1  "),
        "the oldest was deleted for a log that this cannot shorten"
    );
}
