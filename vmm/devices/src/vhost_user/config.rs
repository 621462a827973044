//! What a front end knows of its device without the back end.

use isopod_virtio::{ConfigSpace, DeviceType};
use smallvec::SmallVec;

/// What the front end says itself, because the back end does not know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserConfig {
    /// Which device it is.
    pub device_type: DeviceType,
    /// Feature bits of its kind that the driver may have if the back end has them too. The rings' own
    /// need not be named.
    pub features: u64,
    /// Its configuration space.
    pub config: ConfigSpace,
    /// Descriptors of each queue at most.
    pub queue_sizes: SmallVec<[u16; 4]>,
}

impl VhostUserConfig {
    /// The file system device (virtio 1.2, 5.11): a high-priority queue and `request_queues` more,
    /// mounted by `tag`. `None` if the tag is empty or longer than 36 bytes.
    pub fn file_system(tag: &str, request_queues: u16, queue_size: u16) -> Option<Self> {
        if tag.is_empty() || tag.len() > 36 {
            return None;
        }
        let mut config = ConfigSpace::from_slice(tag.as_bytes());
        config.resize(36, 0);
        config.extend_from_slice(&u32::from(request_queues).to_le_bytes());
        Some(Self {
            device_type: DeviceType::FileSystem,
            features: 0,
            config,
            queue_sizes: SmallVec::from_elem(queue_size, usize::from(request_queues) + 1),
        })
    }

    /// The socket device (5.10) of the guest with this context id.
    pub fn vsock(guest_cid: u32, queue_size: u16) -> Self {
        Self {
            device_type: DeviceType::Vsock,
            features: 0,
            config: ConfigSpace::from_slice(&u64::from(guest_cid).to_le_bytes()),
            queue_sizes: SmallVec::from_elem(queue_size, 3),
        }
    }
}
