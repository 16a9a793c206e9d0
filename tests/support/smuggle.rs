//! Requests whose ends two programs in a row might see in different places (RFC 9112 §11.2), and near ones that are well-formed.

use super::PATH;

/// One form, as bytes for a connection of its own.
pub struct Form {
    pub what: &'static str,
    /// A request of this form, proved; or, where the form allows, what its sender wants to be taken for one.
    pub bytes: Vec<u8>,
    /// The statuses of all answers if an unproved request follows at once and then the end. 401 is that request's, unless the relay has
    /// closed before it.
    pub answers: &'static [u16],
}

const REFUSED: &[u16] = &[400];
const TAKEN: &[u16] = &[200, 401];
const TAKEN_AND_CLOSED: &[u16] = &[200];
const NOT_FOUND: &[u16] = &[404];

/// `proof` gives the two headers for a body, with their line ends.
pub fn forms(proof: &dyn Fn(&[u8]) -> String) -> Vec<Form> {
    let forms = Forms { proof };
    let mut all = forms.lengths();
    all.extend(forms.codings());
    all.extend(forms.lines());
    all.extend(forms.chunks());
    all.extend(forms.targets_and_versions());
    all
}

struct Forms<'a> {
    proof: &'a dyn Fn(&[u8]) -> String,
}

