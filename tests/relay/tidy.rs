//! What drifts: the repository's files say what the program does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Relay, finish};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of the repository whose names end so, without what is built and what git keeps.
fn files(folder: &Path, ending: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().expect("a name").to_string_lossy().into_owned();
        if entry.is_dir() && !matches!(&*name, "target" | ".git" | "data" | "src" | "tests") {
            files(&entry, ending, found);
        } else if entry.is_file() && ending.iter().any(|ending| name.ends_with(ending)) {
            found.push(entry);
        }
    }
}

#[test]
fn every_metric_that_a_document_or_a_rule_names_exists() {
    // All outputs and a certificate's place, so that every metric has its series.
    let relay = Relay::start("[outputs.kafka]\nbrokers = \"127.0.0.1:1\"\n[outputs.console]\n");
    let page = relay.get("/metrics").expect("the admin port answers").text();
    let exist: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    // These have no series until there is something to tell.
    let later = ["sipsim_relay_certificate_expiry_timestamp_seconds", "sipsim_relay_topic_held"];
    let mut documents = Vec::new();
    files(root(), &[".md", ".yml", ".yaml", ".json", ".rules", ".html"], &mut documents);
    assert!(
        documents.iter().any(|file| file.ends_with("docker-compose.yml")),
        "they are looked for in the right place"
    );
    for document in documents {
        let text = fs::read_to_string(&document).expect("text");
        for (at, _) in text.match_indices("sipsim_relay_") {
            let end = text[at..].find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
            let name = text[at..end.map_or(text.len(), |end| at + end)].trim_end_matches('_');
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
            let line = text[..at].matches('\n').count() + 1;
            assert!(
                name == "sipsim_relay" || [name, base].iter().any(|name| exist.contains(name) || later.contains(name)),
                "{}:{line}: there is no metric {name}",
                document.display()
            );
        }
    }
}

#[test]
fn the_configurations_of_the_repository_are_in_order() {
    let mut configurations = vec![root().join("relay.toml")];
    files(&root().join("deploy"), &[".toml"], &mut configurations);
    assert!(configurations.len() >= 3, "{configurations:?}");
    let relay = Relay::prepare(""); // For a folder with a secret in its place.
    for file in configurations {
        let mut check = crate::support::program(&relay.path("."));
        // Images mount the secret elsewhere.
        check.args(["check", "--config"]).arg(&file).env("RELAY_ACCOUNTS__DEFAULT__SECRET", crate::support::SECRET);
        let output = finish(&mut check, Duration::from_secs(10));
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{}: {said}", file.display());
        assert!(said.contains("is in order"), "{}: {said}", file.display());
    }
}

#[test]
fn payloads_are_json_and_each_event_has_one() {
    let mut payloads = Vec::new();
    for entry in fs::read_dir(root().join("tests/payloads")).expect("the payloads") {
        let file = entry.expect("an entry").path();
        serde_json::from_slice::<serde_json::Value>(&fs::read(&file).expect("a file")).expect("JSON");
        payloads
            .push(file.file_name().expect("a name").to_string_lossy().split('.').next().expect("a name").to_owned());
    }
    payloads.sort_unstable();
    payloads.dedup();
    // `incoming_call_end_chain_member_call` has none: no page of SIPSIM's shows it.
    assert_eq!(payloads.len(), 14, "{payloads:?}");
}

/// A file that no `mod` names is not compiled, and nobody notices that its tests do not run.
#[test]
fn every_file_of_the_tests_is_compiled() {
    let mut folders = vec![root().join("tests")];
    while let Some(folder) = folders.pop() {
        let parents = [folder.join("mod.rs"), folder.with_extension("rs"), folder.join("integration.rs")];
        let parent = parents.into_iter().find(|file| file.is_file());
        let modules = parent.map_or_else(String::new, |file| fs::read_to_string(file).expect("text"));
        for entry in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let module = entry.file_stem().expect("a name").to_string_lossy().into_owned();
            let is_rust = entry.extension().is_some_and(|end| end == "rs") || entry.join("mod.rs").is_file();
            let is_named = modules.lines().any(|line| line.trim_start_matches("pub ") == format!("mod {module};"));
            let stands_alone = matches!(&*module, "mod" | "integration");
            assert!(!is_rust || stands_alone || is_named, "{}: no module names it", entry.display());
            if entry.is_dir() {
                folders.push(entry);
            }
        }
    }
}
