//! Text of others on its way to people: what a terminal would obey, and what would begin a new line of the log, is written as JSON escapes it
//! (`\u001b`), so that JSON stays JSON with the same meaning. Applied where the log formats a line and where a terminal is written to, and nowhere before: pipes
//! and files get text as it is.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// Whether a character moves the cursor, is a command to the terminal (C0, DEL and C1), ends a line for some programs, or turns the direction of writing.
fn is_command(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// As a part of one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_command)
}

/// As lines, tabs included.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| is_command(character) && !matches!(character, '\n' | '\t'))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            _ if !is_escaped(character) => out.push(character),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // All of them have four hex digits at the most. A String takes everything.
            _ => _ = write!(out, "\\u{:04x}", u32::from(character)),
        }
    }
    Cow::Owned(out)
}

/// Standard output: as it is, or escaped at a terminal. Each write is to end between two characters.
pub fn stdout() -> Terminal<io::StdoutLock<'static>> {
    let out = io::stdout().lock();
    Terminal { is_terminal: out.is_terminal(), out }
}

pub struct Terminal<W> {
    out: W,
    is_terminal: bool,
}

impl<W: Write> Write for Terminal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_terminal {
            return self.out.write(bytes);
        }
        self.out.write_all(lines(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_to_a_terminal_are_escaped_and_text_is_not() {
        let text = "a\u{1b}[2J\u{9b}31m\u{7f}\u{202e}é😀\u{2028}\r\0\tb\n";
        let escaped = "a\\u001b[2J\\u009b31m\\u007f\\u202eé😀\\u2028\\r\\u0000";
        assert_eq!(lines(text), format!("{escaped}\tb\n"));
        assert_eq!(one_line(text), format!("{escaped}\\tb\\n"));
        assert!(matches!(lines("plain\ttext, é\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let value = serde_json::json!({ "text": "\u{1b}[2J\u{9b}\u{7f}\u{202e}\n\t\"\\" });
        let text = format!("{value:#}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&lines(&text)).unwrap(), value);
    }

    #[test]
    fn pipes_get_bytes_as_they_are_and_a_terminal_does_not() {
        for (is_terminal, expected) in
            [(false, &b"\x1b\x9b\xc2\x9b\n"[..]), (true, "\\u001b\u{fffd}\\u009b\n".as_bytes())]
        {
            let mut out = Terminal { out: Vec::new(), is_terminal };
            out.write_all(b"\x1b\x9b\xc2\x9b\n").unwrap();
            assert_eq!(out.out, expected);
        }
    }
}
