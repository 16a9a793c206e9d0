//! The journal's file: its lock, its making, its opening, and what is done with one that cannot be read.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use rustix::fs::{FlockOperation, flock};

use crate::clock::Timestamp;
use crate::config;

/// "sprj" in ASCII: tells our files from other programs' SQLite files.
const APPLICATION_ID: i32 = 0x7370_726a;
/// The tables of `schema.sql`. A file of a higher format can be read by us if its `readable_by` is not higher than this.
pub(super) const FORMAT: i64 = 1;
/// What was added to `schema.sql` since it was frozen.
pub(super) const ADDITIONS: &str = include_str!("additions.sql");
/// Of a new file. Each commit writes the pages that grow as a whole, and a body of 4 KiB would leave half of a larger page empty: with 8 KiB a
/// fifth more is written for bodies of 500 bytes, and nearly twice as much for those of 4 KiB (docs/performance.md).
pub(super) const PAGE_BYTES: u32 = 4096;
/// Pages of the write-ahead log after which it is checkpointed: SQLite's default, 4 MiB, or less ([`log_max`]).
const WAL_PAGES: std::ops::RangeInclusive<u64> = 16..=1_000;
/// A sixteenth of a small journal, since the log counts in its size.
const WAL_PART_OF_SIZE: u64 = 16;
/// An eighth of what is to stay free on the disk: a full disk must still have room for the pages that the log holds, or it could never be
/// emptied.
const WAL_PART_OF_FREE: u64 = 8;
/// The first version of SQLite without its "WAL-reset bug", which two that checkpoint meet (<https://sqlite.org/wal.html#walresetbug>).
const SQLITE_MIN: i32 = 3_051_003;
/// How long one connection waits for another's short write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub enum OpenError {
    /// Another process has the journal. Waiting does not help while it lives.
    Locked(PathBuf),
    /// The folder or file may not be used by this user.
    Forbidden(PathBuf, io::Error),
    /// No file can be at this place, whatever the disk does: why.
    Misplaced(String),
    /// The disk: it may recover.
    Disk(String),
    /// Not a journal that this version can read; to be set aside.
    Unreadable(String),
    /// This build may not write journals at all.
    Library(String),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Locked(path) => write!(
                f,
                "{}: another relay or drain holds this journal; stop it first, or give this one its own journal.path",
                path.display()
            ),
            Self::Forbidden(path, error) => {
                write!(
                    f,
                    "{}: {error}; make it writable for the user of the relay, or change journal.path",
                    path.display()
                )
            }
            Self::Misplaced(text) | Self::Disk(text) | Self::Unreadable(text) | Self::Library(text) => {
                f.write_str(text)
            }
        }
    }
}

/// The exclusive right to write the journal, held until dropped, or until the process ends however it ends.
pub(super) struct Lock {
    _file: File,
}

/// Whether the disk may have dropped what it was given, since a write or a checkpoint failed; see `checkpoint`. A file beside the journal tells it to the
/// next process, as far as the disk takes it: not synced, since with the power the log's index goes too, which is what makes the doubt.
pub(super) struct Doubt {
    file: PathBuf,
    is: bool,
}

impl Doubt {
    /// As the last process left it.
    pub fn of(journal: &Path) -> Self {
        let file = journal.with_extension("doubt");
        Self { is: file.exists(), file }
    }

    pub fn is(&self) -> bool {
        self.is
    }

    pub fn raise(&mut self) {
        self.is = true;
        let _ = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.file); // The disk's fault is told elsewhere.
    }

    pub fn settle(&mut self) {
        if std::mem::take(&mut self.is) {
            let _ = std::fs::remove_file(&self.file); // It may never have come to be.
        }
    }
}

/// Why no journal can be at this place: it is a folder, or lies in what is none.
pub(crate) fn misplaced(journal: &Path) -> Option<String> {
    if journal.is_dir() {
        return Some(format!("`{}` is a folder; name the journal's file in it", journal.display()));
    }
    let there = folder(journal).ancestors().find(|folder| folder.exists())?;
    (!there.is_dir()).then(|| format!("`{}` is no folder, so no journal can be in it", there.display()))
}

/// Takes the lock beside the journal; makes the folder (0700) if it is missing.
pub(super) fn lock(journal: &Path) -> Result<Lock, OpenError> {
    if rusqlite::version_number() < SQLITE_MIN {
        return Err(OpenError::Library(format!(
            "this build has SQLite {}, which can corrupt a journal; build it without LIBSQLITE3_SYS_USE_PKG_CONFIG, or with 3.51.3 or newer",
            rusqlite::version()
        )));
    }
    if let Some(why) = misplaced(journal) {
        return Err(OpenError::Misplaced(why));
    }
    make_folder(journal).map_err(|error| io_error(folder(journal), error))?;
    let path = journal.with_extension("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| io_error(&path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked(path)),
        Err(error) => Err(io_error(&path, error.into())),
    }
}

