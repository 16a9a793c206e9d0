//! What a damaged page costs where the writer has to write: not the journal, as long as events, outputs and what stands apart can be found.
//!
//! SQLite appends to the last page of a table, and to none that it cannot read. Of events that page is replaced by one with an empty row for each of
//! them, which is read as corrupt. The trail and other tables that the relay can do without begin anew, and free pages are given up. What was there
//! stays in the file.

use std::collections::HashSet;

use rusqlite::{Connection, params};
use tracing::error;

use super::fetch::TIMES;
use super::{OutputRow, file, ledger};
use crate::clock::Timestamp;

/// The first byte of a table's page that leads to others.
const INNER: u8 = 5;
/// The first bytes of other pages.
const OTHERS: [u8; 3] = [2, INNER, 10];
/// How many empty rows a page holds, and more events than any page.
const EMPTY_ROWS_MAX: usize = 200;
/// Entries of the trail that are looked through for those that were discarded.
const TRAIL_MAX: i64 = 100_000;
/// Where nobody knows for certain which number was given last, so many are left out: a gap does no harm, and a number that is given twice does.
const MARGIN: u64 = 10_000;
/// Tables whose rows the relay can do without, and a question that reads as much of each as the relay ever writes to.
const DISPENSABLE: [(&str, &str); 5] = [
    (
        "trail",
        "SELECT (SELECT max(entry) FROM trail), (SELECT count(at) FROM (SELECT at FROM trail ORDER BY entry LIMIT 10000))",
    ),
    ("requests", "SELECT count(ids || '') FROM requests"),
    ("accounts", "SELECT count(last_accepted_at) FROM accounts"),
    // What was given up and stands before a cursor is sent.
    ("given_up", "SELECT count(sequence) FROM given_up"),
    ("orders", "SELECT count(selection || ifnull(result, '')) FROM orders"),
];

/// Indexes of the rows that stand apart, as the schema has them.
const INDEXES: [(&str, &str); 2] = [
    ("apart_by_sequence", "CREATE INDEX apart_by_sequence ON apart (sequence, output)"),
    ("apart_parked", "CREATE INDEX apart_parked ON apart (output, next_at, sequence) WHERE state = 'parked'"),
];
/// Tables without which nobody knows what is owed to whom.
const STRUCTURE: [&str; 4] = ["meta", "outputs", "spans", "apart"];

/// Mends what can be mended. `last` is the last sequence that was given, if that is known.
///
/// # Errors
/// SQLite's, of the kind "corrupt" where a page cannot be read without which the journal is none. All of those are looked at: an event that is
/// accepted into such a file leaves with it.
pub(super) fn mend(db: &Connection, last: Option<u64>, now: Timestamp) -> rusqlite::Result<()> {
    give_up_free_pages(db)?; // First, before anything takes one.
    for (index, create) in INDEXES {
        if is_damaged(db, &format!("SELECT count(sequence) FROM apart INDEXED BY {index} WHERE state = 'parked'"))? {
            // To drop it would read its pages. As a whole or not at all, since without the index nobody finds anything: after an error the connection is
            // closed, which undoes it.
            db.execute_batch(&format!(
                "BEGIN IMMEDIATE; PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = '{index}'; PRAGMA writable_schema = RESET; \
                 {create}; COMMIT"
            ))?;
            error!("a page of the journal's index {index} cannot be read: the index is made anew");
        }
    }
    for table in STRUCTURE {
        let found: String = db.query_row(&format!("PRAGMA quick_check('{table}')"), [], |row| row.get(0))?;
        if found != "ok" {
            let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
            return Err(rusqlite::Error::SqliteFailure(
                corrupt,
                Some(format!("a page of its table {table} cannot be read")),
            ));
        }
    }
    for (table, question) in DISPENSABLE {
        if is_damaged(db, question)? {
            begin_anew(db, table, now)?;
        }
    }
    if is_damaged(db, "SELECT max(sequence) FROM events")? {
        replace_last_page(db, last, now)?;
    }
    Ok(())
}

fn is_damaged(db: &Connection, question: &str) -> rusqlite::Result<bool> {
    match db.query_row(question, [], |_| Ok(())) {
        Err(error) if file::is_corrupt(&error) => Ok(true),
        result => result.map(|()| false),
    }
}

