//! Which fields of the specification the table shows, and which it does not.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Every field, and why some have no case.
const FIELDS: &str = include_str!("cases/fields.txt");

/// Fields that a case sets: to something that must work, or that must be refused.
#[derive(Default)]
pub struct Shown {
    good: BTreeSet<String>,
    bad: BTreeSet<String>,
}

/// A field's reasons to have no case.
#[derive(Default)]
struct Reasons<'a> {
    good: Option<&'a str>,
    bad: Option<&'a str>,
}

impl Shown {
    /// Takes a case into account. `at_fault` says which field of the patch is bad, if it has others too.
    pub fn add(
        &mut self,
        patch: &str,
        works: bool,
        fails: bool,
        at_fault: Option<&str>,
    ) -> Result<()> {
        let patch = serde_json::from_str(patch).context("the patch")?;
        let mut set = BTreeSet::new();
        walk(&patch, String::new(), &maps(), &mut set);
        match at_fault {
            Some(field) if fails => {
                ensure!(set.contains(field), "its patch does not set {field}");
                self.bad.insert(field.to_owned());
            }
            Some(_) => anyhow::bail!("nothing is at fault in it"),
            None if fails => self.bad.extend(set.iter().cloned()),
            None => {}
        }
        if works {
            self.good.extend(set);
        }
        Ok(())
    }

    /// Each field is shown or says why not; answers how many fields there are.
    pub fn check(&self) -> Result<usize> {
        let fields = fields()?;
        let lacking = |shown: &BTreeSet<String>, reason: fn(&Reasons<'_>) -> bool| -> Vec<&str> {
            let lacking = fields.iter();
            let lacking = lacking.filter(|(field, why)| shown.contains(**field) == reason(why));
            lacking.map(|(field, _)| *field).collect()
        };
        for (what, fields) in [
            ("good", lacking(&self.good, |why| why.good.is_some())),
            ("bad", lacking(&self.bad, |why| why.bad.is_some())),
        ] {
            ensure!(
                fields.is_empty(),
                "cases/fields.txt: either a case shows a {what} value or a reason says why none does: {}",
                fields.join(", ")
            );
        }
        Ok(fields.len())
    }
}

fn lines() -> impl Iterator<Item = &'static str> {
    FIELDS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// All fields: `[]` is an element of a list, `*` a key of a map.
pub fn names() -> impl Iterator<Item = &'static str> {
    lines().map(|line| line.split(" | ").next().unwrap_or_default())
}

fn fields() -> Result<BTreeMap<&'static str, Reasons<'static>>> {
    let mut all = BTreeMap::new();
    for line in lines() {
        let mut parts = line.split(" | ");
        let mut reasons = Reasons::default();
        let field = parts.next().unwrap_or_default();
        for part in parts {
            match part.split_once(": ") {
                Some(("good", why)) => reasons.good = Some(why),
                Some(("bad", why)) => reasons.bad = Some(why),
                _ => anyhow::bail!("cases/fields.txt: {line:?}"),
            }
        }
        ensure!(
            all.insert(field, reasons).is_none(),
            "cases/fields.txt: {field} comes twice"
        );
    }
    Ok(all)
}

/// Where any key may stand.
fn maps() -> BTreeSet<&'static str> {
    lines()
        .filter_map(|line| Some(line.split_once(".*")?.0))
        .collect()
}

/// Collects the paths of all values of a patch; a `+` at a key's end is the patch's, not the field's.
fn walk(value: &Value, path: String, maps: &BTreeSet<&str>, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                let key = if maps.contains(path.as_str()) {
                    "*"
                } else {
                    key.trim_end_matches('+')
                };
                let below = if path.is_empty() {
                    key.to_owned()
                } else {
                    format!("{path}.{key}")
                };
                walk(value, below, maps, found);
            }
            // What another system's part holds is not listed.
            if !path.contains('.') {
                found.insert(path);
            }
        }
        Value::Array(list) => {
            for value in list {
                walk(value, format!("{path}[]"), maps, found);
            }
        }
        _ => drop(found.insert(path)),
    }
}
