//! `-v` and `-info`.

use std::io::{self, Write};

use anyhow::Context;
use containerd_shim_protos::{
    protobuf::Message,
    types::introspection::{RuntimeInfo, RuntimeVersion},
};

use crate::RUNTIME;

/// One line for people.
pub fn print_version() -> anyhow::Result<()> {
    let line = concat!(
        "containerd-shim-isopod-v2 ",
        env!("CARGO_PKG_VERSION"),
        "\n"
    );
    io::stdout()
        .write_all(line.as_bytes())
        .context("printing the version")
}

/// A protobuf `RuntimeInfo` for containerd 2.0 and later.
pub fn print_info() -> anyhow::Result<()> {
    let bytes = runtime_info().write_to_bytes().context("encoding")?;
    io::stdout().write_all(&bytes).context("printing")
}

fn runtime_info() -> RuntimeInfo {
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        })
        .into(),
        ..RuntimeInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_names_runtime_and_version() {
        let bytes = runtime_info().write_to_bytes().expect("encodes");
        let info = RuntimeInfo::parse_from_bytes(&bytes).expect("decodes");
        assert_eq!(info.name, "io.containerd.isopod.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
    }
}
