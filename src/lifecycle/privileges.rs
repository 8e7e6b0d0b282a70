//! The user as whom a process that was started as root goes on.

use std::{ffi::CString, io, path::Path, sync::Arc};

use nix::{
    errno::Errno,
    unistd::{Gid, Group, Uid, User, getgrouplist, setgid, setgroups, setuid},
};
use rustix::{
    fs::{Access, access},
    process::{getegid, geteuid, getgid, getuid},
    thread::{CapabilitySet, capabilities},
};

/// The process cannot go on as the user of the config.
#[derive(Debug, thiserror::Error)]
#[error("user {user}: {why}")]
pub struct CannotRunAs {
    user: Arc<str>,
    why: String,
}

/// A user, and the groups with whose rights it runs.
#[derive(Clone, Debug)]
pub struct RunAs {
    name: Arc<str>,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

/// What a user has to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To read it.
    Read,
    /// To make and remove files in the folder.
    Write,
    /// To run it.
    Execute,
}

impl RunAs {
    /// Looks up the user and the group, each a name or a number. Without a group it is the user's own.
    /// A user of a known name has its other groups as well.
    pub fn find(user: &Arc<str>, group: Option<&str>) -> Result<Self, CannotRunAs> {
        let fail = |why: String| CannotRunAs { user: user.clone(), why };
        let unusable = |error: Errno| fail(format!("the list of users cannot be read: {error}"));
        let (number, known) = match user.parse() {
            Ok(uid) => (Some(Uid::from_raw(uid)), User::from_uid(Uid::from_raw(uid))),
            Err(_) => (None, User::from_name(user)),
        };
        let known = known.map_err(unusable)?;
        let Some(uid) = known.as_ref().map(|known| known.uid).or(number) else {
            let why = "there is none of this name here; `getent passwd` shows those that there are";
            return Err(fail(why.to_owned()));
        };
        let gid = match (group, &known) {
            (Some(group), _) => match group.parse() {
                Ok(gid) => Some(Gid::from_raw(gid)),
                Err(_) => Group::from_name(group).map_err(unusable)?.map(|group| group.gid),
            },
            (None, known) => known.as_ref().map(|known| known.gid),
        };
        let gid = gid.ok_or_else(|| {
            fail(match group {
                Some(group) => {
                    format!(
                        "there is no group {group} here; `getent group` shows those that there are"
                    )
                }
                None => "its group is not known here; set group, too".to_owned(),
            })
        })?;
        let groups = match known.and_then(|known| CString::new(known.name).ok()) {
            Some(name) => getgrouplist(&name, gid).map_err(unusable)?,
            None => vec![gid],
        };
        Ok(Self { name: user.clone(), uid, gid, groups })
    }

    /// Its number, and that of its group.
    pub fn ids(&self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }

    /// Whether the process runs as it already. An error if it neither does nor may change that.
    pub fn is_current(&self) -> Result<bool, CannotRunAs> {
        let (uid, gid) = self.ids();
        let is_user = getuid().as_raw() == uid && geteuid().as_raw() == uid;
        let is_group = getgid().as_raw() == gid && getegid().as_raw() == gid;
        if is_user && is_group {
            return Ok(true);
        }
        if geteuid().is_root() {
            return Ok(false);
        }
        let (own, group) = (geteuid().as_raw(), getegid().as_raw());
        Err(self.fail(format!(
            "only root may change its user, and this process runs as uid {own} with gid {group}; start it \
             as root, or remove user and group from the config"
        )))
    }

    /// Gives up root for good, in every thread that there is.
    pub fn take(&self) -> Result<(), CannotRunAs> {
        // Calls of the C library, which change all threads, and not only this one as the kernel's do.
        let taken =
            setgroups(&self.groups).and_then(|()| setgid(self.gid)).and_then(|()| setuid(self.uid));
        taken.map_err(|error| {
            self.fail(format!(
                "{error}; that takes CAP_SETUID and CAP_SETGID, which root may lack here"
            ))
        })?;
        if self.uid.is_root() {
            return Ok(());
        }
        // What the system would have kept, it would be wrong to run on with.
        let left = capabilities(None).map_err(|error| self.fail(error.to_string()))?;
        let is_free = left.permitted.is_empty() && left.effective == CapabilitySet::empty();
        if !is_free || setuid(Uid::from_raw(0)).is_ok() {
            return Err(self.fail(
                "the system left it rights of root (securebits?); start it without them".to_owned(),
            ));
        }
        Ok(())
    }

    fn fail(&self, why: String) -> CannotRunAs {
        CannotRunAs { user: self.name.clone(), why }
    }
}

/// Whether this process may use a file so.
pub fn may(need: Need, path: &Path) -> io::Result<()> {
    let access_to = match need {
        Need::Read => Access::READ_OK,
        Need::Write => Access::WRITE_OK | Access::EXEC_OK,
        Need::Execute => Access::EXEC_OK,
    };
    Ok(access(path, access_to)?)
}

/// The number of the user as whom this process runs.
pub fn uid() -> u32 {
    geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(user: &str, group: Option<&str>) -> Result<(u32, u32), String> {
        let found = RunAs::find(&user.into(), group);
        found.map(|found| found.ids()).map_err(|error| error.to_string())
    }

    #[test]
    fn users_and_groups_by_name_and_by_number() {
        assert_eq!(find("root", None).unwrap(), (0, 0));
        assert_eq!(find("0", None).unwrap(), (0, 0));
        assert_eq!(find("root", Some("4242")).unwrap(), (0, 4242));
        assert_eq!(find("424242", Some("root")).unwrap(), (424_242, 0));
        for (user, group, words) in [
            ("nobody-at-all", None, "user nobody-at-all: there is none of this name here"),
            ("424242", None, "its group is not known here; set group, too"),
            ("root", Some("no-such-group"), "there is no group no-such-group here"),
        ] {
            let error = find(user, group).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_process_is_its_own_user() {
        let (own, group) = (uid().to_string(), getegid().as_raw().to_string());
        let run_as = RunAs::find(&own.as_str().into(), Some(&group)).unwrap();
        assert!(run_as.is_current().unwrap());
    }
}
