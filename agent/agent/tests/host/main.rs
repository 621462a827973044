//! The agent as an ordinary process in namespaces of its own: every call, on a busybox root filesystem.
//!
//! Needs root, busybox (static) and a cgroup v2 tree; without one of them the tests say so and pass over.
//! Run with `cargo test -p isopod-agent --features testing`.

mod console;
mod devices;
mod guest;
mod lifecycle;
mod namespaces;
mod process;
mod stdio;
