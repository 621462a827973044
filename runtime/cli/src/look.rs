//! What every look into one pod begins with.

use std::path::Path;

use anyhow::{Context, ensure};
use isopod_settings::Settings;
use tokio::runtime::Runtime;

use crate::list::{self, Name};

/// A pod, and what it takes to ask it something.
pub struct Look {
    /// Where pods are.
    pub settings: Settings,
    /// Which.
    pub name: Name,
    /// To wait for its answers in.
    pub runtime: Runtime,
}

impl Look {
    /// At the pod that `[NAMESPACE/]ID` names.
    pub fn at(config: Option<&Path>, pod: &str) -> anyhow::Result<Self> {
        let root = rustix::process::geteuid().is_root();
        ensure!(root, "only root may look into pods");
        Ok(Self {
            settings: Settings::load(config)?,
            name: list::find(list::names(), pod)?,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start a runtime")?,
        })
    }
}
