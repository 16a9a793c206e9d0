//! Journals full of pending events, as a relay whose brokers are away leaves them. Filled by the journal itself, without HTTP: five million
//! are a minute's work.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use sipsim_relay::clock;
use sipsim_relay::config::{Config, Name};
use sipsim_relay::journal::{Journal, Options};
use sipsim_relay::metrics::Metrics;

use crate::work::Work;

/// Appends under way at once: as many as one commit takes.
const AT_ONCE: u64 = 512;

/// Makes a journal in `folder` with so many events pending for each of `outputs`, and gives the folder.
pub fn fill(folder: &Path, pending: u64, body_bytes: usize, outputs: &[&str]) -> Result<PathBuf, String> {
    eprintln!("filling a journal with {pending} events");
    let name = |text: &str| Name::new(text).ok_or("a name that is none");
    let (account, outputs) = (name("default")?, outputs.iter().map(|output| name(output)).collect::<Result<_, _>>()?);
    let mut config = Config::defaults();
    config.journal.path = folder.join("journal.db");
    let options = Options {
        config: config.journal.clone(),
        outputs,
        accounts: Vec::new(),
        discard: Vec::new(),
        tolerance_max: Duration::from_secs(300),
        set_aside: false,
    };
    let (journal, writer) = Journal::open(options, Metrics::new(&config)).map_err(|error| error.to_string())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let tasks = tokio::task::LocalSet::new();
    let filled: Result<(), String> = tasks.block_on(&runtime, async {
        let mut health = journal.health_changes();
        let ready = health.wait_for(|health| *health == sipsim_relay::journal::Health::Ready);
        ready.await.map_err(|error| error.to_string())?;
        let left = Rc::new(std::cell::Cell::new(pending));
        let makers: Vec<_> = (0..AT_ONCE.min(pending))
            .map(|maker| {
                let (journal, account, left) = (journal.clone(), account.clone(), Rc::clone(&left));
                // Numbers that no load's makers have, which begin at the microsecond.
                let mut work = Work::new(maker, body_bytes);
                tokio::task::spawn_local(async move {
                    while let Some(rest) = left.get().checked_sub(1) {
                        left.set(rest);
                        let event = work.next_event(clock::now(), &account);
                        let _receipt =
                            journal.append(Box::new(event)).await.map_err(|error| format!("the journal: {error:?}"))?;
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        for maker in makers {
            maker.await.map_err(|error| error.to_string())??;
        }
        Ok(())
    });
    writer.stop();
    filled.map(|()| folder.to_owned())
}

/// Copies a journal that nobody has open, and waits until the copy is on the disk: else it would be written while something is measured.
pub fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let copy_all = || -> std::io::Result<()> {
        let _ = std::fs::remove_dir_all(to);
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            let to = to.join(entry.file_name());
            std::fs::copy(entry.path(), &to)?;
            std::fs::File::open(to)?.sync_all()?;
        }
        Ok(())
    };
    copy_all().map_err(|error| format!("copying {}: {error}", from.display()))
}
