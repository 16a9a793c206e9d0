//! `journal status`: how full it is, and what each output has done and still owes, by topic.

use std::collections::{BTreeMap, HashSet};

use serde_json::json;

use super::super::{Format, print};
use super::{open, open_again, routers, unreadable, words};
use crate::clock::{self, Timestamp};
use crate::config::{Config, Name};
use crate::journal::OutputRow;
use crate::journal::inspect::{ApartCount, Extent, Inspector, Sizes, is_held};
use crate::normalize::EventName;
use crate::publish::mend;
use crate::publish::routes::Router;

/// Events read in one transaction: some ten milliseconds, in which the log grows little.
const STEP: usize = 4096;

struct Status {
    path: String,
    id: String,
    written_by: String,
    relay_runs: bool,
    set_aside: usize,
    sizes: Sizes,
    size_max: u64,
    extent: Extent,
    orders_waiting: u64,
    outputs: Vec<OutputStatus>,
    now: Timestamp,
}

struct OutputStatus {
    row: OutputRow,
    configured: bool,
    oldest_pending: Option<Timestamp>,
    /// By topic or routing key.
    topics: BTreeMap<String, Topic>,
}

#[derive(Default)]
struct Topic {
    /// Held ones included.
    pending: u64,
    held: u64,
    held_because: Option<String>,
    /// By reason.
    parked: BTreeMap<String, u64>,
    to_replay: u64,
}

pub fn status(config: &Config, format: Format) -> Result<bool, String> {
    let status = gather(config)?;
    match format {
        Format::Text => print(text(&status).as_bytes()),
        Format::Json => print(format!("{:#}\n", as_json(&status)).as_bytes()),
    }
}

fn gather(config: &Config) -> Result<Status, String> {
    let mut inspector = open(config)?;
    let rows = inspector.outputs().map_err(unreadable)?;
    let counts = inspector.apart_counts().map_err(unreadable)?;
    let mut routers: BTreeMap<String, Router> = routers(config).into_iter().collect();
    let mut outputs = Vec::new();
    for row in rows {
        let mut router = routers.remove(&row.name);
        let mut topics = apart_topics(&row, &counts);
        inspector = pending_topics(config, inspector, &row, router.as_mut(), &mut topics)?;
        let oldest_pending = match row.counts.pending {
            0 => None,
            _ => inspector.oldest_pending(row.number).map_err(unreadable)?,
        };
        outputs.push(OutputStatus { configured: router.is_some(), oldest_pending, topics, row });
    }
    Ok(Status {
        path: inspector.path().display().to_string(),
        id: inspector.id.clone(),
        written_by: inspector.written_by.clone(),
        relay_runs: is_held(inspector.path()),
        set_aside: inspector.set_aside(),
        sizes: inspector.sizes().map_err(unreadable)?,
        size_max: config.journal.size_max,
        extent: inspector.extent().map_err(unreadable)?,
        orders_waiting: inspector.orders_waiting().map_err(unreadable)?,
        outputs,
        now: clock::now(),
    })
}

fn apart_topics(row: &OutputRow, counts: &[ApartCount]) -> BTreeMap<String, Topic> {
    let mut topics: BTreeMap<String, Topic> = BTreeMap::new();
    for one in counts.iter().filter(|one| one.output == row.number) {
        let topic = topics.entry(one.lane.clone()).or_default();
        match one.state.as_str() {
            "held" => {
                topic.pending += one.count;
                topic.held += one.count;
                topic.held_because = topic.held_because.take().or_else(|| one.reason.clone());
            }
            "parked" => {
                *topic.parked.entry(one.reason.clone().unwrap_or_else(|| "other".into())).or_default() += one.count
            }
            "replay" => topic.to_replay += one.count,
            _ => {} // A later version's.
        }
    }
    topics
}

/// Counts what waits behind the output's cursor under the topics that the configuration gives it now; a removed output's has none.
fn pending_topics(
    config: &Config,
    mut inspector: Inspector,
    row: &OutputRow,
    mut router: Option<&mut Router>,
    topics: &mut BTreeMap<String, Topic>,
) -> Result<Inspector, String> {
    let held: u64 = topics.values().map(|topic| topic.held).sum();
    if row.counts.pending <= held as i64 {
        return Ok(inspector);
    }
    let newest = inspector.newest().map_err(unreadable)?;
    let mut position = row.cursor;
    while let Some((after, through)) = row.owed_after(position) {
        let heads = inspector.heads(after, through.min(newest), STEP).map_err(unreadable)?;
        let Some((last, _)) = heads.last() else {
            if through == i64::MAX as u64 {
                break;
            }
            position = through; // A span that was closed leads to the next one.
            continue;
        };
        position = *last;
        let given_up: HashSet<_> = inspector.given_up(after, position).map_err(unreadable)?.into_iter().collect();
        // Those are counted by their rows.
        let apart = inspector.apart(after, position).map_err(unreadable)?;
        let apart: HashSet<u64> = apart.iter().filter(|one| one.output == row.number).map(|one| one.sequence).collect();
        let waits = |sequence: &u64| !given_up.contains(&(row.number, *sequence)) && !apart.contains(sequence);
        for (_, head) in heads.iter().filter(|(sequence, _)| waits(sequence)) {
            let kind =
                head.as_ref().and_then(|head| Some((Name::new(&head.account)?, EventName::from_stored(&head.name))));
            let topic = match (router.as_deref_mut(), kind) {
                (Some(router), Some((account, name))) => router.route(&account, &name).to_string(),
                _ => String::new(),
            };
            topics.entry(topic).or_default().pending += 1;
        }
        let id = inspector.id.clone();
        drop(inspector);
        inspector = open_again(config, &id)?;
    }
    Ok(inspector)
}

