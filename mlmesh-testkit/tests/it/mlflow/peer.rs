//! MLflow's own server, and the comparison of what it answers with what we do.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use super::PATIENCE;

/// Where answers differ, and why that is right. `Words`: code and status are the same.
const TOLERATED: &[(&str, Differs, &str)] = &[
    (
        "create it twice",
        Differs::Words,
        "theirs quotes the error of its database",
    ),
    (
        "rename to another's",
        Differs::All,
        "theirs is the error of its database",
    ),
    (
        "bad model name",
        Differs::Words,
        "ours says the longest name",
    ),
    (
        "bad status",
        Differs::All,
        "theirs leaves the status as it is and says nothing",
    ),
    (
        "greater text",
        Differs::Words,
        "theirs lists a set of Python, in any order",
    ),
    (
        "no attribute",
        Differs::Words,
        "theirs lists a set of Python, in any order",
    ),
    (
        "search nonsense",
        Differs::Words,
        "theirs lists a set of Python, in any order",
    ),
    (
        "no entity",
        Differs::Words,
        "ours cannot search by datasets",
    ),
    (
        "or",
        Differs::Words,
        "a parser of SQL joins what it does not know otherwise",
    ),
];

#[derive(Debug, PartialEq, Eq)]
enum Differs {
    Words,
    All,
}

/// MLflow's server on a database of its own, ended with all its processes.
pub(super) struct Server {
    child: Child,
    address: SocketAddr,
    home: tempfile::TempDir,
}

impl Server {
    pub(super) fn start(prefix: &Path) -> Self {
        let home = tempfile::Builder::new()
            .prefix("mlmesh-mlflow-")
            .tempdir()
            .unwrap();
        // It cannot say which port it took, so that one is looked for before.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let path = std::env::join_paths([prefix.join("bin"), "/usr/bin".into(), "/bin".into()]);
        let database = format!("sqlite:///{}/store.db", home.path().display());
        let log = std::fs::File::create(home.path().join("log")).unwrap();
        let child = Command::new(prefix.join("bin/mlflow"))
            .args(["server", "--host", "127.0.0.1", "--workers", "1", "--port"])
            .arg(address.port().to_string())
            .args(["--backend-store-uri", &database, "--artifacts-destination"])
            .arg(home.path().join("files"))
            .env_clear()
            .env("PATH", path.unwrap())
            .env("HOME", home.path())
            .env("TMPDIR", home.path())
            // They leave folders in shared memory, and nobody asks for them.
            .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            .env("GIT_PYTHON_REFRESH", "quiet")
            .current_dir(home.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            child,
            address,
            home,
        }
    }

    fn is_ready(&self) -> bool {
        let asked = TcpStream::connect(self.address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        });
        asked.is_ok_and(|said| said.contains(" 200 "))
    }

    /// Runs the script against this server and gives what it wrote.
    pub(super) fn answers(&self, prefix: &Path, script: &str) -> String {
        let ready = mlmesh_testkit::kill::wait_until(PATIENCE, || self.is_ready());
        let log = || std::fs::read_to_string(self.home.path().join("log"));
        assert!(ready, "{:?}", log());
        let asked = Command::new(prefix.join("bin/python"))
            .args(["-c", script])
            .env_clear()
            .env("HOME", self.home.path())
            .env("MLFLOW_TRACKING_URI", format!("http://{}", self.address))
            .env("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            .env("GIT_PYTHON_REFRESH", "quiet")
            .current_dir(self.home.path())
            .output()
            .unwrap();
        assert!(asked.status.success(), "{asked:?}\n{:?}", log());
        std::fs::read_to_string(self.home.path().join("outputs/answers.json")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// Every answer is the same, but for what [`TOLERATED`] names.
pub(super) fn compare(theirs: &str, ours: &str) {
    // The server's database has no infinity and keeps the largest number instead.
    let theirs = theirs.replace("1.7976931348623157e+308", "inf");
    let [theirs, ours] = [theirs.as_str(), ours].map(|text| {
        let answers: BTreeMap<String, Value> = serde_json::from_str(text).unwrap();
        answers
    });
    assert!(theirs.len() > 120, "{}", theirs.len());
    let mut differing = Vec::new();
    for (name, their) in &theirs {
        let tolerated = TOLERATED.iter().find(|(other, ..)| other == name);
        let our = ours.get(name).unwrap_or(&Value::Null);
        let (their, our) = match tolerated {
            Some((_, Differs::All, _)) => continue,
            Some((_, Differs::Words, _)) => (wordless(their), wordless(our)),
            None => (without_classes(their), without_classes(our)),
        };
        if their != our {
            differing.push(format!("{name}\n  theirs {their}\n  ours   {our}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert_eq!(theirs.len(), ours.len());
}

/// Without what only newer servers add to a refusal, and clients do not read.
fn without_classes(answer: &Value) -> Value {
    let mut answer = answer.clone();
    if let Some(refusal) = answer.get_mut(1).and_then(Value::as_object_mut) {
        refusal.remove("error_class");
        refusal.remove("sqlstate");
    }
    answer
}

fn wordless(answer: &Value) -> Value {
    let mut answer = without_classes(answer);
    if let Some(refusal) = answer.as_object_mut() {
        refusal.remove("says");
    }
    answer
}
