//! What is wrong with a configuration, and where: each [`Problem`] names its key, and the line or the variable that gave it.

use std::fmt;
use std::path::PathBuf;

use crate::printable;

/// Everything that is wrong, the file's problems first and by line. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// One thing that is wrong. Its text never holds a secret: values of unknown keys, of secrets and of URLs are not repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// Dotted, such as `ingress.listen`; empty if the text as a whole cannot be read.
    pub key: String,
    /// What is wrong, what is expected and what to do, without place and key.
    pub message: String,
}

/// Where a value, or the lack of one, is to be mended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    File {
        file: PathBuf,
        /// From 1; `None` if the file as a whole is meant.
        line: Option<usize>,
        /// From 1, in characters; only for what is no TOML.
        column: Option<usize>,
    },
    /// The environment variable, spelt as it was found.
    Variable(String),
    /// Neither names the key: its default is meant.
    Default,
}

/// What works, but hardly as somebody wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Dotted, such as `journal.path`.
    pub key: String,
    pub message: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => {
                write!(f, "{}", file.display())?;
                [line, column].into_iter().flatten().try_for_each(|number| write!(f, ":{number}"))
            }
            Self::Variable(name) => f.write_str(name),
            Self::Default => Ok(()),
        }
    }
}

/// `relay.toml:12: ingress.lisen: unknown key; did you mean `listen`?`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place != Place::Default {
            write!(f, "{}: ", self.place)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// One problem a line.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { "\n" }, printable::one_line(&problem.to_string()))?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}
