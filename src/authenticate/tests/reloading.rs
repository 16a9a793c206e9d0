//! Secrets: where they come from, how they change, and what was refused before they came.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::secret::Doubt;

fn names(accounts: &Accounts) -> Vec<String> {
    accounts.by_path("/default").unwrap().secret_names()
}

fn says(reports: &[ReloadReport], unusable: &Unusable, file: &str) -> bool {
    reports.iter().any(|report| report.unusable == *unusable && report.place.ends_with(file))
}

/// Signed with `secret` at `NOW`, and come then.
fn signed(accounts: &Accounts, secret: &str, body: &str) -> Result<(), Refused> {
    outcome(accounts, "1736937000", &signature(secret, "1736937000", body.as_bytes()), body.as_bytes(), NOW)
}

#[test]
fn each_file_of_a_folder_is_a_secret_unless_it_is_hidden_empty_or_unreadable() {
    let fixture = Fixture::new(&[
        ("b", "first-0123456789abcdef"),
        ("a", "\nsecond-0123456789abcdef \n"),
        (".hidden", "third-0123456789abcdef"),
        ("empty", " \n"),
    ]);
    fs::create_dir(fixture.folder.path().join("folder")).unwrap();
    symlink("nowhere", fixture.folder.path().join("dangling")).unwrap();
    fixture.write("large", &"x".repeat(64 * 1024 + 1));
    let accounts = fixture.open();
    assert_eq!(names(&accounts), ["a", "b"]);
    assert_eq!(signed(&accounts, "second-0123456789abcdef", "{}"), Ok(()));
    assert_eq!(signed(&accounts, "third-0123456789abcdef", "{}"), Err(Refused::BadSignature));
    let reports = accounts.reports();
    assert_eq!(reports.len(), 3);
    assert!(says(&reports, &Unusable::Empty, "/empty"), "{reports:?}");
    assert!(says(&reports, &Unusable::TooLarge, "/large"), "{reports:?}");
    assert!(reports.iter().any(|report| report.place.ends_with("/dangling")), "{reports:?}");
    assert_eq!(fixture.metric("last_reload_successful"), Some(0.0));
}

#[test]
fn a_single_file_and_the_environment_give_secrets() {
    let fixture = Fixture::new(&[("sipsim", "first-0123456789abcdef")]);
    let mut account = account("default", Some(fixture.folder.path().join("sipsim")));
    account.environment_secret = Some(Secret::new(b"second-0123456789abcdef\n".to_vec()));
    let config = config_of(vec![account]);
    let accounts = Accounts::open(&config, Metrics::new(&config)).unwrap();
    assert_eq!(names(&accounts), ["sipsim", "environment"]);
    assert_eq!(signed(&accounts, "second-0123456789abcdef", "{}"), Ok(()));
    assert_eq!(accounts.reports(), []);
}

#[test]
fn only_the_default_folder_may_be_absent_beside_a_secret_in_the_environment() {
    let open = |path: &str| {
        let mut account = account("default", Some(path.into()));
        account.environment_secret = Some(Secret::new(b"second-0123456789abcdef".to_vec()));
        let config = config_of(vec![account]);
        Accounts::open(&config, Metrics::new(&config)).unwrap().reports().len()
    };
    // Where `make run` was tried it is there; then this proves nothing, and harms nothing.
    assert_eq!(open(SECRETS_DEFAULT), 0);
    assert_eq!(open("nowhere/secrets"), 1);
}

