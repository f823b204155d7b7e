//! The permissions file: roles of an own making, and built-in roles made narrower.
//!
//! What a file leaves out keeps the built-in table; no entry can give a built-in role
//! more than that. `"*"` is the admin's alone, and so is `users.write`: whoever has it
//! can give themselves every other one.

use mlmesh_model::{BuiltIn, Name, Permission, Permissions, Roles};

use crate::error::{Position, RecipeErrors, Report, code, shown};
use crate::table::did_you_mean;
use crate::tree::{self, Entry, Node, Value};

/// Reads a permissions file. `file_name` is what errors show; nothing is opened.
///
/// # Errors
/// All errors of the file by position. A file with an error gives no roles at all.
pub fn parse_permissions(file_name: &str, text: &str) -> Result<Roles, RecipeErrors> {
    let mut report = Report::new(file_name);
    let roles = tree::read(text, &mut report).and_then(|root| roles(&mut report, &root));
    match roles {
        Some(roles) if report.is_empty() => Ok(roles),
        _ => {
            report.add_if_empty(
                Position::START,
                code::SYNTAX,
                "the permissions file could not be read",
                FORM,
            );
            Err(report.into_errors())
        }
    }
}

const FORM: &str = "`version: 1` and `roles:` with a list of permissions for each role";

fn roles(report: &mut Report, root: &Node) -> Option<Roles> {
    let entries = mapping(report, root, "the permissions file")?;
    let mut roles = Roles::built_in();
    let mut version = false;
    for entry in entries {
        match entry.key.as_str() {
            "version" => {
                version = true;
                let is_one = matches!(&entry.value.value, Value::Scalar(one) if one.text == "1");
                if !is_one {
                    let message = "`version` is not 1, the only form there is";
                    report.add(entry.value.at, code::VALUE, message, "write `version: 1`");
                }
            }
            "roles" => {
                for entry in mapping(report, &entry.value, "`roles`")? {
                    if let Some((name, permissions)) = role(report, entry) {
                        roles = roles.with(name, permissions);
                    }
                }
            }
            other => {
                let message = format!("unknown key `{}` in a permissions file", shown(other));
                report.add(entry.key_at, code::UNKNOWN_KEY, message, FORM);
            }
        }
    }
    if !version {
        let message = "the permissions file lacks the key `version`";
        report.add(root.at, code::MISSING_KEY, message, "write `version: 1`");
    }
    Some(roles)
}

fn mapping<'a>(report: &mut Report, node: &'a Node, what: &str) -> Option<&'a [Entry]> {
    if let Value::Mapping(entries) = &node.value {
        return Some(entries);
    }
    let message = format!("{what} is {}, not a mapping", node.kind());
    report.add(node.at, code::WRONG_TYPE, message, FORM);
    None
}

fn role(report: &mut Report, entry: &Entry) -> Option<(Name, Permissions)> {
    let Ok(name) = entry.key.parse::<Name>() else {
        let message = format!("`{}` is no name of a role", shown(&entry.key));
        let hint = "a name has up to 64 characters `A-Za-z0-9._-`";
        report.add(entry.key_at, code::VALUE, message, hint);
        return None;
    };
    let built_in = BuiltIn::from_name(name.as_str());
    if built_in == Some(BuiltIn::Attempt) {
        let message = "`attempt` is the role of a job's token, which no file changes";
        report.add(entry.key_at, code::VALUE, message, "leave it out");
        return None;
    }
    let Value::Sequence(items) = &entry.value.value else {
        let message = format!("role `{name}` is {}, not a list", entry.value.kind());
        let hint = "list its permissions: `[state.read, runs.queue]`";
        report.add(entry.value.at, code::WRONG_TYPE, message, hint);
        return None;
    };
    let mut given = Vec::new();
    for item in items {
        given.extend(permission(report, &name, built_in, item)?);
    }
    let given: Permissions = given.into_iter().collect();
    if built_in == Some(BuiltIn::Admin) && given != Permissions::wildcard() {
        let message =
            "role `admin` is not `[\"*\"]`; whoever changes users must not lock themselves out";
        let hint = "leave it out, or make a narrower role with another name";
        report.add(entry.value.at, code::VALUE, message, hint);
        return None;
    }
    Some((name, given))
}

