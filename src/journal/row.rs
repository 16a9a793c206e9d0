//! An event as a row and back, with the CRC that is checked before anything is published.

use arrayvec::ArrayString;
use bytes::Bytes;
use rusqlite::{CachedStatement, Row, params};

use super::Stored;
use super::fetch::Found;
use crate::clock::Timestamp;
use crate::config::Name;
use crate::normalize::{CallStatus, Content, Event, EventId, EventName};

/// All columns of `events` in the order in which [`read`] takes them.
pub(super) const COLUMNS: &str = "sequence, received_at, account, id, name, subject, time, call_status, opaque, signed_text, signature, \
     replayed, crc, body";

/// In the order of [`COLUMNS`]. By place, not by name: SQLite looks a name up among all of a statement's, for each value of each event.
pub(super) const INSERT: &str = "INSERT INTO events (sequence, received_at, account, id, name, subject, time, call_status, opaque, signed_text, \
     signature, replayed, crc, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// What reading one event gives: the event, or the number of one whose content is not what was written, or cannot be read.
#[derive(Clone, Debug)]
pub enum Read {
    /// In a box: it is handed on half a dozen times until it is confirmed, and to copy its three hundred bytes each time costs more.
    Event(Box<Stored>),
    Corrupt {
        sequence: u64,
    },
}

impl From<Found<Box<Stored>>> for Read {
    fn from((sequence, stored): Found<Box<Stored>>) -> Self {
        stored.map_or(Self::Corrupt { sequence }, Self::Event)
    }
}

impl Read {
    pub fn sequence(&self) -> u64 {
        match self {
            Self::Event(stored) => stored.sequence,
            Self::Corrupt { sequence } => *sequence,
        }
    }
}

pub(super) fn insert(statement: &mut CachedStatement<'_>, sequence: u64, event: &Event) -> rusqlite::Result<()> {
    statement.execute(params![
        sequence as i64,
        event.received_at.as_micros(),
        event.account.as_str(),
        &event.id.0[..],
        event.name.as_str(),
        event.subject,
        event.time.as_str(),
        event.call_status.map(CallStatus::as_str),
        event.content == Content::Opaque,
        event.signed_text.as_str(),
        event.signature.as_str(),
        event.replayed,
        checksum(sequence, event),
        &event.body[..],
    ])?;
    Ok(())
}

/// A row of [`COLUMNS`]. Only an error of SQLite itself is an error; of a row that does not hold what was written there is nothing to give.
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Option<Box<Stored>>> {
    let sequence = row.get::<_, i64>(0)? as u64;
    Ok(columns(row, sequence).map(|event| Box::new(Stored { sequence, event })))
}

fn columns(row: &Row<'_>, sequence: u64) -> Option<Event> {
    let text = |column| row.get_ref(column).ok()?.as_str().ok();
    let signed_text = ArrayString::from(text(9)?).ok()?;
    let event = Event {
        received_at: Timestamp::from_micros(row.get(1).ok()?),
        account: Name::new(text(2)?)?,
        id: EventId(row.get_ref(3).ok()?.as_blob().ok()?.try_into().ok()?),
        name: EventName::from_stored(text(4)?),
        subject: row.get(5).ok()?,
        time: ArrayString::from(text(6)?).ok()?,
        call_status: match row.get_ref(7).ok()?.as_str_or_null().ok()? {
            None => None,
            Some(text) => Some(CallStatus::ALL.into_iter().find(|status| status.as_str() == text)?),
        },
        content: if row.get(8).ok()? { Content::Opaque } else { Content::Json },
        signed_at: signed_text.parse().ok()?,
        signed_text,
        signature: ArrayString::from(text(10)?).ok()?,
        replayed: row.get(11).ok()?,
        body: Bytes::copy_from_slice(row.get_ref(13).ok()?.as_blob().ok()?),
    };
    let stored: u32 = row.get(12).ok()?;
    (stored == checksum(sequence, &event)).then_some(event)
}

/// CRC-32 over the sequence and all columns, each variable one behind its length so that no two rows share their bytes.
fn checksum(sequence: u64, event: &Event) -> u32 {
    // Together but for the body: a call for each of two dozen pieces takes longer than to copy them.
    let mut columns = Vec::with_capacity(512);
    columns.extend_from_slice(&sequence.to_le_bytes());
    columns.extend_from_slice(&event.received_at.as_micros().to_le_bytes());
    columns.extend_from_slice(&event.id.0);
    columns.extend([event.content == Content::Opaque, event.replayed, event.subject.is_some()].map(u8::from));
    for text in [
        event.account.as_str(),
        event.name.as_str(),
        event.subject.as_deref().unwrap_or(""),
        &event.time,
        event.call_status.map_or("", CallStatus::as_str),
        &event.signed_text,
        &event.signature,
    ] {
        columns.extend_from_slice(&(text.len() as u32).to_le_bytes());
        columns.extend_from_slice(text.as_bytes());
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&columns);
    crc.update(&event.body);
    crc.finalize()
}
