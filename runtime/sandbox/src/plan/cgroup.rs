//! `linux.cgroupsPath` -> the pod's control group on the host, as runc reads that field.
//!
//! The first container's path is the pod's: Kubernetes gives the pause container of a pod a group beneath the
//! pod's own, whose limits then hold for the machine and all that serves it.

use std::path::{Component, Path, PathBuf};

use super::PlanError;

const FIELD: &str = "linux.cgroupsPath";

/// The group, relative to the root of each hierarchy; empty: no group of its own. A path is taken from the
/// root; `slice:prefix:name` is where systemd would put the scope `prefix-name.scope`; nothing at all is
/// the pod's id, as for runc.
pub(super) fn group(cgroups_path: Option<&Path>, id: &str) -> Result<PathBuf, PlanError> {
    let Some(path) = cgroups_path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(PathBuf::from(id));
    };
    let Some(text) = path.to_str() else {
        return Err(PlanError::invalid(FIELD, "is not UTF-8"));
    };
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [slice, prefix, name] if !slice.contains('/') => systemd(slice, prefix, name),
        _ => beneath_the_root(path),
    }
}

/// `..` at the root stays there, as for a path lookup; what is left names no other place.
fn beneath_the_root(path: &Path) -> Result<PathBuf, PlanError> {
    let mut group = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => group.push(name),
            Component::ParentDir => {
                group.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(group)
}

/// systemd.slice(5): `a-b.slice` lies in `a.slice`; `-.slice` is the root.
fn systemd(slice: &str, prefix: &str, name: &str) -> Result<PathBuf, PlanError> {
    let refused = |why: &str| Err(PlanError::invalid(FIELD, why));
    if name.is_empty() || [prefix, name].iter().any(|part| part.contains('/')) {
        return refused("slice:prefix:name needs a name, and no slash in it");
    }
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let Some(stem) = slice.strip_suffix(".slice") else {
        return refused("the slice of slice:prefix:name does not end in .slice");
    };
    let mut group = PathBuf::new();
    if stem != "-" {
        if stem.split('-').any(str::is_empty) {
            return refused("the slice has an empty part between its dashes");
        }
        let ends = stem.match_indices('-').map(|(end, _)| end);
        for end in ends.chain([stem.len()]) {
            group.push(format!("{}.slice", &stem.get(..end).unwrap_or_default()));
        }
    }
    group.push(match (name.ends_with(".slice"), prefix) {
        (true, _) => name.to_owned(),
        (false, "") => format!("{name}.scope"),
        (false, prefix) => format!("{prefix}-{name}.scope"),
    });
    Ok(group)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::absolute("/default/web", "default/web")]
    #[case::relative("kubepods/besteffort/pod1/web", "kubepods/besteffort/pod1/web")]
    #[case::up("/a/../../b/./c", "b/c")]
    #[case::root("/", "")]
    #[case::none("", "pod")]
    #[case::colons_in_a_path("/a:b:c/d", "a:b:c/d")]
    #[case::systemd(
        "kubepods-burstable-pod1.slice:cri-containerd:web",
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-web.scope"
    )]
    #[case::systemd_default(":isopod:web", "system.slice/isopod-web.scope")]
    #[case::systemd_root("-.slice::web", "web.scope")]
    #[case::systemd_slice("user.slice:x:mine.slice", "user.slice/mine.slice")]
    fn groups(#[case] path: &str, #[case] expected: &str) {
        let found = group(Some(Path::new(path)), "pod").unwrap();
        assert_eq!(found, Path::new(expected));
    }

    #[rstest]
    #[case::no_slice("kubepods:cri:web")]
    #[case::no_name("a.slice:cri:")]
    #[case::slash("a.slice:cri:../web")]
    #[case::empty_part("a--b.slice:cri:web")]
    fn refused_by_name(#[case] path: &str) {
        let error = group(Some(Path::new(path)), "pod").unwrap_err();
        assert!(error.to_string().starts_with(FIELD), "{error}");
    }

    proptest! {
        #[test]
        fn no_group_leaves_the_hierarchy(path in "[a-z./:-]{0,40}") {
            if let Ok(group) = group(Some(Path::new(&path)), "pod") {
                let normal = |part| matches!(part, Component::Normal(_));
                prop_assert!(group.components().all(normal), "{}", group.display());
            }
        }
    }
}
