//! What a pod's monitor counts, for the operator: its shim, which has the monitor's control, reads it and
//! tells it at the pod's `monitor.sock`.
//!
//! Names and reasons are the jailed monitor's own words: what a terminal would obey is taken out here.

use std::{collections::BTreeMap, io, time::Duration};

use isopod_control::monitor::{Device, MetricsResponse, Queue, Vcpu};
use isopod_settings::Settings;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, time::timeout};

use crate::{
    operator::{self, OperatorError, Wish},
    plan::PodPaths,
};

/// Bytes of the whole: a machine has some dozens of devices.
pub(crate) const METRICS_LEN: usize = 1 << 20;
/// Until the shim has told all.
const LIMIT: Duration = Duration::from_secs(20);

/// What the machine did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Accesses of the guest that nobody answered.
    pub unanswered: u64,
    /// Processors that the host lets run: those with lower numbers than this.
    pub cpus: u32,
    /// Processors, but for those that are in the guest at this moment.
    pub vcpus: Vec<VcpuMetrics>,
    /// Devices, in the machine's order.
    pub devices: Vec<DeviceMetrics>,
}

/// Of one processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuMetrics {
    /// Its number.
    pub id: u32,
    /// Accesses to ports.
    pub ports: u64,
    /// Accesses to registers of devices.
    pub mmio: u64,
    /// Instructions completed for KVM's emulator.
    pub emulated: u64,
}

/// Of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceMetrics {
    /// As the monitor calls it: `rng`, `console`, `blk-0`.
    pub name: String,
    /// Why it waits for a reset by its driver, if it does.
    pub failure: Option<String>,
    /// Accesses to its registers that break a rule.
    pub register_errors: u64,
    /// Queues, in their order.
    pub queues: Vec<QueueMetrics>,
    /// What this kind of device counts besides.
    pub counters: BTreeMap<String, u64>,
}

/// Of one queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueMetrics {
    /// Requests.
    pub chains: u64,
    /// Those that broke a rule.
    pub malformed: u64,
    /// Times that the rings could not be used.
    pub broken: u64,
    /// Interrupts.
    pub signals: u64,
}

/// They cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// There is no such socket.
    #[error(
        "pod {pod} has no isopod-vmm, which alone counts: its machine is QEMU's, or an older shim's"
    )]
    NoMonitor {
        /// Which.
        pod: String,
    },
    /// The pod's shim, or what it says.
    #[error("ask for the metrics of pod {pod}: {source}")]
    Ask {
        /// Which.
        pod: String,
        /// Why not.
        source: OperatorError,
    },
    /// It did not come, or not all of it.
    #[error("read the metrics of pod {pod}: {source}")]
    Read {
        /// Which.
        pod: String,
        /// Why not.
        source: io::Error,
    },
}

impl Metrics {
    /// Asks the shim of a pod, by containerd's namespace and the id of its first container.
    ///
    /// # Errors
    /// See [`MetricsError`].
    pub async fn of_pod(
        settings: &Settings,
        namespace: &str,
        id: &str,
    ) -> Result<Self, MetricsError> {
        let pod = format!("{namespace}/{id}");
        let socket = PodPaths::new(&settings.paths.state, namespace, id).monitor();
        let stream = match operator::ask(&socket, Wish::Metrics).await {
            Ok((stream, _)) => stream,
            Err(OperatorError::Connect(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MetricsError::NoMonitor { pod });
            }
            Err(source) => return Err(MetricsError::Ask { pod, source }),
        };
        let read = async {
            let mut json = Vec::new();
            let mut bounded = stream.take(METRICS_LEN as u64);
            bounded.read_to_end(&mut json).await?;
            serde_json::from_slice::<Self>(&json).map_err(io::Error::from)
        };
        let read = timeout(LIMIT, read).await;
        let read = read.unwrap_or_else(|elapsed| Err(elapsed.into()));
        read.map(Self::shown)
            .map_err(|source| MetricsError::Read { pod, source })
    }

    /// Each on a line of its own, to be looked through by programs and people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let Self {
            unanswered,
            cpus,
            vcpus,
            devices,
        } = self;
        let mut lines = vec![format!("unanswered {unanswered}"), format!("cpus {cpus}")];
        for VcpuMetrics {
            id,
            ports,
            mmio,
            emulated,
        } in vcpus
        {
            for (name, value) in [("ports", ports), ("mmio", mmio), ("emulated", emulated)] {
                lines.push(format!("vcpu.{id}.{name} {value}"));
            }
        }
        for DeviceMetrics {
            name: device,
            failure,
            register_errors,
            queues,
            counters,
        } in devices
        {
            if let Some(failure) = failure {
                lines.push(format!("{device}.failure {failure}"));
            }
            lines.push(format!("{device}.register_errors {register_errors}"));
            for (index, queue) in queues.iter().enumerate() {
                let QueueMetrics {
                    chains,
                    malformed,
                    broken,
                    signals,
                } = queue;
                for (name, value) in [
                    ("chains", chains),
                    ("malformed", malformed),
                    ("broken", broken),
                    ("signals", signals),
                ] {
                    lines.push(format!("{device}.queue.{index}.{name} {value}"));
                }
            }
            let counters = counters.iter();
            lines.extend(counters.map(|(name, value)| format!("{device}.{name} {value}")));
        }
        lines
    }

    fn shown(mut self) -> Self {
        for device in &mut self.devices {
            device.name = shown(&device.name);
            device.failure = device.failure.as_deref().map(shown);
            let counters = std::mem::take(&mut device.counters);
            let counters = counters.into_iter();
            device.counters = counters
                .map(|(name, value)| (shown(&name), value))
                .collect();
        }
        self
    }
}