/// Gives a table another name and makes it anew, empty.
fn begin_anew(db: &Connection, table: &str, now: Timestamp) -> rusqlite::Result<()> {
    let sql = [include_str!("schema.sql"), file::ADDITIONS].concat();
    let of_table = |sql: &str| {
        let begins = [format!("CREATE TABLE {table} ("), format!("CREATE TABLE IF NOT EXISTS {table} (")];
        begins.iter().find_map(|begin| sql.find(begin.as_str()).map(|at| sql[at..].to_owned()))
    };
    let create = sql.split_inclusive(';').find_map(of_table);
    let Some(create) = create else { return Ok(()) };
    let aside = format!("{table}_damaged_{}", now.as_micros());
    db.execute_batch(&format!("BEGIN IMMEDIATE; ALTER TABLE {table} RENAME TO {aside}; {create} COMMIT"))?;
    error!(
        "the journal's table {table} has a page that cannot be read: the table begins anew, and what it held stays in the file as {aside}"
    );
    Ok(())
}

/// Puts an empty row in place of each event on the last page of events.
fn replace_last_page(db: &Connection, last: Option<u64>, now: Timestamp) -> rusqlite::Result<()> {
    let mut page = db.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'events'", [], |row| row.get(0))?;
    let mut sibling = None;
    let bytes = loop {
        let bytes = read(db, page)?;
        // The last of its cells leads to the page before the last, behind which the number stands up to which that has events.
        let cells = u16::from_be_bytes([bytes[3], bytes[4]]);
        let at = 12 + 2 * usize::from(cells.saturating_sub(1));
        let cell = bytes.get(at..at + 2).map(|at| usize::from(u16::from_be_bytes([at[0], at[1]])));
        let cell = cell.and_then(|at| bytes.get(at..)).filter(|cell| cell.len() >= 13);
        let Some(cell) = cell.filter(|_| bytes[0] == INNER && cells > 0) else { break bytes };
        sibling = Some((page_number(cell), varint(&cell[4..])));
        page = page_number(&bytes[8..]);
    };
    // Else it is one that leads to others, or all that there is.
    let Some((sibling, before)) = sibling else { return Ok(()) };
    // A page that is whole is somebody else's: what leads there is wrong.
    if read(db, sibling)?[0] == INNER || OTHERS.contains(&bytes[0]) {
        return Ok(());
    }
    let is_known = last.is_some();
    let last = match last {
        Some(last) => last,
        None => last_given(db, before)?,
    };
    // The newest, without numbers that no event has, as the configuration discarded theirs.
    let mut discarded =
        db.prepare("SELECT sequence FROM trail WHERE output IS NULL AND entry > (SELECT max(entry) FROM trail) - ?")?;
    let discarded = discarded.query_map([TRAIL_MAX], |row| row.get::<_, i64>(0).map(|sequence| sequence as u64))?;
    let discarded: HashSet<u64> = discarded.collect::<rusqlite::Result<_>>()?;
    let mut numbers: Vec<u64> =
        (before + 1..=last).rev().filter(|number| !discarded.contains(number)).take(EMPTY_ROWS_MAX).collect();
    if numbers.is_empty() {
        numbers.push(last.max(before + 1)); // A page is not without rows.
    }
    let (first, last) = (numbers[numbers.len() - 1], last.max(numbers[0]));
    let empty = empty_rows(bytes.len(), &numbers)?;
    let transaction = db.unchecked_transaction()?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS damaged_pages (page INTEGER NOT NULL, at INTEGER NOT NULL, bytes BLOB NOT NULL) STRICT",
    )?;
    db.execute("INSERT INTO damaged_pages (page, at, bytes) VALUES (?, ?, ?)", params![page, now.as_micros(), bytes])?;
    db.execute("UPDATE sqlite_dbpage SET data = ? WHERE pgno = ?", params![empty, page])?;
    if !is_known {
        file::save_floor(db, last + MARGIN)?;
    }
    transaction.commit()?;
    error!(
        "the last page of events cannot be read: events number {first} to {last} are corrupt; new ones go behind them"
    );
    Ok(())
}

