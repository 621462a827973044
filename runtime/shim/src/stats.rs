//! A container's cgroup v2 files as containerd's `io.containerd.cgroups.v2.Metrics`.
//!
//! The guest is the pod's own: its numbers are shown, never trusted. What cannot be read is 0.

use containerd_shim_protos::{
    cgroups_v2::metrics::{CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat},
    protobuf::{Message, well_known_types::any::Any},
    ttrpc::{self, Code},
};
use isopod_sandbox::Stats;

use crate::convert;

/// containerd's name for the message; `ctr task metrics` decodes by it.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";
/// Block devices in one answer: a guest cannot make it larger than a ttrpc message.
const MAX_DEVICES: usize = 1024;

/// The metrics, packed as Stats answers them.
pub fn pack(files: &Stats) -> ttrpc::Result<Any> {
    let value = metrics(files).write_to_bytes().map_err(|error| {
        convert::status_error(Code::INTERNAL, format!("encoding metrics: {error}"))
    })?;
    Ok(Any {
        type_url: TYPE.to_owned(),
        value,
        ..Any::default()
    })
}

/// The metrics (kernel, Documentation/admin-guide/cgroup-v2.rst names the files and keys).
fn metrics(files: &Stats) -> Metrics {
    let file = |name: &str| files.get(name).map_or("", String::as_str);
    Metrics {
        pids: Some(PidsStat {
            current: number(file("pids.current")),
            limit: limit(file("pids.max")),
            ..PidsStat::default()
        })
        .into(),
        cpu: Some(cpu(file("cpu.stat"))).into(),
        memory: Some(memory(files)).into(),
        memory_events: Some(memory_events(file("memory.events"))).into(),
        io: Some(io(file("io.stat"))).into(),
        ..Metrics::default()
    }
}

fn cpu(text: &str) -> CPUStat {
    let key = |name| key(text, name);
    CPUStat {
        usage_usec: key("usage_usec"),
        user_usec: key("user_usec"),
        system_usec: key("system_usec"),
        nr_periods: key("nr_periods"),
        nr_throttled: key("nr_throttled"),
        throttled_usec: key("throttled_usec"),
        nr_bursts: key("nr_bursts"),
        burst_usec: key("burst_usec"),
        ..CPUStat::default()
    }
}

fn memory(files: &Stats) -> MemoryStat {
    let file = |name: &str| files.get(name).map_or("", String::as_str);
    let text = file("memory.stat");
    let key = |name: &str| key(text, name);
    let either = |new, old: &[&str]| match key(new) {
        0 => old
            .iter()
            .map(|name| key(name))
            .fold(0, u64::saturating_add),
        found => found,
    };
    MemoryStat {
        anon: key("anon"),
        file: key("file"),
        kernel_stack: key("kernel_stack"),
        slab: key("slab"),
        sock: key("sock"),
        shmem: key("shmem"),
        file_mapped: key("file_mapped"),
        file_dirty: key("file_dirty"),
        file_writeback: key("file_writeback"),
        anon_thp: key("anon_thp"),
        inactive_anon: key("inactive_anon"),
        active_anon: key("active_anon"),
        inactive_file: key("inactive_file"),
        active_file: key("active_file"),
        unevictable: key("unevictable"),
        slab_reclaimable: key("slab_reclaimable"),
        slab_unreclaimable: key("slab_unreclaimable"),
        pgfault: key("pgfault"),
        pgmajfault: key("pgmajfault"),
        // Split in two by Linux 5.9.
        workingset_refault: either(
            "workingset_refault",
            &["workingset_refault_anon", "workingset_refault_file"],
        ),
        workingset_activate: either(
            "workingset_activate",
            &["workingset_activate_anon", "workingset_activate_file"],
        ),
        workingset_nodereclaim: key("workingset_nodereclaim"),
        pgrefill: key("pgrefill"),
        pgscan: key("pgscan"),
        pgsteal: key("pgsteal"),
        pgactivate: key("pgactivate"),
        pgdeactivate: key("pgdeactivate"),
        pglazyfree: key("pglazyfree"),
        pglazyfreed: key("pglazyfreed"),
        thp_fault_alloc: key("thp_fault_alloc"),
        thp_collapse_alloc: key("thp_collapse_alloc"),
        usage: number(file("memory.current")),
        usage_limit: limit(file("memory.max")),
        swap_usage: number(file("memory.swap.current")),
        swap_limit: limit(file("memory.swap.max")),
        max_usage: number(file("memory.peak")),
        ..MemoryStat::default()
    }
}

fn memory_events(text: &str) -> MemoryEvents {
    let key = |name| key(text, name);
    MemoryEvents {
        low: key("low"),
        high: key("high"),
        max: key("max"),
        oom: key("oom"),
        oom_kill: key("oom_kill"),
        oom_group_kill: key("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

/// Lines like `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io(text: &str) -> IOStat {
    let entries = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut entry = IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..IOEntry::default()
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            match name {
                "rbytes" => entry.rbytes = number(value),
                "wbytes" => entry.wbytes = number(value),
                "rios" => entry.rios = number(value),
                "wios" => entry.wios = number(value),
                _ => {}
            }
        }
        Some(entry)
    });
    IOStat {
        usage: entries.take(MAX_DEVICES).collect(),
        ..IOStat::default()
    }
}

/// The value of `name` in a flat keyed file.
fn key(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then_some(value)
    });
    value.map_or(0, number)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// No limit is the largest number: containerd/cgroups does the same.
fn limit(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => number(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Stats {
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn files_become_metrics() {
        let metrics = metrics(&files(&[
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_throttled 2\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "8192\n"),
            (
                "memory.stat",
                "anon 1\nfile 2\nfile_mapped 3\nworkingset_refault_anon 4\nworkingset_refault_file 5\n",
            ),
            ("memory.events", "oom 1\noom_kill 7\n"),
            ("pids.current", "3\n"),
            ("pids.max", "64\n"),
            (
                "io.stat",
                "254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\nnonsense\n0:1\n",
            ),
        ]));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec), (30, 20));
        assert_eq!((metrics.cpu.system_usec, metrics.cpu.nr_throttled), (10, 2));
        assert_eq!(metrics.memory.usage, 4096);
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!(metrics.memory.swap_limit, 8192);
        assert_eq!((metrics.memory.file, metrics.memory.file_mapped), (2, 3));
        assert_eq!(metrics.memory.workingset_refault, 9);
        assert_eq!(metrics.memory_events.oom_kill, 7);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 64));
        let devices: Vec<_> = metrics
            .io
            .usage
            .iter()
            .map(|e| (e.major, e.minor, e.wios))
            .collect();
        assert_eq!(devices, [(254, 16, 4), (0, 1, 0)]);
    }

    #[test]
    fn packed_under_containerds_name() {
        let any = pack(&files(&[("pids.current", "3")])).expect("encodes");
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = Metrics::parse_from_bytes(&any.value).expect("decodes");
        assert_eq!(metrics.pids.current, 3);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text: String) {
            for name in ["cpu.stat", "memory.stat", "memory.max", "io.stat", "pids.max"] {
                let _ = metrics(&files(&[(name, &text)]));
            }
        }
    }
}
