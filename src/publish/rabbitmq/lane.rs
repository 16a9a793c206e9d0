//! One routing key: its channel, what is open on it, and who may go next.
//!
//! A lane that failed stays shut: what comes is handed back as withdrawn, until the output sends a record again that it was told had failed.
//! That proves that it read the report, and nothing overtakes the failed record meanwhile.

use std::collections::{HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Error};

use super::fault;
use super::ready::Ready;
use super::window::{Verdict, Window};
use crate::publish::{PublishError, Record};

/// AMQP's "persistent".
const DELIVERY_MODE_PERSISTENT: u8 = 2;

type Outcome = lapin::Result<Confirmation>;

/// One record on its way, from lapin's queue to its confirm.
struct Flight {
    /// `None` once it ended with an error: the record stays open until its channel's end is dealt with.
    outcome: Option<Pin<Box<dyn Future<Output = Outcome> + Send>>>,
    waker: Waker,
}

impl Flight {
    fn poll(&mut self) -> Poll<Outcome> {
        let Some(outcome) = &mut self.outcome else { return Poll::Pending };
        let outcome = outcome.as_mut().poll(&mut Context::from_waker(&self.waker));
        if outcome.is_ready() {
            self.outcome = None;
        }
        outcome
    }
}

/// What a look at flights showed beside confirms.
pub(super) enum Trouble {
    /// The broker closed this lane's channel.
    Channel(Error),
    Connection(Error),
}

pub(super) struct Lane {
    pub index: usize,
    /// `None` for a routing key that AMQP cannot carry: more than 255 bytes.
    key: Option<ShortString>,
    channel: Option<Arc<Channel>>,
    /// The opening that brings the lane's channel, if one is under way. One that was given up may end later than the next one.
    opening: Option<u64>,
    openings: u64,
    /// Records that wait for a channel. Bounded by the output's window, as the others.
    waiting: VecDeque<Record>,
    window: Window<Flight>,
    /// Records that found their channel closed, so that lapin did not take them.
    unsent: Vec<u64>,
    /// What was handed back since the lane failed; empty while it is open.
    failed: HashSet<u64>,
    /// When a record was last published, by the sink's count.
    pub used: u64,
    /// Has confirms that were not judged.
    pub touched: bool,
}

impl Lane {
    pub fn new(index: usize, key: &str) -> Self {
        Self {
            index,
            key: ShortString::try_new(key).ok(),
            channel: None,
            opening: None,
            openings: 0,
            waiting: VecDeque::new(),
            window: Window::default(),
            unsent: Vec::new(),
            failed: HashSet::new(),
            used: 0,
            touched: false,
        }
    }

    /// Takes a record for publishing, or hands it back.
    pub fn accept(&mut self, record: Record, verdicts: &mut Vec<Verdict>) {
        if self.key.is_none() {
            let error = PublishError::TopicRejects("its routing key is longer than 255 bytes".into());
            verdicts.push((record.sequence, Err(error)));
        } else if self.window.is_settling() || !(self.failed.is_empty() || self.failed.contains(&record.sequence)) {
            self.failed.insert(record.sequence);
            verdicts.push((record.sequence, Err(PublishError::Withdrawn)));
        } else {
            self.failed.clear();
            self.waiting.push_back(record);
        }
    }