/// What an item of a role's list gives; `None` when it is wrong.
fn permission(
    report: &mut Report,
    role: &Name,
    built_in: Option<BuiltIn>,
    item: &Node,
) -> Option<Vec<Permission>> {
    let Value::Scalar(scalar) = &item.value else {
        let message = format!("a permission of role `{role}` is {}", item.kind());
        report.add(item.at, code::WRONG_TYPE, message, "write its name");
        return None;
    };
    let text = scalar.text.as_str();
    if text == "*" && built_in == Some(BuiltIn::Admin) {
        return Some(Permissions::wildcard().iter().collect());
    }
    let known = Permission::from_name(text).filter(|one| !one.is_of_attempts());
    let refused = match known {
        None if text == "*" => (
            "`*` is the admin's alone".to_owned(),
            "name each permission".to_owned(),
        ),
        None => {
            let names = Permission::ALL.iter().map(|one| one.as_str());
            let message = format!(
                "`{}` is no permission{}",
                shown(text),
                did_you_mean(text, names)
            );
            (message, "`ml user permissions show` lists them".to_owned())
        }
        Some(Permission::UsersWrite) if built_in != Some(BuiltIn::Admin) => (
            "`users.write` is the admin's alone: it gives every other permission".to_owned(),
            "give somebody the role `admin`".to_owned(),
        ),
        Some(one) if built_in.is_some_and(|role| !role.permissions().has(one)) => (
            format!(
                "`{one}` is more than the built-in role `{role}` has; a file makes it narrower"
            ),
            "make a role with another name for it".to_owned(),
        ),
        Some(one) => return Some(vec![one]),
    };
    report.add(item.at, code::VALUE, refused.0, refused.1);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(roles: &str) -> Result<Roles, String> {
        let text = format!("version: 1\nroles:\n{roles}");
        parse_permissions("p.yaml", &text).map_err(|errors| errors.to_string())
    }

    fn of(roles: &Roles, name: &str) -> Permissions {
        roles.of(&name.parse().unwrap())
    }

    #[test]
    fn a_file_narrows_and_adds_and_leaves_the_rest() {
        let roles = read("  operator: [state.read, prune]\n  reviewer: [state.read, outputs.read_others]\n  admin: [\"*\"]\n").unwrap();
        let operator: Permissions = [Permission::StateRead, Permission::Prune]
            .into_iter()
            .collect();
        assert_eq!(of(&roles, "operator"), operator);
        assert!(of(&roles, "reviewer").has(Permission::OutputsReadOthers));
        for role in [
            BuiltIn::Admin,
            BuiltIn::Member,
            BuiltIn::Viewer,
            BuiltIn::Attempt,
        ] {
            assert_eq!(of(&roles, role.as_str()), role.permissions(), "{role:?}");
        }
        assert_eq!(of(&roles, "nobody"), Permissions::NONE);
        assert_eq!(
            read("  operator: []\n").map(|it| of(&it, "operator")),
            Ok(Permissions::NONE)
        );
    }

    /// Each of these would give somebody more than the built-in table does.
    #[test]
    fn no_file_widens_a_built_in_role_or_gives_the_wildcard_away() {
        for (roles, line, word) in [
            ("  member: [\"*\"]\n", 3, "`*` is the admin's alone"),
            ("  boss: [\"*\"]\n", 3, "`*` is the admin's alone"),
            ("  boss: [state.read, users.write]\n", 3, "`users.write`"),
            (
                "  member: [runs.queue, prune]\n",
                3,
                "more than the built-in",
            ),
            (
                "  viewer:\n    - state.read\n    - runs.queue\n",
                5,
                "more than the built-in",
            ),
            (
                "  operator: [outputs.read_others]\n",
                3,
                "more than the built-in",
            ),
            ("  attempt: [state.read]\n", 3, "`attempt`"),
            ("  boss: [attempt.post]\n", 3, "no permission"),
            ("  admin: [state.read]\n", 3, "`admin`"),
            ("  member: [runs.queu]\n", 3, "runs.queue"),
            ("  member: state.read\n", 3, "not a list"),
            (
                "  member: [state.read]\n  member: [runs.queue]\n",
                4,
                "member",
            ),
            ("  \"a b\": [state.read]\n", 3, "no name"),
        ] {
            let error = read(roles).expect_err(roles);
            assert!(error.contains(word), "{roles}: {error}");
            assert!(
                error.contains(&format!("p.yaml:{line}:")),
                "{roles}: {error}"
            );
        }
        for text in [
            "",
            "roles: {}",
            "version: 2",
            "version: 1\nrole: {}",
            "version: 1\nroles: 7",
            "- a",
            "version: 1\nroles: [",
        ] {
            assert!(parse_permissions("p.yaml", text).is_err(), "{text}");
        }
    }
}
