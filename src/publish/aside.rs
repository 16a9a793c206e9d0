//! Work that may hang (a file on a network mount, a name to resolve) on a thread of its own, one piece at a time.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// The piece that is under way, if any.
pub(super) struct Aside<T>(Option<Receiver<T>>);

impl<T> Default for Aside<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> Aside<T> {
    pub fn is_under_way(&self) -> bool {
        self.0.is_some()
    }

    /// Begins `work`, unless the last piece is still under way, and waits for its result for at most so long. `None` if it takes longer, to be
    /// asked for again, or if it panicked.
    pub fn ask(&mut self, max: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let result = self.0.take().or_else(|| {
            let (tell, result) = channel();
            let tell = move || _ = tell.send(work());
            thread::Builder::new().name("aside".into()).spawn(tell).ok().map(|_| result)
        })?;
        match result.recv_timeout(max) {
            Ok(done) => Some(done),
            Err(RecvTimeoutError::Timeout) => {
                self.0 = Some(result);
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_begun_once_and_asked_for_until_it_is_there() {
        let mut aside = Aside::default();
        let (end, ended) = channel::<()>();
        assert_eq!(aside.ask(Duration::ZERO, move || ended.recv().map_or("first", |()| "")), None);
        assert_eq!(aside.ask(Duration::ZERO, || "second"), None);
        assert!(aside.is_under_way());
        drop(end);
        assert_eq!(aside.ask(Duration::from_secs(10), || "second"), Some("first"));
        assert!(!aside.is_under_way());
        assert_eq!(aside.ask(Duration::from_secs(10), || "third"), Some("third"));
    }
}
