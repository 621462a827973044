//! Where one case lies: namespaces of its own, and in them a disk, a `/run` and a containerd.
//!
//! Three processes: the suite starts `unshare`; its child is PID 1 of the bed (this program again), which
//! reaps whatever is orphaned and ends when its standard input does, that is when the suite dies; its
//! child (this program once more) is the body, which runs the case. When PID 1 ends, the kernel kills
//! every process of the bed and with them go its mounts, its memory file systems and its loop device.

use std::{
    cell::{Cell, RefCell},
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::wait::{WaitStatus, wait},
};

use crate::{
    Background, Finished, Machine,
    container::Run,
    containerd::Containerd,
    events::Events,
    image::{self, ImageConfig},
    process,
    settings::Settings,
};

/// What runs the containers of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Debian's runc, the reference.
    Runc,
    /// The product.
    Isopod,
}

impl Runtime {
    /// How a case's name begins.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Isopod => "isopod",
        }
    }

    /// What `ctr --runtime` wants.
    pub fn containerd_name(self) -> String {
        format!("io.containerd.{}.v2", self.name())
    }
}

/// Where everything of a bed lies, on a memory file system that only the bed sees.
const DIR: &str = "/run/it";
/// Which of the three processes this is.
const ROLE: &str = "ISOPOD_TEST_BED";
const CASE: &str = "ISOPOD_TEST_CASE";
const NAMESPACE: &str = "ISOPOD_TEST_NAMESPACE";

/// What this process is to do.
pub enum Role {
    /// Select cases and give each a bed.
    Suite,
    /// Be PID 1 of a bed.
    Init,
    /// Run the case of this name.
    Body(String),
}

/// Reads the role from the environment.
pub fn role() -> Role {
    match env::var(ROLE).as_deref() {
        Ok("init") => Role::Init,
        Ok("body") => Role::Body(env::var(CASE).unwrap_or_default()),
        _ => Role::Suite,
    }
}

/// Makes a bed and runs the case in it. `namespace` is unique on the host: cgroups carry it.
pub fn make(case: &str, namespace: &str, limit: Duration) -> Result<Finished> {
    let finished = process::run_held(&mut unshared(case, namespace)?, limit);
    sweep_cgroups(namespace);
    finished
}

/// The same for a program that a person watches: its output goes where this process's goes.
/// Answers the body's exit code.
pub fn make_shown(case: &str, namespace: &str) -> Result<i32> {
    let mut bed = unshared(case, namespace)?
        .stdin(Stdio::piped())
        .spawn()
        .context("start unshare")?;
    // `Child::wait` would close it, and end the bed.
    let held = bed.stdin.take();
    let status = bed.wait().context("wait for the bed");
    drop(held);
    sweep_cgroups(namespace);
    Ok(status?.code().unwrap_or(1))
}

/// This program again, in namespaces of its own, as PID 1 of a bed.
fn unshared(case: &str, namespace: &str) -> Result<Command> {
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--net",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["--propagation", "private", "--"])
        .arg(env::current_exe().context("find this program")?)
        .env(ROLE, "init")
        .env(CASE, case)
        .env(NAMESPACE, namespace);
    Ok(command)
}

/// PID 1 of a bed: answers the body's exit code.
pub fn init() -> Result<i32> {
    std::thread::spawn(|| {
        let mut held = std::io::stdin();
        while let Ok(1..) = held.read(&mut [0; 64]) {}
        std::process::exit(125);
    });
    let body = Command::new(env::current_exe()?)
        .env(ROLE, "body")
        .stdin(Stdio::null())
        .spawn()
        .context("start the body")?;
    loop {
        match wait().context("wait for processes of the bed")? {
            WaitStatus::Exited(pid, code) if pid.as_raw().cast_unsigned() == body.id() => {
                return Ok(code);
            }
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw().cast_unsigned() == body.id() => {
                return Ok(128 + signal as i32);
            }
            _ => {}
        }
    }
}

/// Removes the control groups of a bed, which outlive its namespaces.
fn sweep_cgroups(namespace: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        for group in crate::leftovers::directories(&hierarchy.join(namespace))
            .iter()
            .rev()
        {
            let _ = fs::remove_dir(group);
        }
    }
}

/// The bed, as a case sees it.
pub struct Bed {
    /// The binaries under test.
    pub machine: Machine,
    /// What runs the case's containers.
    pub runtime: Runtime,
    /// containerd's namespace.
    pub namespace: String,
    /// A directory for the case's files; `disk` in it is ext4.
    pub dir: PathBuf,
    /// What isopod is told; written anew for every container.
    pub settings: RefCell<Settings>,
    /// The pod that all containers from now on are of; none: each has its own, unless the case says
    /// otherwise.
    pub(crate) pod: RefCell<Option<String>>,
    containerd: RefCell<Containerd>,
    serial: Cell<u32>,
    layer: Vec<u8>,
}

/// The image that containers are made of unless the case says otherwise.
pub const IMAGE: &str = "test.local/busybox:latest";

