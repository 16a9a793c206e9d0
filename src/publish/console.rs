//! The console: one line an event, for people and for pipes. It promises that a line that was begun and broken off never runs into the next,
//! whoever writes that: another output, the output begun anew, or the next process.
//!
//! An owned thread writes, so that a pipe that nobody reads holds up this output and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::encode::on_one_line;
use super::{Place, PublishError, Record, Report, Reports, Sink};
use crate::printable;

/// Lines that share one write and one flush: enough that a drain is not a system call an event.
const GROUP_RECORDS_MAX: usize = 256;
/// Bytes after which a group is full, whatever its number of lines.
const GROUP_BYTES_MAX: usize = 256 * 1024;
/// The pauses before a writer that failed is tried again.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What console outputs write to: one for all of them, each group of lines in one piece.
#[derive(Clone)]
pub struct Stream {
    open: Arc<Mutex<Open>>,
    is_terminal: bool,
}

struct Open {
    writer: Box<dyn Write + Send>,
    /// The last byte written was not a line's end.
    open_line: bool,
    /// `None` where no other process writes to it.
    mark: Option<Mark>,
    /// Something may have been written.
    is_begun: bool,
    is_closed: bool,
}

/// A file beside the journal that names the pipe or file that was written to. Only a run that ended with a whole line removes it.
struct Mark {
    path: PathBuf,
    stdout: File,
}

impl Stream {
    /// Standard output. A line of the last run on this journal that was broken off there is ended before the first one is written.
    pub fn stdout(journal: &Path) -> io::Result<Self> {
        // Not by way of `io::Stdout`, which keeps the beginning of a line that was not taken, and writes it later.
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let mut path = journal.as_os_str().to_owned();
        path.push(".console");
        let mark = match stdout.is_terminal() {
            true => None,
            false => Some(Mark { path: path.into(), stdout: stdout.try_clone()? }),
        };
        Ok(Self::of(Box::new(stdout.try_clone()?), stdout.is_terminal(), mark))
    }

    /// Anything else, which may lead to a terminal.
    pub fn new(writer: Box<dyn Write + Send>, is_terminal: bool) -> Self {
        Self::of(writer, is_terminal, None)
    }

    fn of(writer: Box<dyn Write + Send>, is_terminal: bool, mark: Option<Mark>) -> Self {
        let open = Open { writer, open_line: false, mark, is_begun: false, is_closed: false };
        Self { open: Arc::new(Mutex::new(open)), is_terminal }
    }

    /// Ends the writing, unless somebody is at it, who may hang. Blocks on the journal's disk.
    pub fn close(&self) {
        let Ok(mut open) = self.open.try_lock() else { return };
        open.is_closed = true;
        if let (Some(mark), true, false) = (&open.mark, open.is_begun, open.open_line) {
            let _ = fs::remove_file(&mark.path); // What is left of it costs an empty line.
        }
    }

    /// How many of `bytes`, which are whole lines, were written and flushed, and why not all.
    fn write(&self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.is_closed {
            return (0, Err(io::ErrorKind::BrokenPipe.into()));
        }
        if !std::mem::replace(&mut open.is_begun, true)
            && let Some(mark) = &open.mark
        {
            open.open_line = mark.begin();
        }
        if open.open_line
            && let (_, Err(error)) = open.write(b"\n")
        {
            return (0, Err(error));
        }
        open.write(bytes)
    }
}

impl Open {
    fn write(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        let mut result = Ok(());
        while written < bytes.len() && result.is_ok() {
            match self.writer.write(&bytes[written..]) {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => result = Err(error),
            }
        }
        if let Some(last) = bytes[..written].last() {
            self.open_line = *last != b'\n';
        }
        // What stands before a failure counts only once it is flushed too.
        match self.writer.flush() {
            Ok(()) => (written, result),
            Err(error) => (0, Err(result.err().unwrap_or(error))),
        }
    }
}

