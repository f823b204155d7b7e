//! `ml user` and `ml key`: who may do what. A key is drawn here and goes into one file
//! of mode 0600; the daemon is sent its hash. No key is ever printed or an argument.

use std::fs;
use std::path::{Path, PathBuf};

use mlmesh_api::{
    AddKeyDto, AddUserDto, ApiKeyDto, CONNECTION_SCHEMA, ChangeRoleDto, Client, ClientError,
    ConnectionFile, ROLES_SCHEMA, RemoveUserDto, RoleDto, RolesDto, RotateKeyDto, SecretKey,
    beside, permission_names,
};
use serde_json::json;

use crate::cli;
use crate::context::{Context, Reach};
use crate::error::{Failure, Outcome};
use crate::output::{self, Table, Tone};

/// Name of the key in the data directory, which the daemon draws itself.
const OWNER_KEY: &str = "owner";

/// One of the verbs of `ml user`.
pub(crate) fn user(context: &Context, verb: &cli::User) -> Outcome {
    match verb {
        cli::User::Add { name, role, again } => {
            let user = AddUserDto {
                name: name.clone(),
                role: role.clone(),
                again: *again,
            };
            let added = context.client()?.add_user(&user)?;
            if context.output.json {
                return context.output.json(&added);
            }
            context
                .output
                .line(format_args!("{} is {}", added.name, added.role))?;
            context.output.hint(format_args!(
                "`ml key add --user {}` makes a key for them",
                added.name
            ));
            Ok(())
        }
        cli::User::Role { name, role } => {
            let role = ChangeRoleDto { role: role.clone() };
            let changed = context.client()?.change_role(name, &role)?;
            if context.output.json {
                return context.output.json(&changed);
            }
            let output = &context.output;
            output.line(format_args!("{} is {}", changed.name, changed.role))
        }
        cli::User::Remove { name, cancel_runs } => remove(context, name, *cancel_runs),
        cli::User::List => list(context),
        cli::User::Show { name } => show(context, name.as_deref()),
        cli::User::Permissions(cli::Permissions::Show) => {
            let roles = context.client()?.roles()?;
            print_roles(context, &roles)
        }
        cli::User::Permissions(cli::Permissions::Reload) => {
            let roles = context.client()?.reload_roles()?;
            print_roles(context, &roles)
        }
        cli::User::Permissions(cli::Permissions::Check { file }) => check(context, file),
    }
}

fn remove(context: &Context, name: &str, cancel_runs: bool) -> Outcome {
    let how = RemoveUserDto { cancel_runs };
    let removed = context.client()?.remove_user(name, &how)?;
    let output = &context.output;
    if output.json {
        return output.json(&removed);
    }
    output.line(format_args!(
        "removed {}: {} revoked, {} cancelled",
        removed.name,
        output::counted(removed.keys_revoked, "key"),
        output::counted(removed.runs_cancelled, "run"),
    ))?;
    if removed.runs_left > 0 {
        output.say(format_args!(
            "{} of theirs go on; `ml list --owner {}` shows them",
            output::counted(removed.runs_left, "open run"),
            removed.name
        ));
    }
    Ok(())
}

fn list(context: &Context) -> Outcome {
    let users = context.client()?.users()?;
    let output = &context.output;
    if output.json {
        return output.json(&users);
    }
    let mut table = Table::new(&["NAME", "ROLE", "SINCE", "REMOVED"]);
    for user in &users.users {
        table.row([
            (user.name.clone(), Tone::Plain),
            (user.role.clone(), Tone::Plain),
            (output::date_time(user.created_at), Tone::Dim),
            (
                user.removed_at.map_or_else(String::new, output::date_time),
                Tone::Dim,
            ),
        ]);
    }
    output.table(&table)
}

