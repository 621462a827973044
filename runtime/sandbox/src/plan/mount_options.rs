//! fstab-style options -> mount(2)'s flags and data, as mount(8) splits them.

use nix::mount::MsFlags;

/// Options, split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub flags: MsFlags,
    /// What the kernel's filesystem reads.
    pub data: Vec<String>,
}

/// Options that set (true) or clear (false) a flag.
const FLAGS: &[(&str, bool, MsFlags)] = &[
    ("ro", true, MsFlags::MS_RDONLY),
    ("rw", false, MsFlags::MS_RDONLY),
    ("nosuid", true, MsFlags::MS_NOSUID),
    ("suid", false, MsFlags::MS_NOSUID),
    ("nodev", true, MsFlags::MS_NODEV),
    ("dev", false, MsFlags::MS_NODEV),
    ("noexec", true, MsFlags::MS_NOEXEC),
    ("exec", false, MsFlags::MS_NOEXEC),
    ("sync", true, MsFlags::MS_SYNCHRONOUS),
    ("async", false, MsFlags::MS_SYNCHRONOUS),
    ("dirsync", true, MsFlags::MS_DIRSYNC),
    ("noatime", true, MsFlags::MS_NOATIME),
    ("atime", false, MsFlags::MS_NOATIME),
    ("nodiratime", true, MsFlags::MS_NODIRATIME),
    ("diratime", false, MsFlags::MS_NODIRATIME),
    ("relatime", true, MsFlags::MS_RELATIME),
    ("norelatime", false, MsFlags::MS_RELATIME),
    ("strictatime", true, MsFlags::MS_STRICTATIME),
    ("nostrictatime", false, MsFlags::MS_STRICTATIME),
    ("bind", true, MsFlags::MS_BIND),
    ("rbind", true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
];

/// Splits options. Later ones win. `defaults` and the user-space options (`x-...`) say nothing to
/// the kernel.
pub(crate) fn split(options: &[String]) -> MountOptions {
    let mut split = MountOptions {
        flags: MsFlags::empty(),
        data: Vec::new(),
    };
    for option in options {
        if let Some((_, set, flag)) = FLAGS.iter().find(|(name, ..)| name == option) {
            split.flags.set(*flag, *set);
        } else if option != "defaults" && !option.to_ascii_lowercase().starts_with("x-") {
            split.data.push(option.clone());
        }
    }
    split
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&["lowerdir=/a:/b", "ro"], MsFlags::MS_RDONLY, &["lowerdir=/a:/b"])]
    #[case(&["ro", "rw"], MsFlags::empty(), &[])]
    #[case(&["rbind", "rw"], MsFlags::MS_BIND | MsFlags::MS_REC, &[])]
    #[case(&["defaults", "X-mount.mkdir", "x-y"], MsFlags::empty(), &[])]
    #[case(&["noatime", "data=ordered"], MsFlags::MS_NOATIME, &["data=ordered"])]
    fn options_are_split(#[case] options: &[&str], #[case] flags: MsFlags, #[case] data: &[&str]) {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let found = split(&options);
        assert_eq!(
            (found.flags, found.data),
            (flags, data.iter().map(ToString::to_string).collect())
        );
    }
}
