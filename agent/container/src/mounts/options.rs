//! mount(8)'s option words, as the runtime specification lists them, split into what the kernel takes
//! where: attributes of the mount, flags and parameters of the filesystem, propagation.

/// An option this runtime does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `bind` (false) or `rbind` (true).
    pub bind: Option<bool>,
    /// `MOUNT_ATTR_*` to set on this mount.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear on this mount.
    pub clear: u64,
    /// The same for this mount and all below it (`rro` and its kin).
    pub recursive_set: u64,
    /// See `recursive_set`.
    pub recursive_clear: u64,
    /// `MS_*` propagation and whether it is recursive, in the order given.
    pub propagation: Vec<(u64, bool)>,
    /// Flags of the filesystem itself: `sync`, `dirsync`, ...
    pub fs_flags: Vec<&'static str>,
    /// A tmpfs begins with what the image has in its place.
    pub copy_up: bool,
    /// `idmap` (false) or `ridmap` (true).
    pub id_mapped: Option<bool>,
    /// What is left: the filesystem's own parameters.
    pub data: Vec<String>,
}

impl MountOptions {
    /// Is it a bind mount by its options?
    pub fn is_bind(&self) -> bool {
        self.bind.is_some()
    }

    fn attr(&mut self, change: Change, recursive: bool) {
        let (set, clear) = if recursive {
            (&mut self.recursive_set, &mut self.recursive_clear)
        } else {
            (&mut self.set, &mut self.clear)
        };
        match change {
            Change::Set(bit) => {
                *set |= bit;
                *clear &= !bit;
            }
            Change::Clear(bit) => {
                *clear |= bit;
                *set &= !bit;
            }
            Change::Time(bit) => {
                // One of several values of a field, not a bit: the field is cleared as a whole.
                *clear |= libc::MOUNT_ATTR__ATIME;
                *set = (*set & !libc::MOUNT_ATTR__ATIME) | bit;
            }
        }
    }
}

enum Change {
    Set(u64),
    Clear(u64),
    Time(u64),
}

