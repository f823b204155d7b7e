//! The shell: connections, the token, the lock around world and spool, and which
//! request is which call.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mlmesh_model::{Clock, Logged, RunId};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::artifacts::{ArtifactPath, Artifacts};
use super::decide::Call;
use super::http::{Body, Head, HttpError, answer, answer_head, go_on, reader};
use super::logged::logged;
use super::pages::bad_token;
use super::spool::{Flusher, Spool, SpoolError, history, spool_path};
use super::state::World;
use super::wire::{Fault, Fields, number_value};
use crate::clock::SystemClock;
use crate::redact::Redactor;

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// From here on connections are closed after each answer, so that others get their turn.
const CONNECTIONS_KEPT: usize = CONNECTIONS_MAX / 2;
/// A connection on which nothing comes for this time is closed.
const IDLE_WAIT: Duration = Duration::from_secs(60);
/// Before a failed accept, as for want of descriptors, is tried again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
const STACK_BYTES: usize = 256 << 10;
/// Points of a metric in one answer.
const HISTORY_MAX: usize = 25_000;
/// The release whose API this is.
const VERSION: &str = "3.17.2";
const JSON: &str = "application/json";

/// Everything that the threads of one attempt share.
pub(super) struct Server {
    folder: PathBuf,
    run: RunId,
    /// Its digest, so that comparing it tells nothing about it.
    token: Option<[u8; 32]>,
    kept: Mutex<Option<Kept>>,
    flusher: Mutex<Option<Arc<Flusher>>>,
    live: Mutex<Live>,
    changed: Condvar,
    artifacts: Artifacts,
}

struct Kept {
    world: World,
    spool: Spool,
}

#[derive(Default)]
struct Live {
    open: usize,
    closed: bool,
}

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Call(Call),
    History,
    /// Files of a run, by the run.
    RunFiles,
    /// Files by their path below all artifacts; without one, by the query's.
    Files(Option<String>),
    /// A call about a logged model, and which tag of it.
    Model(Call, String, Option<String>),
    /// Files of a logged model.
    ModelFiles(String),
    Text(&'static str),
    ServerInfo,
}

/// Accepts from now on.
pub(super) fn start(server: Arc<Server>, listener: TcpListener) -> io::Result<()> {
    let accepting = move || accept_all(&server, &listener);
    let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
    builder.spawn(accepting).map(drop)
}

fn accept_all(server: &Arc<Server>, listener: &TcpListener) {
    loop {
        server.wait_for_room();
        match listener.accept() {
            Ok((stream, _)) => {
                let serving = Connection::enter(Arc::clone(server));
                let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
                // Without a thread the closure is dropped, and the connection with it.
                drop(builder.spawn(move || serving.serve(&stream)));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => std::thread::sleep(ACCEPT_AGAIN),
        }
    }
}

/// One connection in the count of those that are open.
struct Connection(Arc<Server>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.live().open -= 1;
        self.0.changed.notify_all();
    }
}

impl Connection {
    fn enter(server: Arc<Server>) -> Self {
        server.live().open += 1;
        Self(server)
    }

    fn serve(&self, stream: &TcpStream) {
        // A connection that fails has nobody to tell.
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(IDLE_WAIT));
        let _ = stream.set_write_timeout(Some(IDLE_WAIT));
        let mut input = reader(stream);
        let mut output = stream;
        while matches!(self.0.serve_one(&mut input, &mut output), Ok(true)) {}
    }
}

impl Server {
    pub(super) fn new(folder: &Path, run: RunId, token: Option<String>) -> Self {
        Self {
            folder: folder.to_owned(),
            run,
            token: token.map(|token| Sha256::digest(token).into()),
            kept: Mutex::default(),
            flusher: Mutex::default(),
            live: Mutex::default(),
            changed: Condvar::new(),
            artifacts: Artifacts::of(folder),
        }
    }

    /// Waits for a change under way; later ones are refused. Gives what the attempt's own
    /// run was told.
    pub(super) fn close(&self, hidden: &Redactor) -> Option<Logged> {
        let kept = self.kept();
        self.live().closed = true;
        let world = &kept.as_ref()?.world;
        let own = world.run(&world.main).ok()?;
        logged(&own.params, &own.tags, hidden)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Numbers stay right whoever panicked.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        // Entries are applied whole: each is one insertion.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_room(&self) {
        let full = |live: &mut Live| live.open >= CONNECTIONS_MAX;
        drop(self.changed.wait_while(self.live(), full));
    }

