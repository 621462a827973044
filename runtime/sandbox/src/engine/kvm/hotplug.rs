//! What the monitor gives its guest while it runs.
//!
//! Memory by virtio-mem: the monitor asks, the guest's driver plugs and unplugs by itself. Processors by
//! its leave to run them, without which they stand still whatever the guest does.

use std::time::Duration;

use async_trait::async_trait;
use isopod_control::{
    monitor::{Empty, ResizeRequest},
    monitor_ttrpc::MonitorClient,
};
use tokio::time::{Instant, sleep};
use ttrpc::context;

use crate::engine::{EngineError, Lent, Spare};

/// What is asked for, in units of this, in MiB.
const BLOCK: u64 = 2;
/// What the monitor does without asking the guest.
const ANSWER: Duration = Duration::from_secs(10);
/// Until processors stand still: the monitor's own bound, on a host that may be busy, and some time more.
const REST: Duration = Duration::from_secs(30);
/// Until the guest has taken what it was offered: milliseconds each gigabyte.
const PLUG: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The device and its counter, as the monitor calls them.
const DEVICE: &str = "mem";
const PLUGGED: &str = "plugged_bytes";

pub(super) struct Hotplug {
    /// Memory, in all.
    pub mib: u64,
    pub control: MonitorClient,
}

#[async_trait]
impl Spare for Hotplug {
    fn memory_mib(&self) -> u64 {
        self.mib
    }

    async fn lend(&self, mib: u64) -> Result<Lent, EngineError> {
        let failed = |why: String| EngineError::Memory { mib, why };
        let asked = mib.div_ceil(BLOCK).saturating_mul(BLOCK);
        let mut request = ResizeRequest::new();
        request.hotplug_mib = Some(asked);
        let resized = self.control.resize(within(ANSWER), &request).await;
        resized.map_err(|error| failed(error.to_string()))?;
        let until = Instant::now() + PLUG;
        loop {
            let plugged = self.plugged_mib().await;
            let plugged = plugged.map_err(|error| failed(error.to_string()))?;
            if plugged >= asked {
                return Ok(Lent::default());
            }
            if Instant::now() >= until {
                return Err(failed(format!("the guest took {plugged} MiB")));
            }
            sleep(PAUSE).await;
        }
    }

    async fn grant(&self, cpus: u32) -> Result<(), EngineError> {
        let mut request = ResizeRequest::new();
        request.cpus = Some(cpus);
        let resized = self.control.resize(within(REST), &request).await;
        let failed = |error: ttrpc::Error| EngineError::Processors {
            cpus,
            why: error.to_string(),
        };
        resized.map(drop).map_err(failed)
    }
}

impl Hotplug {
    async fn plugged_mib(&self) -> ttrpc::Result<u64> {
        let metrics = self.control.metrics(within(ANSWER), &Empty::new()).await?;
        let device = metrics.devices.iter().find(|device| device.name == DEVICE);
        let counters = device.into_iter().flat_map(|device| &device.counters);
        let mut plugged = counters.filter(|counter| counter.name == PLUGGED);
        Ok(plugged.next().map_or(0, |counter| counter.value >> 20))
    }
}

fn within(limit: Duration) -> context::Context {
    context::with_duration(limit)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use isopod_control::{
        monitor::{Counter, Device, MetricsResponse},
        monitor_ttrpc::Monitor,
    };
    use ttrpc::asynchronous::TtrpcContext;

    use super::*;
    use crate::engine::kvm::fake;

    /// Plugs what it is asked for, up to `takes` MiB, a little later, and has four processors.
    struct Fake {
        takes: u64,
        asked: Mutex<(u64, u64)>,
        granted: Mutex<u32>,
    }

    #[async_trait]
    impl Monitor for Fake {
        async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
            assert_eq!(request.balloon_mib, None);
            if let Some(cpus) = request.cpus {
                assert_eq!(request.hotplug_mib, None);
                if cpus > 4 {
                    let status = ttrpc::get_status(ttrpc::Code::OUT_OF_RANGE, "there are 4");
                    return Err(ttrpc::Error::RpcStatus(status));
                }
                *self.granted.lock().unwrap() = cpus;
                return Ok(Empty::new());
            }
            *self.asked.lock().unwrap() = (request.hotplug_mib.unwrap(), 0);
            Ok(Empty::new())
        }

        async fn metrics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<MetricsResponse> {
            let (asked, looks) = {
                let mut asked = self.asked.lock().unwrap();
                asked.1 += 1;
                *asked
            };
            let mut counter = Counter::new();
            counter.name = PLUGGED.to_owned();
            counter.value = if looks > 2 {
                asked.min(self.takes) << 20
            } else {
                0
            };
            let mut device = Device::new();
            device.name = DEVICE.to_owned();
            device.counters.push(counter);
            let mut response = MetricsResponse::new();
            response.devices.push(device);
            Ok(response)
        }
    }

    async fn hotplug(takes: u64) -> (Hotplug, Arc<Fake>) {
        let fake = Arc::new(Fake {
            takes,
            asked: Mutex::default(),
            granted: Mutex::default(),
        });
        let control = fake::serve(fake.clone()).await;
        (Hotplug { mib: 1024, control }, fake)
    }

    #[tokio::test]
    async fn what_is_lent_is_waited_for() {
        let (hotplug, fake) = hotplug(1024).await;
        assert_eq!(hotplug.lend(501).await.unwrap(), Lent::default());
        let (asked, looks) = *fake.asked.lock().unwrap();
        assert_eq!(asked, 502);
        assert!(looks >= 3, "{looks}");
    }

    #[tokio::test]
    async fn a_guest_that_takes_less_is_told_of() {
        let (hotplug, _fake) = hotplug(100).await;
        let error = hotplug.lend(200).await.unwrap_err().to_string();
        assert!(
            error.contains("200 MiB more") && error.contains("took 100 MiB"),
            "{error}"
        );
        // What it has already is enough at once.
        hotplug.lend(64).await.unwrap();
    }

    #[tokio::test]
    async fn processors_are_granted_or_it_is_told_why_not() {
        let (hotplug, fake) = hotplug(0).await;
        hotplug.grant(3).await.unwrap();
        assert_eq!(*fake.granted.lock().unwrap(), 3);
        let error = hotplug.grant(5).await.unwrap_err().to_string();
        assert!(
            error.contains("5 processors") && error.contains("there are 4"),
            "{error}"
        );
    }
}
