//! Images made on the spot from a static busybox: an OCI layout in a tar, as `ctr image import` reads.

use std::{collections::BTreeMap, io::Write, path::Path, process::Command};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What the images are made of.
pub const BUSYBOX: &str = "/bin/busybox";

/// A file that exists and that nobody may execute.
pub const NOT_EXECUTABLE: &str = "/etc/not-executable";

/// What distinguishes one image from another; all share the layer.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// `uid`, `uid:gid`, or a name in the image's /etc/passwd.
    pub user: String,
    /// Working directory.
    pub cwd: String,
    /// Environment besides PATH.
    pub env: Vec<String>,
}

/// Files to put into an image besides busybox: absolute name -> content. They become executable.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The root filesystem as a tar.
pub fn layer(extra: &Files) -> Result<Vec<u8>> {
    let busybox = std::fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    let listed = Command::new(BUSYBOX)
        .arg("--list")
        .output()
        .context("list busybox's applets")?;
    let mut tar = tar::Builder::new(Vec::new());
    for (name, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("var", 0o755),
        ("home/user", 0o755),
    ] {
        entry(
            &mut tar,
            &format!("{name}/"),
            tar::EntryType::Directory,
            mode,
            None,
            &[],
        )?;
    }
    entry(
        &mut tar,
        "bin/busybox",
        tar::EntryType::Regular,
        0o755,
        None,
        &busybox,
    )?;
    let applets = String::from_utf8_lossy(&listed.stdout).into_owned();
    for applet in applets
        .lines()
        .filter(|name| !name.is_empty() && *name != "busybox")
    {
        let name = format!("bin/{applet}");
        entry(
            &mut tar,
            &name,
            tar::EntryType::Symlink,
            0o777,
            Some("busybox"),
            &[],
        )?;
    }
    for (name, content) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        ),
        (
            "etc/group",
            "root:x:0:\nuser:x:1000:\naudio:x:29:user\nvideo:x:44:user\n",
        ),
    ] {
        entry(
            &mut tar,
            name,
            tar::EntryType::Regular,
            0o644,
            None,
            content.as_bytes(),
        )?;
    }
    let denied = NOT_EXECUTABLE.trim_start_matches('/');
    entry(
        &mut tar,
        denied,
        tar::EntryType::Regular,
        0o644,
        None,
        b"#!/bin/sh\n",
    )?;
    for (name, content) in extra {
        let name = name.trim_start_matches('/');
        entry(
            &mut tar,
            name,
            tar::EntryType::Regular,
            0o755,
            None,
            content,
        )?;
    }
    Ok(tar.into_inner()?)
}

fn entry(
    tar: &mut tar::Builder<Vec<u8>>,
    name: &str,
    kind: tar::EntryType,
    mode: u32,
    link: Option<&str>,
    content: &[u8],
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    match link {
        Some(target) => tar.append_link(&mut header, name, target)?,
        None => tar.append_data(&mut header, name, content)?,
    }
    Ok(())
}

/// Writes an OCI layout as a tar: one layer, and one image per (name, configuration).
pub fn write_layout(path: &Path, layer: &[u8], images: &[(String, ImageConfig)]) -> Result<()> {
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut store = |bytes: Vec<u8>| {
        let digest = sha256(&bytes);
        let size = bytes.len();
        blobs.insert(digest.clone(), bytes);
        (format!("sha256:{digest}"), size)
    };
    let (diff_id, layer_size) = store(layer.to_vec());
    let mut manifests = Vec::new();
    for (name, config) in images {
        let (digest, size) = store(serde_json::to_vec(&config_of(config, &diff_id))?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest, "size": size,
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": diff_id, "size": layer_size,
            }],
        });
        let (digest, size) = store(serde_json::to_vec(&manifest)?);
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": size,
            "platform": { "architecture": "amd64", "os": "linux" },
            "annotations": { "io.containerd.image.name": name },
        }));
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    let mut tar = tar::Builder::new(Vec::new());
    let file = tar::EntryType::Regular;
    entry(
        &mut tar,
        "oci-layout",
        file,
        0o644,
        None,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    entry(
        &mut tar,
        "index.json",
        file,
        0o644,
        None,
        &serde_json::to_vec(&index)?,
    )?;
    for (digest, bytes) in &blobs {
        entry(
            &mut tar,
            &format!("blobs/sha256/{digest}"),
            file,
            0o644,
            None,
            bytes,
        )?;
    }
    let mut out = std::fs::File::create(path).with_context(|| format!("create {path:?}"))?;
    Ok(out.write_all(&tar.into_inner()?)?)
}

fn config_of(config: &ImageConfig, diff_id: &str) -> Value {
    let mut env = vec!["PATH=/bin".to_owned()];
    env.extend(config.env.iter().cloned());
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": config.user, "Env": env, "Cmd": ["sh"],
            "WorkingDir": if config.cwd.is_empty() { "/" } else { &config.cwd },
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
}
