//! The status page: one HTML document without script or outside assets, made anew for each request.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::status::{ON_THEIR_WAY_SECONDS, Output, Status, in_words, size_in_words};
use crate::publish::{OutputStatus, mend};

/// Nothing may be loaded, run, framed or sent by this page; its one style sheet is named by its digest, which the test below computes.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'sha256-whXe6VRWhVcGDvi7jtXrvqO8szel3CQ+TIIerNZiMfs='; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const STYLE: &str = include_str!("page.css");

/// How often a browser asks again, in seconds.
const REFRESH_SECONDS: u32 = 5;

/// The whole document.
pub fn html(status: &Status) -> String {
    let mut page = String::with_capacity(8 * 1024);
    // Writing to a `String` cannot fail.
    let _ = write_page(&mut page, status);
    page
}

fn write_page(page: &mut String, status: &Status) -> std::fmt::Result {
    let state = if status.accepting { "accepting" } else { "not accepting" };
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"{REFRESH_SECONDS}\">\
         <title>{} · {state}</title><style>{STYLE}</style></head>\n<body>\n",
        Text(&status.instance)
    )?;
    let uptime = in_words(Duration::from_secs(status.uptime_seconds));
    writeln!(
        page,
        "<h1>sipsim-relay <small>{} · version {} · up {uptime}</small></h1>",
        Text(&status.instance),
        status.version
    )?;
    write_glance(page, status)?;
    write_outputs(page, status)?;
    write_journal(page, status)?;
    write_accounts(page, status)?;
    write_last_refused(page, status)?;
    write_last_events(page, status)?;
    writeln!(
        page,
        "<footer>As of {}, anew every {REFRESH_SECONDS} s. Counts are since the start. {} connections. \
         <a href=\"/metrics\">metrics</a> · <a href=\"/api/v1/status\">this as JSON</a> · \
         <a href=\"/readyz?verbose\">ready?</a></footer>\n</body></html>",
        status.now, status.connections
    )
}

/// Is it SIPSIM, us or the broker.
fn write_glance(page: &mut String, status: &Status) -> std::fmt::Result {
    page.write_str("<div class=\"cards\">\n")?;
    for Card { who, verdict, class, why } in [sipsim(status), relay(status), brokers(status)] {
        writeln!(
            page,
            "<div class=\"card {class}\"><p>{who}</p><p class=\"state\"><strong>{verdict}</strong></p><p>{}</p></div>",
            Text(&why)
        )?;
    }
    page.write_str("</div>\n")
}

struct Card {
    who: &'static str,
    verdict: &'static str,
    /// `good`, `late` or `bad`.
    class: &'static str,
    why: String,
}

fn sipsim(status: &Status) -> Card {
    let count = |outcome| status.accounts.values().filter_map(|account| account.answers.get(outcome)).sum::<u64>();
    let unproved = count("bad_signature") + count("outside_tolerance");
    let newest = status.last_events.first();
    let mut why = newest.map_or_else(
        || "none was kept since the start".to_owned(),
        |newest| format!("last event {} ago", in_words(Duration::from_secs(newest.seconds_ago))),
    );
    if let Some(rate) = status.accepted_per_second {
        why += &format!(", {rate:.1} a second");
    }
    if unproved > 0 {
        why += &format!("; {unproved} refused for their signature or age");
    }
    // Only what is refused without anything being accepted is surely wrong; a stranger may knock at any time.
    let accepted = status.accounts.values().map(|account| account.accepted).sum::<u64>();
    let arrived = accepted + count("unavailable"); // What we could not keep came in all the same.
    let (class, verdict) = match (unproved, arrived, newest) {
        (1.., 0, _) => ("bad", "nothing is proved genuine"),
        (1.., ..) => ("late", "some is not proved genuine"),
        (0, 0, None) => ("late", "nothing came yet"),
        _ => ("good", "comes in"),
    };
    Card { who: "SIPSIM", verdict, class, why }
}

