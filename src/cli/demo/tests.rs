//! The play before relays of the test's own, of which only one keeps its promise.

use std::sync::{Arc, Mutex};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

const SECRET: &[u8] = b"example-secret";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Character {
    Honest,
    /// Forgets the thirteenth event.
    Forgetful,
    /// Lets the thirteenth event out after the one that follows it.
    Disorderly,
    /// Does not look at signatures.
    Gullible,
    /// Says 503 while anything waits.
    Timid,
}

type Queue = Arc<Mutex<Vec<String>>>;

async fn relay(character: Character, door: Door) -> (SocketAddr, SocketAddr, JoinSet<()>) {
    let queue = Queue::default();
    let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = (public.local_addr().unwrap(), admin.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    let waiting = Arc::clone(&queue);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = public.accept().await {
            connections.spawn(take_webhooks(stream, character, Arc::clone(&waiting)));
        }
    });
    let waiting = Arc::clone(&queue);
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = admin.accept().await {
            let pending = waiting.lock().unwrap().len();
            let body = format!("sipsim_relay_events_pending{{output=\"console\"}} {pending}\n");
            let answer =
                format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    tasks.spawn(let_out(character, door, queue));
    (addresses.0, addresses.1, tasks)
}

async fn take_webhooks(stream: TcpStream, character: Character, queue: Queue) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut timestamp, mut signature, mut length, mut line) = (String::new(), String::new(), 0, String::new());
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
            match line.trim_end().split_once(": ") {
                Some(("X-Webhook-Timestamp", value)) => timestamp = value.to_owned(),
                Some(("X-Webhook-Signature", value)) => signature = value.to_owned(),
                Some(("Content-Length", value)) => length = value.parse().ok()?,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).unwrap();
        mac.update(format!("{timestamp}.").as_bytes());
        mac.update(&body);
        let genuine = mac.verify_slice(&hex::decode(signature).unwrap()).is_ok();
        let (status, id) = match character {
            Character::Timid if !queue.lock().unwrap().is_empty() => ("503 No", String::new()),
            Character::Gullible => ("200 OK", hex::encode(Sha256::digest(&body))),
            _ if genuine => ("200 OK", hex::encode(Sha256::digest(&body))),
            _ => ("401 Unauthorized", String::new()),
        };
        if status == "200 OK" {
            queue.lock().unwrap().push(id.clone());
        }
        let answer = format!("{{\"id\":\"{id}\"}}");
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

async fn let_out(character: Character, mut door: Door, queue: Queue) {
    let mut number = 0;
    loop {
        sleep(Duration::from_millis(1)).await;
        let waiting = queue.lock().unwrap().clone();
        // Two at once for the thirteenth, as an event can only be overtaken by one that is there.
        let order: &[usize] = match (character, number, waiting.len()) {
            (_, _, 0) | (Character::Disorderly, 12, 1) => continue,
            (Character::Disorderly, 12, _) => &[1, 0],
            _ => &[0],
        };
        let forgotten = character == Character::Forgetful && number == 12;
        let lines: String = order.iter().map(|place| format!("{{\"id\":\"{}\"}}\n", waiting[*place])).collect();
        if forgotten || door.write_all(lines.as_bytes()).is_ok() {
            queue.lock().unwrap().drain(..order.len());
            number += order.len();
        }
    }
}

/// Whether all was well, and the story.
async fn play(character: Character) -> (Result<bool, String>, String) {
    let door = Door::new(Box::new(io::sink()));
    let (public, admin, _tasks) = relay(character, door.clone()).await;
    let story: Arc<Mutex<String>> = Arc::default();
    let written = Arc::clone(&story);
    let tell = Box::new(move |told: Told<'_>| match told {
        Told::Title(text) | Told::Line(text) => *written.lock().unwrap() += &format!("{text}\n"),
    });
    let stage = Stage { public, admin, secret: Secret::new(SECRET.to_vec()), door, tell };
    let ended = stage.play(Duration::from_millis(120), Duration::from_millis(300)).await;
    let story = story.lock().unwrap().clone();
    (ended, story)
}

#[tokio::test]
async fn an_honest_relay_passes() {
    let (ended, story) = play(Character::Honest).await;
    assert_eq!(ended, Ok(true), "{story}");
    assert!(
        story.contains("Sent 19, answered 200: 19, published: 19.\nNothing was lost. The 8 that waited left"),
        "{story}"
    );
    assert!(story.contains(", 1 waiting\n") && story.contains(", 8 waiting\n"), "{story}");
}

#[tokio::test]
async fn a_relay_that_breaks_its_promise_is_found_out() {
    for (character, found) in [
        (Character::Forgetful, "not in order"),
        (Character::Disorderly, "not in order"),
        (Character::Gullible, "the forged event was not refused"),
        (Character::Timid, "LOST: "),
    ] {
        let (ended, story) = play(character).await;
        assert_eq!(ended, Ok(false), "{story}");
        assert!(story.contains(found) && !story.contains("Nothing was lost"), "{story}");
    }
}

#[test]
fn the_folder_and_the_secret_are_this_users_alone_and_go_away() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::make().unwrap();
    let path = folder.0.clone();
    let secret = make_secret(&path.join("secret")).unwrap();
    assert_eq!(fs::read(path.join("secret")).unwrap(), secret.expose());
    assert_eq!(secret.expose().len(), 64);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("secret"))), (0o700, 0o600));
    drop(folder);
    assert!(!path.exists());
}
