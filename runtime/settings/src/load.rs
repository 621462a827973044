//! Reads the file: unknown keys first, then types, then bounds, so that the first message is the
//! most useful one. Every message names the file and the line.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use crate::{Settings, check, key};

/// Read when no other file is named.
pub const DEFAULT_PATH: &str = "/etc/isopod/isopod.toml";

/// Larger files are refused: the documented default is some 4 KiB.
const MAX_LEN: u64 = 1 << 20;

/// Why the configuration could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("configuration file {}: {len} bytes are more than {MAX_LEN}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{}:{line}: unknown key `{key}`; did you mean `{nearest}`?", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// With its table.
        key: String,
        /// The known key that resembles it most.
        nearest: String,
    },
    /// A value out of bounds.
    #[error("{}:{line}: {key}: {message}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// With its table.
        key: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl Settings {
    /// The settings in `path`, which must exist; without one, those in [`DEFAULT_PATH`], or the
    /// defaults when there is no such file.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        Self::load_or_default(path, Path::new(DEFAULT_PATH))
    }

    fn load_or_default(named: Option<&Path>, default: &Path) -> Result<Self, Error> {
        let path = named.unwrap_or(default);
        let failed = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let text = match fs::metadata(path) {
            Ok(found) if found.len() > MAX_LEN => {
                return Err(Error::TooLarge {
                    path: path.to_owned(),
                    len: found.len(),
                });
            }
            Ok(_) => fs::read_to_string(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                return Ok(Self::default());
            }
            Err(error) => return Err(failed(error)),
        };
        Self::parse(&text, path)
    }

    /// The settings in `text`; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let wrong = |error: toml::de::Error| Error::Parse {
            path: path.to_owned(),
            line: line(text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        };
        let tree = DeTable::parse(text).map_err(wrong)?;
        if let Some((span, table, unknown)) = unknown_key(tree.get_ref()) {
            return Err(Error::UnknownKey {
                path: path.to_owned(),
                line: line(text, span.start),
                nearest: key::nearest(&table, &unknown),
                key: key::full(&table, &unknown),
            });
        }
        let settings: Self = toml::from_str(text).map_err(wrong)?;
        check::check(&settings).map_err(|found| Error::Value {
            path: path.to_owned(),
            line: line(text, key_start(tree.get_ref(), found.table, found.key)),
            key: key::full(found.table, found.key),
            message: found.message,
        })?;
        Ok(settings)
    }
}

/// The line, counted from 1, of a byte in `text`.
fn line(text: &str, offset: usize) -> usize {
    let before = text.bytes().take(offset);
    before.filter(|byte| *byte == b'\n').count() + 1
}

/// The first key that does not exist: its place, its table and its name.
fn unknown_key(tree: &DeTable<'_>) -> Option<(Range<usize>, String, String)> {
    let known = |table: &str, name: &str| key::KEYS.contains(&(table, name));
    let mut found = Vec::new();
    for (name, value) in tree {
        match value.get_ref() {
            DeValue::Table(table) if key::is_table(name.get_ref()) => {
                let outer: &str = name.get_ref();
                let inner = table.iter().filter(|(key, _)| !known(outer, key.get_ref()));
                found.extend(
                    inner.map(|(key, _)| (key.span(), outer.to_owned(), key.get_ref().to_string())),
                );
            }
            _ if known("", name.get_ref()) || key::is_table(name.get_ref()) => {}
            _ => found.push((name.span(), String::new(), name.get_ref().to_string())),
        }
    }
    found.into_iter().min_by_key(|(span, ..)| span.start)
}

/// Where a key stands; 0 when the file does not have it (its default conflicts with another value).
fn key_start(tree: &DeTable<'_>, table: &str, name: &str) -> usize {
    let place = |tree: &DeTable<'_>| {
        let found = tree.iter().find(|(key, _)| key.get_ref() == name);
        found.map(|(key, _)| key.span().start)
    };
    let found = if table.is_empty() {
        place(tree)
    } else {
        tree.get(table)
            .and_then(|value| value.get_ref().as_table())
            .and_then(place)
    };
    found.unwrap_or(0)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