fn relay(status: &Status) -> Card {
    let lost: u64 = status.unavailable.values().sum();
    let mut why = status.not_accepting_because.clone().unwrap_or_else(|| match lost {
        0 => "no webhook was refused for a reason that is ours".to_owned(),
        lost => format!("{lost} webhooks were answered 503 since the start"),
    });
    if let Some(full) = status.journal.full_in_seconds {
        why += &format!("; the journal is full in {} at this pace", in_words(seconds(full)));
    }
    let (class, verdict) = match (status.accepting, lost) {
        (false, _) => ("bad", "not accepting"),
        (true, 0) => ("good", "accepting"),
        (true, _) => ("late", "accepting"),
    };
    Card { who: "This relay", verdict, class, why }
}

fn brokers(status: &Status) -> Card {
    let configured = || status.outputs.iter().filter(|(_, output)| !output.removed);
    let down: Vec<_> = configured().filter(|(_, output)| !output.status.up).map(|(name, _)| name.as_str()).collect();
    let held = configured().map(|(_, output)| output.status.held.len()).sum::<usize>();
    let pending: u64 = status.outputs.values().map(|output| output.status.pending).sum();
    let parked: u64 = status.outputs.values().map(|output| output.status.parked).sum();
    let mut why = Vec::new();
    if !down.is_empty() {
        why.push(format!("{} does not answer", down.join(" and ")));
    }
    match held {
        0 => {}
        1 => why.push("1 topic is held".to_owned()),
        more => why.push(format!("{more} topics are held")),
    }
    let is_held = |output: &Output, topic: &str| output.status.held.iter().any(|held| held.topic == topic);
    let stuck =
        configured().flat_map(|(_, output)| output.status.stuck.iter().filter(|stuck| !is_held(output, &stuck.topic)));
    let stuck = stuck.count();
    match stuck {
        0 => {}
        1 => why.push("1 more makes no progress".to_owned()),
        more => why.push(format!("{more} more make no progress")),
    }
    if pending > 0 {
        why.push(format!(
            "{pending} pending, the oldest for {}",
            in_words(seconds(status.journal.oldest_pending_age_seconds))
        ));
    }
    if parked > 0 {
        why.push(format!("{parked} parked"));
    }
    if why.is_empty() {
        why.push("everything is delivered".to_owned());
    }
    let is_late = status.journal.oldest_pending_age_seconds > ON_THEIR_WAY_SECONDS;
    let (class, verdict) = match (down.is_empty(), held + stuck, parked) {
        (false, ..) => ("bad", "away"),
        (true, 1.., _) if held == 0 => ("bad", "a topic makes no progress"),
        (true, 1.., _) => ("bad", "a topic is held"),
        (true, 0, 1..) => ("late", "some is parked"),
        (true, 0, 0) if is_late => ("late", "behind"),
        (true, 0, 0) => ("good", "take all"),
    };
    Card { who: "Brokers", verdict, class, why: why.join(", ") }
}

fn write_accounts(page: &mut String, status: &Status) -> std::fmt::Result {
    page.write_str(
        "<h2>Accounts</h2>\n<table><thead><tr><th>account<th>accepted<th>refused<th>why<th>last accepted<th>secrets, last used</tr></thead><tbody>\n",
    )?;
    for (name, account) in &status.accounts {
        let why: Vec<_> = account
            .answers
            .iter()
            .filter(|(outcome, count)| **count > 0 && !matches!(**outcome, "accepted" | "duplicate"))
            .map(|(outcome, count)| format!("{outcome} {count}"))
            .collect();
        let secrets: Vec<_> = account
            .secrets
            .iter()
            .map(|secret| format!("{}: {}", secret.name, secret.last_used.as_deref().unwrap_or("not since the start")))
            .collect();
        writeln!(
            page,
            "<tr><td>{}<td data-name=\"accepted\" class=\"number\">{}<td data-name=\"refused\" class=\"number\">{}\
             <td data-name=\"why\">{}<td data-name=\"last accepted\">{}<td data-name=\"secrets\">{}</tr>",
            Text(name),
            account.accepted,
            account.refused,
            why.join(", "),
            account.last_accepted.as_deref().unwrap_or("never"),
            Text(&secrets.join(", ")),
        )?;
    }
    page.write_str("</tbody></table>\n")?;
    for problem in &status.secret_problems {
        writeln!(page, "<p class=\"late\" data-name=\"secret problem\">{}</p>", Text(problem))?;
    }
    if !status.unavailable.is_empty() {
        let reasons: Vec<_> = status.unavailable.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        writeln!(page, "<p class=\"bad\">Answered 503, which may have lost events: {}</p>", reasons.join(", "))?;
    }
    Ok(())
}

