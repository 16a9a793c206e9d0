//! The journal's file: its lock, its making, its opening, and what is done with one that cannot be read.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use rustix::fs::{FlockOperation, flock};
use tracing::error;

use super::orders;
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
/// How long the lock is tried: a command that looks whether a relay runs has it for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);

/// What the relay appends to the journal's name for the files beside it. Not `.lock` and `.doubt`: the names that version 0.1 makes of some other journal's name end so.
const LOCK: &str = "-lock";
const DOUBT: &str = "-doubt";
/// A copy that is not whole yet, and one that is and has no dated name yet.
const SAVING: &str = "-relay-saving";
const SAVED: &str = "-relay-saved";
/// Ends of names that SQLite, this version (`.console`: its console output) and version 0.1 give to files beside a journal, which they also remove.
const TAKEN: [&str; 10] = ["-wal", "-shm", "-journal", LOCK, DOUBT, SAVING, SAVED, ".lock", ".doubt", ".console"];

/// Bytes of the journal's own name: file systems end names at 255, and dated ones beside it are 40 longer.
const NAME_MAX: usize = 200;

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
    journal: PathBuf,
    files: [File; 2],
}

impl Lock {
    /// Takes again what is no longer there under its name: somebody else could take it. True if any was not.
    ///
    /// # Errors
    /// [`OpenError::Locked`]: somebody else has it by now.
    pub fn renew(&mut self) -> Result<bool, OpenError> {
        let mut renewed = false;
        for (file, (path, how)) in self.files.iter_mut().zip(locks(&self.journal)) {
            let (held, there) = (file.metadata().map(|file| id_of(&file)), file_at(&path));
            if matches!((held, there), (Ok(held), Ok(there)) if there != Some(held)) {
                make_folder(&self.journal).map_err(|error| io_error(folder(&self.journal), error))?;
                *file = take_lock(path, how)?;
                renewed = true;
            }
        }
        Ok(renewed)
    }
}

/// A file whatever its name: device and inode.
pub(super) type FileId = (u64, u64);

fn id_of(file: &Metadata) -> FileId {
    (file.dev(), file.ino())
}