fn text(status: &Status) -> String {
    let Sizes { bytes, log_bytes, free_bytes } = status.sizes;
    let relay = if status.relay_runs { "a relay runs on it" } else { "no relay runs on it" };
    let mut text = format!("journal {} (id {}, version {}); {relay}\n", status.path, status.id, status.written_by);
    let part = bytes as f64 * 100.0 / status.size_max.max(1) as f64;
    text += &format!(
        "  size    {} of {} ({part:.1} %), {} of it the log; {} free on its disk\n",
        words::size(bytes),
        words::size(status.size_max),
        words::size(log_bytes),
        free_bytes.map_or_else(|| "not known how much".to_owned(), words::size)
    );
    text += &match (status.extent.oldest, status.extent.newest) {
        (Some(oldest), Some(newest)) => format!("  events  numbers {oldest} to {newest}\n"),
        _ => "  events  none\n".to_owned(),
    };
    text += &format!("  trail   {} rows\n", status.extent.trail_rows);
    if status.set_aside > 0 {
        text += &format!(
            "  set aside: {} earlier journal file(s) lie beside it; `drain` publishes what one holds\n",
            status.set_aside
        );
    }
    match (status.orders_waiting, status.relay_runs) {
        (0, _) => {}
        (count, true) => text += &format!("  orders  {count} given and not yet carried out\n"),
        (count, false) => text += &format!("  orders  {count} given; the next run or drain carries them out\n"),
    }
    if status.outputs.is_empty() {
        text += "no output yet\n";
    }
    for output in &status.outputs {
        text += &output_text(output, status.now);
    }
    text
}

fn output_text(output: &OutputStatus, now: Timestamp) -> String {
    let row = &output.row;
    let c = &row.counts;
    let mut text = format!("output {}", row.name);
    if !output.configured {
        text +=
            " (removed from the configuration; what it owes stays until it is put back, or `journal forget --output ";
        text += &format!("{} --yes`)", row.name);
    }
    text += &format!(
        "\n  accepted {} = published {} + pending {} + parked {} + discarded {}\n",
        c.accepted, c.published, c.pending, c.parked, c.discarded
    );
    if let Some(oldest) = output.oldest_pending {
        text += &format!("  oldest pending {}, {} ago\n", oldest.rfc3339(), words::duration(now.since(oldest)));
    }
    if output.topics.is_empty() {
        return text;
    }
    let mut rows = vec![["topic", "pending", "held", "parked", "to replay", ""].map(str::to_owned).to_vec()];
    for (name, topic) in &output.topics {
        let parked =
            topic.parked.iter().map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ");
        let mut why = Vec::new();
        if topic.held > 0 {
            why.push(match topic.held_because.as_deref() {
                Some(reason) => format!("held: {reason}: {}", mend(reason)),
                None => "held: waits behind others".to_owned(),
            });
        }
        if !parked.is_empty() {
            why.push(format!("parked: {parked}"));
        }
        rows.push(vec![
            if name.is_empty() { "(no topic)".to_owned() } else { name.clone() },
            topic.pending.to_string(),
            topic.held.to_string(),
            topic.parked.values().sum::<u64>().to_string(),
            topic.to_replay.to_string(),
            why.join("; "),
        ]);
    }
    text + &words::table(&rows, "  ")
}

fn as_json(status: &Status) -> serde_json::Value {
    let output = |output: &OutputStatus| {
        let c = &output.row.counts;
        let topics = output.topics.iter().map(|(name, topic)| {
            json!({
                "topic": name, "pending": topic.pending, "held": topic.held, "held_reason": topic.held_because,
                "parked": topic.parked.values().sum::<u64>(), "parked_reasons": topic.parked, "to_replay": topic.to_replay,
            })
        });
        json!({
            "output": output.row.name,
            "configured": output.configured,
            "published_through": output.row.cursor,
            "ledger": {
                "accepted": c.accepted, "published": c.published, "pending": c.pending, "parked": c.parked, "discarded": c.discarded,
            },
            "oldest_pending": output.oldest_pending.map(Timestamp::rfc3339),
            "oldest_pending_age_seconds": output.oldest_pending.map_or(0.0, |at| status.now.since(at).as_secs_f64()),
            "topics": topics.collect::<Vec<_>>(),
        })
    };
    json!({
        "path": status.path,
        "id": status.id,
        "written_by": status.written_by,
        "relay_running": status.relay_runs,
        "set_aside": status.set_aside,
        "bytes": status.sizes.bytes,
        "log_bytes": status.sizes.log_bytes,
        "size_max_bytes": status.size_max,
        "free_bytes": status.sizes.free_bytes,
        "oldest_sequence": status.extent.oldest,
        "newest_sequence": status.extent.newest,
        "trail_rows": status.extent.trail_rows,
        "orders_waiting": status.orders_waiting,
        "outputs": status.outputs.iter().map(output).collect::<Vec<_>>(),
    })
}
