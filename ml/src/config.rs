//! Where settings come from: flag > environment > the project's `mlmesh.toml` > the
//! user's > default. A project decides only what concerns its own runs.

use std::path::{Path, PathBuf};

use mlmesh_api::error_code;
use mlmesh_api::settings::{Origin, Setting, SettingError, Settings};

use crate::error::{Exit, Failure, Outcome};

/// Keys that a project's file may set.
const PROJECT_KEYS: [&str; 2] = ["client.repro_policy", "client.on_finish"];
/// Name of the file, of a project and of a user.
pub(crate) const FILE_NAME: &str = "mlmesh.toml";

/// All settings with their origins.
#[derive(Debug)]
pub(crate) struct Config {
    user: Settings,
    project: Option<Settings>,
}

impl Config {
    /// Reads the user's file and, when a project is given, the project's.
    pub(crate) fn read(project_root: Option<&Path>, flags: &[(&str, String)]) -> Outcome<Self> {
        let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let user_file = user_folder().map(|folder| folder.join(FILE_NAME));
        let user_file = user_file.filter(|path| path.is_file());
        let user =
            Settings::resolve(user_file.as_deref(), environment, flags).map_err(bad_setting)?;
        let project_file = project_root.map(|root| root.join(FILE_NAME));
        let project = match project_file.filter(|path| path.is_file()) {
            None => None,
            Some(path) => {
                let project =
                    Settings::resolve(Some(&path), environment, flags).map_err(bad_setting)?;
                refuse_foreign_keys(&project, &path)?;
                Some(project)
            }
        };
        Ok(Self { user, project })
    }

    /// Every setting, its value and its origin, in the table's order.
    pub(crate) fn all(&self) -> Vec<(&'static Setting, &str, &Origin)> {
        let in_project = |key: &str| {
            let mut all = self.project.iter().flat_map(Settings::all);
            all.find(|(setting, _, origin)| setting.key == key && matches!(origin, Origin::File(_)))
        };
        let all = self.user.all();
        all.map(|entry| in_project(entry.0.key).unwrap_or(entry))
            .collect()
    }

    /// The value of one setting; empty when there is none.
    pub(crate) fn value(&self, key: &str) -> &str {
        let mut all = self.all().into_iter();
        all.find(|(setting, ..)| setting.key == key)
            .map_or("", |(_, value, _)| value)
    }

    /// Whether nobody has said anything about a setting.
    pub(crate) fn is_default(&self, key: &str) -> bool {
        let mut all = self.all().into_iter();
        all.any(|(setting, _, origin)| setting.key == key && matches!(origin, Origin::Default))
    }

    /// The value of a setting that is a number of bytes.
    pub(crate) fn bytes(&self, key: &str) -> u64 {
        self.user.bytes(key)
    }
}

/// `MLMESH_CONFIG_DIR`, else `~/.config/mlmesh`.
pub(crate) fn user_folder() -> Option<PathBuf> {
    let absolute = |name| set(name).filter(|folder| folder.is_absolute());
    if let Some(folder) = absolute("MLMESH_CONFIG_DIR") {
        return Some(folder);
    }
    absolute("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|folder| folder.join("mlmesh"))
}

/// A variable's value as a path; an empty one counts as absent.
pub(crate) fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn refuse_foreign_keys(project: &Settings, path: &Path) -> Outcome {
    let foreign = project.all().find(|(setting, _, origin)| {
        matches!(origin, Origin::File(_)) && !PROJECT_KEYS.contains(&setting.key)
    });
    let Some((setting, ..)) = foreign else {
        return Ok(());
    };
    let user = user_folder().unwrap_or_default().join(FILE_NAME);
    Err(Failure {
        code: error_code::BAD_SETTING.to_owned(),
        exit: Exit::Usage,
        ..Failure::failed(
            "",
            format!(
                "`{}` in `{}`: a project sets only {}",
                setting.key,
                path.display(),
                PROJECT_KEYS.map(|key| format!("`{key}`")).join(", ")
            ),
            format!("write it into `{}`", user.display()),
        )
    })
}

fn bad_setting(error: SettingError) -> Failure {
    Failure {
        code: error_code::BAD_SETTING.to_owned(),
        exit: Exit::Usage,
        ..Failure::failed(
            "",
            error.to_string(),
            "`ml config explain` shows every setting and where its value comes from",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_decides_its_policy_and_nothing_of_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE_NAME);
        std::fs::write(&file, "[client]\nrepro_policy = \"relaxed\"\n").unwrap();
        let config = Config::read(Some(folder.path()), &[]).unwrap();
        assert_eq!(config.value("client.repro_policy"), "relaxed");
        let flags = [("client.repro_policy", "strict".to_owned())];
        let config = Config::read(Some(folder.path()), &flags).unwrap();
        assert_eq!(config.value("client.repro_policy"), "strict");
        std::fs::write(&file, "[daemon]\nport = 1\n").unwrap();
        let failure = Config::read(Some(folder.path()), &[]).unwrap_err();
        assert_eq!(
            (failure.code.as_str(), failure.exit.code()),
            ("bad_setting", 2)
        );
        assert!(failure.message.contains("`daemon.port`"), "{failure}");
    }
}
