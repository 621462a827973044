//! The keys that exist, so that a misspelt one can be told from its neighbours.

/// Every key, with the table it lives in ("" is the top).
pub(crate) const KEYS: &[(&str, &str)] = &[
    ("", "engine"),
    ("", "log_level"),
    ("paths", "kernel"),
    ("paths", "image"),
    ("paths", "file_server"),
    ("paths", "monitor"),
    ("paths", "jail"),
    ("paths", "qemu"),
    ("paths", "state"),
    ("vm", "memory_mib"),
    ("vm", "max_memory_mib"),
    ("vm", "cpus"),
    ("vm", "max_cpus"),
    ("vm", "spare_memory_mib"),
    ("vm", "spare_cpus"),
    ("vm", "huge_pages"),
    ("vm", "kernel_parameters"),
    ("qemu", "accelerator"),
    ("fs", "request_queues"),
    ("fs", "queue_size"),
    ("jail", "uid"),
    ("jail", "gid"),
    ("timeouts", "boot"),
    ("timeouts", "request"),
    ("timeouts", "shutdown"),
    ("annotations", "allowed"),
    ("debug", "console"),
];

/// `table.key`, or `key` at the top.
pub(crate) fn full(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.to_owned()
    } else {
        format!("{table}.{key}")
    }
}

/// Whether a table of that name exists.
pub(crate) fn is_table(name: &str) -> bool {
    !name.is_empty() && KEYS.iter().any(|(table, _)| *table == name)
}

/// The known key or table that resembles an unknown one most. A key in the wrong table is found by
/// its own name first.
pub(crate) fn nearest(table: &str, key: &str) -> String {
    let wanted = full(table, key);
    let tables = KEYS.iter().map(|(table, _)| (*table).to_owned());
    let keys = KEYS.iter().map(|(table, key)| full(table, key));
    let likeness = |candidate: &str| {
        let own_name = candidate.rsplit('.').next().unwrap_or(candidate);
        strsim::jaro_winkler(&wanted, candidate).max(strsim::jaro_winkler(key, own_name))
    };
    keys.chain(tables)
        .filter(|candidate| !candidate.is_empty())
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .unwrap_or_default()
}
