//! Secrets cannot be printed, and their memory is wiped when they are dropped.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::{fmt, io};

use zeroize::Zeroizing;

/// Bytes. No secret, password or key is as long; what is, is another file put there by mistake.
pub const FILE_MAX: u64 = 64 << 10;
/// Bytes. HMAC-SHA256 is as strong as its key: 16 random bytes cannot be guessed, and no shorter one should be.
const STRONG_MIN: usize = 16;
/// Bytes. A shorter one can be tried out, and is more likely another value that came along. How long SIPSIM's are is not documented.
const LENGTH_MIN: usize = 8;

/// A signing secret, password or key. No `Display`, no `Serialize`; `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The content of a file, surrounding ASCII white space trimmed: editors and `echo` add a newline that nobody meant.
    pub fn read(path: &std::path::Path) -> io::Result<Self> {
        // Room for the longest from the start: a Vec that grows leaves a copy behind that nobody wipes.
        let mut raw = Zeroizing::new(Vec::with_capacity(FILE_MAX as usize + 1));
        File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut raw)?;
        if raw.len() as u64 > FILE_MAX {
            return Err(io::Error::other(format!("it is larger than {} KiB, the limit for a secret", FILE_MAX >> 10)));
        }
        Ok(Self::of(&raw))
    }

    /// These bytes without ASCII white space around them; the bytes given stay the caller's to wipe.
    pub fn of(raw: &[u8]) -> Self {
        Self::new(raw.trim_ascii().to_vec())
    }

    /// The secret itself, for the call that needs it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is so short that it is not taken beside others.
    pub fn is_short(&self) -> bool {
        self.0.len() < LENGTH_MIN
    }

    /// Why this is hardly a signing secret as SIPSIM shows it, the most telling first. `name` is its file's.
    pub fn doubt(&self, name: &str) -> Option<Doubt> {
        let bytes = self.expose();
        let Ok(text) = str::from_utf8(bytes) else {
            let is_utf16 = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
            return Some(if is_utf16 { Doubt::Utf16 } else { Doubt::NotText });
        };
        let is_quoted =
            ['"', '\'', '`'].iter().any(|quote| text.len() > 1 && text.starts_with(*quote) && text.ends_with(*quote));
        let is_assignment = text.split_once('=').is_some_and(|(name, value)| {
            let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && name.starts_with(|c: char| !c.is_ascii_digit());
            is_name && !value.trim_matches('=').is_empty() // Base64 ends with equals signs.
        });
        let doubts = [
            (text.contains('\0'), Doubt::Utf16),
            (text.starts_with('\u{feff}'), Doubt::ByteOrderMark),
            (is_quoted, Doubt::Quotes),
            (is_assignment, Doubt::Assignment),
            (text.contains(['\n', '\r']), Doubt::Lines),
            (text.contains(is_space), Doubt::Space),
            (matches!(name, "username" | "user" | "login"), Doubt::UserName),
            (bytes.len() < STRONG_MIN, Doubt::Weak(bytes.len())),
        ];
        doubts.into_iter().find_map(|(is_so, doubt)| is_so.then_some(doubt))
    }
}

/// White space of any kind, and characters that are not seen.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

/// What makes it unlikely that something is a signing secret as SIPSIM shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    Utf16,
    NotText,
    ByteOrderMark,
    Quotes,
    Assignment,
    Lines,
    Space,
    UserName,
    /// With its length in bytes.
    Weak(usize),
}

/// Goes on after "the secret in FILE".
impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utf16 => f.write_str("is UTF-16; save it as UTF-8 or ASCII"),
            Self::NotText => f.write_str("is not text in UTF-8; write the secret as SIPSIM shows it"),
            Self::ByteOrderMark => {
                f.write_str("begins with a byte order mark, which an editor put there; save it without")
            }
            Self::Quotes => f.write_str("has quotes around it; write it without them"),
            Self::Assignment => f.write_str("looks like NAME=value; write the value alone"),
            Self::Lines => f.write_str("has more than one line; each file holds one secret"),
            Self::Space => f.write_str("has a space or an invisible character in it or at its end; write it anew"),
            Self::UserName => f.write_str("is called like a user name, which others know; remove it from the folder"),
            Self::Weak(length) => write!(f, "is weak: {length} bytes, where {STRONG_MIN} random ones are needed"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where a password comes from: a file that is read anew at each connection, or the environment. Never from `relay.toml` itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PasswordSource {
    pub file: Option<PathBuf>,
    pub environment: Option<Secret>,
}

impl PasswordSource {
    pub fn is_given(&self) -> bool {
        self.file.is_some() || self.environment.is_some()
    }

    /// The password as it is now; the file goes before the environment. `None` if neither is configured.
    pub fn read(&self) -> io::Result<Option<Secret>> {
        match &self.file {
            Some(path) => Secret::read(path).map(Some),
            None => Ok(self.environment.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;

    #[test]
    fn what_is_hardly_a_secret_is_doubted_and_what_may_be_one_is_not() {
        let doubt = |text: &str| Secret::of(text.as_bytes()).doubt("sipsim");
        for fine in [
            "0123456789abcdef",
            "c2VjcmV0IG9mIHNpcHNpbQ==",
            "a+b/c=d-e_f.g:h;i,j",
            "whsec_0123456789abcdef",
            "\n0123456789abcdef\r\n",
        ] {
            assert_eq!(doubt(fine), None, "{fine}");
        }
        for (text, expected) in [
            ("0123456789abcde", Doubt::Weak(15)),
            ("", Doubt::Weak(0)),
            ("\u{feff}0123456789abcdef", Doubt::ByteOrderMark),
            ("0\x001\x002\x003\x004\x005\x006\x007\x00", Doubt::Utf16),
            ("\"0123456789abcdef\"", Doubt::Quotes),
            ("'0123456789abcdef'", Doubt::Quotes),
            ("SIPSIM_SECRET=0123456789abcdef", Doubt::Assignment),
            ("0123456789abcdef\nfedcba9876543210", Doubt::Lines),
            ("0123456789 abcdef", Doubt::Space),
            ("0123456789abcdef\u{a0}", Doubt::Space),
            ("0123456789abcdef\u{200b}", Doubt::Space),
        ] {
            assert_eq!(doubt(text), Some(expected), "{text:?}");
        }
        assert_eq!(Secret::of(b"\xff\xfes\0e\0c\0r\0e\0t\0").doubt("sipsim"), Some(Doubt::Utf16));
        assert_eq!(Secret::of(b"\xfe0123456789abcdef").doubt("sipsim"), Some(Doubt::NotText));
        assert_eq!(Secret::of(b"sipsim-webhook-user").doubt("username"), Some(Doubt::UserName));
    }

    #[test]
    fn a_file_that_is_no_secret_for_its_size_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let of = |bytes: u64| {
            std::fs::write(&path, vec![b'x'; bytes as usize]).unwrap();
            Secret::read(&path).map(|secret| secret.expose().len())
        };
        assert_eq!(of(FILE_MAX).unwrap() as u64, FILE_MAX);
        assert!(of(FILE_MAX + 1).unwrap_err().to_string().contains("64 KiB"));
    }

    #[test]
    fn a_secret_is_wiped_when_dropped_and_cannot_be_shown() {
        fn is_wiped(_: &impl ZeroizeOnDrop) {}
        let secret = Secret::new(b"canary".to_vec());
        is_wiped(&secret.0);
        let source = PasswordSource { file: None, environment: Some(secret) };
        assert_eq!(format!("{source:?}"), "PasswordSource { file: None, environment: Some(Secret(..)) }");
    }
}
