//! Every field of the specification with a value of another type: what `ctr` would refuse itself, asked of
//! the shim directly. It names the field, and nothing is made.

use anyhow::{Result, bail, ensure};
use isopod_tests::{
    Bed, check_eq,
    shim::{Code, Empty},
};
use serde_json::{Value, json};

use crate::{
    fields,
    subject::{self, Pod},
};

pub fn run(bed: &Bed) -> Result<()> {
    let pod = Pod::start(bed)?;
    pod.begin()?;
    let mut failures = Vec::new();
    for field in fields::names() {
        if let Err(error) = one(bed, &pod, field) {
            failures.push(format!("{field}: {error:#}"));
        }
    }
    pod.notices_nothing()?;
    pod.finish()?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn one(bed: &Bed, pod: &Pod<'_>, field: &str) -> Result<()> {
    let mut spec = subject::spec_of(bed, "typed", false)?;
    set(&mut spec, field, &wrong(field));
    let request = pod.shim.creation("typed", &spec)?;
    let mut caller = pod.shim.caller()?;
    let refusal = match caller.call::<Empty>("Create", &request)? {
        Err(refusal) => refusal,
        Ok(_) => {
            caller.start("typed", "")?;
            caller.end("typed")?;
            bail!("a container was made");
        }
    };
    check_eq!(refusal.code, Code::INVALID_ARGUMENT, "{refusal:?}");
    let place = field.replace("[]", "[0]").replace('*', "key");
    ensure!(refusal.message.starts_with(&place), "{}", refusal.message);
    check_eq!(caller.status("typed", "")?, Err(Code::NOT_FOUND));
    Ok(())
}

/// An object where there is to be a text, a number or a truth value; a text for another system's part.
fn wrong(field: &str) -> Value {
    if field.contains('.') || field.ends_with("name") || field == "ociVersion" {
        json!({ "no": [] })
    } else {
        json!("no")
    }
}

/// Sets a field, in a list of one element where there is a list.
fn set(target: &mut Value, path: &str, value: &Value) {
    let (part, rest) = match path.split_once('.') {
        Some((part, rest)) => (part, Some(rest)),
        None => (path, None),
    };
    let (key, list) = match part.strip_suffix("[]") {
        Some(key) => (key, true),
        None => (part, false),
    };
    let key = if key == "*" { "key" } else { key };
    if !target.is_object() {
        *target = json!({});
    }
    let mut next = if list {
        Value::Null
    } else {
        target[key].take()
    };
    match rest {
        Some(rest) => set(&mut next, rest, value),
        None => next = value.clone(),
    }
    target[key] = if list { json!([next]) } else { next };
}
