//! Who may do what: permissions, roles, and the table that connects them.
//!
//! ```text
//!   key ─► user ─► role ─► permissions ─► a route, or what belongs to somebody else
//! ```
//!
//! Nothing here knows of keys, routes or files. What a role is not given it may not do:
//! a role that is not known has no permission at all.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Name, Owner};

macro_rules! permissions {
    ($($variant:ident, $name:literal, $help:literal;)*) => {
        /// One thing that can be done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Permission {
            $(#[doc = $help] $variant,)*
        }

        impl Permission {
            /// All of them, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name, such as `runs.queue`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it allows, for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

permissions! {
    StateRead, "state.read", "see runs, their records and metrics, events, the catalog, pins";
    RunsQueue, "runs.queue", "explain, queue and reproduce runs of one's own";
    RunsImport, "runs.import", "import runs that ended elsewhere";
    RunsCancel, "runs.cancel", "cancel one's own runs";
    RunsCancelOthers, "runs.cancel_others", "cancel runs of others";
    RunsRetry, "runs.retry", "put one's own ended runs back into the queue";
    RunsRetryOthers, "runs.retry_others", "put ended runs of others back into the queue";
    RunsLabel, "runs.label", "write tags and notes on one's own runs, and sign that they were reproduced";
    RunsLabelOthers, "runs.label_others", "write tags and notes on runs of others";
    RunsValidate, "runs.validate", "have one's own runs and commits checked";
    RunsValidateOthers, "runs.validate_others", "have runs and commits of others checked";
    OutputsRead, "outputs.read", "read logs, outputs and code of one's own runs";
    OutputsReadOthers, "outputs.read_others", "read logs, outputs and code of runs of others";
    ObjectsWrite, "objects.write", "send files and commits";
    DataRegister, "data.register", "register data by sending a copy";
    DataRegisterInPlace, "data.register_in_place", "register data where they lie, read with the daemon's rights";
    DataVerify, "data.verify", "have registered data read again";
    DataRemove, "data.remove", "forget one's own datasets";
    DataRemoveOthers, "data.remove_others", "forget datasets of others";
    SecretsWrite, "secrets.write", "store secrets for one's own runs";
    PinsWrite, "pins.write", "keep one's own runs and commits from prune";
    PinsWriteOthers, "pins.write_others", "keep runs and commits of others, and take away others' pins";
    Prune, "prune", "remove what nothing refers to, and old runs of everybody";
    Scrub, "scrub", "have the whole content store read and its damage named";
    AuditRead, "audit.read", "read and check the audit trail";
    KeysOwn, "keys.own", "list, rotate and revoke one's own keys";
    UsersRead, "users.read", "see users, keys and what roles may do";
    UsersWrite, "users.write", "change users, roles and keys of others";
    DaemonStop, "daemon.stop", "stop the daemon";
    AttemptRead, "attempt.read", "see the run of the attempt";
    AttemptPost, "attempt.post", "add metric points to the run of the attempt";
}

impl Permission {
    /// The permission of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|permission| permission.as_str() == name).copied()
    }

    /// Whether it is one of an attempt's token, which no user's role can have: such a
    /// token is bound to one run.
    pub const fn is_of_attempts(self) -> bool {
        matches!(self, Self::AttemptRead | Self::AttemptPost)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of permissions.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Permissions(u64);

impl Permissions {
    /// None at all.
    pub const NONE: Self = Self(0);

    /// What `*` means: every permission but those of attempts.
    pub fn wildcard() -> Self {
        let of_users = Permission::ALL.iter().copied();
        of_users.filter(|one| !one.is_of_attempts()).collect()
    }

    /// Whether the permission is in the set.
    pub const fn has(self, permission: Permission) -> bool {
        self.0 & (1 << permission as u64) != 0
    }

    /// Those in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether everything in this set is in the other one.
    pub const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Its permissions, in the order of the table.
    pub fn iter(self) -> impl Iterator<Item = Permission> {
        let all = Permission::ALL.iter().copied();
        all.filter(move |permission| self.has(*permission))
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<I: IntoIterator<Item = Permission>>(permissions: I) -> Self {
        let add = |set, permission: Permission| set | (1 << permission as u64);
        Self(permissions.into_iter().fold(0, add))
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(Permission::as_str))
            .finish()
    }
}

/// A role that is always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BuiltIn {
    /// Everything.
    Admin,
    /// Keeps the daemon going: others' runs and pins, prune, scrub, audit. Contents of
    /// others stay closed.
    Operator,
    /// Queues runs and has what is their own.
    Member,
    /// Looks.
    Viewer,
    /// The token of one attempt. No user has it.
    Attempt,
}

impl BuiltIn {
    /// All of them, from the widest.
    pub const ALL: [Self; 5] = [
        Self::Admin,
        Self::Operator,
        Self::Member,
        Self::Viewer,
        Self::Attempt,
    ];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Member => "member",
            Self::Viewer => "viewer",
            Self::Attempt => "attempt",
        }
    }

    /// Its name as the role of a user.
    pub fn name(self) -> Name {
        self.as_str().parse().expect("a built-in role is a name")
    }

    /// The role of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// What it may do where no file says less. This is the table.
    pub fn permissions(self) -> Permissions {
        use Permission as P;
        const VIEWER: &[Permission] = &[P::StateRead, P::KeysOwn];
        const MEMBER: &[Permission] = &[
            P::RunsQueue,
            P::RunsImport,
            P::RunsCancel,
            P::RunsRetry,
            P::RunsLabel,
            P::RunsValidate,
            P::OutputsRead,
            P::ObjectsWrite,
            P::DataRegister,
            P::DataVerify,
            P::DataRemove,
            P::SecretsWrite,
            P::PinsWrite,
        ];
        const OPERATOR: &[Permission] = &[
            P::RunsCancelOthers,
            P::RunsRetryOthers,
            P::RunsLabelOthers,
            P::RunsValidateOthers,
            P::DataRemoveOthers,
            P::PinsWriteOthers,
            P::Prune,
            P::Scrub,
            P::AuditRead,
            P::UsersRead,
        ];
        let of = |lists: &[&[Permission]]| lists.concat().into_iter().collect();
        match self {
            Self::Admin => Permissions::wildcard(),
            Self::Operator => of(&[VIEWER, MEMBER, OPERATOR]),
            Self::Member => of(&[VIEWER, MEMBER]),
            Self::Viewer => of(&[VIEWER]),
            Self::Attempt => of(&[&[P::AttemptRead, P::AttemptPost]]),
        }
    }
}

/// Roles and what each may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles(BTreeMap<Name, Permissions>);

impl Roles {
    /// The built-in table.
    pub fn built_in() -> Self {
        let roles = BuiltIn::ALL.into_iter();
        Self(
            roles
                .map(|role| (role.name(), role.permissions()))
                .collect(),
        )
    }

    /// The same with this role, in place of one of its name.
    #[must_use]
    pub fn with(mut self, role: Name, permissions: Permissions) -> Self {
        self.0.insert(role, permissions);
        self
    }

    /// What a role may do; nothing when it is not known.
    pub fn of(&self, role: &Name) -> Permissions {
        self.0.get(role).copied().unwrap_or(Permissions::NONE)
    }

    /// Whether a role of that name is there.
    pub fn knows(&self, role: &Name) -> bool {
        self.0.contains_key(role)
    }

    /// All roles, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, Permissions)> {
        self.0
            .iter()
            .map(|(name, permissions)| (name, *permissions))
    }
}

