//! Standard error of a process that may not wait for whoever reads it (a log driver that hangs, a pager, Ctrl-S): lines wait in memory, and one
//! thread writes them. What finds no room is dropped and counted, and one line says so when writing goes on.
//!
//! Until [`start`] each line is written at once by its caller, which is what commands want whose only work is to say something.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that wait at the most: some thousands of lines.
const WAITING_MAX: usize = 1 << 20;
/// A reader that has taken nothing for longer is not waited for at the process's end.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Between two tries where stderr does not block. Whoever shares the terminal or pipe may have made it so: its flags are of the open file.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// From now on [`write()`] does not block. Where no thread can be started it still does.
pub fn start() {
    let queue = Arc::new(Queue::default());
    let writer = Arc::clone(&queue);
    let say =
        |count| tracing::error!(count, "{count} log lines were dropped: nothing took them from stderr, or it failed");
    if thread::Builder::new().name("stderr".into()).spawn(move || writer.serve(io::stderr(), say)).is_ok() {
        let _ = QUEUE.set(queue); // Called twice, the first one goes on.
    }
}

/// Writes whole lines, as they are. An error is nobody's to hear, since this is where it would be told.
pub fn write(lines: &[u8]) {
    match QUEUE.get() {
        Some(queue) => queue.put(lines),
        None => _ = io::stderr().write_all(lines),
    }
}

/// Waits until all that was written before is out, at most for so long, and not for a reader that has taken nothing for a second. To be called before
/// the process ends.
pub fn flush(max: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.flush(max);
    }
}

/// Lines dropped since the process began.
pub fn lines_dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.state().dropped)
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// While the thread writes: when it began, or something was taken last.
    since: Option<Instant>,
    dropped: u64,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, lines: &[u8]) {
        let mut state = self.state();
        if state.waiting.len() + lines.len() > WAITING_MAX {
            state.dropped += count(lines);
        } else {
            state.waiting.extend_from_slice(lines);
            self.changed.notify_all();
        }
    }

    /// Writes what comes, for the life of the process. `say` is told how many lines were dropped since it was last told.
    fn serve(&self, mut out: impl Write, say: impl Fn(u64)) {
        let (mut flows, mut said, mut open_line) = (true, 0, false);
        loop {
            let is_idle = |state: &mut State| state.waiting.is_empty() && !(flows && state.dropped > said);
            let mut state = self.changed.wait_while(self.state(), is_idle).unwrap_or_else(PoisonError::into_inner);
            let mut lines = std::mem::take(&mut state.waiting);
            state.since = Some(Instant::now());
            let dropped = state.dropped;
            drop(state);
            if flows && dropped > said {
                say(dropped - said); // Comes to stand behind the lines that wait, which is where the dropped ones would be.
                said = dropped;
            }
            let ends_a_line = open_line && !lines.is_empty();
            if ends_a_line {
                lines.insert(0, b'\n');
            }
            let mut written = 0;
            flows = true;
            while flows && written < lines.len() {
                match out.write(&lines[written..]) {
                    Ok(count) if count > 0 => {
                        written += count;
                        self.state().since = Some(Instant::now());
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(TRY_AGAIN_AFTER),
                    Ok(_) | Err(_) => flows = false,
                }
            }
            if let Some(last) = lines[..written].last() {
                open_line = *last != b'\n';
            }
            let mut state = self.state();
            state.since = None;
            state.dropped += count(&lines[written.max(usize::from(ends_a_line))..]);
            self.changed.notify_all();
        }
    }

    fn flush(&self, max: Duration) {
        let until = Instant::now() + max;
        let mut state = self.state();
        while !state.waiting.is_empty() || state.since.is_some() {
            let until = state.since.map_or(until, |since| until.min(since + STUCK_AFTER));
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Says what it is to write, and writes once it may: so many bytes, or an error.
    struct Gate(Sender<Vec<u8>>, Receiver<Result<usize, io::ErrorKind>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            let may = self.1.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(may?.min(bytes.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_of_in_its_place() {
        let queue = Arc::new(Queue::default());
        let ((comes, came), (let_through, may)) = (channel(), channel());
        let (writer, teller) = (Arc::clone(&queue), Arc::clone(&queue));
        let say = move |count| teller.put(format!("{count} dropped\n").as_bytes());
        thread::spawn(move || writer.serve(Gate(comes, may), say));
        let all = Ok(usize::MAX);

        queue.put(b"first\n");
        assert_eq!(came.recv_timeout(PATIENCE).unwrap(), b"first\n");
        queue.flush(Duration::ZERO); // Waits for nobody.
        let long = [vec![b'x'; WAITING_MAX - 1], b"\n".to_vec()].concat();
        queue.put(&long);
        queue.put(b"too\nmuch\n");
        assert_eq!(queue.state().dropped, 2);
        let_through.send(all).unwrap();
        assert!(came.recv_timeout(PATIENCE).unwrap() == long);
        queue.put(b"later\n");
        let_through.send(all).unwrap();
        assert_eq!(came.recv_timeout(PATIENCE).unwrap(), b"2 dropped\nlater\n");
        let_through.send(all).unwrap();
        queue.flush(PATIENCE);
        assert!(queue.state().waiting.is_empty() && queue.state().since.is_none());

        // One that cannot be written is counted too, and told of once another one could be.
        queue.put(b"lost\n");
        let_through.send(Err(io::ErrorKind::BrokenPipe)).unwrap();
        assert_eq!(came.recv_timeout(PATIENCE).unwrap(), b"lost\n");
        queue.flush(PATIENCE);
        queue.put(b"again\n");
        let_through.send(all).unwrap();
        assert_eq!(came.recv_timeout(PATIENCE).unwrap(), b"again\n");
        let_through.send(all).unwrap();
        assert_eq!(came.recv_timeout(PATIENCE).unwrap(), b"1 dropped\n");
    }

    #[test]
    fn a_stderr_that_does_not_block_loses_nothing_and_a_line_that_broke_off_is_ended() {
        let queue = Arc::new(Queue::default());
        let ((comes, came), (let_through, may)) = (channel(), channel());
        let writer = Arc::clone(&queue);
        thread::spawn(move || writer.serve(Gate(comes, may), |_| {}));
        let came = || came.recv_timeout(PATIENCE).unwrap();
        queue.put(b"one\ntwo\n");
        for (expected, then) in [
            (&b"one\ntwo\n"[..], Ok(2)),
            (b"e\ntwo\n", Err(io::ErrorKind::WouldBlock)),
            (b"e\ntwo\n", Err(io::ErrorKind::WouldBlock)),
            (b"e\ntwo\n", Ok(3)),
            (b"wo\n", Err(io::ErrorKind::BrokenPipe)),
        ] {
            assert_eq!(came(), expected);
            let_through.send(then).unwrap();
        }
        queue.flush(PATIENCE);
        queue.put(b"lost\n");
        assert_eq!(came(), b"\nlost\n");
        let_through.send(Err(io::ErrorKind::BrokenPipe)).unwrap();
        queue.flush(PATIENCE);
        assert_eq!(queue.state().dropped, 2);
        queue.put(b"three\n");
        assert_eq!(came(), b"\nthree\n");
    }
}
