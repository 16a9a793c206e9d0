//! Which requests were answered 200 before: exact, bounded in memory, on disk until their timestamps leave the tolerance.
//!
//! A redelivery has the timestamp of the first delivery, so seconds of signing are what is cached: the ids signed in one second, read from
//! their few rows when the second is first asked for. Requests come within seconds of being signed, so nearly every look-up is in memory.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use rusqlite::{Connection, params};

use crate::normalize::EventId;

/// Ids kept in memory over all seconds: about 40 MB at the most. A second that alone holds more stays whole while it is in use.
const IDS_MAX: usize = 1_000_000;

/// Rows of expired ids that one step deletes, so that no commit waits for many.
const EXPIRED_ROWS_PER_STEP: usize = 64;

#[derive(Default)]
pub(super) struct Seen {
    seconds: HashMap<i64, Second>,
    ids: usize,
    uses: u64,
    /// New ids of the transaction under way, by second: of one or a few.
    fresh: Vec<(i64, Vec<u8>)>,
}

struct Second {
    ids: Ids,
    last_use: u64,
}

type Ids = HashSet<EventId, BuildHasherDefault<FirstBytes>>;

/// An id is a piece of a hash already. To find many that are alike in what counts here takes a search for each, and all would have to come
/// signed with one second. What is written last counts: the id, behind its length.
#[derive(Default)]
struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Seen {
    /// Notes a request, and says whether it is new. The note counts only once [`Seen::save`] and the commit behind it succeeded; if
    /// they do not, this whole value is not to be used any more.
    pub fn note(&mut self, db: &Connection, signed_at: i64, id: EventId) -> rusqlite::Result<bool> {
        let new = self.second(db, signed_at)?.ids.insert(id);
        if new {
            self.ids += 1;
            match self.fresh.iter_mut().find(|(at, _)| *at == signed_at) {
                Some((_, ids)) => ids.extend_from_slice(&id.0),
                None => self.fresh.push((signed_at, id.0.to_vec())),
            }
        }
        Ok(new)
    }

    /// Whether a request was noted before.
    pub fn has(&mut self, db: &Connection, signed_at: i64, id: EventId) -> rusqlite::Result<bool> {
        Ok(self.second(db, signed_at)?.ids.contains(&id))
    }

    fn second(&mut self, db: &Connection, signed_at: i64) -> rusqlite::Result<&mut Second> {
        self.uses += 1;
        let second = match self.seconds.entry(signed_at) {
            Entry::Occupied(second) => second.into_mut(),
            Entry::Vacant(place) => {
                let ids = load(db, signed_at)?;
                self.ids += ids.len();
                place.insert(Second { ids, last_use: 0 })
            }
        };
        second.last_use = self.uses;
        Ok(second)
    }

    /// Writes what was noted since the last save; `sequence` makes the rows' keys unique.
    pub fn save(&mut self, db: &Connection, sequence: u64) -> rusqlite::Result<()> {
        let mut insert = db.prepare_cached("INSERT INTO requests (signed_at, sequence, ids) VALUES (?, ?, ?)")?;
        for (signed_at, ids) in &self.fresh {
            insert.execute(params![signed_at, sequence as i64, ids])?;
        }
        Ok(())
    }

    /// After the commit.
    pub fn saved(&mut self) {
        self.fresh.clear();
        while self.ids > IDS_MAX && self.seconds.len() > 1 {
            let oldest = self.seconds.iter().min_by_key(|(_, second)| second.last_use).map(|(at, _)| *at);
            if let Some(second) = oldest.and_then(|at| self.seconds.remove(&at)) {
                self.ids -= second.ids.len();
            }
        }
    }

    /// Deletes a few rows of ids, the longest signed first: those signed before `second`, and those noted before `sequence`. True if there may be
    /// more.
    pub fn expire(&mut self, db: &Connection, second: i64, sequence: u64) -> rusqlite::Result<bool> {
        let mut select =
            db.prepare_cached("SELECT signed_at, sequence FROM requests ORDER BY signed_at, sequence LIMIT ?")?;
        let keys: Vec<(i64, i64)> = select
            .query_map([EXPIRED_ROWS_PER_STEP], |row| Ok((row.get(0)?, row.get(1)?)))?
            .take_while(|row| row.as_ref().map_or(true, |(at, noted)| *at < second || (*noted as u64) < sequence))
            .collect::<rusqlite::Result<_>>()?;
        let mut delete = db.prepare_cached("DELETE FROM requests WHERE signed_at = ? AND sequence = ?")?;
        for (signed_at, sequence) in &keys {
            delete.execute(params![signed_at, sequence])?;
            if let Some(second) = self.seconds.remove(signed_at) {
                self.ids -= second.ids.len();
            }
        }
        Ok(keys.len() == EXPIRED_ROWS_PER_STEP)
    }
}

fn load(db: &Connection, signed_at: i64) -> rusqlite::Result<Ids> {
    let mut ids = Ids::default();
    let mut select = db.prepare_cached("SELECT ids FROM requests WHERE signed_at = ?")?;
    let mut rows = select.query([signed_at])?;
    while let Some(row) = rows.next()? {
        let (whole, _) = row.get_ref(0)?.as_blob()?.as_chunks::<16>();
        ids.extend(whole.iter().map(|id| EventId(*id)));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn an_id_is_hashed_to_its_first_bytes() {
        let id = EventId([1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 9, 9, 9, 9, 9]);
        assert_eq!(Ids::default().hasher().hash_one(id), 0x0807_0605_0403_0201);
    }

    #[test]
    fn a_request_is_new_once_also_after_a_restart_and_again_after_a_rollback() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("schema.sql")).unwrap();
        let id = EventId([7; 16]);
        let mut seen = Seen::default();
        assert!(seen.note(&db, 100, id).unwrap());
        assert!(!seen.note(&db, 100, id).unwrap(), "twice in one batch");
        seen.save(&db, 1).unwrap();
        seen.saved();
        let mut restarted = Seen::default();
        assert!(!restarted.note(&db, 100, id).unwrap(), "kept on disk");
        assert!(restarted.note(&db, 101, id).unwrap(), "signed anew");
        assert!(!restarted.expire(&db, 101, 0).unwrap());
        assert!(restarted.note(&db, 100, id).unwrap(), "expired");
    }
}