    /// Answers one request; says whether the connection stays open.
    pub(super) fn serve_one(
        &self,
        input: &mut impl BufRead,
        output: &mut impl Write,
    ) -> Result<bool, HttpError> {
        let head = match Head::read(input) {
            Ok(None) => return Ok(false),
            Ok(Some(head)) => head,
            Err(error) => return refuse(output, error),
        };
        let mut body = Body::of(&head, input);
        go_on(&head, output)?;
        let answered = match self.admits(&head) {
            false => Err(Fault::unauthorized()),
            true => match self.answer(&head, &mut body) {
                Ok(answered) => answered,
                Err(error) => return refuse(output, error),
            },
        };
        let crowded = self.live().open > CONNECTIONS_KEPT;
        let keeps_open = body.skip() && head.keeps_open && !crowded;
        match answered {
            Ok(Answer::Json(value)) => {
                let text = serde_json::to_vec(&value).map_err(io::Error::from)?;
                answer(output, 200, JSON, &text, keeps_open)?;
            }
            Ok(Answer::File(mut file, length)) => {
                output.write_all(&answer_head(
                    200,
                    "application/octet-stream",
                    length,
                    keeps_open,
                ))?;
                let sent = io::copy(&mut io::Read::take(&mut file, length), output)?;
                // It has become shorter: the client must not wait for the rest.
                return Ok(keeps_open && sent == length);
            }
            Ok(Answer::Text(text)) => {
                answer(output, 200, "text/plain", text.as_bytes(), keeps_open)?;
            }
            Err(fault) => {
                let text = serde_json::to_vec(&fault.body()).map_err(io::Error::from)?;
                answer(output, fault.status, JSON, &text, keeps_open)?;
            }
        }
        Ok(keeps_open)
    }

    fn admits(&self, head: &Head) -> bool {
        let Some(expected) = &self.token else {
            return true;
        };
        let given = head.authorization.as_deref().unwrap_or_default();
        let given = given.strip_prefix("Bearer ").unwrap_or_default();
        // Of digests it does not matter how far they agree.
        Sha256::digest(given.trim())[..] == expected[..]
    }

    /// The outer error is the request's, the inner one the call's.
    fn answer(
        &self,
        head: &Head,
        body: &mut Body<'_, impl BufRead>,
    ) -> Result<Result<Answer, Fault>, HttpError> {
        let Some(route) = route(&head.method, &head.path) else {
            return Ok(Err(Fault::unknown(&head.method, &head.path)));
        };
        let mut fields = match head.method.as_str() {
            // A body is the file itself.
            "GET" | "PUT" | "DELETE" => head.query(),
            _ => match object(&body.json()?) {
                Ok(fields) => fields,
                Err(fault) => return Ok(Err(fault)),
            },
        };
        Ok(match route {
            Route::Text(text) => Ok(Answer::Text(text)),
            Route::ServerInfo => Ok(Answer::Json(json!({
                "store_type": "SqlStore",
                "workspaces_enabled": false,
                "trace_archival_enabled": false,
                "multipart_uploads_enabled": false,
                "multipart_downloads_enabled": false,
            }))),
            Route::Call(call) => self.call(call, &fields).map(Answer::Json),
            Route::History => self.history(&fields).map(Answer::Json),
            Route::Model(call, model, tag) => {
                fields.insert("model_id".to_owned(), model.into());
                if let Some(tag) = tag {
                    fields.insert("tag_key".to_owned(), tag.into());
                }
                self.call(call, &fields).map(Answer::Json)
            }
            Route::ModelFiles(id) => self.model_files(&id, &fields).map(Answer::Json),
            Route::RunFiles => self.run_files(&fields).map(Answer::Json),
            Route::Files(path) => self.files(&head.method, path, &fields, body),
        })
    }

    /// Decides, keeps, makes and flushes a change, then answers.
    fn call(&self, call: Call, fields: &Map<String, Value>) -> Result<Value, Fault> {
        let now_ms = now_ms();
        let (value, written) = self.with_kept(|kept| {
            let change = kept.world.decide(call, fields, now_ms)?;
            let written = kept.keep(change.entries)?;
            Ok((kept.world.render(change.reply), written))
        })?;
        if let Some(length) = written {
            self.flush(length)?;
        }
        Ok(value)
    }

    fn with_kept<T>(&self, work: impl FnOnce(&mut Kept) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut kept = self.kept();
        if self.live().closed {
            return Err(Fault::unavailable("the attempt has ended"));
        }
        match &mut *kept {
            Some(kept) => work(kept),
            nothing => {
                let opened = self.open().map_err(|error| {
                    Fault::unavailable(format!("open what this run has logged: {error}"))
                })?;
                work(nothing.insert(opened))
            }
        }
    }

