//! Which open records of one channel count as delivered, and when. Pure: neither a broker nor lapin is in here.
//!
//! The broker sends `basic.return` before the `basic.ack` of the same message, on the same channel. lapin (4.12.3, `acknowledgement.rs`) keeps
//! returned messages in a queue, and each confirm that completes takes the front of it, whichever message it belongs to; `multiple = true`
//! completes confirms in a hash map's order. Two things follow, T being an unroutable message and R its return:
//!
//! 1. When T's own confirm completes, R is already in the queue or was taken before. So if T's confirm carries no return, another confirm that
//!    completed **earlier** carries R.
//! 2. At any moment the queue is no longer than the number of returned messages whose confirm is still out: each return adds one, and each of
//!    their confirms takes one if there is any. So when all open confirms are in, every return has been handed out.
//!
//! Hence the rule. A confirm without a return counts only after all confirms that completed before it were looked at (the caller makes sure of
//! it: see [`Window::judge`]). Once one return was seen, nothing counts until all open confirms are in; then each acknowledged record whose
//! sequence was in a returned message is unroutable, and the others are delivered. A channel that ends before that proves nothing of them.

use std::collections::{HashSet, VecDeque};

use crate::publish::PublishError;

/// What became of a record, by its sequence.
pub(super) type Verdict = (u64, Result<(), PublishError>);

/// The open records of one channel, in the order of publishing. `F` is what waits for a record's confirm.
pub(super) struct Window<F> {
    /// By tag: the first entry's is `first`. `None` for a confirm that is in while an older one is not.
    open: VecDeque<Option<(u64, F)>>,
    first: u64,
    unconfirmed: usize,
    acked: Vec<u64>,
    nacked: Vec<u64>,
    /// A return was seen, and not all confirms are in since.
    settling: bool,
    /// The sequences that returned messages carried.
    returned: HashSet<u64>,
    /// A returned message named no record that is open here.
    unmatched: bool,
}

impl<F> Default for Window<F> {
    fn default() -> Self {
        Self {
            open: VecDeque::new(),
            first: 0,
            unconfirmed: 0,
            acked: Vec::new(),
            nacked: Vec::new(),
            settling: false,
            returned: HashSet::new(),
            unmatched: false,
        }
    }
}

impl<F> Window<F> {
    /// The tag that the next [`Self::push`] gives. Tags are never used twice, also not across channels of the same window.
    pub fn next_tag(&self) -> u64 {
        self.first + self.open.len() as u64
    }

    pub fn push(&mut self, sequence: u64, flight: F) {
        self.open.push_back(Some((sequence, flight)));
        self.unconfirmed += 1;
    }

