//! The control API of one machine: see `proto/monitor.proto`.
//!
//! One client, its owner. Requests are carried out one after the other on the thread that reads them:
//! none waits for the guest, and a pause is bounded.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use isopod_control::{
    monitor::{
        self, AttachRequest, BootResponse, ConsoleTailResponse, Counter, DetachRequest, Device,
        Empty, MetricsResponse, Queue, ResizeRequest, SaveResponse, Vcpu,
    },
    monitor_ttrpc::Monitor,
    parcel::{ParcelError, Parcels},
};
use isopod_hypervisor::HypervisorError;
use isopod_machine::{Machine, MachineError};
use tokio::sync::Notify;
use ttrpc::{
    Code,
    r#async::TtrpcContext,
    error::{Error, get_status},
};

use crate::{
    slots::{BackEnd, SlotError, Slots},
    snapshot::{Files, SnapshotError},
};

/// What a client controls.
pub struct Control {
    machine: Mutex<State>,
    start: Instant,
    files: Option<Files>,
    /// Told when the owner asks for the end.
    pub shut_down: Notify,
}

struct State {
    machine: Machine,
    slots: Slots,
    /// Where descriptors arrive.
    parcels: Option<Parcels>,
    booted: bool,
}

impl Control {
    /// Serves `machine`, which has not booted; `start` is when the process began, `files` what it can be
    /// saved to.
    pub fn new(
        machine: Machine,
        slots: Slots,
        parcels: Option<Parcels>,
        start: Instant,
        files: Option<Files>,
    ) -> Self {
        // The first call looks for the vDSO, by a system call that the filter forbids.
        cpu_time();
        Self {
            machine: Mutex::new(State {
                machine,
                slots,
                parcels,
                booted: false,
            }),
            start,
            files,
            shut_down: Notify::new(),
        }
    }

