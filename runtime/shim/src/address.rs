//! Which socket serves which pod.
//!
//! The name is a hash, as the runc shim's is: a socket path is limited to 108 bytes (unix(7)), ids
//! are not.

use std::{collections::BTreeMap, fs::File, io, path::Path};

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Where sockets are, unless containerd names another directory (2.3 and later).
pub const SOCKET_DIR: &str = "/run/containerd/s";

/// Containers with the same value share one shim, hence one VM. containerd's CRI and CRI-O set these
/// themselves; an annotation that a pod's author can write must never choose a VM.
const GROUP_ANNOTATIONS: &[&str] = &[
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
];

/// The part of a bundle's config.json that decides where the container belongs.
#[derive(Debug, Default, Deserialize)]
pub struct Grouping {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Grouping {
    /// Reads `config.json` of a bundle.
    pub fn read(bundle: &Path) -> io::Result<Self> {
        let file = File::open(bundle.join("config.json"))?;
        serde_json::from_reader(io::BufReader::new(file)).map_err(io::Error::from)
    }

    /// The pod's id: an annotation's value, else the container's own id.
    pub fn pod_id<'a>(&'a self, container: &'a str) -> &'a str {
        GROUP_ANNOTATIONS
            .iter()
            .find_map(|key| self.annotations.get(*key))
            .filter(|value| !value.is_empty())
            .map_or(container, String::as_str)
    }
}

/// The socket's path without its directory: the same for every container of the pod, different for
/// two containerds on one host.
pub fn socket_name(containerd_address: &str, namespace: &str, pod_id: &str) -> String {
    let text = Path::new(containerd_address).join(namespace).join(pod_id);
    let digest = Sha256::digest(text.as_os_str().as_encoded_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grouping(json: &str) -> Grouping {
        serde_json::from_str(json).unwrap_or_default()
    }

    #[test]
    fn pod_id_by_annotation() {
        for (json, expected) in [
            (r#"{}"#, "c"),
            (r#"{"annotations":{}}"#, "c"),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#,
                "pod",
            ),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":""}}"#,
                "c",
            ),
            (
                r#"{"annotations":{"io.kubernetes.cri-o.SandboxID":"pod"}}"#,
                "pod",
            ),
            (r#"{"ociVersion":"1.0","annotations":{"other":"x"}}"#, "c"),
        ] {
            assert_eq!(grouping(json).pod_id("c"), expected, "{json}");
        }
    }

    #[test]
    fn name_is_the_hash_that_the_runc_shim_takes() {
        // printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
        assert_eq!(
            socket_name("/run/containerd/containerd.sock", "default", "c1"),
            "d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888"
        );
    }

    #[test]
    fn every_part_counts() {
        let names = [
            socket_name("/a", "n", "c"),
            socket_name("/b", "n", "c"),
            socket_name("/a", "m", "c"),
            socket_name("/a", "n", "d"),
        ];
        for (index, name) in names.iter().enumerate() {
            assert_eq!(name.len(), 64);
            assert!(!names[..index].contains(name));
        }
    }
}
