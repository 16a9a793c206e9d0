//! Where an output's cursor may stand: behind every event that is settled or has a row of its own.

use std::collections::VecDeque;

/// The events read in order and not yet behind the cursor.
#[derive(Debug)]
pub(super) struct Window {
    cursor: u64,
    /// Sequence, and whether the cursor may pass it. Ascending.
    slots: VecDeque<(u64, bool)>,
}

impl Window {
    pub fn new(cursor: u64) -> Self {
        Self { cursor, slots: VecDeque::new() }
    }

    /// An event was read; it is behind all before it.
    pub fn read(&mut self, sequence: u64) {
        self.slots.push_back((sequence, false));
    }

    /// The cursor may pass this one. Events that came from rows are none of the window's and change nothing.
    pub fn pass(&mut self, sequence: u64) {
        if let Ok(place) = self.slots.binary_search_by_key(&sequence, |slot| slot.0) {
            self.slots[place].1 = true;
        }
        while let Some((sequence, true)) = self.slots.front() {
            self.cursor = *sequence;
            self.slots.pop_front();
        }
    }

    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// From the oldest that is open to the newest that was read.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// What the cursor waits for, if anything.
    #[cfg(test)]
    pub fn oldest(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_stops_before_the_oldest_open_event() {
        let mut window = Window::new(4);
        for sequence in [5, 7, 8] {
            window.read(sequence);
        }
        window.pass(7);
        window.pass(99); // From a row.
        assert_eq!((window.cursor(), window.len(), window.oldest()), (4, 3, Some(5)));
        window.pass(5);
        assert_eq!((window.cursor(), window.len(), window.oldest()), (7, 1, Some(8)));
        window.pass(8);
        assert_eq!((window.cursor(), window.len(), window.oldest()), (8, 0, None));
    }
}
