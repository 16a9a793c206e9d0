//! From an event to the sink, in the memory of one record.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::super::{PublishError, Record, Sink};
use crate::journal::Stored;

/// Makes the record of an event for a lane, in place of what it is given; true: for what `journal replay` sends.
pub(in crate::publish) type Encode = Box<dyn Fn(&mut Record, Arc<str>, &Stored, bool) + Send>;

/// The largest record whose memory is kept for the next.
const KEPT_BYTES_MAX: usize = 64 << 10;

pub(in crate::publish) struct Handover {
    encode: Encode,
    pub sink: Box<dyn Sink>,
    /// Bytes of the largest record that is handed over.
    record_max: usize,
    record: Record,
}

impl Handover {
    pub fn new(encode: Encode, sink: Box<dyn Sink>, record_max: Option<usize>) -> Self {
        Self { encode, sink, record_max: record_max.unwrap_or(usize::MAX), record: Record::default() }
    }

    /// Hands over an event's record, and gives its bytes. It is an error, and no report follows, if none can be made or it is too large to be sent.
    pub fn send(&mut self, lane: Arc<str>, stored: &Stored, replayed: bool) -> Result<usize, PublishError> {
        // Pure work on one event: what is wrong with it must not stop the others. The next one fills the record anew.
        catch_unwind(AssertUnwindSafe(|| (self.encode)(&mut self.record, lane, stored, replayed)))
            .map_err(|_| PublishError::NoEnvelope)?;
        let bytes = self.record.bytes();
        if bytes <= self.record_max {
            self.sink.send(&mut self.record);
        }
        if self.record.capacity() > KEPT_BYTES_MAX {
            self.record = Record::default();
        }
        if bytes <= self.record_max { Ok(bytes) } else { Err(PublishError::OverMax) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::Verified;
    use crate::normalize::normalize;

    /// Leaves all that it is given, as Kafka does.
    struct Copies;

    impl Sink for Copies {
        fn send(&mut self, _: &mut Record) {}
    }

    #[test]
    fn memory_is_kept_for_the_next_record_unless_it_is_large() {
        let encode: Encode = Box::new(|record, _, stored, _| {
            record.payload.splice(.., stored.event.body.iter().copied()).for_each(drop)
        });
        let mut handover = Handover::new(encode, Box::new(Copies), None);
        let mut kept_after = |bytes: usize| {
            let event = normalize(Verified::for_test("default", 1_736_937_000, &vec![b'x'; bytes]), &[]);
            handover.send("lane".into(), &Stored { sequence: 1, event }, false).unwrap();
            handover.record.capacity()
        };
        assert!((1_000..=KEPT_BYTES_MAX).contains(&kept_after(1_000)));
        assert!(kept_after(10) >= 1_000);
        assert_eq!(kept_after(KEPT_BYTES_MAX + 1), 0);
    }
}
