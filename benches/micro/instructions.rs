//! Instructions a call, counted by callgrind and kept beside this file, so that a regression shows on the busiest machine.
//!
//! One run under valgrind counts everything: callgrind collects only within [`counted`], and writes its sum down each time that returns.
//! Valgrind's processor has no SHA instructions, so that hashing weighs more here than it does in the relay.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cases::{self, Prepared};

/// The argument by which this program knows that it runs under callgrind.
pub const COUNTED: &str = "counted";
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/micro/instructions.txt");
const ROOMS: [&str; 4] = ["verify", "normalize", "structured", "binary"];
const CALLS: usize = 100;
/// A count may rise by this part. The count of one build never differs; other libraries of C, and processors without AVX2, move it a little.
const RISE_MAX: f64 = 0.05;
/// Gaps in memory of up to so many bytes are filled, each size so often.
const FILLED_BYTES_MAX: usize = 2048;
const FILLED_EACH: usize = 64;

type Counts = BTreeMap<String, [u64; ROOMS.len()]>;

/// Counts and sets beside what is kept.
///
/// # Errors
/// A count rose past [`RISE_MAX`]. Under other versions of compiler or valgrind than those of the file nothing is an error.
pub fn compare() -> Result<(), String> {
    let kept = std::fs::read_to_string(KEPT).map_err(|error| format!("{KEPT}: {error}"))?;
    let (before, now) = (parse(&kept), count()?);
    println!(
        "{}\n\nInstructions a call, and what part of the kept count (benches/micro/instructions.txt) that is:\n",
        versions()?
    );
    println!("{:38} {}", "body", ROOMS.map(|room| format!("{room:>17}")).join(" "));
    let mut risen = Vec::new();
    for (body, counts) in &now {
        let mut line = format!("{body:38}");
        for (room, count) in counts.iter().enumerate() {
            let was = before.get(body).map(|counts| counts[room]);
            let part = was.map(|was| *count as f64 / was as f64);
            let shown = part.map_or("new".into(), |part| format!("{part:.3}"));
            let _ = write!(line, " {count:>11} {shown:>5}"); // A String takes whatever is written.
            if part.is_some_and(|part| part > 1.0 + RISE_MAX) {
                risen.push(format!("{} of {body}: {} to {count}", ROOMS[room], was.unwrap_or(0)));
            }
        }
        println!("{line}");
    }
    if !kept.contains(&versions()?) {
        println!("\nCounted with other versions than the kept ones: nothing is judged.");
        return Ok(());
    }
    match risen.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "more instructions than {:.0} % above those kept:\n  {}\nIf that is worth it: make bench-micro ARGS=save, and say why in the commit",
            RISE_MAX * 100.0,
            risen.join("\n  ")
        )),
    }
}

/// Counts and keeps the counts.
pub fn save() -> Result<(), String> {
    let counts = count()?;
    let mut text = format!(
        "# Instructions a call, counted by callgrind: `make bench-micro` fails where one rises by more than {:.0} %, `make bench-micro ARGS=save` writes this anew.\n# {}\n",
        RISE_MAX * 100.0,
        versions()?
    );
    let _ = writeln!(text, "{:38} {}", "# body", ROOMS.map(|room| format!("{room:>10}")).join(" "));
    for (body, counts) in &counts {
        let _ = writeln!(text, "{body:38} {}", counts.map(|count| format!("{count:>10}")).join(" "));
    }
    print!("{text}");
    std::fs::write(KEPT, text).map_err(|error| format!("{KEPT}: {error}"))
}

fn parse(kept: &str) -> Counts {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let body = words.next()?.to_owned();
        let counts: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        Some((body, counts.try_into().ok()?))
    };
    kept.lines().filter(|line| !line.starts_with('#')).filter_map(line).collect()
}

/// Of what makes the instructions and of what counts them.
fn versions() -> Result<String, String> {
    let first_line = |command: &mut Command| {
        let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok::<_, String>(text.lines().next().unwrap_or_default().to_owned())
    };
    let rustc = first_line(Command::new("rustc").arg("--version"))?;
    Ok(format!("{rustc}, {}, {}", first_line(Command::new("valgrind").arg("--version"))?, std::env::consts::ARCH))
}

/// Runs this program under callgrind and reads the sums that it leaves, in the order in which [`count_all`] made them.
fn count() -> Result<Counts, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let sums = folder.path().join("sums");
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*::counted*"])
        // Another pattern on purpose: with the same for both, callgrind 3.19 dumps nothing.
        .arg("--dump-after=*instructions::counted*")
        .arg(format!("--callgrind-out-file={}", sums.display()))
        .arg(program)
        .arg(COUNTED)
        .stdin(Stdio::null());
    let output = valgrind.output().map_err(|error| format!("{valgrind:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{valgrind:?} failed\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let mut counts = Counts::new();
    let mut number = 0;
    for case in cases::all() {
        let mut row = [0; ROOMS.len()];
        for count in &mut row {
            number += 1;
            *count = sum(&folder.path().join(format!("sums.{number}")))? / CALLS as u64;
        }
        counts.insert(case.name, row);
    }
    Ok(counts)
}

/// The line `totals: N` of one of callgrind's files.
fn sum(file: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals:")?.trim().parse().ok());
    totals.filter(|count| *count > 0).ok_or(format!("{} counts nothing", file.display()))
}

/// What callgrind is to see: each body through each room, in the order of [`cases::all`] and [`ROOMS`].
pub fn count_all() {
    let prepared: Vec<Prepared> = cases::all().iter().map(Prepared::of).collect();
    for each in &prepared {
        // The first calls set up what is made once.
        drop((each.verify(), each.normalize(each.verified.clone())));
    }
    // Hash maps of the metrics have a new order in every process, and so have the gaps that they leave in memory; how long malloc looks for
    // room would differ with them. So the gaps are filled first.
    let filled: Vec<Vec<u8>> = (1..=FILLED_BYTES_MAX / 16)
        .rev()
        .flat_map(|size| (0..FILLED_EACH).map(move |_| Vec::with_capacity(size * 16 - 8)))
        .collect();
    for each in &prepared {
        let nothing = || vec![(); CALLS];
        measure(nothing(), |()| each.verify());
        measure(vec![each.verified.clone(); CALLS], |verified| each.normalize(verified));
        for encode in [Prepared::structured, Prepared::binary] {
            let record = RefCell::default();
            encode(each, &mut record.borrow_mut());
            measure(nothing(), |()| encode(each, black_box(&mut record.borrow_mut())));
        }
    }
    drop(black_box(filled));
}

/// Keeps the making of inputs and the dropping of outputs out of the count.
fn measure<I, O>(inputs: Vec<I>, call: impl Fn(I) -> O) {
    let mut outputs = Vec::with_capacity(inputs.len());
    counted(inputs, &mut outputs, call);
    drop(black_box(outputs));
}

/// callgrind looks for this name.
#[inline(never)]
fn counted<I, O>(inputs: Vec<I>, outputs: &mut Vec<O>, call: impl Fn(I) -> O) {
    for input in inputs {
        outputs.push(call(black_box(input)));
    }
}
