//! Images of many layers: mount(2) takes one page of options and cuts off the rest in silence. Layers
//! lie in one snapshotter's directory, so naming them relative to it makes room for some hundred.

use std::path::{Path, PathBuf};

/// mount(2): the page includes the final zero byte.
pub(super) const OPTIONS_LEN: usize = 4095;

const LOWER: &str = "lowerdir=";

/// Options that fit, and the directory in which they must be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shortened {
    pub directory: PathBuf,
    pub data: String,
}

/// Names the layers relative to the directory that all of them share. Nothing, when there is no such
/// directory or an option could not be understood: escaped names, data-only layers.
pub(super) fn shorten(data: &str) -> Option<Shortened> {
    if data.contains('\\') {
        return None;
    }
    let lower = data
        .split(',')
        .find_map(|option| option.strip_prefix(LOWER))?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let (first, others) = layers.split_first()?;
    let mut directory = first.parent()?;
    while !others.iter().all(|layer| layer.starts_with(directory)) {
        directory = directory.parent()?;
    }
    if !directory.is_absolute() || directory == Path::new("/") {
        return None;
    }
    let relative = layers
        .iter()
        .map(|layer| layer.strip_prefix(directory).ok()?.to_str());
    let relative: Vec<&str> = relative.collect::<Option<_>>()?;
    if relative.iter().any(|layer| layer.is_empty()) {
        return None;
    }
    let relative = format!("{LOWER}{}", relative.join(":"));
    let options = data.split(',');
    let options = options.map(|option| {
        if option.starts_with(LOWER) {
            &relative
        } else {
            option
        }
    });
    Some(Shortened {
        directory: directory.to_owned(),
        data: options.collect::<Vec<_>>().join(","),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "lowerdir=/s/1/fs:/s/2/fs,upperdir=/s/3/fs,workdir=/s/3/work",
        "/s",
        "lowerdir=1/fs:2/fs,upperdir=/s/3/fs,workdir=/s/3/work"
    )]
    #[case("index=off,lowerdir=/s/a/b:/s/a/c", "/s/a", "index=off,lowerdir=b:c")]
    #[case("lowerdir=/s/one", "/s", "lowerdir=one")]
    fn layers_are_named_from_what_they_share(
        #[case] data: &str,
        #[case] directory: &str,
        #[case] shortened: &str,
    ) {
        let expected = Shortened {
            directory: directory.into(),
            data: shortened.into(),
        };
        assert_eq!(shorten(data), Some(expected));
    }

    #[rstest]
    #[case("upperdir=/s/3/fs")]
    #[case("lowerdir=/a/1:/b/2")]
    #[case("lowerdir=a:b")]
    #[case("lowerdir=/s/a\\:b:/s/c")]
    #[case("lowerdir=/s/a::/s/b")]
    fn others_are_left_alone(#[case] data: &str) {
        assert_eq!(shorten(data), None);
    }
}