    /// Takes up what is there already, or begins.
    fn open(&self) -> io::Result<Kept> {
        let mut world = World::default();
        let spool = Spool::open(&spool_path(&self.folder), |entry| world.apply(entry))?;
        *self.flusher.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::new(spool.flusher()?));
        let mut kept = Kept { world, spool };
        if kept.spool.is_empty() {
            let beginning = World::beginning(&self.run.to_string(), now_ms());
            let kept_so = kept.keep(beginning);
            kept_so.map_err(io::Error::other)?;
        }
        Ok(kept)
    }

    fn flush(&self, length: u64) -> Result<(), Fault> {
        let flusher = self.flusher.lock().unwrap_or_else(PoisonError::into_inner);
        let flusher = flusher.clone();
        let flushed = flusher.map_or(Ok(()), |flusher| flusher.flush(length));
        flushed.map_err(|error| Fault::unavailable(format!("write what was logged: {error}")))
    }

    /// Files of a run, whose paths are told from where its artifacts begin.
    fn run_files(&self, fields: &Map<String, Value>) -> Result<Value, Fault> {
        let ask = Fields::of(fields);
        let run = ask.run()?;
        let uri = self.with_kept(|kept| Ok(kept.world.run(run)?.info.artifacts.clone()))?;
        self.files_below(&uri, ask.text("path")?.unwrap_or_default())
    }

    fn model_files(&self, id: &str, fields: &Map<String, Value>) -> Result<Value, Fault> {
        let uri = self.with_kept(|kept| Ok(kept.world.model_artifacts(id)?.to_owned()))?;
        let path = Fields::of(fields).text("artifact_directory_path")?;
        self.files_below(&uri, path.unwrap_or_default())
    }

    fn files_below(&self, uri: &str, path: &str) -> Result<Value, Fault> {
        let root = uri.strip_prefix("mlflow-artifacts:/").ok_or_else(|| {
            Fault::invalid(format!("these artifacts are not kept here but at {uri}"))
        })?;
        let below = ArtifactPath::of(path)?;
        let path = ArtifactPath::of(root)?.join(&below);
        let files = self.artifacts.list(&path, Some(below.as_path()))?;
        Ok(json!({"root_uri": uri, "files": files}))
    }

    fn files(
        &self,
        method: &str,
        path: Option<String>,
        fields: &Map<String, Value>,
        body: &mut Body<'_, impl BufRead>,
    ) -> Result<Answer, Fault> {
        let Some(path) = path else {
            let ask = Fields::of(fields);
            let path = ArtifactPath::of(ask.text("path")?.unwrap_or_default())?;
            let files = self.artifacts.list(&path, None)?;
            return Ok(Answer::Json(json!({ "files": files })));
        };
        let path = ArtifactPath::of(&path)?;
        match method {
            "GET" => {
                let (file, length) = self.artifacts.open(&path)?;
                return Ok(Answer::File(file, length));
            }
            "PUT" => self.artifacts.store(&path, body)?,
            _ => self.artifacts.remove(&path)?,
        }
        Ok(Answer::Json(json!({})))
    }

    fn history(&self, fields: &Map<String, Value>) -> Result<Value, Fault> {
        let ask = Fields::of(fields);
        let (run, key) = (ask.run()?, ask.needed("metric_key")?);
        let asked = ask.whole("max_results")?;
        if let Some(count) = asked.filter(|count| *count <= 0) {
            return Err(Fault::invalid(format!(
                "Invalid value {count} for parameter 'max_results' supplied. It must be a positive \
                 integer."
            )));
        }
        let from = match ask.text("page_token")?.filter(|token| !token.is_empty()) {
            None => 0,
            Some(token) => token.parse().map_err(|_| bad_token())?,
        };
        self.with_kept(|kept| kept.world.run(run).map(drop))?;
        let max = asked.map_or(usize::MAX, |count| (count as usize).min(HISTORY_MAX));
        let page = history(&spool_path(&self.folder), run, key, from, max)
            .map_err(|error| Fault::unavailable(format!("read what was logged: {error}")))?;
        let metrics: Vec<Value> = page
            .points
            .into_iter()
            .map(|point| {
                json!({
                    "key": point.key,
                    "value": number_value(point.value.0),
                    "timestamp": point.timestamp_ms,
                    "step": point.step,
                })
            })
            .collect();
        let mut answer = json!({ "metrics": metrics });
        if let Some(next) = page.next {
            answer["next_page_token"] = next.to_string().into();
        }
        Ok(answer)
    }
}

impl Kept {
    /// Writes entries and makes their changes; says up to where to flush.
    fn keep(&mut self, entries: Vec<super::Entry>) -> Result<Option<u64>, Fault> {
        if entries.is_empty() {
            return Ok(None);
        }
        let written = self.spool.append(&entries).map_err(|error| match error {
            SpoolError::Full(_) => Fault::exhausted(error.to_string()),
            SpoolError::Io(_) => Fault::unavailable(error.to_string()),
        })?;
        for entry in entries {
            self.world.apply(entry);
        }
        Ok(Some(written))
    }
}

