//! The demo's output: stdout behind a door that can be shut. A shut door is a closed stdout to the relay, error and all. What comes through is
//! compared with what was answered 200, one by one and in order.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

/// Clones are the same door.
#[derive(Clone)]
pub struct Door {
    /// Where envelopes go. Held while that blocks, and taken before `state`, which never is.
    outside: Arc<Mutex<Box<dyn Write + Send>>>,
    state: Arc<Mutex<State>>,
}

/// What has come of the events so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answered 200.
    pub accepted: u64,
    /// Of those, come out, each compared by its id.
    pub published: u64,
    /// Come out once more, which "at least once" allows.
    pub again: u64,
    /// The first envelope that was not the next in order: what came, in place of what.
    pub disorder: Option<String>,
}

#[derive(Default)]
struct State {
    shut: bool,
    /// What waits for [`Door::release`], if anything has to.
    held: Option<Vec<u8>>,
    /// Nobody checks any more: others may post now, whose ids are not known here.
    unwatched: bool,
    tally: Tally,
    /// Ids answered, whose envelopes have not come; or the other way round, as an envelope may overtake the answer.
    answered: VecDeque<String>,
    came: VecDeque<String>,
    last: Option<String>,
    /// The beginning of a line whose end is still to come.
    line: Vec<u8>,
}

#[derive(Deserialize)]
struct Envelope {
    id: String,
}

impl Door {
    /// An open door to `outside`.
    pub fn new(outside: Box<dyn Write + Send>) -> Self {
        Self { outside: Arc::new(Mutex::new(outside)), state: Arc::default() }
    }

    pub fn shut(&self) {
        self.state().shut = true;
    }

    pub fn open(&self) {
        self.state().shut = false;
    }

    /// Keeps what comes through, so that an envelope, which may well overtake its own answer, does not stand before the line that tells of it.
    pub fn hold(&self) {
        self.state().held.get_or_insert_default();
    }

    /// Lets out what was held. Blocks on where it goes.
    pub fn release(&self) -> io::Result<()> {
        let mut outside = self.outside();
        let held = self.state().held.take();
        held.map_or(Ok(()), |held| self.let_out(&mut *outside, &held))
    }

    /// An event was answered 200 with this id. To be called in the order of acceptance.
    pub fn expect(&self, id: String) {
        let mut state = self.state();
        state.tally.accepted += 1;
        state.answered.push_back(id);
        state.compare();
    }

    pub fn tally(&self) -> Tally {
        self.state().tally.clone()
    }

    /// Stops comparing, and keeps nothing more.
    pub fn stop_watching(&self) {
        self.state().unwatched = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outside(&self) -> MutexGuard<'_, Box<dyn Write + Send>> {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn let_out(&self, outside: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
        match outside.write_all(bytes).and_then(|()| outside.flush()) {
            // Whoever read along has seen enough (`| head`); the demo goes on counting.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            other => other?,
        }
        let mut state = self.state();
        if !state.unwatched {
            state.take_lines(bytes);
        }
        Ok(())
    }
}

impl State {
    fn take_lines(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(piece);
            if !piece.ends_with(b"\n") {
                return;
            }
            let id = match serde_json::from_slice::<Envelope>(&self.line) {
                Ok(envelope) => envelope.id,
                Err(_) => "a line that is no envelope".to_owned(),
            };
            self.line.clear();
            if self.last.as_ref() == Some(&id) {
                self.tally.again += 1;
            } else {
                self.came.push_back(id);
                self.compare();
            }
        }
    }

    fn compare(&mut self) {
        while let (Some(answered), Some(came)) = (self.answered.front(), self.came.front()) {
            if answered != came {
                self.tally.disorder.get_or_insert_with(|| format!("{came} in place of {answered}"));
                return; // The rest would only repeat it.
            }
            self.tally.published += 1;
            self.answered.pop_front();
            self.last = self.came.pop_front();
        }
    }
}

impl Write for Door {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut outside = self.outside();
        let mut state = self.state();
        if state.shut {
            return Err(ErrorKind::BrokenPipe.into());
        }
        if let Some(held) = &mut state.held {
            held.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        drop(state);
        self.let_out(&mut *outside, bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // Every write was flushed.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(id: &str) -> String {
        format!("{{\"specversion\":\"1.0\",\"id\":\"{id}\"}}\n")
    }

    fn through(answered: &[&str], came: &[&str]) -> Tally {
        let door = Door::new(Box::new(io::sink()));
        door.state().answered = answered.iter().map(|id| (*id).to_owned()).collect();
        came.iter().for_each(|id| door.clone().write_all(envelope(id).as_bytes()).unwrap());
        door.tally()
    }

    #[test]
    fn what_comes_is_compared_in_order() {
        let tally = |published, again, disorder: Option<&str>| Tally {
            accepted: 0,
            published,
            again,
            disorder: disorder.map(str::to_owned),
        };
        assert_eq!(through(&["a", "b", "c"], &["a", "b", "c"]), tally(3, 0, None));
        assert_eq!(through(&["a", "b", "c"], &["a", "a", "b"]), tally(2, 1, None));
        assert_eq!(through(&["a", "b", "c"], &["a", "c", "b"]), tally(1, 0, Some("c in place of b")));
        assert_eq!(through(&["a"], &["x"]), tally(0, 0, Some("x in place of a")));
    }

    #[test]
    fn an_envelope_may_come_in_pieces_and_before_its_answer() {
        let mut door = Door::new(Box::new(io::sink()));
        let line = envelope("a");
        let (one, other) = line.split_at(9);
        door.write_all(one.as_bytes()).unwrap();
        door.write_all(other.as_bytes()).unwrap();
        assert_eq!(door.tally().published, 0);
        door.expect("a".to_owned());
        assert_eq!((door.tally().accepted, door.tally().published), (1, 1));
    }

    #[test]
    fn what_is_held_comes_later() {
        let mut door = Door::new(Box::new(io::sink()));
        door.expect("a".to_owned());
        door.hold();
        door.write_all(envelope("a").as_bytes()).unwrap();
        assert_eq!(door.tally().published, 0);
        door.release().unwrap();
        assert_eq!(door.tally().published, 1);
    }

    #[test]
    fn a_shut_door_is_a_broken_pipe() {
        let mut door = Door::new(Box::new(io::sink()));
        door.shut();
        assert_eq!(door.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        door.open();
        assert!(door.write(b"").is_ok());
    }
}