    /// Fails a record for a broker that is away.
    pub fn refuse(&mut self, record: &Record, verdicts: &mut Vec<Verdict>) {
        // It was read that this one failed, and has to be read again now.
        if self.failed.contains(&record.sequence) {
            self.failed.clear();
        }
        self.failed.insert(record.sequence);
        verdicts.push((record.sequence, Err(PublishError::Disconnected)));
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn has_channel(&self) -> bool {
        self.channel.is_some()
    }

    /// Everything published has its verdict.
    pub fn is_settled(&self) -> bool {
        self.window.is_empty() && self.unsent.is_empty()
    }

    /// A channel is on its way.
    pub fn is_opening(&self) -> bool {
        self.opening.is_some()
    }

    /// Gives the opening's number.
    pub fn begin_opening(&mut self) -> u64 {
        self.openings += 1;
        self.opening = Some(self.openings);
        self.openings
    }

    /// An opening has ended: whether the lane still waits for it.
    pub fn end_opening(&mut self, number: u64) -> bool {
        self.opening.take_if(|awaited| *awaited == number).is_some()
    }

    pub fn set_channel(&mut self, channel: Channel) {
        self.channel = Some(Arc::new(channel));
    }

    /// Has a channel and no use for it.
    pub fn is_idle(&self) -> bool {
        self.has_channel() && self.is_settled() && !self.has_waiting()
    }

    /// Gives the channel up.
    pub fn release(&mut self) -> Option<Arc<Channel>> {
        self.channel.take()
    }

    /// Publishes what waits, as far as there is a channel to do it on. The trouble is as of [`Self::look`].
    pub fn flush(&mut self, exchange: &ShortString, ready: &Arc<Ready>) -> Option<Trouble> {
        let channel = self.channel.clone()?;
        let key = self.key.clone()?;
        if !channel.status().connected() {
            // Whatever is open learns why from its own confirm. With nothing open there is no one to learn it: a new channel.
            if self.is_settled() {
                self.channel = None;
            }
            return None;
        }
        while let Some(record) = self.waiting.pop_front() {
            let tag = self.window.next_tag();
            let sequence = record.sequence;
            let outcome = publish(channel.clone(), exchange.clone(), key.clone(), record);
            self.window
                .push(sequence, Flight { outcome: Some(Box::pin(outcome)), waker: ready.waker(self.index, tag) });
            // The first look hands the record to lapin, so that order is the order of these calls.
            if let Some(trouble) = self.look(tag) {
                return Some(trouble);
            }
        }
        None
    }

    /// Looks at one flight that has news.
    pub fn look(&mut self, tag: u64) -> Option<Trouble> {
        match self.window.get_mut(tag)?.poll() {
            Poll::Pending => None,
            Poll::Ready(Ok(confirmation)) => {
                self.touched = true;
                let ack = confirmation.is_ack();
                let returned = confirmation.take_message().map(|message| fault::relaysequence(&message.delivery.data));
                self.window.confirmed(tag, ack, returned);
                None
            }
            Poll::Ready(Err(error)) if fault::is_channels(&error) => Some(Trouble::Channel(error)),
            Poll::Ready(Err(error)) if fault::is_unsent(&error) => {
                // The channel was closed a moment ago. Those that are open learn why; this one was never tried.
                if let Some(sequence) = self.window.take(tag) {
                    self.unsent.push(sequence);
                    self.touched = true;
                }
                None
            }
            Poll::Ready(Err(error)) => Some(Trouble::Connection(error)),
        }
    }

    /// Gives the verdicts that can be given: see [`Window::judge`].
    pub fn judge(&mut self, verdicts: &mut Vec<Verdict>) {
        self.touched = false;
        let before = verdicts.len();
        self.window.judge(verdicts);
        self.hand_back_unsent(verdicts);
        self.shut(&verdicts[before..]);
    }

    /// The channel is closed: everything open is handed back with what `fault` says (see [`Window::close`]), and what waits with `waiting`; it goes on
    /// waiting if that is `None` and nothing failed that it would overtake.
    pub fn close(
        &mut self,
        fault: impl FnOnce(usize) -> PublishError,
        waiting: Option<&PublishError>,
        verdicts: &mut Vec<Verdict>,
    ) {
        self.channel = None;
        self.opening = None;
        let before = verdicts.len();
        // Confirms that came before the end count. One pass may meet a confirm whose return completed with another one meanwhile, which
        // a further pass then sees; so until a pass finds nothing.
        loop {
            let tags = self.window.tags();
            let open = tags.len();
            for tag in tags {
                // What trouble there is, is the reason for being here.
                let _ = self.look(tag);
            }
            if self.window.tags().len() == open {
                break;
            }
        }
        self.touched = false;
        self.window.close(fault, verdicts);
        self.hand_back_unsent(verdicts);
        let failed = verdicts[before..].iter().any(|(_, verdict)| verdict.is_err());
        if let Some(error) = waiting.or(failed.then_some(&PublishError::Withdrawn)) {
            verdicts.extend(self.waiting.drain(..).map(|record| (record.sequence, Err(error.clone()))));
        }
        self.shut(&verdicts[before..]);
    }

    fn shut(&mut self, verdicts: &[Verdict]) {
        self.failed.extend(verdicts.iter().filter(|(_, verdict)| verdict.is_err()).map(|(sequence, _)| sequence));
    }
    fn hand_back_unsent(&mut self, verdicts: &mut Vec<Verdict>) {
        verdicts.extend(self.unsent.drain(..).map(|sequence| (sequence, Err(PublishError::Withdrawn))));
    }
}

/// Publishes one record and waits for its confirm. lapin queues it at the first poll; the payload is copied there.
async fn publish(channel: Arc<Channel>, exchange: ShortString, key: ShortString, record: Record) -> Outcome {
    let properties = properties(&record);
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let confirm = channel.basic_publish(exchange, key, options, &record.payload, properties).await?;
    drop(record);
    confirm.await
}

/// The message's properties. What AMQP cannot carry, a text of more than 255 bytes, is left out rather than cut.
fn properties(record: &Record) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(DELIVERY_MODE_PERSISTENT)
        .with_app_id("sipsim-relay".into())
        .with_timestamp(u64::try_from(record.received_at.as_seconds()).unwrap_or(0));
    if let Ok(content_type) = ShortString::try_new(record.content_type) {
        properties = properties.with_content_type(content_type);
    }
    if let Ok(id) = ShortString::try_new(record.id.as_str()) {
        properties = properties.with_message_id(id);
    }
    if let Ok(event_type) = ShortString::try_new(record.event_type.as_str()) {
        properties = properties.with_type(event_type);
    }
    let mut headers = FieldTable::default();
    for (name, value) in record.headers.iter() {
        headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    properties.with_headers(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64) -> Record {
        Record { sequence, lane: "k".into(), ..Record::default() }
    }

    /// What the lane does with these records: `+` takes, `-` hands back.
    fn accepted(lane: &mut Lane, sequences: &[u64]) -> String {
        sequences
            .iter()
            .map(|sequence| {
                let mut verdicts = Vec::new();
                lane.accept(record(*sequence), &mut verdicts);
                assert!(verdicts.is_empty() || verdicts == [(*sequence, Err(PublishError::Withdrawn))]);
                if verdicts.is_empty() { '+' } else { '-' }
            })
            .collect()
    }

    fn refused(lane: &mut Lane, sequences: &[u64]) {
        for sequence in sequences {
            let mut verdicts = Vec::new();
            lane.refuse(&record(*sequence), &mut verdicts);
            assert_eq!(verdicts, [(*sequence, Err(PublishError::Disconnected))]);
        }
    }

    #[test]
    fn what_was_sent_before_a_failure_was_read_does_not_overtake_it() {
        let mut lane = Lane::new(0, "k");
        assert_eq!(accepted(&mut lane, &[1, 2]), "++");
        let mut verdicts = Vec::new();
        lane.close(|_| PublishError::Nack, Some(&PublishError::Withdrawn), &mut verdicts);
        assert_eq!(verdicts.len(), 2);
        // 3 and 4 were on their way; then the output begins again.
        assert_eq!(accepted(&mut lane, &[3, 4, 1, 2, 3]), "--+++");
    }

    #[test]
    fn a_record_that_fails_again_shuts_the_lane_again() {
        let mut lane = Lane::new(0, "k");
        refused(&mut lane, &[1, 2, 3]);
        // All three come again; the broker is back for the third, which is not the oldest.
        refused(&mut lane, &[1, 2]);
        assert_eq!(accepted(&mut lane, &[3]), "-");
        assert_eq!(accepted(&mut lane, &[1, 2, 3]), "+++");
    }

    #[test]
    fn an_opening_that_was_given_up_means_nothing_to_the_next_one() {
        let mut lane = Lane::new(0, "k");
        let first = lane.begin_opening();
        lane.close(|_| PublishError::Withdrawn, Some(&PublishError::Withdrawn), &mut Vec::new());
        assert!(!lane.is_opening());
        let second = lane.begin_opening();
        assert!(!lane.end_opening(first));
        assert!(lane.is_opening() && lane.end_opening(second) && !lane.is_opening());
    }

    #[test]
    fn a_lane_whose_failed_record_never_comes_again_opens_all_the_same() {
        let mut lane = Lane::new(0, "k");
        refused(&mut lane, &[1]);
        // 1 was discarded.
        assert_eq!(accepted(&mut lane, &[2, 2, 3]), "-++");
    }

    #[test]
    fn nothing_follows_a_returned_record_while_the_others_are_awaited() {
        let mut lane = Lane::new(0, "k");
        for sequence in [1, 2] {
            lane.window.push(sequence, Flight { outcome: None, waker: Waker::noop().clone() });
        }
        lane.window.confirmed(0, true, Some(Some(1)));
        let mut verdicts = Vec::new();
        lane.judge(&mut verdicts);
        assert_eq!(verdicts, []);
        assert_eq!(accepted(&mut lane, &[3]), "-");
        lane.window.confirmed(1, true, None);
        lane.judge(&mut verdicts);
        assert_eq!(verdicts, [(1, Err(PublishError::Unroutable)), (2, Ok(()))]);
        assert_eq!(accepted(&mut lane, &[4, 1, 3, 4]), "-+++");
    }

    #[test]
    fn a_routing_key_that_amqp_cannot_carry_is_its_topics_fault() {
        let mut verdicts = Vec::new();
        Lane::new(0, &"k".repeat(256)).accept(record(1), &mut verdicts);
        assert!(matches!(verdicts[..], [(1, Err(PublishError::TopicRejects(_)))]));
    }
}
