//! Settings: one table of keys, types, defaults and environment names, read by
//! `meshd` and `ml` alike, and shown by `ml config explain`.
//!
//! Precedence: flag > environment (`MLMESH_*`) > `mlmesh.toml` > default. A key that
//! is not in the table is refused, and so is a value that its type does not take.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// `section.key` in `mlmesh.toml`.
    pub key: &'static str,
    /// Name in the environment.
    pub env: &'static str,
    /// What values it takes.
    pub kind: SettingKind,
    /// Value when nothing else is said; empty means none.
    pub default: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// What values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingKind {
    /// Any text.
    Text,
    /// A path.
    Path,
    /// An IP address.
    Address,
    /// 0 to 65535.
    Port,
    /// A whole number.
    Count,
    /// Bytes: a number with an optional `KiB`, `MiB`, `GiB` or `TiB`.
    Bytes,
    /// A time: a number with `ms`, `s`, `m` or `h`.
    Time,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// The table.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "client.data_dir",
        env: "MLMESH_DATA_DIR",
        kind: SettingKind::Path,
        default: "",
        help: "data directory; without it `~/.local/share/mlmesh`",
    },
    Setting {
        key: "client.connection",
        env: "MLMESH_CONNECTION",
        kind: SettingKind::Path,
        default: "",
        help: "connection of a daemon of somebody else; without it `connection.json` beside these settings, where there is one and no data directory is named",
    },
    Setting {
        key: "client.repro_policy",
        env: "MLMESH_REPRO_POLICY",
        kind: SettingKind::Choice(&["strict", "relaxed"]),
        default: "strict",
        help: "which runs `ml queue` lets through",
    },
    Setting {
        key: "client.on_finish",
        env: "MLMESH_ON_FINISH",
        kind: SettingKind::Text,
        default: "",
        help: "`on_finish` of recipes that have none of their own, written as in a recipe",
    },
    Setting {
        key: "daemon.listen",
        env: "MLMESH_LISTEN",
        kind: SettingKind::Address,
        default: "127.0.0.1",
        help: "address on which the API answers",
    },
    Setting {
        key: "daemon.port",
        env: "MLMESH_PORT",
        kind: SettingKind::Port,
        default: "9101",
        help: "port of the API; 0 chooses one per data directory, which then stays",
    },
    Setting {
        key: "daemon.store",
        env: "MLMESH_STORE",
        kind: SettingKind::Text,
        default: "sqlite",
        help: "`sqlite`, or a `postgres://` URL; `sslmode=verify-full&sslrootcert=FILE` in it checks the server",
    },
    Setting {
        key: "daemon.permissions",
        env: "MLMESH_PERMISSIONS",
        kind: SettingKind::Path,
        default: "",
        help: "permissions file; without it `permissions.yaml` in the data directory, where there is one",
    },
    Setting {
        key: "daemon.node",
        env: "MLMESH_NODE",
        kind: SettingKind::Text,
        default: "",
        help: "name of this node; without it the host's name",
    },
    Setting {
        key: "daemon.cpus",
        env: "MLMESH_CPUS",
        kind: SettingKind::Count,
        default: "0",
        help: "CPUs that attempts may use together; 0 means all",
    },
    Setting {
        key: "daemon.memory",
        env: "MLMESH_MEMORY",
        kind: SettingKind::Bytes,
        default: "0",
        help: "memory that attempts may reserve together; 0 means all",
    },
    Setting {
        key: "daemon.stop_grace",
        env: "MLMESH_STOP_GRACE",
        kind: SettingKind::Time,
        default: "5s",
        help: "time between SIGTERM and SIGKILL of an attempt",
    },
    Setting {
        key: "daemon.shutdown_grace",
        env: "MLMESH_SHUTDOWN_GRACE",
        kind: SettingKind::Time,
        default: "10s",
        help: "time that open requests have when the daemon goes down",
    },
    Setting {
        key: "daemon.disk_reserve",
        env: "MLMESH_DISK_RESERVE",
        kind: SettingKind::Bytes,
        default: "64MiB",
        help: "free space below which the daemon is not ready",
    },
    Setting {
        key: "daemon.attempt_bytes_max",
        env: "MLMESH_ATTEMPT_BYTES_MAX",
        kind: SettingKind::Bytes,
        default: "64MiB",
        help: "bytes that an attempt may post to the API with its token",
    },
    Setting {
        key: "daemon.hook_commands",
        env: "MLMESH_HOOK_COMMANDS",
        kind: SettingKind::Choice(&["off", "on"]),
        default: "off",
        help: "whether commands of `on_finish` are executed, outside of any sandbox",
    },
    Setting {
        key: "daemon.webhook_ca",
        env: "MLMESH_WEBHOOK_CA",
        kind: SettingKind::Text,
        default: "",
        help: "file of certificates that webhooks are checked against; empty means the system's",
    },
    Setting {
        key: "daemon.log_level",
        env: "MLMESH_LOG_LEVEL",
        kind: SettingKind::Choice(&["error", "warn", "info", "debug"]),
        default: "info",
        help: "how much `logs/app.log` says",
    },
    Setting {
        key: "daemon.log_bytes_max",
        env: "MLMESH_LOG_BYTES_MAX",
        kind: SettingKind::Bytes,
        default: "16MiB",
        help: "size at which a log file of the daemon is rotated",
    },
    Setting {
        key: "daemon.log_files_max",
        env: "MLMESH_LOG_FILES_MAX",
        kind: SettingKind::Count,
        default: "4",
        help: "rotated log files that are kept of each kind",
    },
];

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The table.
    Default,
    /// This file.
    File(PathBuf),
    /// This variable.
    Environment(&'static str),
    /// The command line.
    Flag,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// The file is no TOML.
    #[error("`{path}` is no TOML: {reason}")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key that is not in the table.
    #[error("`{key}` in `{path}` is no setting; nearest is `{nearest}`")]
    Unknown {
        /// The key.
        key: String,
        /// The file.
        path: PathBuf,
        /// A key that is one.
        nearest: &'static str,
    },
    /// A value that the type does not take.
    #[error("`{value}` ({origin}) is no value of `{key}`; it takes {takes}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// Where it stands.
        origin: String,
        /// What would be right.
        takes: String,
    },
    /// A password on a command line, where every user of the machine can read it.
    #[error(
        "the value of `{key}` on the command line holds a password; {env} or the file may hold one"
    )]
    Password {
        /// The key.
        key: &'static str,
        /// The variable that may hold it.
        env: &'static str,
    },
    /// More bytes than a file of settings has.
    #[error("`{path}` has more than {FILE_BYTES_MAX} bytes, a file of settings has at most these")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("read `{path}`: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// Every setting with its value and where that comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    values: BTreeMap<&'static str, (String, Origin)>,
}