impl Mark {
    /// Whether the last run may have left the beginning of a line; and the next run will find that this one may have.
    fn begin(&self) -> bool {
        let Ok(stdout) = self.stdout.metadata() else { return false };
        let name = format!("{}:{}\n", stdout.dev(), stdout.ino());
        let is_open = match self.last_byte(stdout.len()).filter(|_| stdout.is_file()) {
            Some(last) => last != b'\n',
            // A pipe does not say what was written to it before.
            None => fs::read_to_string(&self.path).is_ok_and(|last| last == name),
        };
        let mut file = OpenOptions::new();
        let file = file.create(true).truncate(true).write(true).mode(0o600).open(&self.path);
        let _ = file.and_then(|mut file| file.write_all(name.as_bytes())); // A disk that fails has the journal to tell of it.
        is_open
    }

    /// Of a file that may be read; a line's end if it is empty.
    fn last_byte(&self, length: u64) -> Option<u8> {
        let mut last = *b"\n";
        if let Some(place) = length.checked_sub(1) {
            let file = File::open(format!("/proc/self/fd/{}", self.stdout.as_raw_fd())).ok()?;
            file.read_exact_at(&mut last, place).ok()?;
        }
        Some(last[0])
    }
}

/// Writes each record's payload as one line. Bounded by what the output lets be in flight.
pub struct Console {
    records: Sender<Record>,
    is_terminal: bool,
}

impl Console {
    /// Starts the writing thread. It ends when the console is dropped; nobody waits for it then, since a write into a full pipe may never return.
    ///
    /// The thread not being startable shows as an output that is lost, as everything else does.
    pub fn new(stream: Stream, reports: Reports) -> Self {
        let (records, queue) = channel();
        let at_work = reports.clone();
        let is_terminal = stream.is_terminal;
        let spawned = thread::Builder::new().name("console".into()).spawn(move || {
            serve(&stream, &queue, &at_work, PAUSE_MIN);
        });
        if let Err(error) = spawned {
            let detail = format!("the console's thread cannot be started: {error}");
            let _ = reports.send(Report::Lost { reason: PublishError::Disconnected, detail });
        }
        Self { records, is_terminal }
    }
}

impl Sink for Console {
    fn send(&mut self, record: &mut Record) {
        on_one_line(&mut record.payload);
        // JSON has control characters beyond C0 as they are. A pipe gets them so.
        if self.is_terminal {
            record.payload = printable::lines(&String::from_utf8_lossy(&record.payload)).into_owned().into_bytes();
        }
        // Fails only without the thread, of which the output was told as lost: it sends nothing then.
        let _ = self.records.send(std::mem::take(record));
    }
}

fn serve(stream: &Stream, queue: &Receiver<Record>, reports: &Reports, pause_min: Duration) {
    let mut pause = pause_min;
    let _ = reports.send(Report::Connected);
    while let Ok(first) = queue.recv() {
        let mut group = Group::default();
        group.push(first);
        while !group.is_full() {
            match queue.try_recv() {
                Ok(record) => group.push(record),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let (written, result) = stream.write(&group.bytes);
        for (sequence, end) in group.ends {
            let report = if end <= written {
                Report::Delivered { sequence, place: Place::Confirmed }
            } else {
                Report::Failed { sequence, error: PublishError::Disconnected }
            };
            let _ = reports.send(report);
        }
        let Err(error) = result else {
            pause = pause_min;
            continue;
        };
        let dropped = refuse(queue, reports, Instant::now()).is_err();
        let detail = format!("the console cannot be written: {error}");
        let _ = reports.send(Report::Lost { reason: PublishError::Disconnected, detail });
        if dropped || refuse(queue, reports, Instant::now() + pause).is_err() {
            return;
        }
        pause = (pause * 2).min(PAUSE_MAX);
        // There is nothing to try a writer with but a record; the next one proves it.
        let _ = reports.send(Report::Connected);
    }
}

/// Gives records back unwritten until `until`; an error if the console was dropped meanwhile.
fn refuse(queue: &Receiver<Record>, reports: &Reports, until: Instant) -> Result<(), RecvTimeoutError> {
    loop {
        match queue.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Record { sequence, .. }) => {
                let _ = reports.send(Report::Failed { sequence, error: PublishError::Disconnected });
            }
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
        }
    }
}

/// Lines that are written and flushed together.
#[derive(Default)]
struct Group {
    bytes: Vec<u8>,
    /// Each record's sequence, and where its line ends.
    ends: Vec<(u64, usize)>,
}

impl Group {
    fn push(&mut self, record: Record) {
        self.bytes.extend_from_slice(&record.payload);
        self.bytes.push(b'\n');
        self.ends.push((record.sequence, self.bytes.len()));
    }