fn attribute(word: &str) -> Option<Change> {
    Some(match word {
        "ro" => Change::Set(libc::MOUNT_ATTR_RDONLY),
        "rw" => Change::Clear(libc::MOUNT_ATTR_RDONLY),
        "nosuid" => Change::Set(libc::MOUNT_ATTR_NOSUID),
        "suid" => Change::Clear(libc::MOUNT_ATTR_NOSUID),
        "nodev" => Change::Set(libc::MOUNT_ATTR_NODEV),
        "dev" => Change::Clear(libc::MOUNT_ATTR_NODEV),
        "noexec" => Change::Set(libc::MOUNT_ATTR_NOEXEC),
        "exec" => Change::Clear(libc::MOUNT_ATTR_NOEXEC),
        "nodiratime" => Change::Set(libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => Change::Clear(libc::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => Change::Set(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Change::Clear(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => Change::Time(libc::MOUNT_ATTR_NOATIME),
        "strictatime" => Change::Time(libc::MOUNT_ATTR_STRICTATIME),
        // RELATIME is the field's zero.
        "relatime" | "atime" | "norelatime" | "nostrictatime" => {
            Change::Time(libc::MOUNT_ATTR_RELATIME)
        }
        _ => return None,
    })
}

/// `MS_*` and recursion of a propagation word.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    let (plain, recursive) = match word.strip_prefix('r') {
        Some(rest) => (rest, true),
        None => (word, false),
    };
    let flag = match plain {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((flag, recursive))
}

/// Splits options. Later words win over earlier ones.
pub fn parse(words: &[String]) -> Result<MountOptions, Refused> {
    let mut options = MountOptions::default();
    for word in words {
        let word = word.as_str();
        if let Some(change) = attribute(word) {
            options.attr(change, false);
            continue;
        }
        if let Some(change) = word.strip_prefix('r').and_then(attribute) {
            options.attr(change, true);
            continue;
        }
        if let Some(found) = propagation(word) {
            options.propagation.push(found);
            continue;
        }
        match word {
            "bind" => options.bind = Some(options.bind.unwrap_or(false)),
            "rbind" => options.bind = Some(true),
            "defaults" | "async" | "nomand" | "loud" | "nolazytime" | "noiversion" => {}
            "sync" => options.fs_flags.push("sync"),
            "dirsync" => options.fs_flags.push("dirsync"),
            "lazytime" => options.fs_flags.push("lazytime"),
            "tmpcopyup" => options.copy_up = true,
            "idmap" => options.id_mapped = Some(false),
            "ridmap" => options.id_mapped = Some(true),
            "mand" | "iversion" | "silent" | "remount" => {
                return Err(Refused(word.to_owned()));
            }
            "" => return Err(Refused(String::new())),
            other if other.contains('\0') => return Err(Refused(other.to_owned())),
            other => options.data.push(other.to_owned()),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[rstest]
    #[case(&["ro", "nosuid"], libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, 0)]
    #[case(&["ro", "rw"], 0, libc::MOUNT_ATTR_RDONLY)]
    #[case(&["rw", "ro"], libc::MOUNT_ATTR_RDONLY, 0)]
    #[case(&["noatime"], libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME)]
    #[case(&["noatime", "strictatime"], libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR__ATIME)]
    #[case(&["strictatime", "relatime"], 0, libc::MOUNT_ATTR__ATIME)]
    fn attributes(#[case] list: &[&str], #[case] set: u64, #[case] clear: u64) {
        let options = parse(&words(list)).expect("known words");
        assert_eq!((options.set, options.clear), (set, clear));
        assert!(options.data.is_empty());
    }

    #[test]
    fn recursive_attributes_stand_apart() {
        let options = parse(&words(&["rbind", "rro", "rnosuid"])).expect("known words");
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.set, 0);
        assert_eq!(
            options.recursive_set,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID
        );
    }

    #[rstest]
    #[case("shared", libc::MS_SHARED, false)]
    #[case("rshared", libc::MS_SHARED, true)]
    #[case("slave", libc::MS_SLAVE, false)]
    #[case("rslave", libc::MS_SLAVE, true)]
    #[case("private", libc::MS_PRIVATE, false)]
    #[case("rprivate", libc::MS_PRIVATE, true)]
    #[case("unbindable", libc::MS_UNBINDABLE, false)]
    #[case("runbindable", libc::MS_UNBINDABLE, true)]
    fn propagation_words(#[case] word: &str, #[case] flag: u64, #[case] recursive: bool) {
        assert_eq!(propagation(word), Some((flag, recursive)));
        let options = parse(&words(&[word])).expect("a known word");
        assert_eq!(options.propagation, [(flag, recursive)]);
    }

    #[rstest]
    #[case("iversion")]
    #[case("remount")]
    #[case("mand")]
    #[case("")]
    fn what_is_not_done_is_refused_by_name(#[case] word: &str) {
        assert_eq!(parse(&words(&[word])), Err(Refused(word.to_owned())));
    }

    #[test]
    fn the_rest_is_the_filesystems() {
        let options = parse(&words(&[
            "nosuid",
            "size=65536k",
            "mode=755",
            "newinstance",
        ]))
        .expect("known");
        assert_eq!(options.data, ["size=65536k", "mode=755", "newinstance"]);
    }

    proptest! {
        #[test]
        fn no_word_is_lost(list in proptest::collection::vec("[a-z]{1,8}(=[0-9]{1,3})?", 0..8)) {
            if let Ok(options) = parse(&list) {
                for word in &list {
                    let known = attribute(word).is_some()
                        || word.strip_prefix('r').and_then(attribute).is_some()
                        || propagation(word).is_some()
                        || ["bind", "rbind", "defaults", "async", "nomand", "loud", "nolazytime",
                            "noiversion", "sync", "dirsync", "lazytime", "idmap", "ridmap"].contains(&word.as_str());
                    prop_assert!(known || options.data.contains(word));
                }
            }
        }
    }
}
