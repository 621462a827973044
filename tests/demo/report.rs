//! What the shim's log tells of a launch, and tables for people.

use std::collections::BTreeMap;

/// A line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// In the table's unit.
    pub value: u64,
}

impl Row {
    /// A line.
    pub fn new(name: &str, value: u64) -> Self {
        Self {
            name: name.to_owned(),
            value,
        }
    }
}

/// The shim's `pod is ready` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// `qemu` or `kvm`.
    pub engine: String,
    /// Why that one.
    pub why: String,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// Steps of the launch in milliseconds.
    pub stages: Vec<Row>,
}

impl Launched {
    /// The launch that a line of the log tells of, if it does.
    pub fn in_line(line: &str) -> Option<Self> {
        let pairs = logfmt(line);
        let text = |key: &str| pairs.get(key).cloned();
        if text("msg")? != "pod is ready" {
            return None;
        }
        let stages = text("stages")?
            .split(", ")
            .map(|stage| {
                let (name, took) = stage.split_once(": ")?;
                Some(Row::new(name, took.strip_suffix(" ms")?.parse().ok()?))
            })
            .collect::<Option<_>>()?;
        Some(Self {
            engine: text("engine")?,
            why: text("why")?,
            kernel: text("kernel")?,
            stages,
        })
    }
}

/// `key=value key="quoted \"value\""`.
fn logfmt(line: &str) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    let mut rest = line;
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.rsplit(' ').next().unwrap_or(key);
        let (value, after) = match after.strip_prefix('"') {
            None => {
                let (value, after) = after.split_once(' ').unwrap_or((after, ""));
                (value.to_owned(), after)
            }
            Some(quoted) => unquote(quoted),
        };
        pairs.insert(key.to_owned(), value);
        rest = after;
    }
    pairs
}

/// The text up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// A table with a title, its numbers aligned.
pub fn table(title: &str, unit: &str, rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text = format!("  {title}\n");
    for row in rows {
        text.push_str(&format!(
            "    {:<width$}  {:>8} {unit}\n",
            row.name, row.value
        ));
    }
    text
}
