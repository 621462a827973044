//! The tree as the rules see it: tracked Rust files with their text, and the crates with their arrows.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// One source file.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Relative to the tree's top, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// One crate of the workspace.
#[derive(Clone, Debug)]
pub struct Crate {
    /// Package name.
    pub name: String,
    /// Folder relative to the tree's top.
    pub folder: String,
    /// Licence expression.
    pub license: Option<String>,
    /// The root files of its library and binaries, relative to the tree's top.
    pub roots: Vec<String>,
    /// Folders of the workspace crates that its shipped code imports (not dev-dependencies).
    pub imports: BTreeSet<String>,
}

/// Everything that the rules read.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Rust files, tracked or new but not ignored.
    pub files: Vec<SourceFile>,
    /// The workspace's crates.
    pub crates: Vec<Crate>,
    /// Crates from outside: "name version" and licence expression.
    pub dependencies: Vec<(String, Option<String>)>,
    /// Licences that `deny.toml` allows.
    pub allowed_licences: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    manifest_path: PathBuf,
    license: Option<String>,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Deny {
    licenses: DenyLicenses,
}

#[derive(Deserialize)]
struct DenyLicenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Dependency {
    path: Option<PathBuf>,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

impl Tree {
    /// Reads the tree around the current directory.
    pub fn load() -> Result<Self> {
        let metadata: Metadata = serde_json::from_slice(&output(Command::new("cargo").args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform=x86_64-unknown-linux-gnu",
        ]))?)?;
        let top = &metadata.workspace_root;
        let (ours, others): (Vec<_>, Vec<_>) = metadata
            .packages
            .into_iter()
            .partition(|package| metadata.workspace_members.contains(&package.id));
        let deny = fs::read_to_string(top.join("deny.toml")).context("read deny.toml")?;
        let deny: Deny = toml::from_str(&deny).context("parse deny.toml")?;
        Ok(Self {
            files: sources(top)?,
            crates: ours
                .into_iter()
                .map(|package| package.into_crate(top))
                .collect::<Result<_>>()?,
            dependencies: others
                .into_iter()
                .map(|package| {
                    (
                        format!("{} {}", package.name, package.version),
                        package.license,
                    )
                })
                .collect(),
            allowed_licences: deny.licenses.allow,
        })
    }
}

impl Package {
    fn into_crate(self, top: &Path) -> Result<Crate> {
        let folder = self
            .manifest_path
            .parent()
            .context("a manifest lies in a folder")?;
        let shipped = |target: &&Target| {
            target
                .kind
                .iter()
                .any(|kind| kind == "lib" || kind == "bin")
        };
        Ok(Crate {
            folder: relative(top, folder)?,
            name: self.name,
            license: self.license,
            roots: self
                .targets
                .iter()
                .filter(shipped)
                .map(|target| relative(top, &target.src_path))
                .collect::<Result<_>>()?,
            imports: self
                .dependencies
                .iter()
                .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
                .filter_map(|dependency| dependency.path.as_deref())
                .map(|path| relative(top, path))
                .collect::<Result<_>>()?,
        })
    }
}

/// Rust files that git tracks, or would: new files count before they are committed.
fn sources(top: &Path) -> Result<Vec<SourceFile>> {
    let listed = output(
        Command::new("git")
            .args(["ls-files", "-co", "--exclude-standard", "--", "*.rs"])
            .current_dir(top),
    )?;
    String::from_utf8(listed)?
        .lines()
        .filter(|path| top.join(path).is_file())
        .map(|path| {
            let text =
                fs::read_to_string(top.join(path)).with_context(|| format!("read {path}"))?;
            Ok(SourceFile {
                path: path.to_owned(),
                text,
            })
        })
        .collect()
}

fn relative(top: &Path, path: &Path) -> Result<String> {
    let path = path
        .strip_prefix(top)
        .with_context(|| format!("{} lies outside", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let out = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(
        out.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(out.stdout)
}
