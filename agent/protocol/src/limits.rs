//! Bounds that both sides keep. Each says why it is what it is.

use std::time::Duration;

/// Longest container or exec id in bytes: containerd's identifiers are at most 76.
pub const ID_LEN: usize = 128;
/// Largest OCI spec in bytes. A ttrpc message may hold 4 MiB; real specs are some 20 KiB.
pub const SPEC_LEN: usize = 2 << 20;
/// How long the agent waits for a declared stdio stream to arrive before it refuses the process.
pub const STREAM_WAIT: Duration = Duration::from_secs(10);
/// Streams that were introduced but never claimed: more than this and the newest is refused.
pub const PARKED_STREAMS: usize = 4096;
/// How long an `Events` call waits when there is nothing to tell.
pub const EVENT_POLL: Duration = Duration::from_secs(30);
/// Events in one answer; the rest come with the next call.
pub const EVENT_BATCH: usize = 256;
/// How long `SetSize` tries to take processors and memory out of use: a page that somebody holds can delay
/// it without end.
pub const SHRINK: Duration = Duration::from_secs(10);
/// Most ranges of memory in one `SetSize`: a machine's memory has one hole.
pub const MEMORY_RANGES: usize = 16;
/// cgroup v2 files that `Stats` answers with.
pub const STAT_FILES: &[&str] = &[
    "cpu.stat",
    "memory.current",
    "memory.max",
    "memory.stat",
    "memory.events",
    "memory.peak",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.max",
    "io.stat",
];