    /// Ends the guest, if it has not ended, and tells why it did.
    pub fn stop(&self) -> Result<isopod_machine::End, MachineError> {
        self.state().machine.stop()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out `act` if the guest has booted.
    fn booted<T>(&self, act: impl FnOnce(&Machine) -> Result<T, MachineError>) -> ttrpc::Result<T> {
        let state = self.state();
        if !state.booted {
            return Err(status(
                Code::FAILED_PRECONDITION,
                "the guest has not booted",
            ));
        }
        act(&state.machine).map_err(failed)
    }
}

fn status(code: Code, message: impl ToString) -> Error {
    Error::RpcStatus(get_status(code, message))
}

fn failed(error: MachineError) -> Error {
    let code = match &error {
        MachineError::Hypervisor(HypervisorError::WrongState { .. }) => Code::FAILED_PRECONDITION,
        MachineError::Hypervisor(HypervisorError::Grant { .. }) => Code::OUT_OF_RANGE,
        MachineError::Elsewhere { .. } => Code::FAILED_PRECONDITION,
        _ => Code::INTERNAL,
    };
    status(code, error)
}

fn refused(error: SlotError) -> Error {
    let code = match &error {
        SlotError::Unknown(_) => Code::NOT_FOUND,
        SlotError::InUse(_) => Code::ALREADY_EXISTS,
        SlotError::Empty(_) | SlotError::NoDevice(_) => Code::FAILED_PRECONDITION,
        SlotError::Kind { .. }
        | SlotError::Disk { .. }
        | SlotError::Blk { .. }
        | SlotError::Net { .. }
        | SlotError::Stream { .. } => Code::INVALID_ARGUMENT,
        SlotError::Hotplug { .. } | SlotError::Balloon { .. } => Code::OUT_OF_RANGE,
        SlotError::Flush { .. } => Code::DATA_LOSS,
        SlotError::Gone { .. } => Code::INTERNAL,
    };
    status(code, error)
}

impl State {
    /// What was sent to be joined to a slot.
    fn back_end(&mut self, request: &AttachRequest) -> ttrpc::Result<BackEnd> {
        let none = || {
            status(
                Code::FAILED_PRECONDITION,
                "descriptors.parcels is not there",
            )
        };
        let parcels = self.parcels.as_mut().ok_or_else(none)?;
        let mut descriptors = parcels.take(request.parcel).map_err(|error| {
            let code = match &error {
                ParcelError::Missing(_) => Code::FAILED_PRECONDITION,
                _ => Code::INTERNAL,
            };
            status(code, error)
        })?;
        let kind = request
            .kind
            .enum_value()
            .unwrap_or(monitor::BackEnd::UNSPECIFIED);
        let count = descriptors.len();
        match (kind, descriptors.pop()) {
            (monitor::BackEnd::DISK, Some(disk)) if count == 1 => Ok(BackEnd::Disk(disk)),
            (monitor::BackEnd::STREAM, Some(stream)) if count == 1 => Ok(BackEnd::Stream(stream)),
            (monitor::BackEnd::TAP, Some(last)) => {
                descriptors.push(last);
                Ok(BackEnd::Tap(descriptors))
            }
            (monitor::BackEnd::UNSPECIFIED, _) => {
                Err(status(Code::INVALID_ARGUMENT, "kind is not said"))
            }
            _ => Err(status(
                Code::INVALID_ARGUMENT,
                format!("parcel {}: {count} descriptors, not 1", request.parcel),
            )),
        }
    }
}

#[async_trait]
impl Monitor for Control {
    async fn boot(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<BootResponse> {
        let mut state = self.state();
        if state.booted {
            return Err(status(Code::FAILED_PRECONDITION, "the guest has booted"));
        }
        state.machine.resume().map_err(failed)?;
        state.booted = true;
        let mut response = BootResponse::new();
        response.since_start_us = micros(self.start.elapsed());
        response.cpu_us = micros(cpu_time());
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.booted(Machine::pause).map(|()| Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.booted(Machine::resume).map(|()| Empty::new())
    }

    async fn save(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<SaveResponse> {
        let begin = Instant::now();
        let Some(files) = &self.files else {
            let message = "descriptors.snapshot.save was not configured";
            return Err(status(Code::FAILED_PRECONDITION, message));
        };
        let state = self.state();
        if !state.booted {
            let message = "the guest has not booted";
            return Err(status(Code::FAILED_PRECONDITION, message));
        }
        let written = files.save(&state.machine).map_err(|error| match error {
            SnapshotError::Machine(error) => failed(error),
            other => status(Code::INTERNAL, other),
        })?;
        let mut response = SaveResponse::new();
        response.memory_bytes = written.memory;
        response.state_bytes = written.state;
        response.took_us = micros(begin.elapsed());
        Ok(response)
    }

    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> ttrpc::Result<Empty> {
        let mut state = self.state();
        let back_end = state.back_end(&request);
        // Of two faults, the name is told first: it is the caller's own.
        state.slots.check(&request.slot).map_err(refused)?;
        let attached = state.slots.attach(&request.slot, back_end?);
        attached.map(|()| Empty::new()).map_err(refused)
    }

    async fn detach(&self, _: &TtrpcContext, request: DetachRequest) -> ttrpc::Result<Empty> {
        let detached = self.state().slots.detach(&request.slot);
        detached.map(|()| Empty::new()).map_err(refused)
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        let ResizeRequest {
            hotplug_mib,
            balloon_mib,
            cpus,
            ..
        } = request;
        let state = self.state();
        if let Some(cpus) = cpus {
            state.machine.check_grant(cpus).map_err(failed)?;
        }
        let resized = state.slots.resize(hotplug_mib, balloon_mib);
        resized.map_err(refused)?;
        if let Some(cpus) = cpus {
            state.machine.grant(cpus).map_err(failed)?;
        }
        Ok(Empty::new())
    }

    async fn console_tail(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<ConsoleTailResponse> {
        let mut response = ConsoleTailResponse::new();
        response.text = self.state().slots.console_tail().map_err(refused)?;
        Ok(response)
    }

    async fn metrics(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<MetricsResponse> {
        let metrics = self.state().machine.metrics().map_err(failed)?;
        let mut response = MetricsResponse::new();
        response.unanswered = metrics.unanswered;
        response.cpus = metrics.granted;
        for (id, counters) in (0..).zip(metrics.vcpus) {
            let Some(counters) = counters else { continue };
            let mut vcpu = Vcpu::new();
            vcpu.id = id;
            vcpu.ports = counters.ports;
            vcpu.mmio = counters.mmio;
            vcpu.emulated = counters.emulated;
            response.vcpus.push(vcpu);
        }
        for (name, figures) in metrics.devices {
            let mut device = Device::new();
            device.name = name;
            device.register_errors = figures.register_errors;
            device.failure = figures.failure.unwrap_or_default();
            for counters in figures.queues {
                let mut queue = Queue::new();
                queue.chains = counters.chains;
                queue.malformed = counters.malformed;
                queue.broken = counters.broken;
                queue.signals = counters.signals;
                device.queues.push(queue);
            }
            for (name, value) in figures.device {
                let mut counter = Counter::new();
                counter.name = name;
                counter.value = value;
                device.counters.push(counter);
            }
            response.devices.push(device);
        }
        Ok(response)
    }

    async fn shut_down(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.shut_down.notify_one();
        Ok(Empty::new())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Of this process so far.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}
