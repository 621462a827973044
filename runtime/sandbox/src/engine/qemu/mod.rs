//! Debian's QEMU, told only what the plan says, behind isopod-jail.

mod command;
mod machine;
mod qmp;
mod spare;

use async_trait::async_trait;
use isopod_settings::Accelerator;

use super::{BackEnds, Engine, EngineError, Machine};
use crate::{
    host::{HostError, artifact, spawner::Spawner},
    plan::PodPlan,
};

/// The engine; it has no state.
pub(crate) struct Qemu;

#[async_trait]
impl Engine for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn check(&self, plan: &PodPlan) -> Result<(), EngineError> {
        let paths = &plan.settings.paths;
        let check = || {
            artifact::open_kernel(&plan.vm.kernel.path)?;
            artifact::open_image(&plan.vm.image)?;
            artifact::check_program("QEMU", &paths.qemu, "install the package qemu-system-x86")?;
            artifact::check_program("launcher", &paths.jail, artifact::REMEDY)
        };
        if plan.settings.qemu.accelerator == Accelerator::Kvm {
            let opened = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm");
            opened.map_err(HostError::path("open", "/dev/kvm"))?;
        }
        Ok(check().map_err(HostError::from)?)
    }

    async fn start(
        &self,
        plan: &PodPlan,
        back_ends: BackEnds,
        spawner: &Spawner,
    ) -> Result<Box<dyn Machine>, EngineError> {
        Ok(Box::new(machine::start(plan, back_ends, spawner).await?))
    }
}