impl Bed {
    /// Makes the bed around this process, which must be the body.
    pub fn enter(machine: Machine, runtime: Runtime, files: &image::Files) -> Result<Self> {
        let namespace = env::var(NAMESPACE).context("the bed's namespace")?;
        let dir = PathBuf::from(DIR);
        mounts(&dir)?;
        run_quietly(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        let layer = image::layer(files)?;
        let containerd = Containerd::start(&machine, &dir)?;
        let bed = Self {
            settings: RefCell::new(Settings::of(&machine)),
            pod: RefCell::default(),
            machine,
            runtime,
            namespace,
            dir,
            containerd: RefCell::new(containerd),
            serial: Cell::new(0),
            layer,
        };
        bed.import(&[(IMAGE.to_owned(), ImageConfig::default())])?;
        Ok(bed)
    }

    /// Makes images of the bed's root filesystem.
    pub fn import(&self, images: &[(String, ImageConfig)]) -> Result<()> {
        let tar = self.dir.join("image.tar");
        image::write_layout(&tar, &self.layer, images)?;
        let mut command = self.ctr();
        command.args(["images", "import"]).arg(&tar);
        process::run(&mut command, None, LIMIT)?
            .ok()
            .context("import the image")?;
        Ok(fs::remove_file(tar)?)
    }

    /// Makes one image that differs in its configuration; answers its name.
    pub fn image(&self, config: ImageConfig) -> Result<String> {
        let name = format!("test.local/variant{}:latest", self.next());
        self.import(&[(name.clone(), config)])?;
        Ok(name)
    }

    /// The root filesystem as a directory, for bundles that containerd mounts nothing for.
    pub fn rootfs(&self) -> Result<PathBuf> {
        let dir = self.dir.join(format!("disk/rootfs{}", self.next()));
        self.unpack(&dir)?;
        Ok(dir)
    }

    /// The root filesystem, in this directory.
    pub fn unpack(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        let mut archive = tar::Archive::new(self.layer.as_slice());
        archive.set_preserve_permissions(true);
        archive.set_overwrite(true);
        archive.unpack(dir).context("unpack the root filesystem")
    }

    /// A fresh directory on the bed's ext4 disk.
    pub fn volume(&self) -> Result<PathBuf> {
        let dir = self.dir.join(format!("disk/volume{}", self.next()));
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A number that the bed has not given before.
    pub fn next(&self) -> u32 {
        self.serial.set(self.serial.get() + 1);
        self.serial.get()
    }

    /// A container to be described and run.
    pub fn container(&self) -> Run<'_> {
        Run::new(self)
    }

    /// `ctr`, in the bed's namespace of containerd.
    pub fn ctr(&self) -> Command {
        self.containerd.borrow().ctr(&self.namespace)
    }

    /// Runs `ctr` with arguments, within the usual limit.
    pub fn ctr_run<const N: usize>(&self, arguments: [&str; N]) -> Result<Finished> {
        process::run(self.ctr().args(arguments), None, LIMIT)
    }

    /// containerd's events from now on.
    pub fn events(&self) -> Result<Events> {
        let mut command = self.ctr();
        command.arg("events");
        Events::follow(Background::start(&mut command)?, self)
    }

    /// The containerd of this bed.
    pub fn containerd(&self) -> std::cell::RefMut<'_, Containerd> {
        self.containerd.borrow_mut()
    }

    /// What containerd and the shims have logged.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.containerd.borrow().log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The pod that a container of that name is in: the bed's, or its own.
    pub fn pod_of(&self, container: &str) -> String {
        let pod = self.pod.borrow();
        pod.clone().unwrap_or_else(|| container.to_owned())
    }

    /// Annotations by which a container joins the bed's pod, as Kubernetes gives them.
    pub(crate) fn pod_arguments(&self) -> Vec<String> {
        let pod = self.pod.borrow();
        let joined = |pod: &String| {
            [
                "io.kubernetes.cri.container-type=container".to_owned(),
                format!("io.kubernetes.cri.sandbox-id={pod}"),
            ]
        };
        let annotations = pod.iter().flat_map(joined);
        annotations
            .flat_map(|annotation| ["--annotation".to_owned(), annotation])
            .collect()
    }

    /// Arguments that select the runtime; for isopod, its configuration file is written now.
    pub fn runtime_arguments(&self) -> Result<Vec<String>> {
        let mut arguments = vec!["--runtime".to_owned(), self.runtime.containerd_name()];
        if self.runtime == Runtime::Isopod {
            let path = self.dir.join(format!("isopod{}.toml", self.next()));
            fs::write(&path, self.settings.borrow().text()).context("write isopod.toml")?;
            arguments.extend([
                "--runtime-config-path".to_owned(),
                path.display().to_string(),
            ]);
        }
        Ok(arguments)
    }
}

/// How long one call of `ctr` may take unless the case says otherwise.
pub const LIMIT: Duration = Duration::from_secs(90);

/// Shared propagation, as on any host with an init, and memory file systems in the usual places.
fn mounts(dir: &Path) -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).context("share /")?;
    for (target, data) in [("/run", "mode=755"), ("/dev/shm", "mode=1777")] {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(data))
            .with_context(|| format!("mount a tmpfs on {target}"))?;
    }
    let (disk, file) = (dir.join("disk"), dir.join("disk.img"));
    fs::create_dir_all(&disk)?;
    // Sparse: it takes memory only for what is written.
    fs::File::create(&file)?.set_len(64 << 30)?;
    run_quietly(
        Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-O", "^has_journal", "-E"])
            .arg("lazy_itable_init=1,nodiscard")
            .arg(&file),
    )?;
    run_quietly(
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&file)
            .arg(&disk),
    )
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let path = env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let finished = process::run(command, None, Duration::from_secs(30))?;
    if finished.code != 0 {
        bail!("{command:?}: {}", finished.err());
    }
    Ok(())
}
