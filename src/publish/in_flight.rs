//! What a lane has in flight: handed over in order, taken out as reports come, in whatever order these come.

use std::collections::VecDeque;

use super::lane::Item;

#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// By ascending sequence. `None` for what was reported while an older one was not: to close the gap at once would move all that is behind
    /// it, for each report, and RabbitMQ's confirms come in no order. The first is never `None`.
    slots: VecDeque<(u64, Option<Item>)>,
    len: usize,
    bytes: usize,
}

impl InFlight {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Behind all others: its sequence is above theirs.
    pub fn push(&mut self, item: Item) -> Option<&mut Item> {
        self.len += 1;
        self.bytes += item.bytes;
        self.slots.push_back((item.sequence(), Some(item)));
        self.slots.back_mut().and_then(|(_, item)| item.as_mut())
    }

    pub fn take(&mut self, sequence: u64) -> Option<Item> {
        let place = self.slots.binary_search_by_key(&sequence, |slot| slot.0).ok()?;
        let item = self.slots[place].1.take()?;
        self.len -= 1;
        self.bytes -= item.bytes;
        while let Some((_, None)) = self.slots.front() {
            self.slots.pop_front();
        }
        Some(item)
    }

    pub fn contains(&self, sequence: u64) -> bool {
        let place = self.slots.binary_search_by_key(&sequence, |slot| slot.0);
        place.is_ok_and(|place| self.slots[place].1.is_some())
    }

    pub fn oldest(&self) -> Option<&Item> {
        self.slots.front().and_then(|(_, item)| item.as_ref())
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Item> {
        self.slots.iter_mut().filter_map(|(_, item)| item.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::Verified;
    use crate::journal::Stored;
    use crate::normalize::normalize;

    fn item(sequence: u64) -> Item {
        let event = normalize(Verified::for_test("default", 1_736_937_000, b"{}"), &[]);
        Item::new(Box::new(Stored { sequence, event }), false)
    }

    #[test]
    fn what_is_taken_out_of_order_is_gone_and_leaves_the_rest() {
        let mut in_flight = InFlight::default();
        for sequence in [3, 5, 8] {
            assert_eq!(in_flight.push(item(sequence)).map(|item| item.sequence()), Some(sequence));
        }
        let each = in_flight.bytes() / 3;
        assert_eq!(in_flight.take(5).map(|item| item.sequence()), Some(5));
        assert!(in_flight.take(5).is_none(), "twice");
        assert!(in_flight.take(4).is_none(), "never there");
        assert_eq!(in_flight.iter_mut().map(|item| item.sequence()).collect::<Vec<_>>(), [3, 8]);
        assert_eq!((in_flight.len(), in_flight.bytes()), (2, 2 * each));
        assert!(in_flight.take(3).is_some());
        assert_eq!(in_flight.oldest().map(Item::sequence), Some(8));
        assert!(in_flight.take(8).is_some());
        assert!(in_flight.is_empty() && in_flight.oldest().is_none() && in_flight.bytes() == 0);
    }
}