    fn is_full(&self) -> bool {
        self.ends.len() >= GROUP_RECORDS_MAX || self.bytes.len() >= GROUP_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    /// What the next writes do: `Ok(n)` takes at most n bytes. Without a script everything is taken.
    type Script = Arc<Mutex<VecDeque<io::Result<usize>>>>;

    #[derive(Clone, Default)]
    struct Scripted {
        script: Script,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = self.script.lock().unwrap().pop_front().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
            self.text.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record(sequence: u64, payload: &str) -> Record {
        Record { sequence, payload: payload.as_bytes().to_vec(), ..Record::default() }
    }

    /// Writes three records to a writer with this script: the text that came out, and the reports as words.
    fn written(script: Vec<io::Result<usize>>) -> (String, Vec<String>) {
        let writer = Scripted { script: Arc::new(Mutex::new(script.into())), ..Default::default() };
        let text = writer.text.clone();
        let (reports, mut said) = unbounded_channel();
        let (records, queue) = channel();
        for (sequence, payload) in [(1, "one"), (2, "two"), (3, "three")] {
            records.send(record(sequence, payload)).unwrap();
        }
        let stream = Stream::new(Box::new(writer), false);
        let again = records.clone();
        let mut words = Vec::new();
        thread::scope(|scope| {
            scope.spawn(move || serve(&stream, &queue, &reports, Duration::from_millis(1)));
            let mut connected = 0;
            while words.iter().filter(|word: &&String| word.starts_with("delivered")).count() < 3 {
                let report = said.blocking_recv().unwrap();
                words.push(match &report {
                    Report::Delivered { sequence, .. } => format!("delivered {sequence}"),
                    Report::Failed { sequence, .. } => format!("failed {sequence}"),
                    Report::Connected => "connected".into(),
                    Report::Lost { detail, .. } => format!("lost {detail}"),
                    Report::Broken { .. } => unreachable!("the console has no connection"),
                });
                if matches!(report, Report::Connected) {
                    connected += 1;
                    if connected > 1 {
                        // What an output does: what failed comes again, oldest first.
                        for sequence in 1..=3 {
                            if words.contains(&format!("failed {sequence}")) {
                                again.send(record(sequence, ["one", "two", "three"][sequence as usize - 1])).unwrap();
                            }
                        }
                    }
                }
            }
            drop(records);
            drop(again);
        });
        (String::from_utf8(text.lock().unwrap().clone()).unwrap(), words)
    }

    #[test]
    fn a_terminal_gets_no_command_and_a_pipe_the_record_as_it_is() {
        for (is_terminal, expected) in
            [(false, "{\"a\": \"\u{9b}31m\u{7f}é\"}"), (true, "{\"a\": \"\\u009b31m\\u007fé\"}")]
        {
            let (records, queue) = channel();
            let mut console = Console { records, is_terminal };
            console.send(&mut record(1, "{\"a\":\n\"\u{9b}31m\u{7f}é\"}"));
            assert_eq!(String::from_utf8(queue.recv().unwrap().payload).unwrap(), expected);
        }
    }

    #[test]
    fn each_record_is_a_line_and_confirmed() {
        let (text, words) = written(vec![]);
        assert_eq!(text, "one\ntwo\nthree\n");
        assert_eq!(words, ["connected", "delivered 1", "delivered 2", "delivered 3"]);
    }

    #[test]
    fn a_closed_writer_fails_what_it_did_not_take_and_is_tried_again() {
        let (text, words) = written(vec![Ok(4), Err(io::ErrorKind::BrokenPipe.into())]);
        assert_eq!(text, "one\ntwo\nthree\n");
        assert_eq!(
            words,
            [
                "connected",
                "delivered 1",
                "failed 2",
                "failed 3",
                "lost the console cannot be written: broken pipe",
                "connected",
                "delivered 2",
                "delivered 3"
            ]
        );
    }

    #[test]
    fn a_line_that_was_broken_off_does_not_run_into_the_next() {
        let (text, _) = written(vec![Ok(6), Err(io::ErrorKind::BrokenPipe.into())]);
        assert_eq!(text, "one\ntw\ntwo\nthree\n");
    }
}
