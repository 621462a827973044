//! The bundle of a case: its specification, its directory on the host, and the pod it is in.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::{Context, Result, bail};
use isopod_tests::{Bed, Container, image::BUSYBOX, spec::spec};
use serde_json::{Value, json};

use crate::table::Case;

/// The first container of the pod, and the pod's name.
const POD: &str = "pod";

/// `@dir@` of a case.
pub struct Volume(PathBuf);

impl Volume {
    /// A fresh one.
    pub fn make(bed: &Bed) -> Result<Self> {
        let volume = Self(bed.volume()?);
        fs::create_dir(volume.path("sub"))?;
        fs::write(volume.path("file"), "content\n")?;
        fs::write(volume.path("sub/inner"), "inner\n")?;
        fs::copy(BUSYBOX, volume.path("busybox"))?;
        fs::set_permissions(volume.path("busybox"), fs::Permissions::from_mode(0o755))?;
        Ok(volume)
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// It and the root filesystem are only as long as the case.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.0).with_context(|| format!("remove {:?}", self.0))
    }
}

/// Starts the pod of a group: its first container holds it open.
pub fn pod(bed: &Bed) -> Result<Container<'_>> {
    bed.container()
        .named(POD)
        .flags([
            "--annotation",
            "io.kubernetes.cri.container-type=sandbox",
            "--annotation",
            &format!("io.kubernetes.cri.sandbox-id={POD}"),
        ])
        .sleeping()
}

/// Major and minor number at the first digit of a text.
pub fn version(text: &str) -> (u32, u32) {
    let text = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let mut numbers = text.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    });
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// That of the bed's containerd.
pub fn containerd_version(bed: &Bed) -> Result<(u32, u32)> {
    let told = bed.ctr_run(["version"])?.ok()?.out();
    let server = told.rsplit_once("Version:").context("no version")?.1;
    Ok(version(server))
}

/// The specification of a case.
pub fn spec_of(bed: &Bed, case: &Case, volume: &Volume) -> Result<Value> {
    let cgroup = format!("/{}/case{}", bed.namespace, bed.next());
    let arguments: &[&str] = match &case.run {
        Some(script) => &["sh", "-c", script],
        None => &["true"],
    };
    let rootfs = volume.path("rootfs");
    bed.unpack(&rootfs)?;
    let mut spec = spec(&rootfs, &cgroup, arguments);
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": POD,
    });
    let text = case.patch.replace("@dir@", &volume.0.display().to_string());
    merge(&mut spec, serde_json::from_str(&text).context("the patch")?)?;
    Ok(spec)
}

/// RFC 7396, and a key that ends in `+` appends to a list.
fn merge(target: &mut Value, patch: Value) -> Result<()> {
    let Value::Object(patch) = patch else {
        *target = patch;
        return Ok(());
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_suffix('+') {
            let more = value.as_array().cloned().context("a `+` without a list")?;
            match &mut target[list] {
                Value::Array(present) => present.extend(more),
                absent @ Value::Null => *absent = Value::Array(more),
                other => bail!("{list} is {other}, not a list"),
            }
        } else if value.is_null() {
            target.as_object_mut().map(|object| object.remove(&key));
        } else {
            merge(&mut target[key.as_str()], value)?;
        }
    }
    Ok(())
}