/// Why somebody may not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} needs the permission `{permission}`, which `{who}` with role `{role}` does not have"
)]
pub struct Denied {
    /// What was asked for, such as `cancel run x of ann`.
    pub what: String,
    /// What it needs.
    pub permission: Permission,
    /// Who asked.
    pub who: Owner,
    /// Their role.
    pub role: Name,
}

impl Denied {
    /// Who can change that.
    pub fn hint(&self) -> String {
        format!(
            "an admin can give another role: `ml user role {} ROLE`; `ml user permissions show` says what each may do",
            self.who
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        assert!(Permission::ALL.len() <= 64);
        for permission in Permission::ALL {
            assert_eq!(
                Permission::from_name(permission.as_str()),
                Some(*permission)
            );
            let one: Permissions = [*permission].into_iter().collect();
            assert_eq!(one.iter().collect::<Vec<_>>(), [*permission]);
        }
        assert_eq!(Permission::from_name("*"), None);
    }

    #[test]
    fn each_role_holds_the_next_narrower_one() {
        let of = BuiltIn::permissions;
        assert!(of(BuiltIn::Viewer).is_within(of(BuiltIn::Member)));
        assert!(of(BuiltIn::Member).is_within(of(BuiltIn::Operator)));
        assert!(of(BuiltIn::Operator).is_within(of(BuiltIn::Admin)));
        assert_eq!(
            of(BuiltIn::Attempt).and(of(BuiltIn::Admin)),
            Permissions::NONE
        );
        // Contents of others, and paths read with the daemon's rights, are the admin's.
        for closed in [
            Permission::OutputsReadOthers,
            Permission::DataRegisterInPlace,
            Permission::UsersWrite,
            Permission::DaemonStop,
        ] {
            assert!(!of(BuiltIn::Operator).has(closed), "{closed}");
            assert!(of(BuiltIn::Admin).has(closed), "{closed}");
        }
    }

    #[test]
    fn an_unknown_role_may_nothing() {
        let unknown = "sysop".parse().unwrap();
        assert_eq!(Roles::built_in().of(&unknown), Permissions::NONE);
    }
}
