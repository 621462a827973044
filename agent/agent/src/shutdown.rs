//! The end of the guest.

use std::time::Duration;

use nix::{
    mount::{MntFlags, umount2},
    sys::reboot::{RebootMode, reboot},
};
use tokio::time::{sleep, timeout};

use crate::{Place, log, pod::Pod};

/// So long the answer to the call may take to leave.
const ANSWER_WAIT: Duration = Duration::from_millis(20);
/// A filesystem whose server is gone must not keep the VM alive.
const SYNC_WAIT: Duration = Duration::from_secs(5);

/// Kills what is left, writes back what is dirty, and ends the machine. A VM has no power button: without
/// ACPI the way out is a reset (`reboot=t`: a triple fault), which the monitor takes for the end.
pub(crate) async fn end(pod: &Pod, place: &Place) {
    sleep(ANSWER_WAIT).await;
    for container in pod.containers() {
        if let Err(e) = container.cgroup.kill() {
            log::warning(&format!(
                "end container {:?}: {e}",
                container.init.container
            ));
        }
    }
    for container in pod.containers() {
        let _ = timeout(Duration::from_secs(1), container.init.ended()).await;
    }
    if place.sockets.is_some() {
        std::process::exit(0);
    }
    let written = tokio::task::spawn_blocking(|| {
        rustix::fs::sync();
        // Detached: what is busy goes with its last user.
        umount2(isopod_protocol::paths::SHARED, MntFlags::MNT_DETACH)
    });
    match timeout(SYNC_WAIT, written).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(e))) => log::warning(&format!("unmount the shared directory: {e}")),
        _ => log::error("filesystems could not be synced in time"),
    }
    reset();
}

/// Ends the machine at once.
pub(crate) fn reset() -> ! {
    let Err(e) = reboot(RebootMode::RB_AUTOBOOT);
    log::error(&format!("reboot: {e}"));
    // The kernel panics when its init ends, and that ends the machine too.
    std::process::exit(1);
}