/// The file at a path, `None` if there is none. An error says nothing of whether there is.
pub(super) fn file_at(path: &Path) -> io::Result<Option<FileId>> {
    match std::fs::metadata(path) {
        Ok(file) => Ok(Some(id_of(&file))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The files of an open journal: itself, its log and the log's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Files([Option<FileId>; 3]);

/// Whether files that are open still are those under their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    InPlace,
    /// Not the journal itself: whatever becomes of it, the next process does not find it.
    Gone,
    /// Not the log or its index: the next process finds the journal without what only the log has, and others who open it now would write another log.
    LogGone,
}

impl Files {
    /// Those of a journal that was opened a moment ago.
    pub fn of(journal: &Path) -> io::Result<Self> {
        let [itself, log, index] = Self::names(journal);
        Ok(Self([file_at(&itself)?, file_at(&log)?, file_at(&index)?]))
    }

    fn names(journal: &Path) -> [PathBuf; 3] {
        ["", "-wal", "-shm"].map(|suffix| with_suffix(journal, suffix))
    }

    pub fn journal(&self) -> Option<FileId> {
        self.0[0]
    }

    /// What cannot be told counts as in place: a disk that fails shows elsewhere.
    pub fn standing(&self, journal: &Path) -> Standing {
        let mut others = Self::names(journal)
            .into_iter()
            .zip(self.0)
            .map(|(name, file)| file_at(&name).is_ok_and(|there| there != file));
        match others.next() {
            Some(true) => Standing::Gone,
            _ if others.any(|is_other| is_other) => Standing::LogGone,
            _ => Standing::InPlace,
        }
    }

    /// Removes of the log and its index what is there: the next journal under this name would take it for its own.
    pub fn remove_log(&self, journal: &Path) {
        for (name, file) in Self::names(journal).into_iter().zip(self.0).skip(1) {
            if file_at(&name).is_ok_and(|there| there.is_some() && there == file) {
                let _ = std::fs::remove_file(name); // What stays is set aside alone when the next one is opened.
            }
        }
    }
}

/// The files that are locked, and how. Version 0.1 locks a file whose name replaces the journal's extension, so that two journals may share it: it is
/// held as one of many, which keeps out only a process of that version, who wants it alone.
fn locks(journal: &Path) -> [(PathBuf, FlockOperation); 2] {
    [
        (journal.with_extension("lock"), FlockOperation::NonBlockingLockShared),
        (with_suffix(journal, LOCK), FlockOperation::NonBlockingLockExclusive),
    ]
}

/// Whether a relay (or `drain`) holds this journal now, of this version or of 0.1. Locks are tried and given back at once.
pub fn is_held(journal: &Path) -> bool {
    locks(journal).iter().any(|(path, _)| {
        let Ok(lock) = File::open(path) else { return false };
        flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// Whether a relay opens this journal anew, after a fault of its disk, for which everybody has to close it.
pub fn is_opened_anew(journal: &Path) -> bool {
    Doubt::of(journal).is() && is_held(journal)
}

/// Whether the disk may have dropped what it was given, since a write or a checkpoint failed; see `checkpoint`. A file beside the journal tells it to the
/// next process, as far as the disk takes it: not synced, since with the power the log's index goes too, which is what makes the doubt.
pub(super) struct Doubt {
    /// This version's and 0.1's, which makes the name by replacing the extension: after a rollback it looks there.
    files: [PathBuf; 2],
    is: bool,
}

impl Doubt {
    /// As the last process left it.
    pub fn of(journal: &Path) -> Self {
        let files = [with_suffix(journal, DOUBT), journal.with_extension("doubt")];
        Self { is: files.iter().any(|file| is_empty_file(file)), files }
    }

    pub fn is(&self) -> bool {
        self.is
    }

    pub fn raise(&mut self) {
        self.is = true;
        for file in &self.files {
            let _ = OpenOptions::new().create_new(true).write(true).mode(0o600).open(file); // The disk's fault is told elsewhere.
        }
    }

    pub fn settle(&mut self) {
        if std::mem::take(&mut self.is) {
            for file in self.files.iter().filter(|file| is_empty_file(file)) {
                let _ = std::fs::remove_file(file); // It may never have come to be.
            }
        }
    }
}

/// Whether the name is one that a file of doubt was made under: what has content is something else, perhaps a journal, and is never removed.
fn is_empty_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0)
}

/// Why no journal can be at this place: it is a folder, or lies in what is none, or its name is one that SQLite or the relay gives to other files.
pub(crate) fn misplaced(journal: &Path) -> Option<String> {
    let (shown, name) = (journal.display(), journal.file_name().unwrap_or_default().to_string_lossy());
    if journal.is_dir() {
        return Some(format!("`{shown}` is a folder; name the journal's file in it"));
    }
    if journal.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Some(format!("`{shown}` names a folder; name the journal's file in it"));
    }
    if std::fs::metadata(journal).is_ok_and(|file| !file.is_file()) {
        return Some(format!("`{shown}` is no ordinary file"));
    }
    if name.len() > NAME_MAX {
        return Some(format!(
            "its name has {} bytes; {NAME_MAX} leave room for the names of files beside it",
            name.len()
        ));
    }
    if let Some(end) = TAKEN.iter().find(|end| name.ends_with(**end)) {
        return Some(format!(
            "`{name}` ends in `{end}`, as files do that SQLite and the relay keep beside a journal, and remove; name it otherwise, such as \
             `{}.db` (a journal that has this name already: stop its relay, and rename it together with `{name}-wal`)",
            name.strip_suffix(end).unwrap_or_default()
        ));
    }
    // To SQLite such a name is a URI, or a database in memory.
    if ["file:", ":"].iter().any(|begin| journal.as_os_str().as_encoded_bytes().starts_with(begin.as_bytes())) {
        return Some(format!("`{shown}` means something else to SQLite; write `./{shown}`"));
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
    let [(old, shared), (new, alone)] = locks(journal);
    Ok(Lock { files: [take_lock(old, shared)?, take_lock(new, alone)?], journal: journal.to_owned() })
}

fn take_lock(path: PathBuf, how: FlockOperation) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    let options = options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(|error| io_error(&path, error))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(&file, how) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_PATIENCE / 10),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Locked(path)),
            Err(error) => return Err(io_error(&path, error.into())),
        }
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

/// The same as bytes of whole pages.
pub(super) fn log_max_bytes(config: &config::Journal, page_bytes: u64) -> u64 {
    (log_max(config) / page_bytes.max(1)).clamp(*WAL_PAGES.start(), *WAL_PAGES.end()) * page_bytes
}

/// Writes something, however little. A value that changes: of an update that changes none SQLite writes nothing, and then syncs nothing.
pub(super) fn probe(db: &Connection) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta (name, value) VALUES ('probes', '1') ON CONFLICT DO UPDATE SET value = value + 1";
    db.execute(sql, []).map(drop)
}

/// No sequence up to this one is ever given again.
pub(super) fn save_floor(db: &Connection, floor: u64) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE meta SET value = ? WHERE name = 'sequence_floor'")?.execute([floor.to_string()])?;
    Ok(())
}

