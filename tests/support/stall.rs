//! When the disk of this machine stood still, as a program that is not the relay sees it.
//!
//! The relay syncs before it answers, so a disk that stalls for longer than `ingress.deadline` makes it answer 503, and rightly (DESIGN §4). A
//! test whose subject is a broker must not fail for that, nor may it believe the relay's own word for it: so a file beside the relay's is
//! synced all the time, and what that took decides. It grows, as a journal's log does: a sync of what a file had before needs less of a file
//! system, and was seen to go on while one that had to make its new length known took 8 s.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

/// Between two syncs.
const PAUSE: Duration = Duration::from_millis(100);
/// A sync that took this long is a stall. Half of the deadline of 1.8 s, as a webhook's own sync may have begun before ours or after it.
const STALL: Duration = Duration::from_millis(900);

/// From and until; without an end while it lasts.
static SLOW: Mutex<Vec<(Instant, Option<Instant>)>> = Mutex::new(Vec::new());

/// Begins to watch the disk of the folder for temporary files, where the relays of the tests have their journals. Once a process.
pub fn watch() {
    static START: Once = Once::new();
    START.call_once(|| {
        let mut file = tempfile::tempfile().expect("a temporary file");
        thread::spawn(move || {
            loop {
                SLOW.lock().expect("no panic").push((Instant::now(), None));
                sync(&mut file);
                let mut slow = SLOW.lock().expect("no panic");
                let (start, end) = slow.last_mut().expect("it was pushed");
                *end = Some(Instant::now());
                if start.elapsed() < STALL {
                    slow.pop();
                }
                drop(slow);
                thread::sleep(PAUSE);
            }
        });
    });
}

fn sync(file: &mut File) {
    file.write_all(&[b'x'; 512]).and_then(|()| file.sync_data()).expect("the disk takes 512 bytes");
}

/// Whether the disk stood still at some time between these.
pub fn was_stalled(from: Instant, until: Instant) -> bool {
    let slow = SLOW.lock().expect("no panic");
    slow.iter().any(|(start, end)| {
        end.unwrap_or_else(Instant::now) - *start >= STALL && *start <= until && end.is_none_or(|end| end >= from)
    })
}
