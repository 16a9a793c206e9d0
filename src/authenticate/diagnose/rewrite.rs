//! The same body as other programs would have written it: what a proxy or framework that parses JSON and writes it anew does to a signature.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::normalize::json;

/// Above it a body is not written anew; some two hundred times this is hashed a secret. Bytes.
const JSON_MAX: usize = 256 * 1024;
/// Deeper nesting is not written anew, since this recurses.
const DEPTH_MAX: usize = 128;
/// How many times as long as the body a rewritten one may be. Escapes make a text at most three times as long, and indenting the events that SIPSIM
/// documents at most doubles them; a list in lists, 100 deep and indented by four, would be 300 times as long.
const GROWTH_MAX: usize = 4;
/// What a short body may grow to. Bytes.
const REWRITTEN_MIN: usize = 4 * 1024;

/// Tries the body with a line end more or less, with other line ends, and as JSON written anew in all known ways, until `fits` finds one or fails.
pub fn rewritten<T, E>(
    body: &[u8],
    mut fits: impl FnMut(&[u8], String) -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    for (how, bytes) in line_ends(body) {
        if bytes != body
            && let Some(found) = fits(&bytes, how.to_owned())?
        {
            return Ok(Some(found));
        }
    }
    let Some(raw) = json_of(body) else { return Ok(None) };
    let Some(tree) = Node::parse(raw) else { return Ok(None) };
    let bytes_max = REWRITTEN_MIN.max(body.len() * GROWTH_MAX);
    for (mut style, how) in styles(bytes_max) {
        style.node(&tree, 0);
        if style.is_full() {
            continue;
        }
        if let Some(found) = fits(&style.out, how.clone())? {
            return Ok(Some(found));
        }
        style.out.push(b'\n');
        if let Some(found) = fits(&style.out, format!("{how}, with a line end behind it"))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The body without white space around it, if it is JSON that is written anew.
fn json_of(body: &[u8]) -> Option<&str> {
    let text = str::from_utf8(body).ok().filter(|text| text.len() <= JSON_MAX)?;
    let raw: &RawValue = serde_json::from_str(text.trim_start_matches('\u{feff}')).ok()?;
    (!json::is_deeper(raw.get().as_bytes(), DEPTH_MAX)).then_some(raw.get())
}

/// The likely ones first.
fn styles(bytes_max: usize) -> impl Iterator<Item = (Style, String)> {
    let numbers = [(false, ""), (true, ", 6.0 as 6, as JavaScript does")];
    let orders = [(false, ""), (true, ", its keys sorted")];
    orders.into_iter().flat_map(move |(sorted, order)| {
        numbers.into_iter().flat_map(move |(whole, number)| {
            SPACINGS.into_iter().flat_map(move |(spacing, space)| {
                ESCAPINGS.into_iter().map(move |(escaping, escape)| {
                    let style = Style { spacing, escaping, sorted, whole, out: Vec::new(), bytes_max };
                    (style, format!("written {space}{escape}{number}{order}"))
                })
            })
        })
    })
}

fn line_ends(body: &[u8]) -> [(&'static str, Vec<u8>); 7] {
    let lf: Vec<u8> = {
        let mut lf = body.to_vec();
        let mut next = body.iter().skip(1).chain([&0]);
        lf.retain(|byte| {
            let next = next.next();
            *byte != b'\r' || next != Some(&b'\n')
        });
        lf
    };
    let crlf = lf.iter().flat_map(|byte| if *byte == b'\n' { b"\r\n".as_slice() } else { std::slice::from_ref(byte) });
    [
        (
            "without the line end behind it",
            body.strip_suffix(b"\n").map_or(body, |cut| cut.strip_suffix(b"\r").unwrap_or(cut)).to_vec(),
        ),
        ("without the white space around it", body.trim_ascii().to_vec()),
        ("with a line end behind it", [body, b"\n"].concat()),
        ("with a carriage return and line end behind it", [body, b"\r\n"].concat()),
        ("with CR LF as line ends", crlf.copied().collect()),
        ("without the byte order mark before it", body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).to_vec()),
        ("with LF as line ends", lf),
    ]
}

#[derive(Clone, Copy)]
struct Spacing {
    /// Spaces a level; `None`: all on one line.
    indent: Option<usize>,
    comma: &'static str,
    colon: &'static str,
}

const SPACINGS: [(Spacing, &str); 4] = [
    (Spacing { indent: None, comma: ",", colon: ":" }, "compactly, without spaces between its parts"),
    (
        Spacing { indent: None, comma: ", ", colon: ": " },
        "on one line with a space behind each comma and colon, as Python does",
    ),
    (Spacing { indent: Some(2), comma: ",", colon: ": " }, "indented by two spaces"),
    (Spacing { indent: Some(4), comma: ",", colon: ": " }, "indented by four spaces"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escaping {
    AsIs,
    /// Nothing beyond what JSON demands.
    Least,
    /// All beyond ASCII.
    Ascii,
    /// Slashes; PHP's default has both.
    Slashes,
    AsciiAndSlashes,
    /// `<`, `>` and `&`, as Rails and Go do.
    Html,
}

const ESCAPINGS: [(Escaping, &str); 6] = [
    (Escaping::AsIs, ""),
    (Escaping::Least, ", characters as they are instead of \\u escapes"),
    (Escaping::Ascii, ", characters beyond ASCII as \\u escapes"),
    (Escaping::Slashes, ", slashes as \\/"),
    (Escaping::AsciiAndSlashes, ", characters beyond ASCII as \\u escapes and slashes as \\/, as PHP does"),
    (Escaping::Html, ", <, > and & as \\u escapes"),
];

/// JSON as it stands in the text: numbers and escapes keep their form.
enum Node<'a> {
    Leaf(&'a str),
    Array(Vec<Node<'a>>),
    /// Keys raw, in order.
    Object(Vec<(&'a str, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// Of valid JSON without white space around. `None` never comes of that.
    fn parse(text: &'a str) -> Option<Self> {
        match text.as_bytes().first()? {
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                items.into_iter().map(|item| Self::parse(item.get())).collect::<Option<_>>().map(Self::Array)
            }
            b'{' => {
                let members = json::members(text)?;
                let parsed = members.into_iter().map(|(key, value)| Some((key, Self::parse(value)?)));
                parsed.collect::<Option<_>>().map(Self::Object)
            }
            _ => Some(Self::Leaf(text)),
        }
    }
}

struct Style {
    spacing: Spacing,
    escaping: Escaping,
    sorted: bool,
    /// Whether numbers lose a fraction of zero.
    whole: bool,
    out: Vec<u8>,
    /// Writing stops soon after it has written more.
    bytes_max: usize,
}

impl Style {
    fn is_full(&self) -> bool {
        self.out.len() > self.bytes_max
    }

    fn node(&mut self, node: &Node, depth: usize) {
        match node {
            Node::Leaf(text) if text.starts_with('"') => self.text(text),
            Node::Leaf(text) if self.whole => self.out.extend_from_slice(text.trim_end_matches(".0").as_bytes()),
            Node::Leaf(text) => self.out.extend_from_slice(text.as_bytes()),
            Node::Array(items) => self.list(items, *b"[]", depth, |style, item| style.node(item, depth + 1)),
            Node::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                if self.sorted {
                    // Who sorts has a map, and of doubled keys a map holds the last.
                    let by_key: BTreeMap<_, _> =
                        members.iter().map(|member| (json::text_bytes(member.0), *member)).collect();
                    members = by_key.into_values().collect();
                }
                self.list(&members, *b"{}", depth, |style, (key, value)| {
                    style.text(key);
                    style.out.extend_from_slice(style.spacing.colon.as_bytes());
                    style.node(value, depth + 1);
                });
            }
        }
    }

    fn list<T>(&mut self, items: &[T], brackets: [u8; 2], depth: usize, mut write: impl FnMut(&mut Self, &T)) {
        self.out.push(brackets[0]);
        for (index, item) in items.iter().enumerate() {
            if self.is_full() {
                return;
            }
            if index > 0 {
                self.out.extend_from_slice(self.spacing.comma.as_bytes());
            }
            self.line(depth + 1);
            write(self, item);
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(brackets[1]);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.spacing.indent {
            self.out.push(b'\n');
            self.out.resize(self.out.len() + indent * depth, b' ');
        }
    }

    fn text(&mut self, raw: &str) {
        let decoded = if self.escaping == Escaping::AsIs { None } else { json::text(raw) };
        // A lone surrogate is written as it stands.
        let Some(text) = decoded else { return self.out.extend_from_slice(raw.as_bytes()) };
        let least = serde_json::to_string(&text).unwrap_or_default(); // A str cannot fail to be written.
        let (ascii, slashes) = match self.escaping {
            Escaping::AsIs | Escaping::Least | Escaping::Html => (false, false),
            Escaping::Ascii => (true, false),
            Escaping::Slashes => (false, true),
            Escaping::AsciiAndSlashes => (true, true),
        };
        for character in least.chars() {
            match character {
                '/' if slashes => self.out.extend_from_slice(b"\\/"),
                '<' | '>' | '&' if self.escaping == Escaping::Html => self.unicode_escape(character),
                '\u{2028}' | '\u{2029}' if self.escaping == Escaping::Html => self.unicode_escape(character),
                _ if ascii && !character.is_ascii() => self.unicode_escape(character),
                _ => self.out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn unicode_escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            self.out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
        }
    }
}
