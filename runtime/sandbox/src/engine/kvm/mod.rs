//! isopod's own monitor, isopod-vmm: one jailed process per machine.

#[cfg(test)]
mod fake;
mod found;
mod hotplug;
mod machine;
mod operators;

use async_trait::async_trait;
pub(super) use found::{Found, find};

use super::{BackEnds, Engine, EngineError, Machine};
use crate::{
    host::{HostError, artifact, spawner::Spawner},
    plan::PodPlan,
};

/// The engine, and what this machine's KVM is.
pub(crate) struct Kvm {
    pub found: Found,
}

#[async_trait]
impl Engine for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn check(&self, plan: &PodPlan) -> Result<(), EngineError> {
        let check = || {
            artifact::open_kernel(&plan.vm.kernel.path)?;
            artifact::open_image(&plan.vm.image)?;
            artifact::check_program("monitor", &plan.settings.paths.monitor, artifact::REMEDY)
        };
        Ok(check().map_err(HostError::from)?)
    }

    async fn start(
        &self,
        plan: &PodPlan,
        back_ends: BackEnds,
        spawner: &Spawner,
    ) -> Result<Box<dyn Machine>, EngineError> {
        let machine = machine::start(plan, self.found, back_ends, spawner).await?;
        Ok(Box::new(machine))
    }
}