fn show(context: &Context, name: Option<&str>) -> Outcome {
    let client = context.client()?;
    let output = &context.output;
    let Some(name) = name else {
        let who = client.who()?;
        if output.json {
            return output.json(&who);
        }
        output.line(format_args!(
            "{} is {}, with key {}",
            who.name, who.role, who.key
        ))?;
        return output.line(format_args!("may: {}", who.permissions.join(", ")));
    };
    let users = client.users()?.users;
    let user = users.into_iter().find(|user| user.name == name);
    let user = user.ok_or_else(|| Failure {
        exit: crate::error::Exit::NotFound,
        ..Failure::failed(
            mlmesh_api::error_code::NOT_FOUND,
            format!("no user `{name}`"),
            "`ml user list` shows who there is",
        )
    })?;
    if output.json {
        return output.json(&user);
    }
    let removed = match user.removed_at {
        Some(time) => format!(", removed {}", output::date_time(time)),
        None => String::new(),
    };
    output.line(format_args!("{} is {}{removed}", user.name, user.role))?;
    let keys = client.keys()?.keys;
    for key in keys.iter().filter(|key| key.user == name) {
        output.line(format_args!("key {}", key.name))?;
    }
    Ok(())
}

fn check(context: &Context, file: &Path) -> Outcome {
    let text = fs::read_to_string(file).map_err(|error| Failure::io("read", file, &error))?;
    let name = file.display().to_string();
    let roles = mlmesh_recipe::parse_permissions(&name, &text).map_err(|errors| {
        Failure::failed(
            mlmesh_api::error_code::PERMISSIONS_FILE,
            errors.to_string(),
            "each error is named with its line; the daemon takes no such file",
        )
    })?;
    let roles = RolesDto {
        schema: ROLES_SCHEMA.to_owned(),
        file: Some(name),
        roles: roles
            .iter()
            .map(|(name, permissions)| RoleDto {
                name: name.to_string(),
                permissions: permission_names(permissions),
            })
            .collect(),
    };
    print_roles(context, &roles)
}

fn print_roles(context: &Context, roles: &RolesDto) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(roles);
    }
    output.line(match &roles.file {
        Some(file) => format!("from {file}"),
        None => "the built-in table".to_owned(),
    })?;
    let mut table = Table::new(&["ROLE", "MAY"]);
    for role in &roles.roles {
        table.row([
            (role.name.clone(), Tone::Plain),
            (role.permissions.join(" "), Tone::Dim),
        ]);
    }
    output.table(&table)
}

/// One of the verbs of `ml key` that are about keys of the API.
pub(crate) fn key(context: &Context, verb: &cli::Key) -> Outcome {
    match verb {
        cli::Key::Show => super::export::show_key(context),
        cli::Key::Add(verb) => add_key(context, verb),
        cli::Key::List => list_keys(context),
        cli::Key::Rotate { name, output } => rotate(context, name.as_deref(), output.as_deref()),
        cli::Key::Revoke { name } => {
            context.client()?.revoke_key(name)?;
            if context.output.json {
                let revoked = json!({"schema": "mlmesh.key_revoked/1", "name": name});
                return context.output.json(&revoked);
            }
            context.output.line(format_args!("revoked {name}"))
        }
    }
}

fn add_key(context: &Context, verb: &cli::AddKey) -> Outcome {
    let secret = SecretKey::draw()?;
    let short = &secret.sha256().short()[..6];
    let name = verb
        .name
        .clone()
        .unwrap_or_else(|| format!("{}-{short}", verb.user));
    let path = verb
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("connection-{name}.json")));
    let client = context.client()?;
    let connection = connection(context, &client, &verb.user, &name, secret)?;
    // The file first: a key that is accepted and in no file would be of no use.
    connection.write_new(&path).map_err(ClientError::from)?;
    let asked = AddKeyDto {
        name,
        user: verb.user.clone(),
        class: verb.class.into(),
        sha256: connection.key.sha256(),
    };
    let added = match client.add_key(&asked) {
        Ok(added) => added,
        Err(error) => {
            // Only a refusal says that the daemon does not have it.
            if !error.is_unreachable() {
                drop(fs::remove_file(&path));
            }
            return Err(error.into());
        }
    };
    print_key(context, &added, &path)
}

