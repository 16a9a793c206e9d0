//! What the journal knows of each output: its place, what it owes, and its five counts.

use rusqlite::{Connection, params};

use crate::clock::Timestamp;
use crate::config::OutputName;

/// One output as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputRow {
    pub number: u32,
    pub name: String,
    /// Every event up to it that the output owes is confirmed or has a row of its own.
    pub cursor: u64,
    /// The last progress that was kept, so that one is never counted twice.
    pub progress: u64,
    /// No longer configured; its debt stays until `journal forget`.
    pub removed: bool,
    pub routes: String,
    pub counts: Counts,
    pub spans: Vec<Span>,
}

/// accepted = published + pending + parked + discarded, each counted by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: i64,
    pub published: i64,
    pub pending: i64,
    pub parked: i64,
    pub discarded: i64,
}

impl Counts {
    /// In the order of [`crate::metrics::LEDGER_STATES`].
    pub fn by_state(&self) -> [i64; 5] {
        [self.accepted, self.published, self.pending, self.parked, self.discarded]
    }
}

/// Events that an output owes: those after `after`, up to `through` if that is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub after: u64,
    pub through: Option<u64>,
}

impl OutputRow {
    /// The next stretch of owed events behind `position`: those after the first number, up to the second. `None` when there can be none yet.
    pub fn owed_after(&self, position: u64) -> Option<(u64, u64)> {
        self.spans
            .iter()
            .map(|span| (position.max(span.after), span.through.unwrap_or(i64::MAX as u64)))
            .find(|(after, through)| after < through)
    }
}

/// All outputs, in the order of their numbers.
pub(super) fn read(db: &Connection) -> rusqlite::Result<Vec<OutputRow>> {
    let mut select = db.prepare_cached(
        "SELECT number, name, cursor, removed_at IS NOT NULL, routes, accepted, published, pending, parked, discarded, \
         progress          FROM outputs ORDER BY number",
    )?;
    let mut rows: Vec<OutputRow> = select
        .query_map([], |row| {
            Ok(OutputRow {
                number: row.get(0)?,
                name: row.get(1)?,
                cursor: row.get::<_, i64>(2)? as u64,
                removed: row.get(3)?,
                routes: row.get(4)?,
                counts: Counts {
                    accepted: row.get(5)?,
                    published: row.get(6)?,
                    pending: row.get(7)?,
                    parked: row.get(8)?,
                    discarded: row.get(9)?,
                },
                progress: row.get::<_, i64>(10)? as u64,
                spans: Vec::new(),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut select = db.prepare_cached("SELECT after, through FROM spans WHERE output = ? ORDER BY after")?;
    for output in &mut rows {
        let spans = select.query_map([output.number], |row| {
            Ok(Span { after: row.get::<_, i64>(0)? as u64, through: row.get::<_, Option<i64>>(1)?.map(|n| n as u64) })
        })?;
        output.spans = spans.collect::<rusqlite::Result<_>>()?;
    }
    Ok(rows)
}

/// Makes the table say which outputs are configured: a new one owes what comes after `last`, a removed one nothing after it, one that was
/// put back its old debt and what comes.
pub(super) fn configure(db: &Connection, configured: &[OutputName], last: u64, now: Timestamp) -> rusqlite::Result<()> {
    let known = read(db)?;
    for row in &known {
        let wanted = configured.iter().any(|name| name.as_str() == row.name);
        if !wanted && !row.removed {
            db.execute("UPDATE outputs SET removed_at = ? WHERE number = ?", params![now.as_micros(), row.number])?;
            db.execute(
                "UPDATE spans SET through = ? WHERE output = ? AND through IS NULL",
                params![last as i64, row.number],
            )?;
        }
        if wanted && row.removed {
            db.execute("UPDATE outputs SET removed_at = NULL WHERE number = ?", [row.number])?;
            // Where nothing came in between, the span that was closed there goes on.
            let open = "INSERT INTO spans (output, after, through) VALUES (?, ?, NULL) ON CONFLICT DO UPDATE SET through = NULL";
            db.execute(open, params![row.number, last as i64])?;
        }
    }
    for name in configured {
        if known.iter().all(|row| row.name != name.as_str()) {
            db.execute(
                "INSERT INTO outputs (name, cursor, routes) VALUES (?, ?, '')",
                params![name.as_str(), last as i64],
            )?;
            let number = db.last_insert_rowid();
            db.execute("INSERT INTO spans (output, after, through) VALUES (?, ?, NULL)", params![number, last as i64])?;
        }
    }
    Ok(())
}

/// What an output's cursor may not be behind for an event of this number to be deleted: `None` if no output owes anything any more.
pub(super) fn owed_from(outputs: &[OutputRow]) -> Option<u64> {
    // A removed output whose pending are all settled may have a cursor before the end of its span, if nothing lay between; it owes nothing.
    let owing = outputs.iter().filter(|output| !output.removed || output.counts.pending > 0);
    owing.filter_map(|output| output.owed_after(output.cursor)).map(|(after, _)| after).min()
}
