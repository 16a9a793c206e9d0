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

impl Span {
    pub(super) fn has(&self, sequence: u64) -> bool {
        self.after < sequence && self.through.is_none_or(|through| sequence <= through)
    }
}

impl OutputRow {
    /// What it owes behind its cursor.
    pub(super) fn owed(&self) -> impl Iterator<Item = Span> {
        let behind = |span: &Span| Span { after: span.after.max(self.cursor), through: span.through };
        self.spans.iter().map(behind).filter(|span| span.through.is_none_or(|through| span.after < through))
    }

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

/// The next stretch behind `position` of events that no output owes as pending, up to `last`: those after the first number, up to the second.
/// `None` if there are none yet. What a removed output owes keeps its own events, and none that came after its removal.
pub(super) fn free_after(outputs: &[OutputRow], position: u64, last: u64) -> Option<(u64, u64)> {
    // A removed output whose pending are all settled may have a cursor before the end of its span, if nothing lay between; it owes nothing.
    let owing = outputs.iter().filter(|output| !output.removed || output.counts.pending > 0);
    let owed: Vec<Span> = owing.flat_map(OutputRow::owed).collect();
    let mut after = position;
    while let Some(span) = owed.iter().find(|span| span.after <= after && span.through.is_none_or(|end| after < end)) {
        after = span.through?;
    }
    let through = owed.iter().map(|span| span.after).filter(|begin| *begin > after).min().unwrap_or(last).min(last);
    (after < through).then_some((after, through))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(cursor: u64, removed: bool, spans: &[(u64, Option<u64>)]) -> OutputRow {
        let spans = spans.iter().map(|(after, through)| Span { after: *after, through: *through }).collect();
        let counts = Counts { pending: 1, ..Counts::default() };
        OutputRow { number: 1, name: "o".into(), cursor, progress: 0, removed, routes: String::new(), counts, spans }
    }

    #[test]
    fn what_no_output_owes_is_free_also_behind_a_debt() {
        let live = output(90, false, &[(0, None)]);
        let removed = output(10, true, &[(0, Some(20))]);
        let back = output(10, false, &[(0, Some(20)), (50, None)]);
        let check = |outputs: &[&OutputRow], expected: &[(u64, u64)]| {
            let outputs: Vec<OutputRow> = outputs.iter().map(|output| (*output).clone()).collect();
            let (mut found, mut position) = (Vec::new(), 0);
            while let Some((after, through)) = free_after(&outputs, position, 100) {
                found.push((after, through));
                position = through;
            }
            assert_eq!(found, expected);
        };
        check(&[&live], &[(0, 90)]);
        check(&[&live, &removed], &[(0, 10), (20, 90)]);
        check(&[&live, &back], &[(0, 10), (20, 50)]);
        check(&[&removed], &[(0, 10), (20, 100)]);
        check(&[], &[(0, 100)]);
    }
}