fn connection(
    context: &Context,
    client: &Client,
    user: &str,
    name: &str,
    key: SecretKey,
) -> Outcome<ConnectionFile> {
    Ok(ConnectionFile {
        schema: CONNECTION_SCHEMA.to_owned(),
        url: client.url().to_owned(),
        ca_pem: context.ca_pem()?,
        user: user.to_owned(),
        key_name: name.to_owned(),
        key,
    })
}

fn print_key(context: &Context, key: &ApiKeyDto, path: &Path) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(&json!({
            "schema": "mlmesh.key_file/1",
            "name": key.name,
            "user": key.user,
            "class": key.class,
            "file": path,
        }));
    }
    output.line(format_args!(
        "key {} of {} is in {}",
        key.name,
        key.user,
        path.display()
    ))?;
    output.hint(format_args!(
        "{} puts it at `~/.config/mlmesh/{}` (mode 0600, their own), or names it with `--connection`",
        key.user,
        ConnectionFile::NAME
    ));
    Ok(())
}

fn list_keys(context: &Context) -> Outcome {
    let keys = context.client()?.keys()?;
    let output = &context.output;
    if output.json {
        return output.json(&keys);
    }
    let mut table = Table::new(&["NAME", "USER", "CLASS", "SINCE"]);
    for key in &keys.keys {
        let class = match key.class {
            mlmesh_api::KeyClassDto::Interactive => "interactive",
            mlmesh_api::KeyClassDto::Bulk => "bulk",
        };
        table.row([
            (key.name.clone(), Tone::Plain),
            (key.user.clone(), Tone::Plain),
            (class.to_owned(), Tone::Plain),
            (output::date_time(key.created_at), Tone::Dim),
        ]);
    }
    output.table(&table)
}

/// The new secret is on disk before the old one stops being accepted.
fn rotate(context: &Context, name: Option<&str>, named: Option<&Path>) -> Outcome {
    let client = context.client()?;
    let own = match context.reach()? {
        Reach::Connection(path) => Some((ConnectionFile::read(&path)?, path)),
        Reach::DataDir(_) => None,
    };
    let name = match (name, &own) {
        (Some(name), _) => name.to_owned(),
        (None, Some((own, _))) => own.key_name.clone(),
        (None, None) => OWNER_KEY.to_owned(),
    };
    if name == OWNER_KEY {
        let rotated = client.rotate_key(&name, &RotateKeyDto::default())?;
        return print_key(context, &rotated, &context.data_dir()?.join("owner.key"));
    }
    let secret = SecretKey::draw()?;
    let sha256 = Some(secret.sha256());
    let (file, path) = match (&own, named) {
        (Some((own, path)), None) if own.key_name == name => {
            let partial = beside(path);
            drop(fs::remove_file(&partial));
            (own.with_key(secret), path.clone())
        }
        (_, named) => {
            let keys = client.keys()?.keys;
            let known = keys.into_iter().find(|key| key.name == name);
            let user = known.map_or_else(String::new, |key| key.user);
            let path = named.map_or_else(
                || PathBuf::from(format!("connection-{name}.json")),
                Path::to_owned,
            );
            (connection(context, &client, &user, &name, secret)?, path)
        }
    };
    let partial = beside(&path);
    file.write_new(&partial).map_err(ClientError::from)?;
    let rotated = match client.rotate_key(&name, &RotateKeyDto { sha256 }) {
        Ok(rotated) => rotated,
        Err(error) => {
            if !error.is_unreachable() {
                drop(fs::remove_file(&partial));
            } else {
                context.output.warn(format_args!(
                    "whether the daemon has the new key is not known; it is in {}",
                    partial.display()
                ));
            }
            return Err(error.into());
        }
    };
    fs::rename(&partial, &path).map_err(|error| Failure::io("write", &path, &error))?;
    print_key(context, &rotated, &path)
}
