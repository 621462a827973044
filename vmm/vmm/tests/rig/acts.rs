//! What an owner asks of a monitor whose devices are slots, and how it is answered.

use std::{
    fs::{self, File},
    os::fd::AsFd,
};

use isopod_config::{DiskSlotConfig, NetSlotConfig, RateConfig, SlotsConfig};
use isopod_control::{
    monitor::{AttachRequest, BackEnd, DetachRequest, ResizeRequest},
    parcel,
};
use ttrpc::Code;

use super::{Monitor, ask};

pub type Answer = Result<(), (Code, String)>;

pub fn answer<T>(answer: ttrpc::Result<T>) -> Answer {
    match answer {
        Ok(_) => Ok(()),
        Err(ttrpc::Error::RpcStatus(status)) => {
            Err((status.code.enum_value().unwrap(), status.message))
        }
        Err(other) => panic!("{other}"),
    }
}

pub fn refused(told: Answer, code: Code, words: &str) {
    let (is, message) = told.unwrap_err();
    assert_eq!(is, code, "{message}");
    assert!(message.contains(words), "{message}");
}

impl Monitor {
    pub fn join(&self, slot: &str, kind: BackEnd, number: u64) -> Answer {
        let mut request = AttachRequest::new();
        request.slot = slot.to_owned();
        request.kind = kind.into();
        request.parcel = number;
        answer(ask!(self, attach, request))
    }

    pub fn attach(&self, slot: &str, kind: BackEnd, what: &[&dyn AsFd]) -> Answer {
        let descriptors: Vec<_> = what.iter().map(|one| one.as_fd()).collect();
        parcel::send(&self.parcels, 7, &descriptors).unwrap();
        self.join(slot, kind, 7)
    }

    pub fn detach(&self, slot: &str) -> Answer {
        let mut request = DetachRequest::new();
        request.slot = slot.to_owned();
        answer(ask!(self, detach, request))
    }

    pub fn resize(&self, hotplug_mib: Option<u64>, balloon_mib: Option<u64>) -> Answer {
        let mut request = ResizeRequest::new();
        request.hotplug_mib = hotplug_mib;
        request.balloon_mib = balloon_mib;
        answer(ask!(self, resize, request))
    }

    pub fn grant(&self, cpus: u32) -> Answer {
        let mut request = ResizeRequest::new();
        request.cpus = Some(cpus);
        answer(ask!(self, resize, request))
    }

    pub fn counter(&self, device: &str, name: &str) -> u64 {
        let metrics = ask!(self, metrics).unwrap();
        let found = metrics.devices.iter().find(|one| one.name == device);
        let counters = &found.unwrap().counters;
        counters.iter().find(|one| one.name == name).unwrap().value
    }

    pub fn open_descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(path).unwrap().count()
    }

    pub fn lives(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", self.errors());
        ask!(self, metrics).unwrap();
    }
}

/// A slot of each kind: with the root and the entropy device eight devices.
pub fn slots() -> SlotsConfig {
    SlotsConfig {
        console: true,
        balloon: true,
        hotplug_mib: 256,
        disks: vec![
            DiskSlotConfig {
                serial: "data".into(),
                ..DiskSlotConfig::default()
            },
            DiskSlotConfig {
                read_only: true,
                side_by_side: true,
                ..DiskSlotConfig::default()
            },
        ],
        nets: vec![NetSlotConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            pairs: 1,
            receive: RateConfig::default(),
            send: RateConfig::default(),
            taps: Vec::new(),
        }],
    }
}

/// An empty disk.
pub fn disk(sectors: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(sectors * 512).unwrap();
    file
}