fn write_last_refused(page: &mut String, status: &Status) -> std::fmt::Result {
    let Some(refused) = &status.last_refused else { return Ok(()) };
    let items =
        |of: &serde_json::Value, key| of.get(key).and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    page.write_str("<h2>Newest refused webhook, and of each other account and cause</h2>\n")?;
    for refused in std::iter::once(refused.clone()).chain(items(refused, "earlier")) {
        let text = |key| refused.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        write!(page, "<p>{}, account {}, {}</p>\n<ul>", Text(text("at")), Text(text("account")), Text(text("reason")))?;
        for cause in items(&refused, "diagnosis") {
            write!(page, "<li>{}", Text(cause.as_str().unwrap_or_default()))?;
        }
        page.write_str("</ul>\n")?;
    }
    Ok(())
}

fn write_outputs(page: &mut String, status: &Status) -> std::fmt::Result {
    page.write_str(
        "<h2>Outputs</h2>\n<table><thead><tr><th>output<th>type<th>state<th>a second<th>pending<th>oldest<th>parked<th>last error</tr></thead><tbody>\n",
    )?;
    for (name, output) in &status.outputs {
        let (class, state) = match output {
            Output { removed: true, .. } => ("late", "removed from the configuration"),
            Output { status: OutputStatus { up: false, .. }, .. } => ("bad", "away"),
            Output { status, .. } if !status.held.is_empty() => ("bad", "up, topics held"),
            _ => ("good", "up"),
        };
        let rate = output.published_per_second.map_or_else(String::new, |rate| format!("{rate:.1}"));
        let error = match (&output.status.last_error, &output.status.last_error_at) {
            (Some(error), Some(at)) => format!("{at}: {error}"),
            (Some(error), None) => error.clone(),
            (None, _) => String::new(),
        };
        writeln!(
            page,
            "<tr><td>{}<td data-name=\"type\">{}<td data-name=\"state\" class=\"{class}\">{state}<td data-name=\"a second\" class=\"number\">{rate}\
             <td data-name=\"pending\" class=\"number\">{}<td data-name=\"oldest\">{}<td data-name=\"parked\" class=\"number{}\">{}<td data-name=\"last error\">{}</tr>",
            Text(name),
            output.status.kind,
            output.status.pending,
            oldest(&output.status),
            if output.status.parked > 0 { " bad" } else { "" },
            output.status.parked,
            Text(&error),
        )?;
    }
    page.write_str("</tbody></table>\n")?;
    for (name, output) in &status.outputs {
        if output.removed && output.status.pending + output.status.parked > 0 {
            writeln!(
                page,
                "<p class=\"bad\">{0}: removed from the configuration, and still owes these: put it back, and it pays, or give them up: \
                 <code>sipsim-relay journal forget --output {0} --yes</code></p>",
                Text(name)
            )?;
        } else if output.status.parked > 0 {
            writeln!(
                page,
                "<p class=\"bad\">{0}: parked: which and why, <code>sipsim-relay journal list --state parked --output {0}</code>; once mended, \
                 <code>sipsim-relay journal requeue --output {0}</code>; to give them up, \
                 <code>sipsim-relay journal discard --output {0} --state parked --yes</code></p>",
                Text(name)
            )?;
        }
        for held in &output.status.held {
            writeln!(
                page,
                "<p class=\"bad\">{}: held: {} ({}): {}</p>",
                Text(name),
                Text(&held.topic),
                held.reason,
                Text(mend(held.reason))
            )?;
        }
        for stuck in &output.status.stuck {
            writeln!(
                page,
                "<p class=\"bad\">{}: {} makes no progress ({}): its oldest event, {}, of {}, accepted {} ago, does not get through: \
                 <code>sipsim-relay journal list --output {0} --state pending</code></p>",
                Text(name),
                Text(&stuck.topic),
                stuck.reason,
                stuck.sequence,
                size_in_words(i64::try_from(stuck.bytes).unwrap_or(i64::MAX)),
                in_words(Duration::from_secs(stuck.age_seconds)),
            )?;
        }
    }
    Ok(())
}

