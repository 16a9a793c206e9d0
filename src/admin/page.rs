//! The status page: one HTML document without script or outside assets, made anew for each request.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::status::{Status, in_words, size_in_words};
use crate::publish::OutputStatus;

/// Nothing may be loaded, run, framed or sent by this page; its one style sheet is named by its digest, which the test below computes.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'sha256-kGAsOgxYULwSlVz3WxINYk3WRXB6NkxG+DMwVXI0ioo='; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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
    let class = if status.accepting { "good" } else { "bad" };
    writeln!(page, "<h1>sipsim-relay <small>{}</small></h1>", Text(&status.instance))?;
    write!(page, "<p class=\"state {class}\"><strong>{state}</strong>")?;
    if let Some(why) = &status.not_accepting_because {
        write!(page, " {}", Text(why))?;
    }
    writeln!(page, "</p>")?;
    write_accounts(page, status)?;
    write_outputs(page, status)?;
    write_journal(page, status)?;
    let uptime = in_words(Duration::from_secs(status.uptime_seconds));
    writeln!(
        page,
        "<footer>version {} · up {uptime} · {} connections · {} · counts since the start · \
         <a href=\"/metrics\">metrics</a> · <a href=\"/api/v1/status\">as JSON</a> · <a href=\"/readyz?verbose\">ready?</a></footer>\n</body></html>",
        status.version, status.connections, status.now
    )
}

fn write_accounts(page: &mut String, status: &Status) -> std::fmt::Result {
    page.write_str(
        "<h2>Accounts</h2>\n<table><tr><th>account<th>accepted<th>refused<th>why<th>last accepted<th>secrets</tr>\n",
    )?;
    for (name, account) in &status.accounts {
        let why: Vec<_> = account
            .answers
            .iter()
            .filter(|(outcome, count)| **count > 0 && !matches!(**outcome, "accepted" | "duplicate"))
            .map(|(outcome, count)| format!("{outcome} {count}"))
            .collect();
        writeln!(
            page,
            "<tr><td>{}<td class=\"number\">{}<td class=\"number\">{}<td>{}<td>{}<td class=\"number\">{}</tr>",
            Text(name),
            account.accepted,
            account.refused,
            why.join(", "),
            account.last_accepted.as_deref().unwrap_or("never"),
            account.secrets_loaded
        )?;
    }
    page.write_str("</table>\n")?;
    if !status.unavailable.is_empty() {
        let reasons: Vec<_> = status.unavailable.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        writeln!(page, "<p class=\"bad\">Answered 503, which may have lost events: {}</p>", reasons.join(", "))?;
    }
    Ok(())
}

fn write_outputs(page: &mut String, status: &Status) -> std::fmt::Result {
    page.write_str(
        "<h2>Outputs</h2>\n<table><tr><th>output<th>type<th>state<th>pending<th>oldest<th>parked<th>last error</tr>\n",
    )?;
    for (name, output) in &status.outputs {
        let (class, state) = if output.up { ("good", "up") } else { ("bad", "down") };
        writeln!(
            page,
            "<tr><td>{}<td>{}<td class=\"{class}\">{state}<td class=\"number\">{}<td>{}<td class=\"number{}\">{}<td>{}</tr>",
            Text(name),
            output.kind,
            output.pending,
            oldest(output),
            if output.parked > 0 { " bad" } else { "" },
            output.parked,
            Text(output.last_error.as_deref().unwrap_or("")),
        )?;
        // No publisher tells of it: it is in the journal alone.
        if output.kind.is_empty() && output.pending + output.parked > 0 {
            writeln!(
                page,
                "<tr><td colspan=\"7\" class=\"bad\">{0} was removed from the configuration and still owes these; put it back, and it pays, \
                 or give them up: sipsim-relay journal forget --output {0} --yes</tr>",
                Text(name)
            )?;
        }
        if output.parked > 0 {
            writeln!(
                page,
                "<tr><td colspan=\"7\" class=\"bad\">parked: see sipsim-relay journal list --state parked --output {0}; once mended: \
                 sipsim-relay journal requeue --output {0}; to give them up: sipsim-relay journal discard --output {0} --state parked --yes</tr>",
                Text(name)
            )?;
        }
        for held in &output.held {
            writeln!(
                page,
                "<tr><td colspan=\"7\" class=\"bad\">held: {} ({}): {}</tr>",
                Text(&held.topic),
                held.reason,
                Text(held.mend)
            )?;
        }
    }
    page.write_str("</table>\n")
}

fn oldest(output: &OutputStatus) -> String {
    if output.pending == 0 {
        return "–".into();
    }
    // The saturating cast turns a negative or unknown age, which nobody makes, into 0.
    in_words(Duration::from_secs(output.oldest_pending_age_seconds as u64))
}

fn write_journal(page: &mut String, status: &Status) -> std::fmt::Result {
    let journal = &status.journal;
    writeln!(
        page,
        "<h2>Journal</h2>\n<p><meter min=\"0\" max=\"1\" low=\"0.8\" high=\"0.95\" optimum=\"0\" value=\"{:.3}\"></meter> \
         {} of {} ({:.1} %), {} free on the disk</p>",
        journal.fill,
        size_in_words(journal.bytes),
        size_in_words(journal.size_max_bytes),
        journal.fill * 100.0,
        size_in_words(journal.disk_free_bytes)
    )?;
    if journal.set_aside {
        writeln!(
            page,
            "<p class=\"bad\">A journal file that could not be read was set aside at start; it may hold events.</p>"
        )?;
    }
    Ok(())
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
