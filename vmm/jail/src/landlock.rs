//! Path access on top of file permissions; see landlock(7).

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

use crate::{Error, FileAccess};

/// The newest set of rights that the rules here were written for. An older kernel enforces what it
/// knows of them: landlock is the second wall, the root is the first.
const RIGHTS: ABI = ABI::V6;

pub(crate) fn restrict(access: &FileAccess) -> Result<(), Error> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))
        .and_then(|r| r.handle_access(AccessNet::from_all(RIGHTS)))
        .and_then(|r| r.scope(Scope::from_all(RIGHTS)))
        .and_then(Ruleset::create)
        .map_err(Error::Landlock)?;
    for path in &access.read_execute {
        rules = allow(rules, path, AccessFs::from_read(RIGHTS))?;
    }
    for path in &access.devices {
        let rights = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        rules = allow(rules, path, rights)?;
    }
    rules.restrict_self().map_err(Error::Landlock)?;
    Ok(())
}

fn allow(
    rules: RulesetCreated,
    path: &std::path::Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Error> {
    let fd = PathFd::new(path).map_err(|source| Error::LandlockPath {
        path: path.to_owned(),
        source,
    })?;
    rules
        .add_rule(PathBeneath::new(fd, rights))
        .map_err(Error::Landlock)
}
