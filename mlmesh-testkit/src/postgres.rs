//! A private PostgreSQL server for a test: initialised in a temporary directory,
//! reachable through a socket in it (and, if a test asks, encrypted on loopback),
//! `fsync` on, gone with the guard. When the tests run as root it runs as an unprivileged user, because
//! PostgreSQL refuses root.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to start or to stop.
const START_MAX: Duration = Duration::from_secs(60);
const PORTS_TRIED_MAX: u32 = 5;

/// A running server. It stops when this is dropped, and also when the thread
/// that started it ends, so keep both together.
#[derive(Debug)]
pub struct PostgresServer {
    programs: PathBuf,
    user: Option<(u32, u32)>,
    directory: tempfile::TempDir,
    child: Option<Child>,
    schemas: u32,
    /// The loopback port, where it has one.
    port: Option<u16>,
}

impl PostgresServer {
    /// Starts a server. Without PostgreSQL on the machine this prints a line and
    /// returns none; under `CI=true` it panics, because there the part must exist.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let reason = "no PostgreSQL server programs in /usr/lib/postgresql/*/bin or PATH; \
                          install the package `postgresql`";
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{reason}");
            skipped(reason);
            return None;
        };
        Some(Self::start_with(programs).expect("a private PostgreSQL server starts"))
    }

    fn start_with(programs: PathBuf) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("pg").tempdir()?;
        let user = unprivileged_user()?;
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid))?;
        }
        let mut server = Self {
            programs,
            user,
            directory,
            child: None,
            schemas: 0,
            port: None,
        };
        // `--no-sync` concerns the empty cluster only; the server itself flushes.
        let output = server
            .command("initdb")
            .arg("--pgdata")
            .arg(server.data())
            .args(["--username=mlmesh", "--auth=trust", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C"])
            .output()
            .context("run initdb")?;
        ensure!(
            output.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        server.run()?;
        Ok(server)
    }

    /// Starts the server anew, on a loopback port too, where it takes plain connections
    /// and, with a certificate and its key in PEM, encrypted ones.
    pub fn listen(&mut self, certificate: Option<(&str, &str)>) -> anyhow::Result<u16> {
        self.stop()?;
        if let Some((certificate, key)) = certificate {
            for (name, text) in [("server.crt", certificate), ("server.key", key)] {
                let path = self.data().join(name);
                std::fs::write(&path, text)?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
                if let Some((uid, gid)) = self.user {
                    std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
                }
            }
        }
        // PostgreSQL cannot choose a port, so another process may be quicker.
        let mut tries = 0..PORTS_TRIED_MAX;
        loop {
            self.port = Some(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
            match self.run() {
                Ok(()) => return self.port.context("a port was chosen"),
                Err(error) if tries.next().is_none() => return Err(error),
                Err(_) => self.end(Signal::QUIT)?,
            }
        }
    }

    /// Starts the server again after [`Self::stop`] or [`Self::kill`].
    pub fn run(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "the server is running");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("server.log"))?;
        let address = self.port.map_or("", |_| "127.0.0.1");
        let encrypts = self.data().join("server.key").exists();
        let child = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.directory.path())
            .args(["-c", &format!("listen_addresses={address}")])
            .args(["-c", &format!("ssl={encrypts}"), "-c", "fsync=on"])
            .args(["-c", "max_connections=60", "-c", "shared_buffers=32MB"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start postgres")?;
        self.child = Some(child);
        self.wait_until_ready()
    }

    /// Stops the server in order; clients are disconnected.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.end(Signal::INT)
    }

    /// Ends the server at once, as a crash would; it recovers on the next start.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::QUIT)
    }

    /// Makes an empty schema and returns a connection string that uses it.
    pub fn new_schema(&mut self) -> anyhow::Result<String> {
        self.schemas += 1;
        let schema = format!("test_{}", self.schemas);
        self.psql(&format!("CREATE SCHEMA {schema}"))?;
        Ok(format!(
            "host={} user=mlmesh dbname=postgres options='-csearch_path={schema}'",
            self.directory.path().display()
        ))
    }

    /// As [`Self::new_schema`], in the form of a URL: what the daemon's setting takes.
    pub fn new_schema_url(&mut self) -> anyhow::Result<String> {
        self.new_schema()?;
        Ok(format!(
            "postgres:///postgres?host={}&user=mlmesh&options=-csearch_path%3Dtest_{}",
            self.directory.path().display(),
            self.schemas
        ))
    }

    /// Runs SQL as the owner of the cluster and returns what it prints.
    pub fn psql(&self, sql: &str) -> anyhow::Result<String> {
        let output = self
            .command("psql")
            .arg("-h")
            .arg(self.directory.path())
            .args(["-U", "mlmesh", "-d", "postgres", "-AtqX"])
            .args(["-v", "ON_ERROR_STOP=1", "-c", sql])
            .output()
            .context("run psql")?;
        ensure!(
            output.status.success(),
            "psql: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process id is positive")?, signal)?;
        let end = Instant::now() + START_MAX;
        while child.try_wait()?.is_none() {
            if Instant::now() > end {
                child.kill()?;
                child.wait()?;
                bail!("postgres did not stop in {START_MAX:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + START_MAX;
        loop {
            let ready = self
                .command("pg_isready")
                .arg("-h")
                .arg(self.directory.path())
                .args(["-U", "mlmesh", "-d", "postgres", "-q"])
                .status()
                .context("run pg_isready")?;
            if ready.success() {
                return Ok(());
            }
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?.is_some(),
                None => true,
            };
            if ended || Instant::now() > end {
                let log = std::fs::read_to_string(self.directory.path().join("server.log"));
                bail!("postgres did not start: {}", log.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A server program under the unprivileged user. It dies with the thread that
    /// started it, so a killed test leaves no server behind.
    fn command(&self, program: &str) -> Command {
        let path = self.programs.join(program);
        let mut command = match self.user {
            None => Command::new(path),
            Some((uid, gid)) => {
                let mut command = Command::new("setpriv");
                command
                    .arg(format!("--reuid={uid}"))
                    .arg(format!("--regid={gid}"))
                    .args(["--clear-groups", "--pdeathsig=KILL", "--"])
                    .arg(path);
                command
            }
        };
        command
            .current_dir(self.directory.path())
            .env("LC_ALL", "C")
            .env_remove("PGDATA");
        // Server and clients read it; the socket's name holds it too.
        if let Some(port) = self.port {
            command.env("PGPORT", port.to_string());
        }
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            skipped(&format!("stopping PostgreSQL: {error:#}"));
        }
    }
}

/// The folder with `postgres` and `initdb`, of the newest version installed.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, folder)| is_complete(folder))
        .collect();
    found.sort();
    let newest = found.pop().map(|(_, folder)| folder);
    newest.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|folder| is_complete(folder))
    })
}

fn is_complete(folder: &Path) -> bool {
    ["postgres", "initdb", "pg_isready", "psql"]
        .iter()
        .all(|program| folder.join(program).is_file())
}

/// For root: user and group of `postgres`, or else of `nobody`.
fn unprivileged_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    for wanted in ["postgres", "nobody"] {
        for line in users.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, uid, gid, ..] = fields.as_slice()
                && *name == wanted
            {
                return Ok(Some((uid.parse()?, gid.parse()?)));
            }
        }
    }
    bail!("neither `postgres` nor `nobody` is a user of this machine")
}

#[expect(clippy::print_stdout, reason = "a test says what it leaves out")]
fn skipped(reason: &str) {
    println!("skipped: {reason}");
}
