//! Many lives in one pod, one after the other: what a life leaves behind would be there a thousand times.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    fs,
    path::Path,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use isopod_tests::{
    Bed, Case, Runtime, check_eq, procfs,
    shim::{Caller, Empty, Shim, api, json_any},
    spec::{privilege, spec},
};
use serde_json::{Value, json};

use crate::abuse::{POD, all_capabilities, annotations};

/// The cases.
pub const CASES: &[Case] = &[Case::both("a_thousand_short_lives", short_lives).within(600)];

/// Lives before the first census: caches fill, threads and buffers are made.
const WARM_UP: u32 = 10;
const EXECS: u32 = 1000;

/// A thousand by `ISOPOD_SHORT_LIVES=1000`; a container costs a software CPU a few tenths of a second.
fn containers() -> u32 {
    let asked = std::env::var("ISOPOD_SHORT_LIVES").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// Asked directly: a thousand calls of `ctr` would be most of it.
fn short_lives(bed: &Bed) -> Result<()> {
    let rootfs = bed.rootfs()?;
    let first = first(bed, &rootfs)?;
    let shim = Shim::start(bed, POD, &first)?;
    let mut caller = shim.caller()?;
    caller.ask::<Empty>("Create", &shim.creation(POD, &first)?)?;
    caller.start(POD, "")?;

    let lives = |from: u32, to: u32| -> Result<()> {
        let began = Instant::now();
        for number in from..to {
            let id = format!("short{number}");
            let mut spec = spec(
                &rootfs,
                &format!("/{}/{id}", bed.namespace),
                &["sh", "-c", "exit 7"],
            );
            spec["annotations"] = annotations("container");
            let mut caller = shim.caller()?;
            caller.ask::<Empty>("Create", &shim.creation(&id, &spec)?)?;
            life(&mut caller, &id, "", 7)?;
            fs::remove_dir_all(bed.dir.join("disk/bundles").join(&id))?;
        }
        eprintln!("containers {from} to {to} took {:?}", began.elapsed());
        Ok(())
    };
    let execs = |from: u32, to: u32| -> Result<()> {
        let began = Instant::now();
        for number in from..to {
            let exec = format!("e{number}");
            let mut caller = shim.caller()?;
            caller.exec(POD, &exec, &["sh", "-c", "exit 8"])?;
            life(&mut caller, POD, &exec, 8)?;
        }
        eprintln!("execs {from} to {to} took {:?}", began.elapsed());
        Ok(())
    };

    lives(0, WARM_UP)?;
    execs(0, WARM_UP)?;
    let before = Census::take(bed, &shim)?;
    eprintln!("after the first:\n{before}");
    for from in (WARM_UP..containers()).step_by(100) {
        lives(from, containers().min(from + 100))?;
        eprintln!("{}", Census::take(bed, &shim)?);
    }
    for from in (WARM_UP..EXECS).step_by(330) {
        execs(from, from + 330)?;
        eprintln!("{}", Census::take(bed, &shim)?);
    }
    before.assert_same(&Census::take(bed, &shim)?)?;
    caller.end(POD)?;
    shim.shut_down(POD)
}

/// The pod's first container. In the guest it sees every process, so that it can count what the agent has.
fn first(bed: &Bed, rootfs: &Path) -> Result<Value> {
    let cgroup = format!("/{}/{POD}", bed.namespace);
    let mut spec = spec(rootfs, &cgroup, &["sleep", "100000"]);
    spec["annotations"] = annotations("sandbox");
    if bed.runtime == Runtime::Isopod {
        privilege(&mut spec, all_capabilities(bed)?);
        spec["linux"]["namespaces"] =
            json!([{ "type": "mount" }, { "type": "ipc" }, { "type": "uts" }]);
    }
    Ok(spec)
}

fn life(caller: &mut Caller, id: &str, exec: &str, code: u32) -> Result<()> {
    caller.start(id, exec)?;
    check_eq!(caller.wait(id, exec)?, code, "{id} {exec}");
    check_eq!(caller.delete(id, exec)?, code, "{id} {exec}");
    Ok(())
}

/// What could grow with every life in a pod.
struct Census {
    /// May differ by [`IN_PASSING`].
    counts: BTreeMap<String, u64>,
    /// KiB, which may grow by [`slack_kib`].
    sizes: BTreeMap<String, u64>,
}

/// What is opened and closed while it is counted. A hundred lives that lose one each are many more.
const IN_PASSING: u64 = 8;

/// An allocator's whims, and in the guest what its kernel keeps until it needs the memory. A thousand lives
/// that lose a page each are 4 MiB.
fn slack_kib(name: &str) -> u64 {
    if name.starts_with("guest: ") && !name.ends_with("agent") {
        4 * 1024
    } else {
        1024
    }
}

/// Printed by the first container: a name and a number per line.
const GUEST: &str = "echo agent-descriptors $(ls /proc/1/fd | wc -l); \
     echo agent-mounts $(wc -l < /proc/1/mountinfo); \
     echo processes $(for p in /proc/[0-9]*; do readlink $p/exe; done | wc -l); \
     echo zombies $(cat /proc/[0-9]*/status 2> /dev/null | grep -c '^State:.Z'); \
     echo KiB-agent $(sed -n 's/RssAnon:[^0-9]*//p' /proc/1/status); \
     sync; echo 3 > /proc/sys/vm/drop_caches; sleep 1; \
     echo cgroups $(sed -n 's/^memory.[0-9]*.\\([0-9]*\\).*/\\1/p' /proc/cgroups); \
     for name in Slab KernelStack PageTables Percpu; do \
     echo KiB-$name $(sed -n \"s/^$name:[^0-9]*//p\" /proc/meminfo); done";

impl Census {
    fn take(bed: &Bed, shim: &Shim<'_>) -> Result<Self> {
        let mut census = Self {
            counts: BTreeMap::new(),
            sizes: BTreeMap::new(),
        };
        let counts = &mut census.counts;
        let own = [std::process::id(), bed.containerd().pid(), 1];
        for process in procfs::processes()? {
            if own.contains(&process.pid) {
                continue;
            }
            let name = format!("{} {}", process.name, process.pid);
            let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid))?;
            // A server of files has as many open as its guest remembers.
            if process.name != "isopod-fs" {
                let open = procfs::descriptors(process.pid)?;
                counts.insert(format!("{name}: descriptors"), open as u64);
            }
            counts.insert(format!("{name}: mounts"), mounts.lines().count() as u64);
            // QEMU keeps what it has translated of the guest's instructions.
            if !process.name.starts_with("qemu") {
                let memory = procfs::anonymous_kib(process.pid)?;
                census.sizes.insert(format!("{name}: memory"), memory);
            }
        }
        let run = Path::new("/run");
        counts.insert("files below /run".to_owned(), files(run)?);
        if bed.runtime == Runtime::Isopod {
            census.ask_guest(bed, shim)?;
        }
        Ok(census)
    }

    fn ask_guest(&mut self, bed: &Bed, shim: &Shim<'_>) -> Result<()> {
        let output = bed.dir.join("census");
        let process = json!({ "cwd": "/", "args": ["sh", "-c", GUEST], "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 } });
        let request = api::ExecProcessRequest {
            id: POD.to_owned(),
            exec_id: "census".to_owned(),
            stdout: format!("file://{}", output.display()),
            spec: Some(json_any("Process", &process)).into(),
            ..api::ExecProcessRequest::default()
        };
        let mut caller = shim.caller()?;
        caller.ask::<Empty>("Exec", &request)?;
        life(&mut caller, POD, "census", 0)?;
        let text = fs::read_to_string(&output)?;
        fs::remove_file(&output)?;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(number)) = (words.next(), words.next()) else {
                anyhow::bail!("no number in {line:?}");
            };
            let number = number.parse().with_context(|| format!("{line:?}"))?;
            match name.strip_prefix("KiB-") {
                Some(name) => self.sizes.insert(format!("guest: {name}"), number),
                None => self.counts.insert(format!("guest: {name}"), number),
            };
        }
        Ok(())
    }

    fn assert_same(&self, after: &Self) -> Result<()> {
        let names: Vec<_> = self.counts.keys().collect();
        check_eq!(
            after.counts.keys().collect::<Vec<_>>(),
            names,
            "what is there"
        );
        for (name, before) in &self.counts {
            let now = after.counts.get(name).copied().unwrap_or(0);
            ensure!(
                now.abs_diff(*before) < IN_PASSING,
                "{name}: there were {before}, now there are {now}"
            );
        }
        for (name, before) in &self.sizes {
            let now = after.sizes.get(name).copied().unwrap_or(0);
            ensure!(
                now <= before + slack_kib(name),
                "{name} grew from {before} to {now} KiB"
            );
        }
        Ok(())
    }
}

impl Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.counts {
            write!(f, "{name} {count}; ")?;
        }
        for (name, size) in &self.sizes {
            write!(f, "{name} {size} KiB; ")?;
        }
        Ok(())
    }
}

fn files(dir: &Path) -> Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += 1;
        // The bed's own disk lies there too, and pipes of logs.
        if entry.file_type()?.is_dir() && entry.file_name() != "it" {
            count += files(&entry.path())?;
        }
    }
    Ok(count)
}
