//! `io.containerd.cgroups.v1.Metrics`: what a cgroup v1 would say, from the guest's v2 files. The guest's
//! groups have no siblings above them, so a group's own numbers are its hierarchy's.

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    PidsStat, Throttle,
};
use isopod_sandbox::Stats;

use super::files::{DeviceLine, device_lines, key, limit, number};

/// containerd's name for the message.
pub const TYPE: &str = "io.containerd.cgroups.v1.Metrics";

/// memory.limit_in_bytes without a limit: the largest multiple of a page that a signed number holds.
const UNLIMITED: u64 = i64::MAX as u64 & !0xfff;

/// The metrics (kernel, Documentation/admin-guide/cgroup-v1/ names the files; units are bytes and
/// nanoseconds).
pub fn metrics(files: &Stats) -> Metrics {
    let file = |name: &str| files.get(name).map_or("", String::as_str);
    let events = file("memory.events");
    Metrics {
        pids: Some(PidsStat {
            current: number(file("pids.current")),
            // Without a limit it is 0 here.
            limit: number(file("pids.max")),
            ..PidsStat::default()
        })
        .into(),
        cpu: Some(cpu(file("cpu.stat"))).into(),
        memory: Some(memory(files)).into(),
        blkio: Some(block_io(file("io.stat"))).into(),
        memory_oom_control: Some(MemoryOomControl {
            oom_kill: key(events, "oom_kill"),
            ..MemoryOomControl::default()
        })
        .into(),
        ..Metrics::default()
    }
}

fn cpu(text: &str) -> CPUStat {
    let nanoseconds = |name| key(text, name).saturating_mul(1000);
    CPUStat {
        usage: Some(CPUUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
            ..CPUUsage::default()
        })
        .into(),
        throttling: Some(Throttle {
            periods: key(text, "nr_periods"),
            throttled_periods: key(text, "nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
            ..Throttle::default()
        })
        .into(),
        ..CPUStat::default()
    }
}

fn memory(files: &Stats) -> MemoryStat {
    let file = |name: &str| files.get(name).map_or("", String::as_str);
    let key = |name: &str| key(file("memory.stat"), name);
    let bytes = |name: &str| number(file(name));
    let most = |name: &str| limit(file(name)).min(UNLIMITED);
    let usage = MemoryEntry {
        limit: most("memory.max"),
        usage: bytes("memory.current"),
        max: bytes("memory.peak"),
        failcnt: super::files::key(file("memory.events"), "max"),
        ..MemoryEntry::default()
    };
    // memory.memsw.*: memory and swap together.
    let swap = MemoryEntry {
        limit: usage
            .limit
            .saturating_add(most("memory.swap.max"))
            .min(UNLIMITED),
        usage: usage.usage.saturating_add(bytes("memory.swap.current")),
        max: usage.max,
        ..MemoryEntry::default()
    };
    MemoryStat {
        cache: key("file"),
        rss: key("anon"),
        rss_huge: key("anon_thp"),
        mapped_file: key("file_mapped"),
        dirty: key("file_dirty"),
        writeback: key("file_writeback"),
        pg_fault: key("pgfault"),
        pg_maj_fault: key("pgmajfault"),
        inactive_anon: key("inactive_anon"),
        active_anon: key("active_anon"),
        inactive_file: key("inactive_file"),
        active_file: key("active_file"),
        unevictable: key("unevictable"),
        hierarchical_memory_limit: usage.limit,
        hierarchical_swap_limit: swap.limit,
        total_cache: key("file"),
        total_rss: key("anon"),
        total_rss_huge: key("anon_thp"),
        total_mapped_file: key("file_mapped"),
        total_dirty: key("file_dirty"),
        total_writeback: key("file_writeback"),
        total_pg_fault: key("pgfault"),
        total_pg_maj_fault: key("pgmajfault"),
        total_inactive_anon: key("inactive_anon"),
        total_active_anon: key("active_anon"),
        total_inactive_file: key("inactive_file"),
        total_active_file: key("active_file"),
        total_unevictable: key("unevictable"),
        usage: Some(usage).into(),
        swap: Some(swap).into(),
        kernel: Some(MemoryEntry {
            limit: UNLIMITED,
            usage: key("kernel"),
            ..MemoryEntry::default()
        })
        .into(),
        kernel_tcp: Some(MemoryEntry {
            limit: UNLIMITED,
            usage: key("sock"),
            ..MemoryEntry::default()
        })
        .into(),
        ..MemoryStat::default()
    }
}

/// An operation's name, and its count in a device's line.
type Operation = (&'static str, fn(&DeviceLine) -> u64);

fn block_io(text: &str) -> BlkIOStat {
    let entries = |operations: [Operation; 3]| {
        let of = move |line: DeviceLine| {
            operations.map(|(name, value)| BlkIOEntry {
                op: name.to_owned(),
                major: line.major,
                minor: line.minor,
                value: value(&line),
                ..BlkIOEntry::default()
            })
        };
        device_lines(text).flat_map(of).collect()
    };
    BlkIOStat {
        io_service_bytes_recursive: entries([
            ("Read", |line| line.read_bytes),
            ("Write", |line| line.written_bytes),
            ("Total", |line| {
                line.read_bytes.saturating_add(line.written_bytes)
            }),
        ]),
        io_serviced_recursive: entries([
            ("Read", |line| line.reads),
            ("Write", |line| line.writes),
            ("Total", |line| line.reads.saturating_add(line.writes)),
        ]),
        ..BlkIOStat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::files, *};

    #[test]
    fn files_become_what_version_1_would_say() {
        let metrics = metrics(&files(&[
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 9\nnr_throttled 2\nthrottled_usec 5\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "65536\n"),
            ("memory.peak", "8192\n"),
            ("memory.swap.current", "100\n"),
            ("memory.swap.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2\ninactive_file 3\nkernel 4\n"),
            ("memory.events", "max 6\noom_kill 7\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "254:16 rbytes=1 wbytes=2 rios=3 wios=4\n"),
        ]));
        let usage = &metrics.cpu.usage;
        assert_eq!(
            (usage.total, usage.user, usage.kernel),
            (30_000, 20_000, 10_000)
        );
        let throttling = &metrics.cpu.throttling;
        assert_eq!((throttling.periods, throttling.throttled_time), (9, 5_000));
        let memory = &metrics.memory;
        assert_eq!(
            (memory.rss, memory.cache, memory.total_inactive_file),
            (1, 2, 3)
        );
        assert_eq!((memory.usage.usage, memory.usage.limit), (4096, 65536));
        assert_eq!((memory.usage.max, memory.usage.failcnt), (8192, 6));
        assert_eq!((memory.swap.usage, memory.swap.limit), (4196, UNLIMITED));
        assert_eq!(memory.kernel.usage, 4);
        assert_eq!(metrics.memory_oom_control.oom_kill, 7);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        let operations = &metrics.blkio.io_service_bytes_recursive;
        let operations: Vec<_> = operations
            .iter()
            .map(|e| (e.op.as_str(), e.minor, e.value))
            .collect();
        assert_eq!(
            operations,
            [("Read", 16, 1), ("Write", 16, 2), ("Total", 16, 3)]
        );
    }
}
