//! `io.containerd.cgroups.v2.Metrics`: the files as they are.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use isopod_sandbox::Stats;

use super::files::{device_lines, key, limit, number};

/// containerd's name for the message; `ctr task metrics` decodes by it.
pub const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// The metrics (kernel, Documentation/admin-guide/cgroup-v2.rst names the files and keys).
pub fn metrics(files: &Stats) -> Metrics {
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

fn io(text: &str) -> IOStat {
    let entries = device_lines(text).map(|line| IOEntry {
        major: line.major,
        minor: line.minor,
        rbytes: line.read_bytes,
        wbytes: line.written_bytes,
        rios: line.reads,
        wios: line.writes,
        ..IOEntry::default()
    });
    IOStat {
        usage: entries.collect(),
        ..IOStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::files, *};

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
}