impl Settings {
    /// Decides every setting. `file` is read when it is there; `flags` are pairs of
    /// key and value; `environment` is asked for each variable of the table.
    pub fn resolve(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
        flags: &[(&str, String)],
    ) -> Result<Self, SettingError> {
        let from_file = match file {
            Some(path) => read_file(path)?,
            None => BTreeMap::new(),
        };
        let mut values = BTreeMap::new();
        for setting in SETTINGS {
            let flag = flags.iter().find(|(key, _)| *key == setting.key);
            let (value, origin) = if let Some((_, value)) = flag {
                if shown(value) != *value {
                    let Setting { key, env, .. } = *setting;
                    return Err(SettingError::Password { key, env });
                }
                (value.clone(), Origin::Flag)
            } else if let Some(value) = environment(setting.env) {
                (value, Origin::Environment(setting.env))
            } else if let Some(value) = from_file.get(setting.key) {
                let path = file.map(Path::to_owned).unwrap_or_default();
                (value.clone(), Origin::File(path))
            } else {
                (setting.default.to_owned(), Origin::Default)
            };
            check(setting, &value, &origin)?;
            values.insert(setting.key, (value, origin));
        }
        Ok(Self { values })
    }

    /// Settings with value and origin, in the order of their keys.
    pub fn all(&self) -> impl Iterator<Item = (&'static Setting, &str, &Origin)> {
        SETTINGS.iter().filter_map(|setting| {
            let (value, origin) = self.values.get(setting.key)?;
            Some((setting, value.as_str(), origin))
        })
    }

    /// The value of `key` as text; empty when there is none.
    pub fn text(&self, key: &str) -> &str {
        self.values.get(key).map_or("", |(value, _)| value)
    }

