//! Our own messages to stderr, in text or JSON lines; nobody else's. And what a panic may say: where, never what.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt::layer};

use crate::config::{Log, LogFormat};
use crate::{clock, printable, stderr};

/// The target of every message of ours: the name of this crate, and of the program.
const OURS: &str = "sipsim_relay";

/// Sends our own messages of `log.level` and above to stderr. What libraries log is dropped at any level: lapin, for one, logs whole message
/// bodies. Called once; a second call changes nothing.
pub fn start(log: &Log) {
    // Fails only where messages are already taken, which is what was wanted.
    let _ = subscriber(log, || Lines, io::stderr().is_terminal()).try_init();
}

/// Takes each line with one call.
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr::write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn subscriber<W>(log: &Log, writer: W, colours: bool) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let ours = Targets::new().with_target(OURS, log.level);
    // The layer would report an error of its own to stderr by itself, which blocks, or panics.
    let lines = layer().with_writer(writer).with_ansi(false).log_internal_errors(false);
    let layer = match log.format {
        LogFormat::Text => lines.event_format(Text { colours }).boxed(),
        LogFormat::Json => lines
            .json()
            .with_timer(Clock)
            .with_target(false)
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .map_event_format(OneLine)
            .boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(ours))
}

/// Makes a panic say where it happened and on which thread, through the log or, before there is one, on stderr. Its message may quote what
/// somebody was sent, so it is left out.
pub fn hush_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        if tracing::dispatcher::has_been_set() {
            tracing::error!(panic.place = %place, panic.thread = %thread, "a bug: panic at {place}; please report it");
        } else {
            super::notice(format_args!("a bug: panic at {place}, thread {thread}; please report it"));
        }
    }));
}

struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        w.write_str(&clock::now().rfc3339())
    }
}

/// `TIME LEVEL message field=value …`, the level in colour at a terminal.
struct Text {
    colours: bool,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut w: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        write!(w, "{} ", clock::now().rfc3339())?;
        match self.colours {
            true => write!(w, "\x1b[{}m{level:>5}\x1b[0m ", colour(level))?,
            false => write!(w, "{level:>5} ")?,
        }
        let mut fields = String::new();
        context.format_fields(Writer::new(&mut fields), event)?;
        writeln!(w, "{}", printable::one_line(&fields))
    }
}

/// What another format writes, on one line and without anything that a terminal obeys.
struct OneLine<F>(F);

impl<S, N, F> FormatEvent<S, N> for OneLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut w: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writeln!(w, "{}", printable::one_line(line.trim_end_matches('\n')))
    }
}

/// The usual ones: red, yellow, green, blue, grey.
fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG => "34",
        Level::TRACE => "90",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: Level, colours: bool, say: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let subscriber = subscriber(&Log { format, level }, move || writer.clone(), colours);
        tracing::subscriber::with_default(subscriber, say);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn refuse() {
        tracing::warn!(account.name = %"default", events = 3, "refused a webhook for default");
    }

    #[test]
    fn a_text_line_is_time_level_message_fields() {
        let text = logged(LogFormat::Text, Level::INFO, false, refuse);
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(time.len(), "2025-01-15T10:30:00.123456Z".len());
        assert_eq!(rest, " WARN refused a webhook for default account.name=default events=3\n");
        let coloured = logged(LogFormat::Text, Level::INFO, true, refuse);
        assert!(coloured.contains(" \x1b[33m WARN\x1b[0m refused"), "{coloured:?}");
    }

    /// A file's name may hold all this, and so may what a broker says.
    #[test]
    fn no_text_begins_a_line_or_commands_a_terminal() {
        let name = "a\n2025-01-15T10:30:00Z ERROR forged\r\u{1b}[2J\u{9b}31m\u{2028}";
        let say = || tracing::warn!(topic = %name, secret = name, "{name} cannot be read");
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(format, Level::INFO, false, say);
            assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
            let of_a_line = text.trim_end_matches('\n');
            assert!(!of_a_line.contains(|c: char| c.is_control() || c == '\u{2028}'), "{text:?}");
        }
        let line: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json, Level::INFO, false, say)).unwrap();
        assert_eq!(line["secret"], name);
    }

    #[test]
    fn a_json_line_has_stable_names_and_flat_fields() {
        let text = logged(LogFormat::Json, Level::INFO, true, refuse);
        let mut line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let time = line["timestamp"].take();
        assert!(time.as_str().unwrap().ends_with('Z'));
        let expected = serde_json::json!({
            "timestamp": null, "level": "WARN", "message": "refused a webhook for default", "account.name": "default", "events": 3
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn what_is_below_the_level_or_not_ours_is_dropped() {
        let text = logged(LogFormat::Text, Level::INFO, false, || {
            tracing::debug!("ours, and too fine");
            tracing::error!(target: "lapin::channel", "a whole message body");
            tracing::info!("ours");
        });
        assert!(text.ends_with(" INFO ours\n") && text.lines().count() == 1, "{text}");
        let text = logged(LogFormat::Text, Level::TRACE, false, || tracing::trace!(target: "hyper", "a header"));
        assert_eq!(text, "");
    }
}