    pub fn get_mut(&mut self, tag: u64) -> Option<&mut F> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        self.open.get_mut(index)?.as_mut().map(|(_, flight)| flight)
    }

    /// The tags of all records whose confirm is out.
    pub fn tags(&self) -> Vec<u64> {
        (self.first..).zip(&self.open).filter(|(_, slot)| slot.is_some()).map(|(tag, _)| tag).collect()
    }

    /// Nothing is out, and nothing waits for a verdict.
    pub fn is_empty(&self) -> bool {
        self.unconfirmed == 0 && self.acked.is_empty() && self.nacked.is_empty()
    }

    /// A return was seen: nothing more may be published on this channel until the verdicts are given.
    pub fn is_settling(&self) -> bool {
        self.settling
    }

    /// A confirm is in. `returned` is the message that lapin attached to it, which may be another's: its sequence, if it shows one.
    pub fn confirmed(&mut self, tag: u64, ack: bool, returned: Option<Option<u64>>) {
        let Some(sequence) = self.take(tag) else { return };
        if ack {
            self.acked.push(sequence);
        } else {
            self.nacked.push(sequence);
        }
        match returned {
            None => {}
            Some(Some(sequence)) => {
                self.settling = true;
                self.returned.insert(sequence);
            }
            Some(None) => {
                self.settling = true;
                self.unmatched = true;
            }
        }
    }

    /// Takes a record out that the broker was never sent.
    pub fn take(&mut self, tag: u64) -> Option<u64> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        let (sequence, _) = self.open.get_mut(index)?.take()?;
        self.unconfirmed -= 1;
        while let Some(None) = self.open.front() {
            self.open.pop_front();
            self.first += 1;
        }
        Some(sequence)
    }

    /// The verdicts that can be given now. To be called only when no confirm that completed before those already told to
    /// [`Self::confirmed`] is left to be looked at.
    pub fn judge(&mut self, verdicts: &mut Vec<Verdict>) {
        if self.settling && self.unconfirmed > 0 {
            return;
        }
        verdicts.extend(self.nacked.drain(..).map(|sequence| (sequence, Err(PublishError::Nack))));
        let acked = std::mem::take(&mut self.acked);
        let alone = acked.len() == 1;
        let matched = acked.iter().filter(|sequence| self.returned.contains(sequence)).count();
        // A return that names none of these belongs to one of them all the same.
        let unmatched = self.unmatched || matched < self.returned.len();
        verdicts.extend(acked.into_iter().map(|sequence| {
            let verdict = if self.returned.contains(&sequence) || (unmatched && alone) {
                Err(PublishError::Unroutable)
            } else if unmatched {
                Err(PublishError::Suspect("a message was returned that shows no number of an open record".into()))
            } else {
                Ok(())
            };
            (sequence, verdict)
        }));
        self.returned.clear();
        self.unmatched = false;
        self.settling = false;
    }

    /// The channel has ended, and all its confirms that came were told. `fault` says what its end means, given how many records were
    /// unconfirmed. What was acknowledged while a return was unsettled may be unroutable too, so it is taken back.
    pub fn close(&mut self, fault: impl FnOnce(usize) -> PublishError, verdicts: &mut Vec<Verdict>) {
        let open = std::mem::take(&mut self.open);
        self.first += open.len() as u64;
        let fault = (self.unconfirmed > 0).then(|| fault(self.unconfirmed));
        self.unconfirmed = 0;
        if self.settling {
            let acked = std::mem::take(&mut self.acked);
            verdicts.extend(acked.into_iter().map(|sequence| {
                let unroutable = self.returned.contains(&sequence);
                (sequence, Err(if unroutable { PublishError::Unroutable } else { PublishError::Withdrawn }))
            }));
            self.returned.clear();
            self.unmatched = false;
        }
        self.judge(verdicts);
        if let Some(fault) = fault {
            verdicts.extend(open.into_iter().flatten().map(|(sequence, _)| (sequence, Err(fault.clone()))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PublishError::{Nack, Suspect, Unroutable, Withdrawn};

    /// A window with records 0, 1, 2, … of which none is confirmed; their tags are their sequences.
    fn open(count: u64) -> Window<()> {
        let mut window = Window::default();
        for sequence in 0..count {
            assert_eq!(window.next_tag(), sequence);
            window.push(sequence, ());
        }
        window
    }

    fn judged(window: &mut Window<()>) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        window.judge(&mut verdicts);
        verdicts.sort_by_key(|(sequence, _)| *sequence);
        verdicts
    }

    fn closed(window: &mut Window<()>, fault: impl FnOnce(usize) -> PublishError) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        window.close(fault, &mut verdicts);
        verdicts.sort_by_key(|(sequence, _)| *sequence);
        verdicts
    }

    #[test]
    fn without_a_return_each_confirm_counts_as_it_comes() {
        let mut window = open(4);
        window.confirmed(2, true, None);
        assert_eq!(judged(&mut window), [(2, Ok(()))]);
        window.confirmed(0, true, None);
        window.confirmed(1, false, None);
        assert_eq!(judged(&mut window), [(0, Ok(())), (1, Err(Nack))]);
        assert!(!window.is_empty());
        window.confirmed(3, true, None);
        assert_eq!(judged(&mut window), [(3, Ok(()))]);
        assert!(window.is_empty());
    }

    #[test]
    fn after_a_return_nothing_counts_until_all_confirms_are_in() {
        let mut window = open(3);
        // 1 was unroutable; lapin hung its return on 2, and 1's own confirm says nothing of it.
        window.confirmed(2, true, Some(Some(1)));
        window.confirmed(1, true, None);
        assert_eq!(judged(&mut window), []);
        assert!(window.is_settling());
        window.confirmed(0, true, None);
        assert_eq!(judged(&mut window), [(0, Ok(())), (1, Err(Unroutable)), (2, Ok(()))]);
        assert!(!window.is_settling() && window.is_empty());
    }

    #[test]
    fn a_return_that_comes_with_a_later_confirm_still_finds_its_record() {
        let mut window = open(3);
        // 0 and 1 were unroutable; each carries the other's return.
        window.confirmed(0, true, Some(Some(1)));
        assert_eq!(judged(&mut window), []);
        window.confirmed(1, true, Some(Some(0)));
        assert_eq!(judged(&mut window), []);
        window.confirmed(2, true, None);
        assert_eq!(judged(&mut window), [(0, Err(Unroutable)), (1, Err(Unroutable)), (2, Ok(()))]);
    }

    #[test]
    fn a_return_that_names_nobody_condemns_one_alone_and_suspects_several() {
        let mut window = open(1);
        window.confirmed(0, true, Some(None));
        assert_eq!(judged(&mut window), [(0, Err(Unroutable))]);
        for unknown in [None, Some(77)] {
            let mut window = open(2);
            window.confirmed(0, true, Some(unknown));
            window.confirmed(1, true, None);
            let verdicts = judged(&mut window);
            assert!(verdicts.iter().all(|(_, verdict)| matches!(verdict, Err(Suspect(_)))), "{verdicts:?}");
            assert_eq!(verdicts.len(), 2);
        }
    }

    #[test]
    fn the_end_of_a_channel_fails_what_is_open_and_trusts_no_confirm_of_an_unsettled_return() {
        let mut window = open(4);
        window.confirmed(0, true, None);
        window.confirmed(1, true, Some(Some(1)));
        let verdicts = closed(&mut window, |open| PublishError::Rejected(open.to_string()));
        let rejected = || Err(PublishError::Rejected("2".into()));
        assert_eq!(verdicts, [(0, Err(Withdrawn)), (1, Err(Unroutable)), (2, rejected()), (3, rejected())]);
        assert!(window.is_empty() && !window.is_settling());
        // Tags go on, so that a late waker of the old channel finds nothing.
        assert_eq!(window.next_tag(), 4);
    }

    #[test]
    fn confirms_that_came_before_the_end_count() {
        let mut window = open(2);
        window.confirmed(0, true, None);
        assert_eq!(
            closed(&mut window, |_| PublishError::Disconnected),
            [(0, Ok(())), (1, Err(PublishError::Disconnected))]
        );
    }

    /// lapin's side of it, as its source has it: returns queue up, and each completing confirm takes the front one.
    #[test]
    fn no_order_of_confirms_makes_an_unroutable_record_count() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let count = random.u64(1..40);
            let unroutable: HashSet<u64> = (0..count).filter(|_| random.u8(0..4) == 0).collect();
            let mut window = open(count);
            let mut waiting = VecDeque::new();
            let mut out: Vec<u64> = (0..count).collect();
            let mut not_yet_returned: Vec<u64> = (0..count).filter(|sequence| unroutable.contains(sequence)).collect();
            let mut verdicts = Vec::new();
            while !out.is_empty() {
                // Any confirm may come next; before an unroutable one's, its return and those of older ones do.
                let sequence = out.swap_remove(random.usize(0..out.len()));
                while not_yet_returned
                    .first()
                    .is_some_and(|first| random.bool() || unroutable.contains(&sequence) && *first <= sequence)
                {
                    waiting.push_back(not_yet_returned.remove(0));
                }
                window.confirmed(sequence, true, waiting.pop_front().map(Some));
                if random.bool() {
                    window.judge(&mut verdicts);
                }
            }
            window.judge(&mut verdicts);
            assert_eq!(verdicts.len() as u64, count);
            for (sequence, verdict) in verdicts {
                let expected = if unroutable.contains(&sequence) { Err(Unroutable) } else { Ok(()) };
                assert_eq!(verdict, expected, "record {sequence} of {count}");
            }
        }
    }
}
