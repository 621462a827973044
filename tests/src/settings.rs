//! The configuration file that a case gives isopod through `--runtime-config-path`.

use std::{collections::BTreeMap, fmt::Display, path::Path};

use crate::Machine;

/// Sections of keys of TOML literals; keys without a section are under "".
#[derive(Clone, Debug)]
pub struct Settings(BTreeMap<String, BTreeMap<String, String>>);

impl Settings {
    /// The binaries, kernel and image under test; everything else as isopod's own defaults.
    pub fn of(machine: &Machine) -> Self {
        let mut settings = Self(BTreeMap::new());
        settings.set("", "engine", quoted(&machine.engine));
        settings.set("", "log_level", quoted("debug"));
        settings.path("kernel", &machine.kernel);
        settings.path("image", &machine.image);
        settings.path("file_server", &machine.bin_dir.join("isopod-fs"));
        settings.path("monitor", &machine.bin_dir.join("isopod-vmm"));
        settings.path("jail", &machine.bin_dir.join("isopod-jail"));
        if machine.engine == "kvm" {
            // Where supervisor mode is interpreted, a boot is tens of seconds of a processor's work.
            settings.set("timeouts", "boot", 900);
            settings.set("timeouts", "request", 300);
        }
        if let Some(qemu) = machine.program("qemu-system-x86_64") {
            settings.path("qemu", &qemu);
        }
        settings
    }

    /// Sets one key to a TOML literal.
    pub fn set(&mut self, section: &str, key: &str, literal: impl Display) -> &mut Self {
        let keys = self.0.entry(section.to_owned()).or_default();
        keys.insert(key.to_owned(), literal.to_string());
        self
    }

    /// Sets one key of `[paths]`.
    pub fn path(&mut self, key: &str, path: &Path) -> &mut Self {
        self.set("paths", key, quoted(&path.display().to_string()))
    }

    /// As TOML.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.0 {
            if !section.is_empty() {
                text += &format!("\n[{section}]\n");
            }
            for (key, literal) in keys {
                text += &format!("{key} = {literal}\n");
            }
        }
        text
    }
}

/// A TOML basic string.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
