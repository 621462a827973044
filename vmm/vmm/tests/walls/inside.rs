//! The jailed process.

use std::{
    net::{Ipv4Addr, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    time::Duration,
};

use isopod_config::MonitorConfig;
use isopod_jail::{
    attempts::{self, Attempt, Targets, jailed},
    seccomp::Filter,
    violation,
};
use isopod_vmm::{
    filter::{self, Filters},
    walls,
};

const UID: u32 = 64_998;

/// What it sees of itself.
pub const FACTS: &[&str] = &["host name: isopod", "parent: none", "process: 1"];

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Vcpu,
    Device(filter::Kind),
    Watchdog,
    Lifeline,
    Main,
}

impl Kind {
    pub fn all() -> Vec<Self> {
        let others = [Self::Vcpu, Self::Watchdog, Self::Lifeline, Self::Main];
        let devices = filter::Kind::ALL.map(Self::Device);
        [&others[..], &devices].concat()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Device(kind) => kind.name(),
            Self::Watchdog => "watchdog",
            Self::Lifeline => "lifeline",
            Self::Main => "main",
        }
    }

    fn filter(self) -> Filter {
        let filters = Filters::compile(false).unwrap();
        match self {
            Self::Vcpu => filters.vcpu,
            Self::Device(kind) => filters.device(kind),
            Self::Watchdog => filters.watchdog,
            Self::Lifeline => filters.lifeline,
            Self::Main => filters.main,
        }
    }
}

/// Requests to KVM that make or change a machine: no thread has them once the guest runs.
const KVM: &[(&str, u32)] = &[
    ("another machine", 0xae01),
    ("another vCPU", 0xae41),
    ("another interrupt", 0x4020_ae76),
    ("another doorbell", 0x4040_ae79),
    ("capabilities of KVM", 0x4068_aea3),
    ("another CPUID", 0x4008_ae90),
    ("model-specific registers", 0x4008_ae89),
    ("a debugger", 0x4048_ae9b),
];

/// Those of the thread only that adds memory.
const SLOTS: &[(&str, u32)] = &[("memory for the guest", 0x4020_ae46)];

/// Those of a vCPU's thread only.
const VCPU: &[(&str, u32)] = &[
    ("to run a vCPU", 0xae80),
    ("a vCPU's registers", 0x8090_ae81),
    ("to set a vCPU's registers", 0x4090_ae82),
];

/// What the walls without the filters refuse.
pub fn refused_by_walls(targets: Targets) -> Vec<Attempt> {
    let mut attempts = all(targets);
    attempts.retain(|attempt| !attempt.refusals.is_empty());
    attempts
}

/// What one kind of thread must not do.
pub fn forbidden(kind: Kind, targets: Targets) -> Vec<Attempt> {
    let mut requests = KVM.to_vec();
    if kind != Kind::Vcpu {
        requests.extend(VCPU);
    }
    if kind != Kind::Device(filter::Kind::Memory) {
        requests.extend(SLOTS);
    }
    let request = |(name, number)| attempts::request(name, number, targets);
    let mut attempts = all(targets);
    attempts.extend(requests.into_iter().map(request));
    attempts
}

fn all(targets: Targets) -> Vec<Attempt> {
    [attempts::of_nobody(targets), attempts::at_the_host(targets)].concat()
}

/// Runs as the arguments say: the kind of thread, what to do.
pub fn run(targets: Targets, arguments: &[String]) {
    let [kind, act, rest @ ..] = arguments else {
        panic!("{arguments:?}");
    };
    let kind = Kind::all().into_iter().find(|k| k.name() == kind);
    walls::enter(&MonitorConfig::bare("test", 64, UID)).unwrap();
    violation::report("test: ".to_owned()).unwrap();
    if let Some(kind) = kind {
        kind.filter().install().unwrap();
    }
    println!("ready");
    match (kind, act.as_str()) {
        (None, "all") => {
            jailed::make(&refused_by_walls(targets));
            look_around();
        }
        (None, "connect") => connect(rest[0].parse().unwrap()),
        (Some(_), "work") => work(),
        (Some(kind), name) => {
            let mut found = forbidden(kind, targets).into_iter();
            let attempt = found.find(|attempt| attempt.name == name).unwrap();
            println!("{name}: {:?}", attempt.make());
        }
        other => panic!("{other:?}"),
    }
}

fn look_around() {
    let system = rustix::system::uname();
    println!("host name: {}", system.nodename().to_string_lossy());
    let parent = rustix::process::getppid();
    println!("parent: {}", if parent.is_none() { "none" } else { "seen" });
    println!("process: {}", std::process::id());
}

fn connect(port: u16) {
    let told = |connected: bool| if connected { "connected" } else { "refused" };
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let tcp = TcpStream::connect_timeout(&address, Duration::from_secs(10));
    println!("TCP: {}", told(tcp.is_ok()));
    let address = SocketAddr::from_abstract_name(format!("isopod-walls-{port}")).unwrap();
    println!(
        "abstract: {}",
        told(UnixStream::connect_addr(&address).is_ok())
    );
}

/// What each thread does: memory, the time, entropy, its descriptors.
fn work() {
    let bytes = vec![1u8; 4 << 20];
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(sum, 4 << 20);
    let (mut end, begin) = (0u8, std::time::Instant::now());
    rustix::rand::getrandom(
        std::slice::from_mut(&mut end),
        rustix::rand::GetRandomFlags::empty(),
    )
    .unwrap();
    assert!(begin.elapsed() < Duration::from_secs(60));
    println!("worked");
}
