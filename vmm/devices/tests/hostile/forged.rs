//! Saved states as who can write their file writes them: each field by itself becomes what no device
//! saves. A device refuses it, or takes it on and still serves a driver that starts over.

use serde_json::{Value, json};

use super::*;

/// Every field of a state, by JSON pointer.
fn fields(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                fields(value, &format!("{path}/{name}"), found);
            }
        }
        Value::Array(values) => {
            found.push(path.to_owned());
            // The first stands for all.
            if let Some(first) = values.first() {
                fields(first, &format!("{path}/0"), found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

fn forgeries() -> Vec<Value> {
    vec![
        json!(0),
        json!(1),
        json!(0xffff),
        json!(u64::from(u32::MAX)),
        json!(u64::MAX),
        json!(-1),
        json!(true),
        json!("a text"),
        json!([]),
        json!([u64::MAX, u64::MAX, u64::MAX]),
        Value::Null,
    ]
}

/// Forges each field of the state of what `make` makes.
pub fn check(make: impl Fn() -> Box<dyn Target>) {
    let mut saved = make();
    let count = saved.queues();
    let driver = saved.driver();
    let wanted = features(driver, true);
    driver.start(wanted, &vec![SIZE; count]);
    driver.transport.pause().unwrap();
    let state = serde_json::to_value(driver.transport.save().unwrap()).unwrap();
    let mut paths = Vec::new();
    fields(&state, "", &mut paths);
    assert!(paths.len() > 10, "{paths:?}");

    let (mut refused, mut taken) = (0, 0);
    for path in paths {
        for forgery in forgeries() {
            let mut forged = state.clone();
            *forged.pointer_mut(&path).unwrap() = forgery.clone();
            let Ok(forged) = serde_json::from_value(forged) else {
                refused += 1;
                continue;
            };
            let mut target = make();
            let driver = target.driver();
            match driver.transport.restore(forged) {
                Err(_) => refused += 1,
                Ok(()) => {
                    taken += 1;
                    driver.transport.resume().unwrap();
                }
            }
            let told = |_| panic!("{path} = {forgery}: the device's thread is gone");
            driver.transport.metrics().unwrap_or_else(told);
            driver.start(0, &vec![SIZE; count]);
            driver.transport.metrics().unwrap_or_else(told);
            let status = driver.status();
            assert_eq!(status & NEEDS_RESET, 0, "{path} = {forgery}: {status:#x}");
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} refused, {taken} taken");
}