fn oldest(output: &OutputStatus) -> String {
    if output.pending == 0 {
        return "–".into();
    }
    in_words(seconds(output.oldest_pending_age_seconds))
}

/// Whole seconds; what is negative or no number, which nobody makes, is none, and the largest number is a long time.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs(seconds as u64)
}

fn write_journal(page: &mut String, status: &Status) -> std::fmt::Result {
    let journal = &status.journal;
    write!(
        page,
        "<h2>Journal</h2>\n<p><meter min=\"0\" max=\"1\" low=\"0.8\" high=\"0.95\" optimum=\"0\" value=\"{:.3}\" aria-label=\"fill\"></meter> \
         {} of {} ({:.1} %), {} free on the disk",
        journal.fill,
        size_in_words(journal.bytes),
        size_in_words(journal.size_max_bytes),
        journal.fill * 100.0,
        size_in_words(journal.disk_free_bytes)
    )?;
    match journal.full_in_seconds {
        Some(full) => write!(
            page,
            ". <strong class=\"bad\">Full in {} at this pace</strong>, later if it still holds published events",
            in_words(seconds(full))
        )?,
        None if journal.oldest_pending_age_seconds > ON_THEIR_WAY_SECONDS => page.write_str(". It does not grow")?,
        None if journal.oldest_pending_age_seconds > 0.0 => page.write_str(". Events wait in it")?,
        None => page.write_str(". Nothing waits in it")?,
    }
    page.write_str("</p>\n")?;
    if journal.set_aside {
        writeln!(
            page,
            "<p class=\"bad\">A journal file that could not be read was set aside at start; it may hold events.</p>"
        )?;
    }
    Ok(())
}

fn write_last_events(page: &mut String, status: &Status) -> std::fmt::Result {
    page.write_str("<h2>Last events</h2>\n")?;
    if status.last_events.is_empty() {
        return page.write_str("<p>None since the start.</p>\n");
    }
    page.write_str("<table><thead><tr><th>event<th>account<th>last<th>at<th>since the start</tr></thead><tbody>\n")?;
    for last in &status.last_events {
        writeln!(
            page,
            "<tr><td>{}<td data-name=\"account\">{}<td data-name=\"last\" class=\"number\">{} ago<td data-name=\"at\" class=\"number\">{}\
             <td data-name=\"since the start\" class=\"number\">{}</tr>",
            Text(&last.event),
            Text(&last.account),
            in_words(Duration::from_secs(last.seconds_ago)),
            last.at,
            last.count
        )?;
    }
    page.write_str("</tbody></table>\n")
}

/// Text from configuration or a broker, made harmless in HTML.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_policy_allows_the_style_sheet_and_nothing_else() {
        let digest = STANDARD.encode(Sha256::digest(STYLE));
        let expected = format!("default-src 'none'; style-src 'sha256-{digest}';");
        assert!(CONTENT_SECURITY_POLICY.starts_with(&expected), "page.css changed: the policy must say {expected}");
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(Text("<b a='1' c=\"2\">&").to_string(), "&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;");
    }
}