#[test]
fn all_accounts_without_a_secret_are_named_with_what_to_do() {
    let fixture = Fixture::new(&[("sipsim", "first-0123456789abcdef")]);
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("x"), "").unwrap();
    let config = config_of(vec![
        account("fine", Some(fixture.folder.path().into())),
        account("lyon", Some(empty.path().into())),
        account("paris", Some("nowhere/secrets".into())),
    ]);
    let error = Accounts::open(&config, Metrics::new(&config)).err().unwrap();
    let named: Vec<_> = error.accounts.iter().map(AccountName::as_str).collect();
    assert_eq!(named, ["lyon", "paris"]);
    let text = error.to_string();
    for part in [
        "account lyon has no signing secret",
        "/x is empty",
        "what is given there (not shown: it leads into no folder that exists, so it may be a secret) cannot be read",
        "RELAY_ACCOUNTS__PARIS__SECRET",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn changed_secrets_come_in_force_and_gone_ones_leave_it() {
    let fixture = Fixture::new(&[("old", "first-0123456789abcdef")]);
    let accounts = fixture.open();
    fixture.write("new", "second-0123456789abcdef");
    let reload = accounts.reload();
    assert_eq!(reload.changed.len(), 1);
    assert_eq!(reload.changed[0].in_force, ["new", "old"]);
    assert_eq!(
        (signed(&accounts, "first-0123456789abcdef", "{}"), signed(&accounts, "second-0123456789abcdef", "{}")),
        (Ok(()), Ok(()))
    );
    assert_eq!(fixture.metric("secrets_loaded{account=\"default\"}"), Some(2.0));

    assert_eq!(accounts.reload().changed, []);

    fixture.remove("old");
    assert_eq!(accounts.reload().changed.len(), 1);
    assert_eq!(signed(&accounts, "first-0123456789abcdef", "{}"), Err(Refused::BadSignature));
    let last_used =
        |name| fixture.metric(&format!("secret_last_used_timestamp_seconds{{account=\"default\",secret=\"{name}\"}}"));
    assert_eq!((last_used("old"), last_used("new").is_some()), (None, true));

    fixture.write("new", "third-0123456789abcdef");
    assert_eq!(accounts.reload().changed.len(), 1);
    assert_eq!(
        (signed(&accounts, "second-0123456789abcdef", "{}"), signed(&accounts, "third-0123456789abcdef", "{}")),
        (Err(Refused::BadSignature), Ok(()))
    );
}

#[test]
fn where_nothing_usable_is_left_the_last_good_secrets_stay() {
    let fixture = Fixture::new(&[("sipsim", "first-0123456789abcdef")]);
    let accounts = fixture.open();
    assert_eq!(fixture.metric("last_reload_successful"), Some(1.0));
    for break_it in [|f: &Fixture| f.write("sipsim", "\n"), |f: &Fixture| f.remove("sipsim")] {
        break_it(&fixture);
        let reload = accounts.reload();
        assert!(reload.reports.iter().any(|report| report.unusable == Unusable::NoneLeft));
        assert_eq!(accounts.reports(), reload.reports);
        assert_eq!(signed(&accounts, "first-0123456789abcdef", "{}"), Ok(()));
        assert_eq!(fixture.metric("last_reload_successful"), Some(0.0));
    }
    fixture.write("sipsim", "first-0123456789abcdef");
    assert_eq!(accounts.reload().reports, []);
    assert_eq!(fixture.metric("last_reload_successful"), Some(1.0));
}

#[test]
fn a_mount_as_kubernetes_makes_and_swaps_it_is_read() {
    let fixture = Fixture::new(&[]);
    let folder = fixture.folder.path();
    let version = |name: &str, content: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("sipsim"), content).unwrap();
    };
    version("..2025_01", "first-0123456789abcdef");
    symlink("..2025_01", folder.join("..data")).unwrap();
    symlink("..data/sipsim", folder.join("sipsim")).unwrap();
    let accounts = fixture.open();
    assert_eq!(
        (names(&accounts), signed(&accounts, "first-0123456789abcdef", "{}")),
        (vec!["sipsim".to_owned()], Ok(()))
    );

    version("..2025_02", "second-0123456789abcdef");
    symlink("..2025_02", folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    fs::remove_dir_all(folder.join("..2025_01")).unwrap();
    assert_eq!(accounts.reload().reports, []);
    assert_eq!(
        (signed(&accounts, "first-0123456789abcdef", "{}"), signed(&accounts, "second-0123456789abcdef", "{}")),
        (Err(Refused::BadSignature), Ok(()))
    );
}

#[test]
fn a_made_secret_is_hex_and_nobody_elses_to_read() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data/secrets");
    let path = make_secret(&folder).unwrap();
    assert_eq!(path, folder.join("sipsim"));
    let content = fs::read_to_string(&path).unwrap();
    assert!(content.len() == 64 && content.bytes().all(|byte| byte.is_ascii_hexdigit()), "{content:?}");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&folder)), (0o600, 0o700));
    assert_eq!(make_secret(&folder).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&path).unwrap(), content);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    fs::remove_file(&path).unwrap();
    make_secret(&folder).unwrap();
    assert_ne!(fs::read_to_string(&path).unwrap(), content);
}