    /// The value of a setting of kind [`SettingKind::Bytes`].
    pub fn bytes(&self, key: &str) -> u64 {
        parse_bytes(self.text(key)).unwrap_or(0)
    }

    /// The value of a setting of kind [`SettingKind::Time`].
    pub fn time(&self, key: &str) -> Duration {
        parse_time(self.text(key)).unwrap_or_default()
    }

    /// The value of a setting of kind [`SettingKind::Count`] or [`SettingKind::Port`].
    pub fn count(&self, key: &str) -> u64 {
        self.text(key).parse().unwrap_or(0)
    }
}

/// The longest file of settings.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What stands before a password among the parameters of a connection.
const PASSWORD: &str = "password=";

/// A value as people may see it: the password of a URL, before its host or among
/// its parameters, is hidden.
pub fn shown(value: &str) -> String {
    let mut text = value.to_owned();
    if let Some((scheme, rest)) = value.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if let Some((user, _)) = authority
            .rsplit_once('@')
            .and_then(|(user, _)| user.split_once(':'))
        {
            let host = &rest[authority.rfind('@').unwrap_or_default()..];
            text = format!("{scheme}://{user}:(hidden){host}");
        }
    }
    let mut parts = text.split(PASSWORD);
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(['&', ' ']).unwrap_or(part.len());
        all.push_str(PASSWORD);
        all.push_str("(hidden)");
        all.push_str(&part[end..]);
    }
    all
}

