//! Who may import whom. A crate that is not in the table is a fault too: the table is the drawing.

use crate::tree::Tree;

/// Folder of a crate -> folders it may import. ARCHITECTURE.md draws the same and says why.
const ALLOWED: &[(&str, &[&str])] = &[
    ("runtime/settings", &[]),
    (
        "runtime/sandbox",
        &[
            "vmm/config",
            "vmm/control",
            "agent/protocol",
            "runtime/settings",
        ],
    ),
    ("runtime/shim", &["runtime/sandbox", "runtime/settings"]),
    (
        "runtime/cli",
        &["runtime/sandbox", "runtime/settings", "vmm/hypervisor"],
    ),
    ("agent/protocol", &[]),
    ("agent/container", &[]),
    ("agent/agent", &["agent/container", "agent/protocol"]),
    ("vmm/config", &[]),
    ("vmm/memory", &[]),
    ("vmm/hypervisor", &["vmm/memory"]),
    ("vmm/virtio", &["vmm/memory"]),
    ("vmm/devices", &["vmm/virtio", "vmm/memory", "vmm/config"]),
    (
        "vmm/machine",
        &["vmm/hypervisor", "vmm/virtio", "vmm/memory"],
    ),
    ("vmm/jail", &[]),
    (
        "vmm/vmm",
        &[
            "vmm/machine",
            "vmm/hypervisor",
            "vmm/devices",
            "vmm/memory",
            "vmm/jail",
            "vmm/config",
            "vmm/control",
        ],
    ),
    ("vmm/control", &[]),
    (
        "vmm/fs",
        &[
            "vmm/devices",
            "vmm/virtio",
            "vmm/memory",
            "vmm/jail",
            "vmm/config",
        ],
    ),
    ("tests", &["tests/guest-probe", "vmm/config", "vmm/control"]),
    ("tests/guest-probe", &[]),
    ("xtask", &[]),
];

pub fn check(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for package in &tree.crates {
        let Some((_, allowed)) = ALLOWED.iter().find(|(folder, _)| *folder == package.folder)
        else {
            faults.push(format!(
                "{} has no row in xtask/src/rules/layers.rs",
                package.folder
            ));
            continue;
        };
        for import in &package.imports {
            if !allowed.contains(&import.as_str()) {
                faults.push(format!("{} may not import {import}", package.folder));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Crate;

    fn tree(folder: &str, import: &str) -> Tree {
        Tree {
            crates: vec![Crate {
                name: String::new(),
                folder: folder.into(),
                license: None,
                roots: Vec::new(),
                imports: [import.to_owned()].into(),
            }],
            ..Tree::default()
        }
    }

    #[test]
    fn a_drawn_arrow_is_allowed() {
        assert!(check(&tree("vmm/virtio", "vmm/memory")).is_empty());
    }

    #[test]
    fn a_wrong_arrow_is_a_fault() {
        assert_eq!(check(&tree("runtime/sandbox", "vmm/devices")).len(), 1);
    }

    #[test]
    fn an_undrawn_crate_is_a_fault() {
        assert_eq!(check(&tree("vmm/new", "vmm/memory")).len(), 1);
    }
}
