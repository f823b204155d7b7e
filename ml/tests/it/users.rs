//! Users, keys and roles as people use them: also a second account of the system with a
//! key of its own.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::mesh::Mesh;
use crate::program::{Answer, answer};

/// Another account: a number is enough, no name needs to be known of it.
const OTHER: u32 = 12_345;

/// What only the owner's job wrote.
const OWN_WORD: &str = "word-of-the-owner";

/// Somebody with a home and a copy of `ml` of their own.
pub(crate) struct Person {
    folder: tempfile::TempDir,
    uid: Option<u32>,
}

impl Person {
    /// Under another account where the test may have one; else only in another home.
    pub(crate) fn new() -> Self {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            println!("not checked: the second account needs root");
        }
        Self::of(is_root.then_some(OTHER))
    }

    /// Under the account of the test, in a home of their own.
    pub(crate) fn at_home() -> Self {
        Self::of(None)
    }

    fn of(uid: Option<u32>) -> Self {
        let folder = tempfile::Builder::new().prefix("ml-it-other-").tempdir();
        let person = Self {
            folder: folder.unwrap(),
            uid,
        };
        std::fs::copy(env!("CARGO_BIN_EXE_ml"), person.path("ml")).unwrap();
        for name in ["config", "project"] {
            std::fs::create_dir(person.path(name)).unwrap();
            person.give(&person.path(name));
        }
        person.give(person.folder.path());
        person
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn give(&self, path: &Path) {
        if let Some(uid) = self.uid {
            chown(path, Some(uid), Some(uid)).unwrap();
        }
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path("project").join(name);
        std::fs::write(&path, text).unwrap();
        self.give(&path);
    }

    /// Puts a connection where `ml` looks for it.
    pub(crate) fn connect(&self, file: &Path) {
        let path = self.path("config/connection.json");
        std::fs::copy(file, &path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        self.give(&path);
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("MLMESH_CONFIG_DIR", self.path("config"))
            .current_dir(self.path("project"))
            .stdin(Stdio::null());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    pub(crate) fn ml(&self, arguments: &[&str]) -> Answer {
        let program = self.path("ml");
        answer(self.command(program.to_str().unwrap()).args(arguments))
    }

    /// Asserts that a verb is refused for the lack of a permission.
    #[track_caller]
    fn is_refused(&self, arguments: &[&str], permission: &str) {
        let asked: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let error = self.ml(&asked).exits(3).error();
        assert_eq!(error["code"], "forbidden", "{arguments:?}: {error}");
        assert_eq!(error["details"]["permission"], permission, "{error}");
        let said = error.to_string();
        assert!(said.contains("ml user role bob"), "{error}");
    }
}

fn key_in(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    file["key"].as_str().unwrap().to_owned()
}

/// A user of that role, and their connection.
pub(crate) fn add(mesh: &Mesh, name: &str, role: &str) -> PathBuf {
    mesh.ml(&["user", "add", name, "--role", role]).exits(0);
    let file = mesh.place.path(&format!("{name}.json"));
    let answer = mesh.ml(&["key", "add", "--user", name, "-o", file.to_str().unwrap()]);
    let answer = answer.exits(0);
    let key = key_in(&file);
    assert!(
        !answer.stdout.contains(&key) && !answer.stderr.contains(&key),
        "{answer:?}"
    );
    let mode = file.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    file
}

pub(crate) fn recipe(words: &str) -> String {
    format!(
        "experiment:\n  name: small\n  command: [sh, -c, \"{words}\"]\n  seed: none\n  outputs: [o.txt]\n"
    )
}

#[test]
fn a_second_account_works_with_a_key_of_its_own_and_sees_what_its_role_allows() {
    let mesh = Mesh::up();
    let words = format!("echo {OWN_WORD}; echo {OWN_WORD} > o.txt");
    mesh.place.write("own.yaml", recipe(&words));
    let own = mesh.queue("own.yaml");
    mesh.wait_for_phase(&own, "completed");
    let sleeper = mesh.recipe("sleeper", &["forever"], "");
    let asleep = mesh.queue(&sleeper);
    mesh.wait_for_phase(&asleep, "running");
    let bob = Person::new();
    bob.connect(&add(&mesh, "bob", "member"));

    // What everybody may see.
    let who = bob.ml(&["user", "show", "--json"]).exits(0).json();
    assert_eq!(
        (&who["name"], &who["role"]),
        (&"bob".into(), &"member".into())
    );
    let list = bob.ml(&["list", "--json"]).exits(0).stdout;
    assert!(list.contains(&own), "{list}");
    bob.ml(&["status"]).exits(0);
    bob.ml(&["info", &own]).exits(0);
    bob.ml(&["compare", &own, &own]).exits(0);

    // What is somebody else's.
    let closed = "outputs.read_others";
    bob.is_refused(&["logs", &own], closed);
    bob.is_refused(&["outputs", &own], closed);
    bob.is_refused(&["outputs", &own, "-o", "there"], closed);
    bob.is_refused(&["reproduce", &own], closed);
    bob.is_refused(&["cancel", &asleep], "runs.cancel_others");
    bob.is_refused(&["retry", &own], "runs.retry_others");
    bob.is_refused(&["tag", &own, "a=b"], "runs.label_others");
    bob.is_refused(&["note", &own, "mine"], "runs.label_others");
    bob.is_refused(&["pin", &own], "pins.write_others");
    bob.is_refused(&["validate", "--task", &own], "runs.validate_others");
    bob.is_refused(&["prune", "--dry-run"], "prune");
    bob.is_refused(&["audit", "list"], "audit.read");
    bob.is_refused(&["user", "list"], "users.read");
    bob.is_refused(&["user", "role", "bob", "admin"], "users.write");
    bob.is_refused(
        &["key", "add", "--user", "bob", "-o", "k.json"],
        "users.write",
    );
    assert!(!bob.path("project/k.json").exists());
    bob.is_refused(
        &["data", "add", "d", "1", "/etc/shadow"],
        "data.register_in_place",
    );
    bob.is_refused(&["doctor", "--objects"], "scrub");

    // What is one's own. The sandbox that it needs may not be possible here.
    bob.write("mlmesh.toml", "[client]\nrepro_policy = \"relaxed\"\n");
    let look = "echo of-bob; cat $0 2>&1; ls / ; echo out > o.txt";
    let look = look.replace("$0", mesh.place.data().join("owner.key").to_str().unwrap());
    bob.write("own.yaml", recipe(&look));
    let queued = bob.ml(&["queue", "-q", "own.yaml", "--wait", "--json"]);
    if queued.stderr.contains("sandbox is not possible") {
        println!("not checked: no sandbox on this host");
    } else {
        queued.exits(0);
        let said = bob.ml(&["logs", "@last"]).exits(0).stdout;
        assert!(said.contains("of-bob"), "{said}");
        assert!(!said.contains("mlmesh_"), "{said}");
        bob.ml(&["outputs", "@last", "-o", "there"]).exits(0);
        bob.ml(&["tag", "@last", "mine"]).exits(0);
        let info = bob.ml(&["info", "@last", "--json"]).exits(0).json();
        assert_eq!(info["owner"], "bob");
        assert_eq!(info["isolation"]["sandboxed"], true, "{info}");
    }

    // Nothing of the data directory can be reached beside the API.
    if bob.uid.is_some() {
        for name in [
            "",
            "owner.key",
            "meshd.json",
            "meshd.db",
            "data/experiments",
        ] {
            let path = mesh.place.data().join(name);
            let seen = answer(bob.command("cat").arg(&path));
            assert_ne!(seen.code, 0, "{}", path.display());
            assert!(seen.stdout.is_empty(), "{}", path.display());
        }
    }
    let wait = mesh.ml(&["info", &asleep, "--json"]).exits(0).json();
    assert_eq!(wait["phase"], "running");
    mesh.ml(&["cancel", &asleep]).exits(0);
}

#[test]
fn changes_of_users_and_keys_act_at_once() {
    let mesh = Mesh::up();
    let file = add(&mesh, "bob", "viewer");
    let bob = Person::new();
    bob.connect(&file);
    bob.is_refused(&["secret", "list"], "secrets.write");
    mesh.ml(&["user", "role", "bob", "member"]).exits(0);
    bob.ml(&["secret", "list"]).exits(0);

    // A new secret under the same name: the one before is refused.
    let before = key_in(&bob.path("config/connection.json"));
    let rotated = bob.ml(&["key", "rotate"]).exits(0);
    let after = key_in(&bob.path("config/connection.json"));
    assert_ne!(before, after);
    assert!(!rotated.stdout.contains(&after) && !rotated.stderr.contains(&after));
    bob.ml(&["status"]).exits(0);
    let old = Person::new();
    old.connect(&file);
    let refused = old.ml(&["status", "--json"]).exits(1).error();
    assert_eq!(refused["code"], "unauthenticated");

    // A stream that is open ends with the key, and so does a call that waits.
    let mut follow = bob.command(bob.path("ml").to_str().unwrap());
    follow
        .args(["events", "--follow", "--json"])
        .stdout(Stdio::piped());
    let mut follow = follow.stderr(Stdio::null()).spawn().unwrap();
    let mut first = [0_u8; 1];
    std::io::Read::read_exact(follow.stdout.as_mut().unwrap(), &mut first).unwrap();
    let keys = mesh.ml(&["key", "list", "--json"]).exits(0).json();
    let keys = keys["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2, "the owner's and bob's: {keys:?}");
    let name = keys.iter().find(|key| key["user"] == "bob").unwrap()["name"].clone();
    mesh.ml(&["key", "revoke", name.as_str().unwrap()]).exits(0);
    mlmesh_testkit::place::wait("the stream to end", || follow.try_wait().unwrap().is_some());
    let refused = bob.ml(&["status", "--json"]).exits(1).error();
    assert_eq!(refused["code"], "unauthenticated");

    // Names stay with whom they were given to.
    mesh.ml(&["user", "remove", "bob"]).exits(0);
    let taken = mesh.ml(&["user", "add", "bob", "--role", "member", "--json"]);
    assert_eq!(taken.exits(3).error()["code"], "user_exists");
    mesh.ml(&["user", "add", "bob", "--role", "member", "--again"])
        .exits(0);
    // Whoever owns the process cannot be locked out of it.
    let own = mesh.ml(&["user", "show", "--json"]).exits(0).json();
    let own = own["name"].as_str().unwrap();
    for verb in [
        &["user", "remove", own][..],
        &["user", "role", own, "viewer"],
    ] {
        let asked: Vec<&str> = verb.iter().copied().chain(["--json"]).collect();
        assert_eq!(mesh.ml(&asked).exits(3).error()["code"], "last_admin");
    }
    let unknown = mesh
        .ml(&["user", "role", "bob", "attempt", "--json"])
        .exits(4);
    assert_eq!(unknown.error()["code"], "not_found");

    // The daemon draws its own key anew; the old text is nobody's.
    let key = mesh.place.data().join("owner.key");
    let before = std::fs::read_to_string(&key).unwrap();
    mesh.ml(&["key", "rotate", "owner"]).exits(0);
    assert_ne!(std::fs::read_to_string(&key).unwrap(), before);
    mesh.ml(&["status"]).exits(0);
    let audit = mesh.ml(&["audit", "list", "--json"]).exits(0).stdout;
    for action in [
        "user.add",
        "user.role",
        "user.remove",
        "key.add",
        "key.rotate",
        "key.revoke",
    ] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
    mesh.ml(&["audit", "verify"]).exits(0);
}

#[test]
fn a_connection_that_others_may_read_is_refused() {
    let mesh = Mesh::up();
    let bob = Person::new();
    bob.connect(&add(&mesh, "bob", "member"));
    let path = bob.path("config/connection.json");
    let key = key_in(&path);
    for mode in [0o640, 0o604, 0o666] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let refused = bob.ml(&["status", "--json"]).exits(1);
        assert_eq!(refused.error()["code"], "key_mode", "{mode:o}");
        assert!(!refused.stderr.contains(&key), "{}", refused.stderr);
    }
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    bob.ml(&["status"]).exits(0);
    // Neither the daemon's files nor any process has the key itself.
    let found = Command::new("grep")
        .args(["-r", "-l", &key])
        .arg(mesh.place.data())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn a_permissions_file_narrows_at_once_and_a_broken_one_changes_nothing() {
    let mesh = Mesh::up();
    let bob = Person::at_home();
    bob.connect(&add(&mesh, "bob", "member"));
    bob.ml(&["secret", "list"]).exits(0);
    let path = mesh.place.data().join("permissions.yaml");
    let narrow = "version: 1\nroles:\n  member: [state.read, keys.own]\n";
    std::fs::write(&path, narrow).unwrap();
    // A file is taken when somebody says so.
    bob.ml(&["secret", "list"]).exits(0);
    mesh.ml(&["user", "permissions", "reload"]).exits(0);
    bob.is_refused(&["secret", "list"], "secrets.write");
    let shown = bob.ml(&["user", "permissions", "show", "--json"]).exits(0);
    assert_eq!(shown.json()["file"], path.to_str().unwrap());

    // Whatever becomes of the file, bob may not do more than before.
    let wide = "version: 1\nroles:\n  member: [\"*\"]\n";
    for (text, mode) in [(wide, 0o600), ("", 0o600), ("version: 1\n", 0o666)] {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let refused = mesh.ml(&["user", "permissions", "reload", "--json"]);
        assert_eq!(
            refused.exits(3).error()["code"],
            "permissions_file",
            "{text}"
        );
        bob.is_refused(&["secret", "list"], "secrets.write");
    }
    let checked = mesh.ml(&["user", "permissions", "check", path.to_str().unwrap()]);
    checked.exits(0);
    std::fs::write(&path, wide).unwrap();
    let checked = mesh.ml(&["user", "permissions", "check", path.to_str().unwrap()]);
    assert!(checked.exits(1).stderr.contains("permissions.yaml:3:"));
    // No daemon starts on it, nor without it.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    mesh.ml(&["down"]).exits(0);
    for gone in [false, true] {
        if gone {
            std::fs::remove_file(&path).unwrap();
        }
        let refused = mesh.ml(&["up", "--port", "0"]);
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.stderr.contains("permissions"), "{refused:?}");
    }
    std::fs::write(&path, narrow).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    mesh.ml(&["up", "--port", "0"]).exits(0);
    bob.is_refused(&["secret", "list"], "secrets.write");
}