impl Forms<'_> {
    /// Each form has a body of its own, so that none is another's duplicate. Of 40 bytes, so that its length has a hexadecimal twin.
    fn body(what: &str) -> String {
        let number: u32 = what.bytes().fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        format!(r#"{{"event":"sms","form":"{number:015}"}}"#)
    }

    /// A head with these framing headers, then `content`.
    fn with(&self, what: &'static str, answers: &'static [u16], framing: &str, content: impl AsRef<[u8]>) -> Form {
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: relay\r\n{}{framing}\r\n",
            (self.proof)(Self::body(what).as_bytes())
        );
        Form { what, bytes: [head.as_bytes(), content.as_ref()].concat(), answers }
    }

    /// A head with these framing headers, then the body in one chunk if it is `chunked`, else as it is.
    fn framed(&self, what: &'static str, answers: &'static [u16], chunked: bool, framing: &str) -> Form {
        let body = Self::body(what);
        let content = if chunked { format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()) } else { body };
        self.with(what, answers, framing, content)
    }

    /// The well-formed request, changed to the byte.
    fn changed(&self, what: &'static str, answers: &'static [u16], change: impl Fn(String) -> String) -> Form {
        let body = Self::body(what);
        let plain = format!(
            "POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\n{}\r\n{body}",
            body.len(),
            (self.proof)(body.as_bytes())
        );
        Form { what, bytes: change(plain).into_bytes(), answers }
    }

    fn lengths(&self) -> Vec<Form> {
        let length =
            |what, answers, length: &str| self.framed(what, answers, false, &format!("Content-Length:{length}\r\n"));
        let both = "Content-Length: 40\r\nTransfer-Encoding: chunked\r\n";
        vec![
            length("the strict form", TAKEN, " 40"),
            length("no space before the length", TAKEN, "40"),
            length("spaces and tabs around the length", TAKEN, " \t 40 \t "),
            length("zeros before the length", TAKEN, " 0040"),
            length("a plus", REFUSED, " +40"),
            length("a minus", REFUSED, " -40"),
            length("a list of equal lengths", REFUSED, " 40, 40"),
            length("a list of lengths", REFUSED, " 40, 41"),
            length("a space within the length", REFUSED, " 4 0"),
            length("a hexadecimal length", REFUSED, " 0x28"),
            length("a fraction", REFUSED, " 40.0"),
            length("an exponent", REFUSED, " 4e1"),
            length("an underscore", REFUSED, " 4_0"),
            length("no length at all", REFUSED, ""),
            length("quotes", REFUSED, " \"40\""),
            length("a length over 64 bits", REFUSED, " 18446744073709551656"),
            length("a length of 64 bits", &[431], " 18446744073709551615"),
            length("a length of a thousand digits", REFUSED, &format!(" {}40", "0".repeat(998).replace('0', "1"))),
            length("a vertical tab", REFUSED, " \u{b}40"),
            length("digits that are not ASCII", REFUSED, " \u{664}\u{660}"),
            self.framed("two lengths", REFUSED, false, "Content-Length: 40\r\nContent-Length: 0\r\n"),
            self.framed("two lengths, the other way", REFUSED, false, "Content-Length: 0\r\nContent-Length: 40\r\n"),
            self.framed("twice the same length", TAKEN, false, "Content-Length: 40\r\nContent-Length: 40\r\n"),
            self.framed("length and chunked", REFUSED, true, both),
            self.framed("length and chunked, unchunked", REFUSED, false, both),
            self.framed("chunked and length", REFUSED, true, "Transfer-Encoding: chunked\r\nContent-Length: 40\r\n"),
            self.framed("length 0 and chunked", REFUSED, true, "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n"),
            self.framed("chunked and no number", REFUSED, true, "Transfer-Encoding: chunked\r\nContent-Length: x\r\n"),
        ]
    }

    fn codings(&self) -> Vec<Form> {
        let coding =
            |what, answers, coding: &str| self.framed(what, answers, true, &format!("Transfer-Encoding:{coding}\r\n"));
        vec![
            coding("chunked", TAKEN_AND_CLOSED, " chunked"),
            coding("chunked in capitals", TAKEN_AND_CLOSED, " CHUNKED"),
            coding("spaces and tabs around chunked", TAKEN_AND_CLOSED, "\t chunked \t"),
            coding("a coding that ends like chunked", REFUSED, " xchunked"),
            coding("a coding that begins like chunked", REFUSED, " chunkedx"),
            coding("chunked, identity", REFUSED, " chunked, identity"),
            coding("identity, chunked", REFUSED, " identity, chunked"),
            coding("gzip, chunked", REFUSED, " gzip, chunked"),
            coding("chunked, chunked", REFUSED, " chunked, chunked"),
            coding("a comma before chunked", REFUSED, " , chunked"),
            coding("a comma behind chunked", REFUSED, " chunked,"),
            coding("chunked with a parameter", REFUSED, " chunked;q=1"),
            coding("chunked in quotes", REFUSED, " \"chunked\""),
            coding("identity", REFUSED, " identity"),
            coding("no coding at all", REFUSED, ""),
            coding("a vertical tab before chunked", REFUSED, " \u{b}chunked"),
            coding("a vertical tab behind chunked", REFUSED, " chunked\u{b}"),
            coding("a form feed before chunked", REFUSED, " \u{c}chunked"),
            coding("a zero behind chunked", REFUSED, " chunked\0"),
            coding("a letter that is not ASCII", REFUSED, " chun\u{212a}ed"),
            self.framed(
                "chunked on two lines",
                REFUSED,
                true,
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            ),
            self.framed(
                "chunked, then identity",
                REFUSED,
                true,
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            ),
            self.framed(
                "identity, then chunked",
                REFUSED,
                true,
                "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            ),
            self.framed("a space before the colon", REFUSED, true, "Transfer-Encoding : chunked\r\n"),
            self.framed("a tab before the colon", REFUSED, true, "Transfer-Encoding\t: chunked\r\n"),
            self.framed("a vertical tab before the colon", REFUSED, true, "Transfer-Encoding\u{b}: chunked\r\n"),
            self.framed("a space before the name", REFUSED, true, " Transfer-Encoding: chunked\r\n"),
            self.framed("a folded coding", REFUSED, true, "Transfer-Encoding:\r\n chunked\r\n"),
            self.framed("a coding in a fold", REFUSED, true, "X: y\r\n\tTransfer-Encoding: chunked\r\n"),
            self.framed("a name without a colon", REFUSED, false, "Content-Length: 40\r\nTransfer-Encoding\r\n"),
            self.framed("an empty name", REFUSED, false, "Content-Length: 40\r\n: chunked\r\n"),
            self.framed(
                "another name that looks like it",
                TAKEN,
                false,
                "Transfer_Encoding: chunked\r\nContent-Length: 40\r\n",
            ),
        ]
    }

    fn lines(&self) -> Vec<Form> {
        vec![
            self.changed("line feeds alone", REFUSED, |plain| plain.replace("\r\n", "\n")),
            self.changed("a line feed behind the request line", REFUSED, |plain| plain.replacen("\r\n", "\n", 1)),
            self.changed("a line feed behind a header", REFUSED, |plain| plain.replace("relay\r\n", "relay\n")),
            self.changed("a line feed for the empty line", REFUSED, |plain| plain.replace("\r\n\r\n", "\r\n\n")),
            self.changed("a line feed and a line", REFUSED, |plain| plain.replace("\r\n\r\n", "\n\r\n")),
            self.changed("two carriage returns", REFUSED, |plain| plain.replace("relay\r\n", "relay\r\r\n")),
            self.changed("a carriage return for a line's end", REFUSED, |plain| plain.replace("relay\r\n", "relay\r")),
            self.changed("carriage returns alone", REFUSED, |plain| plain.replace("\r\n", "\r")),
            self.framed(
                "a coding behind a line feed",
                REFUSED,
                true,
                "Content-Length: 40\r\nX: y\nTransfer-Encoding: chunked\r\n",
            ),
            self.framed(
                "a coding behind a carriage return",
                REFUSED,
                false,
                "Content-Length: 40\r\nX: y\rTransfer-Encoding: chunked\r\n",
            ),
            self.framed(
                "a zero in a value",
                REFUSED,
                false,
                "Content-Length: 40\r\nX: y\0Transfer-Encoding: chunked\r\n",
            ),
            self.framed("a zero in a name", REFUSED, false, "Content-Length: 40\r\nX\0: y\r\n"),
            self.changed("a space before the request line", REFUSED, |plain| format!(" {plain}")),
            self.changed("a tab before the request line", REFUSED, |plain| format!("\t{plain}")),
            self.changed("a zero before the request line", REFUSED, |plain| format!("\0{plain}")),
            self.changed("an empty line before the request line", TAKEN, |plain| format!("\r\n{plain}")),
            self.changed("a line feed alone before the request line", REFUSED, |plain| format!("\n{plain}")),
            self.changed("a line feed alone before the next request", &[200, 400], |plain| format!("{plain}\n")),
            self.changed("a body longer than its length", &[200, 400], |plain| {
                format!("{plain}{plain}").replacen("}POST", "}}POST", 1)
            }),
        ]
    }

    fn chunks(&self) -> Vec<Form> {
        let chunked = |what, answers, change: &dyn Fn(&str) -> String| {
            self.with(what, answers, "Transfer-Encoding: chunked\r\n", change(&Self::body(what)))
        };
        let size = |what, answers, size: &str| chunked(what, answers, &|body| format!("{size}\r\n{body}\r\n0\r\n\r\n"));
        vec![
            size("a size in capitals with zeros", TAKEN_AND_CLOSED, "00028"),
            size("a plus before the size", REFUSED, "+28"),
            size("a minus before the size", REFUSED, "-28"),
            size("0x before the size", REFUSED, "0x28"),
            size("a space before the size", REFUSED, " 28"),
            size("a space behind the size", REFUSED, "28 "),
            size("no size", REFUSED, ""),
            size("a size that is no number", REFUSED, "xx"),
            size("a size over 64 bits", REFUSED, "10000000000000028"),
            size("a negative size of 64 bits", REFUSED, "ffffffffffffffd8"),
            size("a size behind many zeros", TAKEN_AND_CLOSED, "00000000000000000000000000028"),
            size("an extension", TAKEN_AND_CLOSED, "28;name=value"),
            size("a line feed in an extension", REFUSED, "28;a\nb"),
            size("a carriage return in an extension", REFUSED, "28;a\rb"),
            size("an extension of 20 KiB", REFUSED, &format!("28;{}", "x".repeat(20 << 10))),
            chunked("extensions of 20 KiB in all", REFUSED, &|body| {
                let bytes = body.chars().map(|byte| format!("1;{}\r\n{byte}\r\n", "x".repeat(512)));
                format!("{}0\r\n\r\n", bytes.collect::<String>())
            }),
            chunked("a line feed behind the size", REFUSED, &|body| format!("28\n{body}\r\n0\r\n\r\n")),
            chunked("a line feed behind the chunk", REFUSED, &|body| format!("28\r\n{body}\n0\r\n\r\n")),
            chunked("no line's end behind the chunk", REFUSED, &|body| format!("28\r\n{body}0\r\n\r\n")),
            chunked("a chunk longer than its size", REFUSED, &|body| format!("27\r\n{body}\r\n0\r\n\r\n")),
            chunked("a chunk shorter than its size", REFUSED, &|body| format!("29\r\n{body}\r\n0\r\n\r\n")),
            chunked("a line feed for the last line", REFUSED, &|body| format!("28\r\n{body}\r\n0\r\n\n")),
            chunked("line feeds behind the last size", REFUSED, &|body| format!("28\r\n{body}\r\n0\n\r\n")),
            chunked("no last line", REFUSED, &|body| format!("28\r\n{body}\r\n0\r\n")),
            chunked("no last chunk", REFUSED, &|body| format!("28\r\n{body}\r\n")),
            chunked("trailers", TAKEN_AND_CLOSED, &|body| format!("28\r\n{body}\r\n0\r\nX: y\r\n\r\n")),
            chunked("a trailer that frames", TAKEN_AND_CLOSED, &|body| {
                format!("28\r\n{body}\r\n0\r\nContent-Length: 9\r\n\r\n")
            }),
            chunked("trailers of 20 KiB", REFUSED, &|body| {
                format!("28\r\n{body}\r\n0\r\nX: {}\r\n\r\n", "y".repeat(20 << 10))
            }),
            chunked("a line feed behind a trailer", REFUSED, &|body| format!("28\r\n{body}\r\n0\r\nX: y\n\r\n")),
        ]
    }

    fn targets_and_versions(&self) -> Vec<Form> {
        let line = |what, answers, line: &str| {
            self.changed(what, answers, |plain| plain.replacen(&format!("POST {PATH} HTTP/1.1"), line, 1))
        };
        let post = |target: &str| format!("POST {target} HTTP/1.1");
        vec![
            line("an absolute target", TAKEN, &post(&format!("http://relay{PATH}"))),
            line("an absolute target elsewhere", NOT_FOUND, &post("http://relay/elsewhere")),
            line("an authority", NOT_FOUND, &post("relay:80")),
            line("an asterisk", NOT_FOUND, &post("*")),
            line("no target", REFUSED, "POST HTTP/1.1"),
            line("a target with a space", REFUSED, &post(&format!("{PATH} HTTP/1.1 {PATH}"))),
            line("a target with a tab", REFUSED, &post(&format!("{PATH}\t"))),
            line("two spaces", REFUSED, &format!("POST  {PATH} HTTP/1.1")),
            line("an escaped path", NOT_FOUND, &post("/webhooks/%73ipsim")),
            line("a path with dots", NOT_FOUND, &post("/webhooks/./sipsim")),
            line("a path with two slashes", NOT_FOUND, &post("//webhooks/sipsim")),
            line("a tunnel", NOT_FOUND, "CONNECT relay:80 HTTP/1.1"),
            line("another method, with a body", &[405], &format!("GET {PATH} HTTP/1.1")),
            line("a method in small letters", &[405], &format!("post {PATH} HTTP/1.1")),
            line("HTTP/1.0", TAKEN_AND_CLOSED, &format!("POST {PATH} HTTP/1.0")),
            line("HTTP/0.9", REFUSED, &format!("POST {PATH}")),
            line("HTTP/1.2", REFUSED, &format!("POST {PATH} HTTP/1.2")),
            line("HTTP/2.0 in a line", REFUSED, &format!("POST {PATH} HTTP/2.0")),
            line("HTTP in small letters", REFUSED, &format!("POST {PATH} http/1.1")),
            line("something behind the version", REFUSED, &format!("POST {PATH} HTTP/1.1 ")),
            line("chunked in HTTP/1.0", REFUSED, &format!("POST {PATH} HTTP/1.0\r\nTransfer-Encoding: chunked")),
            self.changed("the preface of HTTP/2", REFUSED, |plain| format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{plain}")),
            self.changed("an upgrade to HTTP/2", TAKEN, |plain| {
                plain.replacen(
                    "\r\n",
                    "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
                    1,
                )
            }),
            self.changed("the last request by its own word", TAKEN_AND_CLOSED, |plain| {
                plain.replacen("\r\n", "\r\nConnection: close\r\n", 1)
            }),
        ]
    }
}