/// Reads `[section] key = value` pairs into `section.key`, as text.
fn read_file(path: &Path) -> Result<BTreeMap<String, String>, SettingError> {
    let failed = |reason: String| SettingError::Read {
        path: path.to_owned(),
        reason,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| failed(error.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(SettingError::TooLong {
            path: path.to_owned(),
        });
    }
    let text = String::from_utf8(bytes).map_err(|error| failed(error.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| SettingError::Form {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })?;
    let mut pairs = BTreeMap::new();
    for (section, value) in table {
        match value {
            toml::Value::Table(inner) => {
                for (key, value) in inner {
                    pairs.insert(format!("{section}.{key}"), value_text(value));
                }
            }
            value => {
                pairs.insert(section, value_text(value));
            }
        }
    }
    for key in pairs.keys() {
        if !SETTINGS.iter().any(|setting| setting.key == key) {
            return Err(SettingError::Unknown {
                key: key.clone(),
                path: path.to_owned(),
                nearest: nearest(key),
            });
        }
    }
    Ok(pairs)
}

fn value_text(value: toml::Value) -> String {
    match value {
        toml::Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The key that shares most of its letters, from both ends, with `key`.
fn nearest(key: &str) -> &'static str {
    let shared = |known: &str| {
        let front = key
            .bytes()
            .zip(known.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        let back = key
            .bytes()
            .rev()
            .zip(known.bytes().rev())
            .take_while(|(a, b)| a == b)
            .count();
        front + back
    };
    SETTINGS
        .iter()
        .map(|setting| setting.key)
        .max_by_key(|known| shared(known))
        .unwrap_or("")
}

fn check(setting: &Setting, value: &str, origin: &Origin) -> Result<(), SettingError> {
    if value.is_empty() && setting.default.is_empty() {
        return Ok(());
    }
    let (good, takes) = match setting.kind {
        SettingKind::Text => (!value.contains('\0'), "text".to_owned()),
        SettingKind::Path => (!value.contains('\0'), "a path".to_owned()),
        SettingKind::Address => (value.parse::<IpAddr>().is_ok(), "an IP address".to_owned()),
        SettingKind::Port => (
            value.parse::<u16>().is_ok(),
            "a port, 0 to 65535".to_owned(),
        ),
        SettingKind::Count => (value.parse::<u32>().is_ok(), "a whole number".to_owned()),
        SettingKind::Bytes => (
            parse_bytes(value).is_some(),
            "bytes such as `512MiB`".to_owned(),
        ),
        SettingKind::Time => (
            parse_time(value).is_some(),
            "a time such as `10s`".to_owned(),
        ),
        SettingKind::Choice(words) => {
            let listed: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            (words.contains(&value), listed.join(" or "))
        }
    };
    if good {
        return Ok(());
    }
    Err(SettingError::Value {
        key: setting.key,
        value: value.to_owned(),
        origin: origin.to_string(),
        takes,
    })
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A duration with its unit: `ms`, `s`, `m` or `h`.
pub fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text);
    let factor: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let millis = number.parse::<u64>().ok()?.checked_mul(factor)?;
    Some(Duration::from_millis(millis))
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn passwords_are_hidden_and_refused_on_the_command_line() {
        let cases = [
            ("postgres://u:p:w@h/d", "postgres://u:(hidden)@h/d"),
            (
                "postgres:///d?password=x&user=u",
                "postgres:///d?password=(hidden)&user=u",
            ),
            (
                "host=h password=x user=u password=y",
                "host=h password=(hidden) user=u password=(hidden)",
            ),
            ("postgres://u@h:5432/d", "postgres://u@h:5432/d"),
            ("sqlite", "sqlite"),
        ];
        for (value, seen) in cases {
            assert_eq!(shown(value), seen);
        }
        let flags = [("daemon.store", "postgres://u:p@h/d".to_owned())];
        let refused = Settings::resolve(None, |_| None, &flags).unwrap_err();
        assert!(matches!(
            refused,
            SettingError::Password {
                key: "daemon.store",
                ..
            }
        ));
        let environment = |name: &str| (name == "MLMESH_STORE").then(|| flags[0].1.clone());
        assert_eq!(
            Settings::resolve(None, environment, &[])
                .unwrap()
                .text("daemon.store"),
            flags[0].1
        );
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mlmesh.toml");
        std::fs::write(
            &path,
            "[daemon]\nport = 1\nlisten = \"::1\"\nmemory = \"2GiB\"\n",
        )
        .unwrap();
        let environment = |name: &str| match name {
            "MLMESH_PORT" => Some("2".to_owned()),
            "MLMESH_LISTEN" => Some("127.0.0.2".to_owned()),
            _ => None,
        };
        let flags = [("daemon.port", "3".to_owned())];
        let settings = Settings::resolve(Some(&path), environment, &flags).unwrap();
        let found: Vec<(&str, &str, String)> = settings
            .all()
            .filter(|(setting, ..)| {
                [
                    "daemon.port",
                    "daemon.listen",
                    "daemon.memory",
                    "daemon.cpus",
                ]
                .contains(&setting.key)
            })
            .map(|(setting, value, origin)| (setting.key, value, origin.to_string()))
            .collect();
        assert_eq!(
            found,
            [
                (
                    "daemon.listen",
                    "127.0.0.2",
                    "environment MLMESH_LISTEN".to_owned()
                ),
                ("daemon.port", "3", "flag".to_owned()),
                ("daemon.cpus", "0", "default".to_owned()),
                ("daemon.memory", "2GiB", format!("file {}", path.display())),
            ]
        );
        assert_eq!(settings.bytes("daemon.memory"), 2 << 30);
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mlmesh.toml");
        for (text, nearest) in [
            ("[daemon]\nprot = 1\n", "daemon.port"),
            ("[demon]\nlisten = \"::1\"\n", "daemon.listen"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Settings::resolve(Some(&path), none, &[]).unwrap_err();
            assert!(error.to_string().contains(nearest), "{error}");
        }
        for (key, value) in [
            ("daemon.port", "65536"),
            ("daemon.listen", "localhost"),
            ("daemon.memory", "2GB"),
            ("daemon.memory", "99999999999TiB"),
            ("daemon.stop_grace", "5"),
            ("daemon.log_level", "loud"),
            ("daemon.port", ""),
        ] {
            let flags = [(key, value.to_owned())];
            assert!(
                Settings::resolve(None, none, &flags).is_err(),
                "{key} = {value}"
            );
        }
    }

    #[test]
    fn a_file_longer_than_settings_are_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mlmesh.toml");
        let of_bytes = |bytes: u64| std::fs::write(&path, "#".repeat(bytes as usize)).unwrap();
        of_bytes(FILE_BYTES_MAX);
        assert!(Settings::resolve(Some(&path), none, &[]).is_ok());
        of_bytes(FILE_BYTES_MAX + 1);
        let error = Settings::resolve(Some(&path), none, &[]).unwrap_err();
        assert_eq!(error, SettingError::TooLong { path });
    }

    #[test]
    fn every_default_is_a_value_of_its_own_setting() {
        assert!(Settings::resolve(None, none, &[]).is_ok());
    }
}
