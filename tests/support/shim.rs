//! The disk under one relay's journal, as `tests/tools/disk.c` makes it: it fails, stalls, fills or turns read-only at a word, and after a power
//! cut it has only what was synced, and of the rest whatever chance leaves.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::Relay;

/// What the shim counts in.
const BLOCK: usize = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// `errno` of what a disk says.
pub const EIO: u32 = 5;
pub const ENOSPC: u32 = 28;
pub const EROFS: u32 = 30;

/// Whose pages are dropped.
pub const MAIN: u32 = 1;
pub const LOG: u32 = 2;

/// One field of the shim's control file, by its place.
#[derive(Clone, Copy)]
pub enum Knob {
    /// Such calls fail with this.
    WriteError = 0,
    SyncError = 1,
    OpenError = 2,
    /// Such calls wait until it is 0.
    StallWrites = 3,
    StallSyncs = 4,
    /// So many more calls succeed before the errors hold.
    Spare = 5,
    /// The log is synced only by a checkpoint, as SQLite would under `synchronous=NORMAL`.
    LazyLog = 6,
    /// What was synced is kept, for [`Shim::cut_power`].
    KeepImage = 7,
    /// Counted by the shim: calls that were made to fail. The two fields before it count writes and syncs, and no test asks for them.
    Failed = 10,
    /// Seconds by which the clock of the day is ahead; see [`Shim::set_clock`].
    ClockAhead = 11,
    /// The next sync of the journal's file ([`MAIN`]) or of its log ([`LOG`]) fails, and what was written to it since the last one is dropped. Then 0
    /// again.
    DropPages = 12,
}

/// What a power cut left of the files, beside what was synced.
#[derive(Clone, Copy, Debug)]
pub enum Unsynced {
    Nothing,
    /// Each sector that was written and not synced, or not.
    SomeSectors,
    All,
}

pub struct Shim {
    state: TempDir,
    control: File,
}

impl Shim {
    /// Stands between this relay, not started yet, and the files of its journal `data/journal.db`.
    pub fn under(relay: &mut Relay) -> Self {
        let state = TempDir::with_prefix("sipsim-relay-shim-").expect("a temporary folder");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let control = options.open(state.path().join("control")).expect("the control file");
        control.set_len(4096).expect("its length");
        let folder = relay.path("data").canonicalize().expect("the journal's folder");
        for (name, value) in [("LD_PRELOAD", library()), ("SHIM_STATE", state.path()), ("SHIM_FOLDER", &folder)] {
            relay.set_environment(name, &value.to_string_lossy());
        }
        Self { state, control }
    }

    pub fn set(&self, knob: Knob, value: u32) {
        self.control.write_all_at(&value.to_ne_bytes(), knob as u64 * 4).expect("the control file");
    }

    pub fn get(&self, knob: Knob) -> u32 {
        let mut value = [0; 4];
        self.control.read_exact_at(&mut value, knob as u64 * 4).expect("the control file");
        u32::from_ne_bytes(value)
    }

    /// Sets the relay's clock ahead of ours, or back.
    pub fn set_clock(&self, ahead_seconds: i32) {
        self.set(Knob::ClockAhead, ahead_seconds.cast_unsigned());
    }

    /// Puts the journal's folder into the state in which a power cut would have left it. The relay must be dead (`kill9`); with `KeepImage` set
    /// all the time. Says how many bytes were written and not synced.
    pub fn cut_power(&self, relay: &Relay, unsynced: Unsynced, random: &mut fastrand::Rng) -> usize {
        let folder = relay.path("data");
        let Ok(names) = fs::read_to_string(self.state.path().join("names")) else { return 0 }; // It opened nothing yet.
        let mut lost = 0;
        let mut after: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let real: BTreeMap<u64, PathBuf> = journal_files(&folder)
            .into_iter()
            .map(|path| (fs::metadata(&path).expect("it is there").ino(), path))
            .collect();
        for line in names.lines() {
            let (inode, name) = line.split_once(' ').expect("the shim's line");
            let path = real.get(&inode.parse().expect("a number"));
            let of_it = |letter| fs::read(self.state.path().join(format!("{letter}{inode}")));
            // Without an image it was not opened since the last cut; without a name too it is one that was removed, as the file of doubt.
            let synced = of_it("i").ok().or_else(|| path.map(|path| fs::read(path).expect("it can be read")));
            let Some(mut synced) = synced else { continue };
            let dirty = of_it("d").unwrap_or_default();
            if let Some(path) = path {
                lost += mix(&mut synced, &fs::read(path).expect("it can be read"), &dirty, unsynced, random);
            }
            after.insert(name.to_owned(), synced);
        }
        // The log's index is mapped memory: anything may be in it, or nothing.
        let index = folder.join("journal.db-shm");
        let index = match random.u8(0..3) {
            0 => fs::read(&index).ok(),
            1 => Some((0..32_768).map(|_| random.u8(..)).collect()),
            _ => None,
        };
        for path in journal_files(&folder).into_iter().chain([folder.join("journal.db-shm")]) {
            let _ = fs::remove_file(path); // The index may be missing.
        }
        for (name, bytes) in after {
            fs::write(folder.join(name), bytes).expect("the image");
        }
        if let Some(bytes) = index {
            fs::write(folder.join("journal.db-shm"), bytes).expect("the image");
        }
        // What the next process finds is safe.
        for entry in fs::read_dir(self.state.path()).expect("the state").filter_map(Result::ok) {
            if entry.file_name() != "control" {
                fs::remove_file(entry.path()).expect("it is ours");
            }
        }
        lost
    }
}

/// The journal's files of a folder, without the log's index.
pub fn journal_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the journal's folder").filter_map(Result::ok);
    let named = entries.filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("journal.db") && !name.ends_with("-shm")
    });
    named.map(|entry| entry.path()).collect()
}

/// Adds to what was synced some of what was not; how many bytes of that there were.
fn mix(synced: &mut Vec<u8>, real: &[u8], dirty: &[u8], unsynced: Unsynced, random: &mut fastrand::Rng) -> usize {
    let mut count = 0;
    for (number, block) in real.chunks(BLOCK).enumerate().filter(|(number, _)| dirty.get(*number) == Some(&1)) {
        count += block.len();
        for (place, sector) in block.chunks(SECTOR).enumerate() {
            let survives = match unsynced {
                Unsynced::Nothing => false,
                Unsynced::SomeSectors => random.bool(),
                Unsynced::All => true,
            };
            let at = number * BLOCK + place * SECTOR;
            if survives {
                if synced.len() < at + sector.len() {
                    synced.resize(at + sector.len(), 0);
                }
                synced[at..at + sector.len()].copy_from_slice(sector);
            }
        }
    }
    count
}

/// The shim, compiled once: its file is named after what its source says.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/disk.c");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let digest = hex::encode(Sha256::digest(fs::read(&source).expect("the shim's source")));
        let library = folder.join(format!("disk-{}.so", &digest[..12]));
        if !library.exists() {
            let made = TempDir::new_in(folder).expect("a folder in the target folder");
            let part = made.path().join("disk.so");
            let mut command = Command::new("cc");
            command.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o"]).arg(&part).arg(&source);
            let output =
                command.args(["-ldl", "-lpthread"]).output().expect("a C compiler, as the build needs it anyway");
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            // In one step, as other tests may look for it at this moment.
            fs::rename(part, &library).expect("it takes its place");
        }
        library
    })
}