/// The last sequence that was given, as far as anything but the events behind `before` says it.
fn last_given(db: &Connection, before: u64) -> rusqlite::Result<u64> {
    let ask = |sql: &str| {
        db.query_row(&format!("SELECT {sql}"), [], |row| row.get::<_, Option<i64>>(0))
            .map(|n| n.unwrap_or(0).max(0) as u64)
    };
    let mut last = before;
    for known in [
        "CAST(value AS INTEGER) FROM meta WHERE name = 'sequence_floor'",
        "max(cursor) FROM outputs",
        "max(sequence) FROM apart",
        "max(sequence) FROM given_up",
    ] {
        last = last.max(ask(known)?);
    }
    // A commit's requests are as many as its events, and the newest are remembered longest.
    last = last.max(ask(
        "sequence + sum(length(ids)) / 16 - 1 FROM requests WHERE sequence = (SELECT max(sequence) FROM requests)",
    )?);
    // And the outputs know how many they owe.
    for OutputRow { number, cursor, counts, .. } in ledger::read(db)?.into_iter().filter(|row| !row.removed) {
        let count = |table: &str, span: &str| ask(&format!("count(*) FROM {table} output = {number} AND {span}"));
        let readable = format!("sequence > {cursor} AND sequence <= {before}");
        let base = cursor.max(before);
        let behind = format!("sequence > {base}");
        let (apart, given_up) = ("apart WHERE state <> 'replay' AND", "given_up WHERE");
        let without_row =
            count_events(db, cursor, before)?.saturating_sub(count(apart, &readable)? + count(given_up, &readable)?);
        let held = count("apart WHERE state = 'held' AND", "TRUE")?;
        let rest = (counts.pending.max(0) as u64).saturating_sub(held + without_row);
        last = last.max(base + rest + count(apart, &behind)? + count(given_up, &behind)?);
    }
    Ok(last)
}

/// Events behind `after` and up to `through`, those that cannot be read too. Counted by SQL they would be looked for on the page behind, too.
fn count_events(db: &Connection, mut after: u64, through: u64) -> rusqlite::Result<u64> {
    let mut count = 0;
    loop {
        let step = TIMES.between(db, after, through, 10_000, usize::MAX)?;
        let Some((last, _)) = step.last() else { return Ok(count) };
        (after, count) = (*last, count + step.len() as u64);
    }
}

/// A page of so many bytes with empty rows of these numbers, as SQLite makes it.
fn empty_rows(bytes: usize, numbers: &[u64]) -> rusqlite::Result<Vec<u8>> {
    let db = Connection::open_in_memory()?;
    db.pragma_update(None, "page_size", bytes as i64)?;
    db.execute_batch("CREATE TABLE events (sequence INTEGER PRIMARY KEY, empty)")?;
    let mut insert = db.prepare("INSERT INTO events (sequence) VALUES (?)")?;
    for number in numbers {
        insert.execute([*number as i64])?;
    }
    read(&db, 2)
}

fn read(db: &Connection, page: u32) -> rusqlite::Result<Vec<u8>> {
    db.query_row("SELECT data FROM sqlite_dbpage WHERE pgno = ?", [page], |row| row.get(0))
}

fn page_number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// SQLite's numbers of 1 to 9 bytes: seven bits each, the highest first, as long as the eighth says that more come.
fn varint(bytes: &[u8]) -> u64 {
    let mut value = 0;
    for byte in bytes.iter().take(8) {
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return value;
        }
    }
    value << 8 | u64::from(bytes.get(8).copied().unwrap_or_default())
}

/// Free pages stand in a list. Where that is damaged it is given up: the file keeps them, and nobody uses them.
fn give_up_free_pages(db: &Connection) -> rusqlite::Result<()> {
    let mut head = read(db, 1)?;
    let pages: u32 = db.pragma_query_value(None, "page_count", |row| row.get(0))?;
    // The first page of the list and how many pages are free stand in the file's head. Each page of the list names the next one, and how many it lists.
    let (mut page, mut left) = (page_number(&head[32..]), page_number(&head[36..]));
    while page != 0 && left > 0 {
        let bytes = if page <= pages { read(db, page)? } else { Vec::new() };
        let listed = bytes.get(4..).map_or(u32::MAX, page_number);
        let is_whole = listed < left && listed as usize + 2 <= bytes.len() / 4;
        let entries = bytes.get(8..).unwrap_or_default().chunks_exact(4).take(listed as usize);
        if !is_whole || entries.map(page_number).any(|entry| entry < 2 || entry > pages) {
            head[32..40].fill(0);
            db.execute("UPDATE sqlite_dbpage SET data = ? WHERE pgno = 1", [head])?;
            error!("the list of the journal's free pages cannot be read: {left} pages of its file stay unused");
            return Ok(());
        }
        (page, left) = (page_number(&bytes), left - listed - 1);
    }
    Ok(())
}