/// Opens the journal for its one writer, making it if it is missing, for the holder of its lock. `log_max` as [`log_max`] gives it.
pub(super) fn open(journal: &Path, log_max: u64, _lock: &Lock, now: Timestamp) -> Result<Connection, OpenError> {
    if saved(journal).exists() {
        let aside = keep_saved(journal, now).map_err(|error| io_error(journal, error))?;
        error!(journal.set_aside = %aside.display(), "a copy of a journal whose file had gone was saved as {} and not told of", aside.display());
    }
    finish_setting_aside(journal, now).map_err(|error| io_error(journal, error))?;
    stop_saving(journal);
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

/// The dated name beside its own under which a journal is kept for a person or `drain` to look at.
fn aside_name(journal: &Path, now: Timestamp) -> PathBuf {
    let date: String = now.rfc3339().chars().take(19).filter(char::is_ascii_alphanumeric).collect();
    let base = journal.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut aside = journal.with_file_name(format!("{base}.set-aside-{date}"));
    for again in 1.. {
        if !aside.exists() {
            break;
        }
        aside = journal.with_file_name(format!("{base}.set-aside-{date}-{again}"));
    }
    aside
}

/// Gives an unreadable file (and its log) a dated name, see [`aside_name`].
pub(super) fn set_aside(journal: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let aside = aside_name(journal, now);
    // The file first: should we end in between, its log stays behind alone, which tells the next start to finish this.
    std::fs::rename(journal, &aside)?;
    set_log_aside(journal, &aside)?;
    Ok(aside)
}

/// The same for a file that has all of its log, whatever lies beside it under the log's name.
pub(super) fn set_aside_alone(journal: &Path, now: Timestamp) -> io::Result<PathBuf> {
    for suffix in ["-wal", "-shm"] {
        match std::fs::remove_file(with_suffix(journal, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    set_aside(journal, now)
}

/// Bytes that the journal's disk has free, if it says so.
pub(super) fn free_bytes(journal: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder(journal)).ok().map(|disk| disk.f_bavail * disk.f_frsize)
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

/// A log without its journal is of one that was being set aside when the process ended, or that somebody deleted. SQLite would delete it, and with it what
/// only it holds.
fn finish_setting_aside(journal: &Path, now: Timestamp) -> io::Result<()> {
    let log = with_suffix(journal, "-wal");
    if journal.exists() || !log.exists() {
        return Ok(());
    }
    let written = std::fs::metadata(&log)?.modified()?;
    // To be renamed changes a file's status. One that was set aside earlier than this log was written is another journal, which the log would destroy.
    let renamed = |file: Metadata| {
        let since_1970 = Duration::new(file.ctime().unsigned_abs(), file.ctime_nsec().unsigned_abs() as u32);
        std::time::SystemTime::UNIX_EPOCH + since_1970
    };
    let is_its = |aside: &PathBuf| {
        !with_suffix(aside, "-wal").exists() && std::fs::metadata(aside).is_ok_and(|file| renamed(file) >= written)
    };
    let newest = set_aside_files(journal).into_iter().filter(is_its).max();
    set_log_aside(journal, &newest.unwrap_or_else(|| aside_name(journal, now)))
}

/// Begins a copy of a journal beside its path: gives an empty file, for this user alone, that becomes one that was set aside.
pub(super) fn begin_saving(journal: &Path) -> io::Result<PathBuf> {
    stop_saving(journal);
    let saving = with_suffix(journal, SAVING);
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(&saving)?;
    Ok(saving)
}

/// The copy is whole and synced: should the process end now, the next start keeps it.
pub(super) fn finish_saving(journal: &Path) -> io::Result<()> {
    std::fs::rename(with_suffix(journal, SAVING), saved(journal))?;
    File::open(folder(journal))?.sync_all()
}

/// Where a whole copy is until it has its dated name.
pub(super) fn saved(journal: &Path) -> PathBuf {
    with_suffix(journal, SAVED)
}

/// Removes what is left of a copy.
pub(super) fn stop_saving(journal: &Path) {
    for copy in [with_suffix(journal, SAVING), saved(journal)] {
        for file in [with_suffix(&copy, "-journal"), copy] {
            let _ = std::fs::remove_file(file); // As a rule there is none.
        }
    }
}

/// Gives a whole copy its dated name.
pub(super) fn keep_saved(journal: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let (saved, aside) = (saved(journal), aside_name(journal, now));
    // What was brought up to the present only in part is undone by whoever opens it first, as long as it has this name.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let undo = Connection::open_with_flags(&saved, flags)
        .and_then(|db| db.query_row("SELECT count(*) FROM meta", [], |_| Ok(())));
    if let Err(error) = undo {
        error!(journal.set_aside = %aside.display(), "the copy of the journal that becomes {} cannot be read: {error}", aside.display());
    }
    // Its log, empty: else the log of the journal that is gone, which may still lie beside it, would be taken for this one's (`finish_setting_aside`).
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(with_suffix(&aside, "-wal"))?;
    File::open(&saved)?.sync_all()?;
    std::fs::rename(saved, &aside)?;
    File::open(folder(journal))?.sync_all()?;
    Ok(aside)
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
    let mut insert = db.prepare("INSERT INTO meta (name, value) VALUES (?, ?)")?;
    insert.execute(["journal_id", &random_id(now)])?;
    insert.execute(["written_by", env!("CARGO_PKG_VERSION")])?;
    insert.execute(["readable_by", &FORMAT.to_string()])?;
    insert.execute(["sequence_floor", "0"])?;
    Ok(())
}

fn random_id(now: Timestamp) -> String {
    let mut random = [0; 8];
    if getrandom::fill(&mut random).is_err() {
        // Without a source of randomness the moment alone has to tell this journal from others.
        random = now.as_micros().to_le_bytes();
    }
    hex::encode(random)
}

/// The id that tells this journal from others, which consumers see as `relayjournal`.
pub(super) fn journal_id(db: &Connection) -> rusqlite::Result<String> {
    db.query_row("SELECT value FROM meta WHERE name = 'journal_id'", [], |row| row.get(0))
}

/// Gives it another one, as the orders up to this number say, and with that makes it none's copy.
pub(super) fn renew_id(
    db: &Connection,
    journal: &Path,
    ordered: Option<i64>,
    now: Timestamp,
) -> rusqlite::Result<String> {
    let id = random_id(now);
    let transaction = db.unchecked_transaction()?; // Nobody else has the connection.
    transaction.execute("UPDATE meta SET value = ? WHERE name = 'journal_id'", [&id])?;
    transaction.execute("DELETE FROM meta WHERE name = 'file'", [])?;
    if let Some(number) = ordered {
        orders::new_id_done(&transaction, number, now)?;
    }
    transaction.commit()?;
    is_copy(db, journal).map(|_| id)
}

/// Whether its file is not the one that the journal noted: it was copied, or put back from a backup of files. The first time it is noted. What copies a
/// whole volume makes the same file.
pub(super) fn is_copy(db: &Connection, journal: &Path) -> rusqlite::Result<bool> {
    let Ok(file) = std::fs::metadata(journal) else { return Ok(false) };
    let made = |file: Metadata| file.created().ok()?.duration_since(std::time::UNIX_EPOCH).ok();
    // Not every file system says when a file was made.
    let (number, made) =
        (file.ino().to_string(), made(file).map_or_else(String::new, |made| made.as_nanos().to_string()));
    db.execute(
        "INSERT INTO meta (name, value) VALUES ('file', ?) ON CONFLICT DO NOTHING",
        [format!("{number} {made}")],
    )?;
    let noted: String = db.query_row("SELECT value FROM meta WHERE name = 'file'", [], |row| row.get(0))?;
    let (noted_number, noted_made) = noted.split_once(' ').unwrap_or((&noted, ""));
    Ok(noted_number != number || !made.is_empty() && !noted_made.is_empty() && noted_made != made)
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
        // Another journal, from before: the log is not its.
        let earlier = with_suffix(&path, ".set-aside-20990115T140207");
        std::fs::write(&earlier, "").unwrap();
        let db = open(&path, 1 << 30, &lock, clock::now()).unwrap();
        let written = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
        db.execute("INSERT INTO accounts (name, last_accepted_at) VALUES ('a', 1)", []).unwrap();
        // The clock of a file system may stand still for some milliseconds.
        while written(&with_suffix(&path, "-wal")) <= written(&earlier) {
            db.execute("UPDATE accounts SET last_accepted_at = last_accepted_at + 1", []).unwrap();
        }
        drop(db);
        let aside = with_suffix(&path, ".set-aside-20250115T140207");
        std::fs::rename(&path, &aside).unwrap();
        open(&path, 1 << 30, &lock, clock::now()).unwrap();
        let accounts = |path: &Path| {
            let db = open_reader(path).unwrap();
            db.query_row("SELECT count(*) FROM accounts", [], |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!((accounts(&aside), accounts(&path), count_set_aside(&path)), (1, 0, 2));
        assert!(!with_suffix(&earlier, "-wal").exists());
    }
}