#[test]
fn what_came_before_its_secret_is_recovered_when_the_secret_comes() {
    let fixture = Fixture::new(&[("old", "first-0123456789abcdef")]);
    let accounts = fixture.open();
    let at = |seconds: i64| Timestamp::from_seconds(SIGNED_AT + seconds);
    let send = |secret: &str, body: &str, now| {
        outcome(&accounts, "1736937000", &signature(secret, "1736937000", body.as_bytes()), body.as_bytes(), now)
    };
    assert_eq!(send("second-0123456789abcdef", "second", at(2)), Err(Refused::BadSignature));
    assert_eq!(send("second-0123456789abcdef", "first", at(1)), Err(Refused::BadSignature));
    assert_eq!(send("second-0123456789abcdef", "first", at(3)), Err(Refused::BadSignature)); // The sender tried again.
    assert_eq!(send("third-0123456789abcdef", "other", at(1)), Err(Refused::BadSignature));
    assert_eq!(send("second-0123456789abcdef", "stale", at(301)), Err(Refused::BadSignature)); // Would have been refused with any secret.
    assert_eq!(accounts.by_path("/default").unwrap().held(), 4);

    assert!(accounts.reload().recovered.is_empty());
    fixture.write("new", "second-0123456789abcdef");
    let recovered: Vec<_> = accounts.reload().recovered.into_iter().map(|v| (v.body, v.received_at)).collect();
    assert_eq!(recovered, [("first".into(), at(1)), ("second".into(), at(2))]);
    assert_eq!(accounts.by_path("/default").unwrap().held(), 1);

    fixture.write("newer", "third-0123456789abcdef");
    assert_eq!(accounts.reload().recovered.len(), 1);
    assert_eq!(accounts.by_path("/default").unwrap().held(), 0);
}

#[test]
fn held_requests_stay_within_their_bytes() {
    let check = |keep_refused: usize, bodies: usize, held: usize| {
        let fixture = Fixture::new(&[("old", "first-0123456789abcdef")]);
        let mut config = fixture.config.clone();
        config.accounts[0].keep_refused = keep_refused;
        let accounts = Accounts::open(&config, Arc::clone(&fixture.metrics)).unwrap();
        for number in 0..bodies {
            let body = format!("{number:0744}"); // With the 256 bytes beside it, 1000.
            assert_eq!(signed(&accounts, "second-0123456789abcdef", &body), Err(Refused::BadSignature));
        }
        assert_eq!(accounts.by_path("/default").unwrap().held(), held);
        fixture.write("new", "second-0123456789abcdef");
        let recovered = accounts.reload().recovered;
        assert_eq!(recovered.len(), held);
        // The newest always finds room.
        if held > 0 {
            assert!(recovered.iter().any(|v| v.body == format!("{:0744}", bodies - 1)));
        }
        // What is recovered counts until the journal has it.
        let one_more = || {
            assert_eq!(signed(&accounts, "third-0123456789abcdef", &format!("{:0744}", 0)), Err(Refused::BadSignature));
            accounts.by_path("/default").unwrap().held()
        };
        assert_eq!(one_more(), usize::from((held + 1) * 1000 <= keep_refused));
        drop(recovered);
        assert!(one_more() > 0 || keep_refused < 1000);
    };
    check(10_000, 9, 9);
    check(10_000, 10, 10);
    check(10_000, 30, 10);
    check(999, 3, 0);
    check(0, 3, 0);
}

#[test]
fn what_does_not_fit_beside_recovered_requests_throws_out_none() {
    let fixture = Fixture::new(&[("old", "first-0123456789abcdef")]);
    let mut config = fixture.config.clone();
    config.accounts[0].keep_refused = 10_000;
    let accounts = Accounts::open(&config, Arc::clone(&fixture.metrics)).unwrap();
    let refuse = |secret, number: usize, width: usize| {
        assert_eq!(signed(&accounts, secret, &format!("{number:0width$}")), Err(Refused::BadSignature));
        accounts.by_path("/default").unwrap().held()
    };
    (0..6).for_each(|number| assert_eq!(refuse("second-0123456789abcdef", number, 744), number + 1));
    fixture.write("new", "second-0123456789abcdef");
    let recovered = accounts.reload().recovered; // 6,000 bytes.
    (0..4).for_each(|number| assert_eq!(refuse("third-0123456789abcdef", number, 744), number + 1));
    assert_eq!(refuse("third-0123456789abcdef", 0, 4_744), 4);
    drop(recovered);
    assert_eq!(refuse("third-0123456789abcdef", 0, 4_744), 5);
    assert_eq!(refuse("third-0123456789abcdef", 0, 9_744), 1);
}

