//! A pod: its machine, its places on the host, its name in the guest.

use std::path::PathBuf;

use isopod_config::{FsConfig, KernelConfig, VmConfig, VsockConfig};
use isopod_protocol::{limits, paths, ports};
use isopod_settings::Settings;

use super::{Bounds, PlanError, PodPaths, annotations, cgroup, paths::check_id, size};
use crate::SandboxRequest;

/// All that a launch needs to know.
#[derive(Clone, Debug)]
pub(crate) struct PodPlan {
    pub id: String,
    /// Where the record is.
    pub bundle: PathBuf,
    pub paths: PodPaths,
    /// The control group of its processes, relative to each hierarchy's root; empty: the shim's.
    pub cgroup: PathBuf,
    pub vm: VmConfig,
    /// Between what sizes the machine moves.
    pub bounds: Bounds,
    pub hostname: String,
    pub settings: Settings,
}

/// Plans a pod from its first container.
pub(crate) fn plan_pod(request: &SandboxRequest) -> Result<PodPlan, PlanError> {
    check_id("id", &request.id)?;
    let settings = &request.settings;
    let wishes = annotations::wishes(request.spec.annotations().as_ref(), settings)?;
    let size = size::size(&request.spec, wishes, settings)?;
    let mut command_line = vec![
        format!("init={}", paths::AGENT),
        "quiet".to_owned(),
        // A panic reboots at once, and a reboot ends the monitor: the host is told by its exit.
        "panic=-1".to_owned(),
        // A pod's network namespace begins with a loopback interface alone; the driver would add one.
        "dummy.numdummies=0".to_owned(),
    ];
    command_line.extend(settings.vm.kernel_parameters.iter().cloned());
    let vm = VmConfig {
        name: request.id.clone(),
        cpus: size.cpus,
        memory: size.memory,
        spare_memory_mib: size.spare_memory_mib,
        kernel: KernelConfig {
            path: settings.paths.kernel.clone(),
            command_line,
        },
        image: settings.paths.image.clone(),
        fs: FsConfig {
            tag: paths::SHARED_TAG.to_owned(),
            request_queues: settings.fs.request_queues,
            queue_size: settings.fs.queue_size,
        },
        vsock: VsockConfig {
            guest_cid: ports::GUEST_CID,
        },
    };
    let cgroups_path = request.spec.linux().as_ref();
    let cgroups_path = cgroups_path.and_then(|linux| linux.cgroups_path().as_deref());
    Ok(PodPlan {
        cgroup: cgroup::group(cgroups_path, &request.id)?,
        id: request.id.clone(),
        bundle: request.bundle.clone(),
        paths: PodPaths::new(&settings.paths.state, &request.namespace, &request.id),
        vm,
        bounds: size.bounds,
        hostname: hostname(request),
        settings: settings.clone(),
    })
}

/// The spec's, or the pod's id: what a container without a UTS namespace of its own sees. Linux
/// allows 64 bytes (`__NEW_UTS_LEN`).
fn hostname(request: &SandboxRequest) -> String {
    let wanted = request
        .spec
        .hostname()
        .as_deref()
        .filter(|name| !name.is_empty());
    let wanted = wanted.unwrap_or(&request.id);
    wanted
        .chars()
        .filter(char::is_ascii_graphic)
        .take(64.min(limits::ID_LEN))
        .collect()
}