enum Answer {
    Json(Value),
    File(File, u64),
    Text(&'static str),
}

/// Ends a connection that cannot be followed any further.
fn refuse(output: &mut impl Write, error: HttpError) -> Result<bool, HttpError> {
    if let Some(status) = error.status() {
        let fault = Fault::bad(error.to_string()).body().to_string();
        answer(output, status, JSON, fault.as_bytes(), false)?;
    }
    Err(error)
}

/// A body that is an object. Old clients send it as a string, and none as nothing.
fn object(bytes: &[u8]) -> Result<Map<String, Value>, Fault> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    let value = match serde_json::from_slice(bytes) {
        Ok(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::Null),
        Ok(value) => value,
        Err(_) => Value::Null,
    };
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(Fault::bad("the body of a request is a JSON object")),
    }
}

fn now_ms() -> i64 {
    SystemClock.now().0 / 1000
}

fn route(method: &str, path: &str) -> Option<Route> {
    match (method, path) {
        ("GET", "/health") => return Some(Route::Text("OK")),
        ("GET", "/version") => return Some(Route::Text(VERSION)),
        _ => {}
    }
    let rest = ["/api/", "/ajax-api/"]
        .into_iter()
        .find_map(|begin| path.strip_prefix(begin))?;
    if let Some(path) = rest.strip_prefix("2.0/mlflow-artifacts/artifacts") {
        return match (method, path.trim_matches('/')) {
            ("GET", "") => Some(Route::Files(None)),
            ("GET" | "PUT" | "DELETE", path) => Some(Route::Files(Some(path.to_owned()))),
            _ => None,
        };
    }
    let rest = rest
        .strip_prefix("2.0/mlflow/")
        .or_else(|| rest.strip_prefix("3.0/mlflow/"))?;
    let call = match (method, rest) {
        ("GET", "server-info") => return Some(Route::ServerInfo),
        ("POST", "logged-models") => Call::CreateModel,
        ("POST", "logged-models/search") => Call::SearchModels,
        ("POST", "runs/search") => Call::SearchRuns,
        ("GET" | "POST", "experiments/search") => Call::SearchExperiments,
        ("GET", "artifacts/list") => return Some(Route::RunFiles),
        ("GET", "metrics/get-history") => return Some(Route::History),
        ("POST", "experiments/create") => Call::CreateExperiment,
        ("GET", "experiments/get") => Call::GetExperiment,
        ("GET", "experiments/get-by-name") => Call::GetExperimentByName,
        ("POST", "experiments/update") => Call::UpdateExperiment,
        ("POST", "experiments/delete") => Call::DeleteExperiment,
        ("POST", "experiments/restore") => Call::RestoreExperiment,
        ("POST", "experiments/set-experiment-tag") => Call::SetExperimentTag,
        ("POST", "runs/create") => Call::CreateRun,
        ("GET", "runs/get") => Call::GetRun,
        ("POST", "runs/update") => Call::UpdateRun,
        ("POST", "runs/delete") => Call::DeleteRun,
        ("POST", "runs/restore") => Call::RestoreRun,
        ("POST", "runs/log-metric") => Call::LogMetric,
        ("POST", "runs/log-parameter") => Call::LogParam,
        ("POST", "runs/log-batch") => Call::LogBatch,
        ("POST", "runs/set-tag") => Call::SetTag,
        ("POST", "runs/delete-tag") => Call::DeleteTag,
        ("POST", "runs/log-inputs") => Call::LogInputs,
        ("POST", "runs/outputs") => Call::LogOutputs,
        ("POST", "runs/log-model") => Call::LogModel,
        (method, rest) => return model_route(method, rest.strip_prefix("logged-models/")?),
    };
    Some(Route::Call(call))
}

fn model_route(method: &str, rest: &str) -> Option<Route> {
    let (id, what) = rest.split_once('/').unwrap_or((rest, ""));
    let tag = what.strip_prefix("tags/");
    let call = match (method, what) {
        ("GET", "") => Call::GetModel,
        ("PATCH", "") => Call::FinalizeModel,
        ("DELETE", "") => Call::DeleteModel,
        ("PATCH", "tags") => Call::TagModel,
        ("POST", "params") => Call::LogModelParams,
        ("DELETE", _) if tag.is_some() => Call::UntagModel,
        ("GET", "artifacts/directories") => return Some(Route::ModelFiles(id.to_owned())),
        _ => return None,
    };
    Some(Route::Model(call, id.to_owned(), tag.map(str::to_owned)))
}
