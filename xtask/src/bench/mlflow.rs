//! Points that a job logs through the MLflow REST API, durable when answered: a run's own
//! tracking against `mlflow server` on SQLite, the same raw client for both.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::Row;
use crate::mesh::Mesh;
use crate::workspace::Workspace;
use crate::{meter, parts, step};

/// Points in a batch, the most that the API takes.
const BATCH: u32 = 1000;
const OUR_BATCHES: u32 = 200;
const PEER_BATCHES: u32 = 10;
const OUR_SINGLES: u32 = 2000;
const PEER_SINGLES: u32 = 50;
const WAIT_MAX: Duration = Duration::from_secs(120);

/// What a server did with the same calls.
struct Seen {
    points_per_cpu_second: f64,
    points_per_second: f64,
    single_p50_ms: f64,
}

pub(super) fn run(workspace: &Workspace) -> Result<Vec<Row>> {
    let python = parts::test_python(workspace)?.context("no Python for MLflow's server")?;
    let ours = ours(workspace)?;
    let peer = peer(&python)?;
    Ok(vec![
        Row {
            work: "MLflow log-batch of 1,000, durable".to_owned(),
            ours: shown(&ours),
            goal: "≥ 50,000 points/s a core, ≥ 50×",
            peer: format!("mlflow server: {}", shown(&peer)),
            ratio: format!(
                "{:.0}× of CPU, {:.0}× of wall",
                ours.points_per_cpu_second / peer.points_per_cpu_second,
                ours.points_per_second / peer.points_per_second
            ),
        },
        Row {
            work: "single log_metric, p50".to_owned(),
            ours: format!("{:.2} ms", ours.single_p50_ms),
            goal: "≤ 1 ms",
            peer: format!("mlflow server: {:.1} ms", peer.single_p50_ms),
            ratio: format!("{:.0}× of wall", peer.single_p50_ms / ours.single_p50_ms),
        },
    ])
}

fn shown(seen: &Seen) -> String {
    format!(
        "{:.0} points/s of CPU, {:.0}/s of wall",
        seen.points_per_cpu_second, seen.points_per_second
    )
}

/// A job tells its address and its token, and is idle from then on.
fn ours(workspace: &Workspace) -> Result<Seen> {
    const JOB: &str = "echo \"$MLFLOW_TRACKING_URI $MLFLOW_RUN_ID $MLFLOW_TRACKING_TOKEN\" \
                       > \"$MEET.part\"; mv \"$MEET.part\" \"$MEET\"; exec sleep 600\n";
    let mesh = Mesh::new(workspace, "release")?;
    mesh.up()?;
    let project = mesh.folder().join("project");
    let meet = mesh.folder().join("meet");
    fs::create_dir(&project)?;
    fs::write(project.join("job.sh"), JOB)?;
    let recipe = format!(
        "experiment:\n  name: logs\n  command: [sh, job.sh]\n  seed: none\n  env: {{MEET: \"{}\"}}\n",
        meet.display()
    );
    fs::write(project.join("bench.yaml"), recipe)?;
    let words = ["queue", "bench.yaml", "-q", "--repro-policy", "relaxed"];
    step::quiet(mesh.ml(&words).current_dir(&project))?;
    let line = wait_for("the job", || fs::read_to_string(&meet).ok())?;
    let mut words = line.split_whitespace();
    let (uri, run) = (
        words.next().context("an address")?,
        words.next().context("a run")?,
    );
    let address = uri
        .strip_prefix("http://")
        .context("an address over HTTP")?;
    let mut client = Client::connect(address, words.next())?;
    // The supervisor is a child of the daemon's starter: its figures are in the daemon's.
    let daemon = mesh.pid()?;
    let seen = measure(&mut client, run, daemon, OUR_BATCHES, OUR_SINGLES)?;
    mesh.down()?;
    Ok(seen)
}