#[test]
fn a_request_tried_with_secrets_that_just_changed_is_tried_again() {
    let fixture = Fixture::new(&[("old", "first-0123456789abcdef")]);
    let accounts = fixture.open();
    let account = accounts.by_path("/default").unwrap();
    let late = request(&accounts, "1736937000", &signature("second-0123456789abcdef", "1736937000", b"{}"), b"{}", NOW);
    let tried = account.keys();
    fixture.write("new", "second-0123456789abcdef");
    accounts.reload();
    assert!(account.keep(late.request, &tried).is_some());
    assert_eq!(account.held(), 0);
}

#[tokio::test]
async fn watching_hands_on_what_is_recovered() {
    let fixture = Fixture::new(&[("old", "first-0123456789abcdef")]);
    let accounts = Arc::new(fixture.open());
    let (sender, mut recovered) = tokio::sync::mpsc::unbounded_channel();
    let watching = tokio::spawn(Arc::clone(&accounts).watch(sender));
    assert_eq!(signed(&accounts, "second-0123456789abcdef", "{}"), Err(Refused::BadSignature));
    fixture.write("new", "second-0123456789abcdef");
    assert_eq!(recovered.recv().await.unwrap().body, "{}");
    drop(recovered);
    watching.await.unwrap();
}

#[test]
fn what_is_hardly_a_secret_is_reported_at_the_start_and_at_a_reload_and_only_a_short_one_is_skipped() {
    let fixture = Fixture::new(&[("password", "0123456789abcdef"), ("username", "sipsim"), ("weak", "01234567")]);
    let accounts = fixture.open();
    let check = |reports: &[ReloadReport]| {
        assert_eq!(reports.len(), 2, "{reports:?}");
        assert!(says(reports, &Unusable::Short(6), "/username"), "{reports:?}");
        assert!(says(reports, &Unusable::Doubtful(Doubt::Weak(8)), "/weak"), "{reports:?}");
        assert_eq!(fixture.metric("last_reload_successful"), Some(0.0));
    };
    check(&accounts.reports());
    assert_eq!(names(&accounts), ["password", "weak"]);
    assert_eq!(signed(&accounts, "sipsim", "{}"), Err(Refused::BadSignature));
    check(&accounts.reload().reports);
    fixture.remove("weak");
    fixture.remove("username");
    fixture.write("password", "\u{feff}0123456789abcdef");
    let reload = accounts.reload();
    assert_eq!(reload.reports.len(), 1);
    assert!(says(&reload.reports, &Unusable::Doubtful(Doubt::ByteOrderMark), "/password"), "{:?}", reload.reports);
    assert_eq!(signed(&accounts, "\u{feff}0123456789abcdef", "{}"), Ok(()));
}

#[test]
fn a_short_secret_is_taken_at_the_start_if_there_is_no_other_and_replaces_none_later() {
    let fixture = Fixture::new(&[("sipsim", "short")]);
    let accounts = fixture.open();
    let reports = accounts.reload().reports;
    assert!(reports.len() == 1 && says(&reports, &Unusable::Doubtful(Doubt::Weak(5)), "/sipsim"), "{reports:?}");
    assert_eq!(signed(&accounts, "short", "{}"), Ok(()));
    fixture.write("sipsim", "0123456789abcdef");
    assert_eq!(accounts.reload().reports, []);
    fixture.write("sipsim", "short");
    let reports = accounts.reload().reports;
    assert!(reports.iter().any(|report| report.unusable == Unusable::NoneLeft), "{reports:?}");
    assert_eq!(signed(&accounts, "short", "{}"), Err(Refused::BadSignature));
    assert_eq!(signed(&accounts, "0123456789abcdef", "{}"), Ok(()));
}
