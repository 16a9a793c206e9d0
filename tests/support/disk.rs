//! A small disk of its own that can be filled: a tmpfs, which takes root.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Unmounted and removed when dropped; whatever uses it has to be gone by then.
pub struct Disk {
    folder: TempDir,
}

impl Disk {
    /// `None`, with a word why on standard error, where this user may not mount anything.
    pub fn mount(mebibytes: u32) -> Option<Self> {
        let folder = TempDir::with_prefix("sipsim-relay-disk-").expect("a temporary folder");
        let size = format!("size={mebibytes}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => {
                let journal = folder.path().join("data");
                fs::create_dir(&journal).expect("a folder");
                fs::set_permissions(&journal, fs::Permissions::from_mode(0o700)).expect("its mode");
                Some(Self { folder })
            }
            other => {
                eprintln!("skipped: only root can mount a small disk here ({other:?})");
                None
            }
        }
    }

    /// For `journal.path`.
    pub fn journal(&self) -> PathBuf {
        self.folder.path().join("data/journal.db")
    }

    /// Leaves so many bytes free, or fewer.
    pub fn fill(&self, leave: u64) {
        let disk = rustix::fs::statvfs(self.folder.path()).expect("it is mounted");
        let room = (disk.f_bavail * disk.f_frsize).saturating_sub(leave);
        let mut file = File::options().append(true).create(true).open(self.filler()).expect("a file");
        let mut left = usize::try_from(room).expect("it is small");
        while left > 0 {
            let piece = left.min(4096);
            // The relay may take the last pages itself meanwhile: full is full.
            if file.write_all(&vec![b'x'; piece]).is_err() {
                break;
            }
            left -= piece;
        }
    }

    /// Frees what [`Disk::fill`] took.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.folder.path()).status(); // The folder's removal would show it.
    }
}