fn shown(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(shown).collect()
}

impl From<MetricsResponse> for Metrics {
    fn from(told: MetricsResponse) -> Self {
        Self {
            unanswered: told.unanswered,
            cpus: told.cpus,
            vcpus: told.vcpus.into_iter().map(VcpuMetrics::from).collect(),
            devices: told.devices.into_iter().map(DeviceMetrics::from).collect(),
        }
    }
}

impl From<Vcpu> for VcpuMetrics {
    fn from(told: Vcpu) -> Self {
        Self {
            id: told.id,
            ports: told.ports,
            mmio: told.mmio,
            emulated: told.emulated,
        }
    }
}

impl From<Device> for DeviceMetrics {
    fn from(told: Device) -> Self {
        let counters = told.counters.into_iter();
        Self {
            name: told.name,
            failure: Some(told.failure).filter(|failure| !failure.is_empty()),
            register_errors: told.register_errors,
            queues: told.queues.into_iter().map(QueueMetrics::from).collect(),
            counters: counters
                .map(|counter| (counter.name, counter.value))
                .collect(),
        }
    }
}

impl From<Queue> for QueueMetrics {
    fn from(told: Queue) -> Self {
        Self {
            chains: told.chains,
            malformed: told.malformed,
            broken: told.broken,
            signals: told.signals,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::{io::AsyncWriteExt as _, net::UnixListener};

    use super::*;

    fn metrics() -> Metrics {
        Metrics {
            unanswered: 1,
            cpus: 2,
            vcpus: vec![VcpuMetrics {
                id: 1,
                ports: 2,
                mmio: 3,
                emulated: 4,
            }],
            devices: vec![DeviceMetrics {
                name: "console".to_owned(),
                failure: Some("queue 5: no such address".to_owned()),
                register_errors: 5,
                queues: vec![QueueMetrics {
                    chains: 6,
                    malformed: 7,
                    broken: 8,
                    signals: 9,
                }],
                counters: BTreeMap::from([("log_lost".to_owned(), 10)]),
            }],
        }
    }

    #[test]
    fn each_has_a_line() {
        let expected = [
            "unanswered 1",
            "cpus 2",
            "vcpu.1.ports 2",
            "vcpu.1.mmio 3",
            "vcpu.1.emulated 4",
            "console.failure queue 5: no such address",
            "console.register_errors 5",
            "console.queue.0.chains 6",
            "console.queue.0.malformed 7",
            "console.queue.0.broken 8",
            "console.queue.0.signals 9",
            "console.log_lost 10",
        ];
        assert_eq!(metrics().lines(), expected);
    }

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        let mut hostile = metrics();
        for device in &mut hostile.devices {
            device.name = "a\u{1b}[2J\nb".to_owned();
            device.failure = Some("\u{9b}c".to_owned());
            device.counters = BTreeMap::from([("\r".to_owned(), 1)]);
        }
        let text = hostile.shown().lines().concat();
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }

    /// Asks one who says `line` and `json`.
    async fn asked(line: &'static str, json: Vec<u8>) -> Result<Metrics, MetricsError> {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.paths.state = dir.path().to_owned();
        let paths = PodPaths::new(dir.path(), "ns", "pod");
        std::fs::create_dir(&paths.dir).unwrap();
        let listener = UnixListener::bind(paths.monitor()).unwrap();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_eq!(
                operator::wish(&mut stream).await.unwrap(),
                Some(Wish::Metrics)
            );
            stream.write_all(line.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            // He may have left.
            let _ = stream.write_all(&json).await;
        });
        let answer = Metrics::of_pod(&settings, "ns", "pod").await;
        serving.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn they_come_as_they_are() {
        let json = serde_json::to_vec(&metrics()).unwrap();
        assert_eq!(asked("OK\n", json).await.unwrap(), metrics());
    }

    #[rstest]
    #[case("FAILED the monitor is gone\n", b"".to_vec(), "the monitor is gone")]
    #[case("OK\n", b"".to_vec(), "read the metrics of pod ns/pod")]
    #[case("OK\n", b"{\"unanswered\": -1}".to_vec(), "read the metrics")]
    #[case("OK\n", vec![b'['; 2 * METRICS_LEN], "read the metrics")]
    #[tokio::test]
    async fn what_they_are_not_is_told(
        #[case] line: &'static str,
        #[case] json: Vec<u8>,
        #[case] words: &str,
    ) {
        let told = asked(line, json).await.unwrap_err().to_string();
        assert!(told.contains(words), "{told}");
    }

    #[tokio::test]
    async fn a_pod_without_a_monitor_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.paths.state = dir.path().to_owned();
        let told = Metrics::of_pod(&settings, "ns", "pod").await.unwrap_err();
        assert!(told.to_string().contains("QEMU"), "{told}");
    }
}