fn peer(python: &Path) -> Result<Seen> {
    let server = Server::start(python)?;
    let mut client = wait_for("mlflow server", || {
        let mut client = Client::connect(&server.address, None).ok()?;
        client.call("GET", "/health", None).ok()?;
        Some(client)
    })?;
    let body = json!({"experiment_id": "0", "start_time": 1});
    let created = client.post("runs/create", &body)?;
    let run = created["run"]["info"]["run_id"].as_str().context("a run")?;
    measure(&mut client, run, server.pid()?, PEER_BATCHES, PEER_SINGLES)
}

fn measure(client: &mut Client, run: &str, pid: Pid, batches: u32, singles: u32) -> Result<Seen> {
    client.batch(run, 0)?;
    let (cpu, start) = (meter::process(pid)?, Instant::now());
    for batch in 1..=batches {
        client.batch(run, batch)?;
    }
    let wall = start.elapsed().as_secs_f64();
    let cpu = meter::process(pid)? - cpu;
    let mut times = Vec::new();
    for step in 0..singles {
        let body = json!({"run_id": run, "key": "one", "value": 0.5, "timestamp": 1, "step": step});
        let start = Instant::now();
        client.post("runs/log-metric", &body)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let points = f64::from(batches * BATCH);
    Ok(Seen {
        points_per_cpu_second: points / cpu.max(0.01),
        points_per_second: points / wall,
        single_p50_ms: times[times.len() / 2],
    })
}

/// One connection that stays open.
struct Client {
    stream: BufReader<TcpStream>,
    token: String,
}

impl Client {
    fn connect(address: &str, token: Option<&str>) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
        Ok(Self {
            stream: BufReader::new(stream),
            token: token.unwrap_or_default(),
        })
    }

    fn batch(&mut self, run: &str, batch: u32) -> Result<()> {
        let point = |step: u32| json!({"key": format!("m{}", step % 10), "value": f64::from(step) / 7.0, "timestamp": step, "step": step});
        let points: Vec<Value> = (batch * BATCH..(batch + 1) * BATCH).map(point).collect();
        let body = json!({"run_id": run, "metrics": points});
        self.post("runs/log-batch", &body).map(drop)
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        let path = format!("/api/2.0/mlflow/{path}");
        let answer = self.call("POST", &path, Some(&body.to_string()))?;
        serde_json::from_slice(&answer).context("an answer in JSON")
    }

    fn call(&mut self, method: &str, path: &str, body: Option<&str>) -> Result<Vec<u8>> {
        let body = body.unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{}Content-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut status = String::new();
        self.stream.read_line(&mut status)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the server closed");
            let line = line.trim().to_ascii_lowercase();
            if let Some(text) = line.strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        ensure!(
            status.contains(" 200 "),
            "{status}: {}",
            answer.escape_ascii()
        );
        Ok(answer)
    }
}

/// MLflow's server in a group of its own, which ends with this value.
struct Server {
    child: Child,
    address: String,
    _home: tempfile::TempDir,
}

impl Server {
    fn start(python: &Path) -> Result<Self> {
        let home = tempfile::TempDir::with_prefix("mlmesh-mlflow-")?;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let folder = python.parent().context("the folder of Python")?;
        let path = std::env::join_paths([folder, Path::new("/usr/bin"), Path::new("/bin")])?;
        let child = Command::new(folder.join("mlflow"))
            .args(["server", "--host", "127.0.0.1", "--workers", "1", "--port"])
            .arg(free.port().to_string())
            .arg("--backend-store-uri")
            .arg(format!("sqlite:///{}/store.db", home.path().display()))
            .env("PATH", path)
            .env("TMPDIR", home.path())
            // They leave folders in shared memory, and nobody asks for them.
            .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
            .env("MLFLOW_DISABLE_TELEMETRY", "true")
            .env("GIT_PYTHON_REFRESH", "quiet")
            .current_dir(home.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start `mlflow server`")?;
        Ok(Self {
            child,
            address: free.to_string(),
            _home: home,
        })
    }

    fn pid(&self) -> Result<Pid> {
        Pid::from_raw(self.child.id().try_into()?).context("a process id")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(group) = self.pid() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        drop(self.child.wait());
    }
}

fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if start.elapsed() > WAIT_MAX {
            bail!("waited {WAIT_MAX:?} for {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