/// Makes the journal's folder (0700) if it is missing, and syncs the entry of each that it makes: else a power cut could take the folder, and with it
/// events that were promised. What is in the folder SQLite syncs.
fn make_folder(journal: &Path) -> io::Result<()> {
    let folder_of_journal = folder(journal);
    let missing: Vec<&Path> =
        folder_of_journal.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder_of_journal)?;
    for made in &missing {
        File::open(folder(made))?.sync_all()?;
    }
    // Perhaps made a moment ago by a start that came no further.
    if missing.is_empty() && !journal.exists() {
        match File::open(folder(folder_of_journal)) {
            Ok(above) => above.sync_all()?,
            // Ours would not be in a folder that we may not look into.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// After how many bytes the write-ahead log is to be checkpointed.
pub(super) fn log_max(config: &config::Journal) -> u64 {
    (config.size_max / WAL_PART_OF_SIZE).min(config.free_min / WAL_PART_OF_FREE)
}

/// Opens the journal for its one writer, making it if it is missing, for the holder of its lock. `log_max` as [`log_max`] gives it.
pub(super) fn open(journal: &Path, log_max: u64, _lock: &Lock, now: Timestamp) -> Result<Connection, OpenError> {
    finish_setting_aside(journal).map_err(|error| io_error(journal, error))?;
    if !journal.exists() {
        // SQLite gives its side files the mode of the main one, so this makes all of them 0600.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(journal)
            .map_err(|e| io_error(journal, e))?;
    }
    let db = connect(journal, log_max).map_err(|error| sqlite_error(journal, &error))?;
    prepare(&db, now).map_err(|error| match error {
        PrepareError::Sqlite(error) => sqlite_error(journal, &error),
        PrepareError::Unreadable(text) => OpenError::Unreadable(text),
    })?;
    Ok(db)
}

/// A second connection, which only reads.
pub(super) fn open_reader(journal: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(journal, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "query_only", true)?;
    keep_statements(&db)?;
    // What a crash left in the write-ahead log is the writer's to recover.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(db)
}

/// A connection for one short write beside whoever holds the lock: an order. Checkpoints stay the holder's.
pub(super) fn open_beside(journal: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(journal, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(db)
}

/// Gives an unreadable file (and its log) a dated name beside its old one, where it is kept for a person or `drain` to look at.
pub(super) fn set_aside(journal: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let date: String = now.rfc3339().chars().take(19).filter(char::is_ascii_alphanumeric).collect();
    let base = journal.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut aside = journal.with_file_name(format!("{base}.set-aside-{date}"));
    for again in 1.. {
        if !aside.exists() {
            break;
        }
        aside = journal.with_file_name(format!("{base}.set-aside-{date}-{again}"));
    }
    // The file first: should we end in between, its log stays behind alone, which tells the next start to finish this.
    std::fs::rename(journal, &aside)?;
    set_log_aside(journal, &aside)?;
    Ok(aside)
}

fn set_log_aside(journal: &Path, aside: &Path) -> io::Result<()> {
    for suffix in ["-shm", "-wal"] {
        let side = with_suffix(journal, suffix);
        if side.exists() {
            std::fs::rename(&side, with_suffix(aside, suffix))?;
        }
    }
    File::open(folder(journal))?.sync_all()
}

/// A log without its journal is of one that was being set aside when the process ended. SQLite would delete it, and with it what only it holds.
fn finish_setting_aside(journal: &Path) -> io::Result<()> {
    if journal.exists() || !with_suffix(journal, "-wal").exists() {
        return Ok(());
    }
    let newest = set_aside_files(journal).into_iter().filter(|aside| !with_suffix(aside, "-wal").exists()).max();
    set_log_aside(journal, &newest.unwrap_or_else(|| with_suffix(journal, ".set-aside-alone")))
}

/// How many files were set aside and still lie beside the journal.
pub(super) fn count_set_aside(journal: &Path) -> usize {
    set_aside_files(journal).len()
}

fn set_aside_files(journal: &Path) -> Vec<PathBuf> {
    let prefix = format!("{}.set-aside-", journal.file_name().unwrap_or_default().to_string_lossy());
    let Ok(entries) = std::fs::read_dir(folder(journal)) else { return Vec::new() };
    let is_one = |name: &str| name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm");
    entries
        .filter_map(Result::ok)
        .filter(|entry| is_one(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect()
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn folder(journal: &Path) -> &Path {
    match journal.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// For the writer, and for who checkpoints beside it.
pub(super) fn connect(journal: &Path, log_max: u64) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(journal, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "page_size", PAGE_BYTES)?;
    db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // A commit returns when it is synced; a reader sees it only after that (SQLite syncs the log before it moves the log's index on).
    db.pragma_update(None, "synchronous", "FULL")?;
    // SQLite's own checkpoints run in a commit, and keep their errors to themselves (`checkpoint`).
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    // A log that grew while a reader lagged is cut back to twice its bound once it has been checkpointed.
    db.pragma_update(None, "journal_size_limit", log_pages(&db, log_max)? * 2 * page_bytes(&db)?)?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    // After a failed write the log holds what nobody promised; closing must not copy it into the file.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    keep_statements(&db)?;
    Ok(db)
}

/// How many pages [`log_max`] are.
pub(super) fn log_pages(db: &Connection, log_max: u64) -> rusqlite::Result<i64> {
    let pages = log_max / page_bytes(db)?.unsigned_abs();
    Ok(pages.clamp(*WAL_PAGES.start(), *WAL_PAGES.end()) as i64)
}

/// An older file's are of 8 KiB.
fn page_bytes(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "page_size", |row| row.get(0))
}

fn keep_statements(db: &Connection) -> rusqlite::Result<()> {
    db.set_prepared_statement_cache_capacity(64);
    // Otherwise SQLite prepares a statement anew whenever its LIMIT is bound, in case another plan were better for that number.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(|_| ())
}

enum PrepareError {
    Sqlite(rusqlite::Error),
    Unreadable(String),
}

impl From<rusqlite::Error> for PrepareError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Makes the tables of a new file; of an old one, makes sure that this version can read it.
fn prepare(db: &Connection, now: Timestamp) -> Result<(), PrepareError> {
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        db.execute_batch("BEGIN IMMEDIATE")?;
        let made = create(db, now).and_then(|()| db.execute_batch("COMMIT"));
        if made.is_err() {
            let _ = db.execute_batch("ROLLBACK"); // The error that counts is the one we have.
        }
        return Ok(made?);
    }
    if application != APPLICATION_ID {
        return Err(PrepareError::Unreadable("it is another program's SQLite file".into()));
    }
    let readable_by: Option<String> =
        db.query_row("SELECT value FROM meta WHERE name = 'readable_by'", [], |row| row.get(0)).optional()?;
    match readable_by.and_then(|text| text.parse::<i64>().ok()) {
        Some(format) if format <= FORMAT => {}
        _ => {
            let by: Option<String> =
                db.query_row("SELECT value FROM meta WHERE name = 'written_by'", [], |row| row.get(0)).optional()?;
            let by = by.unwrap_or_else(|| "an unknown version".into());
            return Err(PrepareError::Unreadable(format!("it was written by {by}, which this version cannot read")));
        }
    }
    db.execute("UPDATE meta SET value = ? WHERE name = 'written_by' AND value <> ?1", [env!("CARGO_PKG_VERSION")])?;
    db.execute_batch(ADDITIONS)?;
    Ok(())
}

fn create(db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    db.pragma_update(None, "user_version", FORMAT)?;
    db.execute_batch(include_str!("schema.sql"))?;
    db.execute_batch(ADDITIONS)?;
    let mut random = [0; 8];
    if getrandom::fill(&mut random).is_err() {
        // Without a source of randomness the moment alone has to tell this journal from others.
        random = now.as_micros().to_le_bytes();
    }
    let mut insert = db.prepare("INSERT INTO meta (name, value) VALUES (?, ?)")?;
    insert.execute(["journal_id", &hex::encode(random)])?;
    insert.execute(["written_by", env!("CARGO_PKG_VERSION")])?;
    insert.execute(["readable_by", &FORMAT.to_string()])?;
    insert.execute(["sequence_floor", "0"])?;
    Ok(())
}

/// A page is not what SQLite wrote, which no waiting mends.
pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// As [`is_corrupt`], or the file has not the tables and values that we put there. One bit of a page that SQLite can walk all the same is enough: it
/// names a column otherwise, or makes a number a null. No disk that fails and no other process makes such errors; waiting mends none of them.
pub(super) fn is_not_as_written(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        // `Unknown` is SQLITE_ERROR: our own statement does not fit the tables.
        Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => true,
        Some(_) => is_corrupt(error),
        None => true, // A value that rusqlite finds to be of another kind, or a row that is not there.
    }
}

fn io_error(path: &Path, error: io::Error) -> OpenError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => OpenError::Forbidden(path.to_owned(), error),
        _ => OpenError::Disk(format!("{}: {error}", path.display())),
    }
}

fn sqlite_error(path: &Path, error: &rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        _ if is_corrupt(error) => OpenError::Unreadable("it is corrupt".into()),
        _ if is_not_as_written(error) => OpenError::Unreadable(format!("it is corrupt: {error}")),
        Some(ErrorCode::PermissionDenied) => {
            OpenError::Forbidden(path.to_owned(), io::Error::from(io::ErrorKind::PermissionDenied))
        }
        _ => OpenError::Disk(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_setting_aside_that_was_cut_short_costs_nothing_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let lock = lock(&path).unwrap();
        let db = open(&path, 1 << 30, &lock, clock::now()).unwrap();
        db.execute("INSERT INTO accounts (name, last_accepted_at) VALUES ('a', 1)", []).unwrap();
        drop(db);
        let aside = with_suffix(&path, ".set-aside-20250115T140207");
        std::fs::rename(&path, &aside).unwrap();
        open(&path, 1 << 30, &lock, clock::now()).unwrap();
        let accounts = |path: &Path| {
            let db = open_reader(path).unwrap();
            db.query_row("SELECT count(*) FROM accounts", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!((accounts(&aside), accounts(&path), count_set_aside(&path)), (1, 0, 1));
    }
}
