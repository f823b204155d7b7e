//! The typed client: one method per route.

mod services;
mod users;

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use mlmesh_model::{CommitId, Digest, ObjectId, Phase, RunId, Submission};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::daemon_file::read_small;
use crate::transport::{CALL_TIMEOUT, Call, CallBody, LONG_CALL_TIMEOUT, Transport};
use crate::{
    AcceptedDto, AddedDto, AttemptsDto, AttestDto, AuditDto, AuditVerdictDto, CancelDto,
    CancelledDto, ChangeLabelsDto, ChangedRunsDto, ClientError, CommitDto, ConnectionFile,
    DaemonFile, DatasetDto, DatasetsDto, Endpoint, EventStream, ExplanationDto, HealthDto,
    IdempotencyKey, ImportDto, ImportedDto, LabelsDto, LogPageDto, OutputsDto, PinDto,
    PinRequestDto, PinsDto, PointsDto, PruneDto, PruneRequestDto, RegisterDatasetDto,
    ReproductionDto, ReproductionsDto, RetryDto, RunDto, RunsDto, ScrubDto, SecretDto, SecretsDto,
    SetSecretDto, StatusDto, StopDto, StopRequestDto, UploadDto, ValidationDto, read_key,
};

/// A daemon as a program sees it. Clones share one connection pool.
///
/// Where a method takes `run`, that is an id, a unique prefix of one, or `@last`.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Transport,
}

/// Which runs are listed.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only those in these phases; empty means all.
    pub phases: Vec<Phase>,
    /// Points of this sweep instead of the top level.
    pub parent: Option<String>,
    /// Only those of this owner.
    pub owner: Option<String>,
    /// Only those that match this expression, of every kind.
    pub expression: Option<String>,
    /// By this key instead of newest first, of every kind.
    pub sort: Option<String>,
    /// From a page's `next_cursor`.
    pub cursor: Option<u64>,
    /// At most this many; the server has a limit of its own.
    pub limit: Option<u32>,
}

impl Client {
    /// The daemon of a data directory, with the owner's key. Nothing is sent yet.
    pub fn open(data_dir: &Path) -> Result<Self, ClientError> {
        let key = read_key(&data_dir.join("owner.key"));
        let file = DaemonFile::read(data_dir)?;
        Self::of(&file, key?)
    }

    /// The daemon that `meshd.json` describes, with this key.
    pub fn of(file: &DaemonFile, key: String) -> Result<Self, ClientError> {
        Ok(Self::new(Endpoint {
            url: file.urls.api.clone(),
            ca_pem: read_small(&file.ca)?,
            key,
        }))
    }

    /// The daemon that a connection leads to.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Ok(Self::new(ConnectionFile::read(path)?.endpoint()))
    }

    /// A daemon at this endpoint.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            transport: Transport::new(endpoint),
        }
    }

    /// Where the daemon answers.
    pub fn url(&self) -> &str {
        &self.transport.endpoint.url
    }

    /// Whether the daemon can do its work; the answer says so also when it cannot.
    pub fn ready(&self) -> Result<HealthDto, ClientError> {
        match self.get("/health/ready".to_owned()) {
            Err(ClientError::Api { body, .. }) if body.details.is_object() => {
                serde_json::from_value(body.details).map_err(|error| ClientError::Answer {
                    route: "GET /health/ready".to_owned(),
                    reason: error.to_string(),
                })
            }
            other => other,
        }
    }

    /// Counts and the runs that matter now.
    pub fn status(&self) -> Result<StatusDto, ClientError> {
        self.get("/v1/status".to_owned())
    }

    /// What would run, and whether it may.
    pub fn explain(&self, submission: &Submission) -> Result<ExplanationDto, ClientError> {
        self.post("/v1/explain".to_owned(), submission, None)
    }

    /// Enqueues a run or a sweep. Returns when that is on disk.
    pub fn submit(
        &self,
        submission: &Submission,
        key: &IdempotencyKey,
    ) -> Result<AcceptedDto, ClientError> {
        self.post("/v1/runs".to_owned(), submission, Some(key))
    }

    /// A page of runs.
    pub fn runs(&self, filter: &RunFilter) -> Result<RunsDto, ClientError> {
        let mut query = Query::default();
        for phase in &filter.phases {
            query.push("phase", phase.as_str());
        }
        query.push_some("parent", filter.parent.as_deref());
        query.push_some("owner", filter.owner.as_deref());
        query.push_some("where", filter.expression.as_deref());
        query.push_some("sort", filter.sort.as_deref());
        query.push_some("cursor", filter.cursor);
        query.push_some("limit", filter.limit);
        self.get(query.after("/v1/runs"))
    }

    /// One run with everything that is recorded of it.
    pub fn run(&self, run: &str) -> Result<RunDto, ClientError> {
        self.get(format!("/v1/runs/{}", encoded(run)))
    }

    /// The same once the run is in another phase than the one given, or when `wait`
    /// is over.
    pub fn run_after(
        &self,
        run: &str,
        phase: Phase,
        wait: Duration,
    ) -> Result<RunDto, ClientError> {
        let mut query = Query::default();
        query.push("while", phase);
        query.push("wait_ms", wait.as_millis());
        self.get(query.after(&format!("/v1/runs/{}", encoded(run))))
    }

    /// The tries of a run.
    pub fn attempts(&self, run: &str) -> Result<AttemptsDto, ClientError> {
        self.get(format!("/v1/runs/{}/attempts", encoded(run)))
    }

    /// Points of a run's metrics (all of them without a name), thinned to so many buckets
    /// along `step` or `time`.
    pub fn points(
        &self,
        run: &str,
        metrics: &[String],
        buckets: Option<u32>,
        x: &str,
    ) -> Result<PointsDto, ClientError> {
        let mut query = Query::default();
        for metric in metrics {
            query.push("metric", metric.as_str());
        }
        query.push_some("buckets", buckets);
        query.push("x", x);
        self.get(query.after(&format!("/v1/runs/{}/points", encoded(run))))
    }

    /// The manifest of an ended run.
    pub fn manifest(&self, run: &str) -> Result<serde_json::Value, ClientError> {
        self.get(format!("/v1/runs/{}/manifest", encoded(run)))
    }

    /// The same, byte by byte as its digest in the run has it.
    pub fn manifest_bytes(&self, run: &str) -> Result<Vec<u8>, ClientError> {
        let path = format!("/v1/runs/{}/manifest", encoded(run));
        self.transport.bytes(&call("GET", path, CallBody::None))
    }

    /// What is wrong with a run.
    pub fn validate_run(&self, run: &str) -> Result<ValidationDto, ClientError> {
        self.get(format!("/v1/runs/{}/validation", encoded(run)))
    }

    /// What is wrong with a commit.
    pub fn validate_commit(&self, commit: &str) -> Result<ValidationDto, ClientError> {
        self.get(format!("/v1/commits/{}/validation", encoded(commit)))
    }

    /// The files that a run left.
    pub fn outputs(&self, run: &str) -> Result<OutputsDto, ClientError> {
        self.get(format!("/v1/runs/{}/outputs", encoded(run)))
    }

    /// A page of an attempt's log (the newest one's without a number), from the byte
    /// `from` of the log file on. With nothing there yet the daemon waits up to
    /// `wait` before it answers.
    pub fn logs(
        &self,
        run: &str,
        attempt: Option<u32>,
        from: u64,
        bytes_max: Option<u64>,
        wait: Duration,
    ) -> Result<LogPageDto, ClientError> {
        let mut query = Query::default();
        query.push_some("attempt", attempt);
        query.push("from", from);
        query.push_some("max", bytes_max);
        query.push("wait_ms", wait.as_millis());
        self.get(query.after(&format!("/v1/runs/{}/logs", encoded(run))))
    }

    /// Ends a run, or every point of a sweep.
    pub fn cancel(&self, run: &str, key: &IdempotencyKey) -> Result<ChangedRunsDto, ClientError> {
        self.long_post(
            format!("/v1/runs/{}/cancel", encoded(run)),
            &serde_json::json!({}),
            Some(key),
        )
    }

    /// Ends runs and sweeps, at most [`CANCEL_NAMES_MAX`](crate::CANCEL_NAMES_MAX): what
    /// became of each, in their order.
    pub fn cancel_each(
        &self,
        runs: &[String],
        key: &IdempotencyKey,
    ) -> Result<Vec<Result<ChangedRunsDto, ClientError>>, ClientError> {
        let runs = runs.to_vec();
        let body = CancelDto { runs };
        let answer: CancelledDto = self.long_post("/v1/cancel".to_owned(), &body, Some(key))?;
        let outcomes = answer.outcomes.into_iter();
        let outcomes = outcomes.map(|outcome| match (outcome.changed, outcome.error) {
            (Some(changed), _) => Ok(changed),
            (None, Some(body)) => Err(ClientError::Api {
                status: 200,
                body: Box::new(body),
            }),
            (None, None) => Err(ClientError::Answer {
                route: "POST /v1/cancel".to_owned(),
                reason: "an outcome is neither a change nor an error".to_owned(),
            }),
        });
        Ok(outcomes.collect())
    }

    /// Puts an ended run, or the ended points of a sweep, back into the queue.
    pub fn retry(
        &self,
        run: &str,
        retry: RetryDto,
        key: &IdempotencyKey,
    ) -> Result<ChangedRunsDto, ClientError> {
        self.long_post(
            format!("/v1/runs/{}/retry", encoded(run)),
            &retry,
            Some(key),
        )
    }

    /// Queues a run with the plan of a completed one, to be compared with it.
    pub fn reproduce(&self, run: &str, key: &IdempotencyKey) -> Result<AcceptedDto, ClientError> {
        self.long_post(
            format!("/v1/runs/{}/reproduce", encoded(run)),
            &serde_json::json!({}),
            Some(key),
        )
    }

    /// The repetitions of a run, and what came of each.
    pub fn reproductions(&self, run: &str) -> Result<ReproductionsDto, ClientError> {
        self.get(format!("/v1/runs/{}/reproductions", encoded(run)))
    }

    /// Keeps a signed statement about a repetition; the one that is kept comes back.
    pub fn attest(
        &self,
        repetition: RunId,
        statement: &AttestDto,
    ) -> Result<ReproductionDto, ClientError> {
        self.post(format!("/v1/runs/{repetition}/statement"), statement, None)
    }

    /// Which of these objects the daemon has, in their order.
    pub fn have(&self, ids: &[ObjectId]) -> Result<Vec<bool>, ClientError> {
        let body: Vec<u8> = ids.iter().flat_map(|id| *id.0.as_bytes()).collect();
        let answer = self.binary("/v1/objects/have", &body, None)?;
        if answer.len() == ids.len() {
            Ok(answer.into_iter().map(|byte| byte != 0).collect())
        } else {
            Err(ClientError::Answer {
                route: "POST /v1/objects/have".to_owned(),
                reason: format!("{} bytes for {} ids", answer.len(), ids.len()),
            })
        }
    }

    /// Sends objects in the frames of the content store.
    pub fn send_frames(&self, frames: &[u8]) -> Result<AddedDto, ClientError> {
        const ROUTE: &str = "/v1/objects/batch";
        answer_json(ROUTE, &self.binary(ROUTE, frames, None)?)
    }

    /// Declares a tree complete: its canonical listing, whose objects are all there.
    pub fn commit(&self, listing: &[u8], key: &IdempotencyKey) -> Result<CommitDto, ClientError> {
        let answer = self.binary("/v1/commits", listing, Some(key))?;
        answer_json("/v1/commits", &answer)
    }

    /// Records runs that ended elsewhere, whose objects and trees were sent.
    pub fn import(&self, import: &ImportDto) -> Result<ImportedDto, ClientError> {
        self.long_post("/v1/imports".to_owned(), import, None)
    }

    /// How far the upload of a large object has come.
    pub fn upload_position(&self, id: ObjectId) -> Result<UploadDto, ClientError> {
        self.get(format!("/v1/uploads/{id}"))
    }

    /// Sends the piece of a large object of `size` bytes that begins at `offset`. A
    /// piece that does not begin where the upload stands changes nothing; the answer
    /// says where it stands.
    pub fn upload_piece(
        &self,
        id: ObjectId,
        size: u64,
        offset: u64,
        piece: &[u8],
    ) -> Result<UploadDto, ClientError> {
        let path = format!("/v1/uploads/{id}?size={size}&offset={offset}");
        answer_json(&path, &self.binary(&path, piece, None)?)
    }

    /// Digests of those chunks of `manifest` (in the content store's byte form) that
    /// the daemon cannot take out of the objects `bases`; each once, in order.
    pub fn missing_chunks(
        &self,
        bases: &[ObjectId],
        manifest: &[u8],
    ) -> Result<Vec<Digest>, ClientError> {
        const ROUTE: &str = "/v1/chunks/missing";
        let answer = self.binary(ROUTE, &chunk_body(bases, manifest, &[]), None)?;
        let (digests, rest) = answer.as_chunks::<32>();
        if rest.is_empty() {
            Ok(digests
                .iter()
                .map(|bytes| Digest::from_bytes(*bytes))
                .collect())
        } else {
            Err(ClientError::Answer {
                route: format!("POST {ROUTE}"),
                reason: format!("{} bytes are no list of digests", answer.len()),
            })
        }
    }

    /// Has the daemon put an object together from chunks of `bases` and those in
    /// `frames`, which brings what [`Client::missing_chunks`] named, in that order.
    pub fn put_chunks(
        &self,
        bases: &[ObjectId],
        manifest: &[u8],
        frames: &[u8],
    ) -> Result<(), ClientError> {
        let body = chunk_body(bases, manifest, frames);
        self.binary("/v1/chunks", &body, None).map(drop)
    }

    /// The bytes of an object, as a stream. The caller checks them against the id.
    pub fn object(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, ClientError> {
        self.transport
            .reader(&call("GET", format!("/v1/objects/{id}"), CallBody::None))
    }

    /// The bytes of a small object.
    pub fn object_bytes(&self, id: ObjectId) -> Result<Vec<u8>, ClientError> {
        self.transport
            .bytes(&call("GET", format!("/v1/objects/{id}"), CallBody::None))
    }

    /// The listing of a commit, in its canonical byte form.
    pub fn commit_listing(&self, commit: CommitId) -> Result<Vec<u8>, ClientError> {
        self.object_bytes(ObjectId(commit.0))
    }

    /// What came of telling the end of a run, or without one of all that could not be told.
    pub fn tellings(&self, run: Option<&str>) -> Result<crate::TellingsDto, ClientError> {
        let query = run.map_or(String::new(), |run| format!("?run={}", encoded(run)));
        self.get(format!("/v1/tellings{query}"))
    }

    /// The catalog.
    pub fn datasets(&self) -> Result<DatasetsDto, ClientError> {
        self.get("/v1/datasets".to_owned())
    }

    /// Registers data where they lie. Every byte is read once.
    pub fn register_dataset(
        &self,
        dataset: &RegisterDatasetDto,
        key: &IdempotencyKey,
    ) -> Result<DatasetDto, ClientError> {
        self.long_post("/v1/datasets".to_owned(), dataset, Some(key))
    }

    /// Reads every byte of a dataset again.
    pub fn verify_dataset(&self, name: &str, version: &str) -> Result<DatasetDto, ClientError> {
        let path = format!("/v1/datasets/{}/{}/verify", encoded(name), encoded(version));
        self.long_post(path, &serde_json::json!({}), None)
    }

    /// Forgets a dataset. The data stay where they lie.
    pub fn remove_dataset(&self, name: &str, version: &str) -> Result<(), ClientError> {
        let path = format!("/v1/datasets/{}/{}", encoded(name), encoded(version));
        self.transport
            .bytes(&call("DELETE", path, CallBody::None))
            .map(drop)
    }

    /// The caller's stored secrets, without their values.
    pub fn secrets(&self) -> Result<SecretsDto, ClientError> {
        self.get("/v1/secrets".to_owned())
    }

    /// Stores a secret's value for the caller's runs.
    pub fn set_secret(&self, name: &str, value: &SetSecretDto) -> Result<SecretDto, ClientError> {
        let path = format!("/v1/secrets/{}", encoded(name));
        let body = CallBody::Json(json_bytes(&path, value)?);
        self.transport.json(&call("PUT", path, body))
    }

    /// Forgets a stored secret.
    pub fn remove_secret(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/secrets/{}", encoded(name));
        self.transport
            .bytes(&call("DELETE", path, CallBody::None))
            .map(drop)
    }

    /// What is kept from prune.
    pub fn pins(&self) -> Result<PinsDto, ClientError> {
        self.get("/v1/pins".to_owned())
    }

    /// Keeps a run or a commit from prune.
    pub fn pin(&self, target: &str, key: &IdempotencyKey) -> Result<PinDto, ClientError> {
        let target = target.to_owned();
        let body = PinRequestDto { target };
        self.post("/v1/pins".to_owned(), &body, Some(key))
    }

    /// Changes tags and the note of a run.
    pub fn label(
        &self,
        run: &str,
        change: &ChangeLabelsDto,
        key: &IdempotencyKey,
    ) -> Result<LabelsDto, ClientError> {
        let path = format!("/v1/runs/{}/labels", encoded(run));
        self.post(path, change, Some(key))
    }

    /// Lets prune take it again.
    pub fn unpin(&self, target: &str) -> Result<(), ClientError> {
        let path = format!("/v1/pins/{}", encoded(target));
        self.transport
            .bytes(&call("DELETE", path, CallBody::None))
            .map(drop)
    }

    /// Audit rows after row `after`.
    pub fn audit(&self, after: u64, limit: Option<u32>) -> Result<AuditDto, ClientError> {
        let mut query = Query::default();
        query.push("after", after);
        query.push_some("limit", limit);
        self.get(query.after("/v1/audit"))
    }

    /// Checks the whole audit trail.
    pub fn verify_audit(&self) -> Result<AuditVerdictDto, ClientError> {
        self.long_post("/v1/audit/verify".to_owned(), &serde_json::json!({}), None)
    }

    /// Removes what nothing refers to.
    pub fn prune(&self, request: &PruneRequestDto) -> Result<PruneDto, ClientError> {
        self.long_post("/v1/prune".to_owned(), request, None)
    }

    /// Begins to read everything that the content store holds, unless that goes on.
    pub fn begin_scrub(&self) -> Result<ScrubDto, ClientError> {
        self.post("/v1/scrub".to_owned(), &serde_json::json!({}), None)
    }

    /// How far the newest such reading is, and what it found.
    pub fn scrub(&self) -> Result<ScrubDto, ClientError> {
        self.get("/v1/scrub".to_owned())
    }

    /// Asks the daemon to go down. It answers first.
    pub fn stop(&self, request: &StopRequestDto) -> Result<StopDto, ClientError> {
        self.post("/v1/daemon/stop".to_owned(), request, None)
    }

    /// Events after `after`, as they happen.
    pub fn events(&self, after: u64) -> Result<EventStream, ClientError> {
        EventStream::connect(&self.transport.endpoint, after)
    }

    fn get<T: DeserializeOwned>(&self, path: String) -> Result<T, ClientError> {
        self.transport.json(&call("GET", path, CallBody::None))
    }

    fn post<T: DeserializeOwned>(
        &self,
        path: String,
        body: &impl Serialize,
        key: Option<&IdempotencyKey>,
    ) -> Result<T, ClientError> {
        let body = CallBody::Json(json_bytes(&path, body)?);
        self.transport.json(&Call {
            key,
            ..call("POST", path, body)
        })
    }

    fn long_post<T: DeserializeOwned>(
        &self,
        path: String,
        body: &impl Serialize,
        key: Option<&IdempotencyKey>,
    ) -> Result<T, ClientError> {
        let body = CallBody::Json(json_bytes(&path, body)?);
        let timeout = LONG_CALL_TIMEOUT;
        self.transport.json(&Call {
            key,
            timeout,
            ..call("POST", path, body)
        })
    }

    fn binary(
        &self,
        path: &str,
        body: &[u8],
        key: Option<&IdempotencyKey>,
    ) -> Result<Vec<u8>, ClientError> {
        let call = call("POST", path.to_owned(), CallBody::Binary(body));
        self.transport.bytes(&Call {
            key,
            timeout: LONG_CALL_TIMEOUT,
            ..call
        })
    }
}

fn call<'a>(method: &'static str, path: String, body: CallBody<'a>) -> Call<'a> {
    Call {
        method,
        path,
        body,
        key: None,
        timeout: CALL_TIMEOUT,
    }
}

/// `u8` number of bases, their ids, `u32` length of the manifest (little-endian), the
/// manifest, frames.
fn chunk_body(bases: &[ObjectId], manifest: &[u8], frames: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(5 + 32 * bases.len() + manifest.len() + frames.len());
    let bases = &bases[..bases.len().min(usize::from(u8::MAX))];
    body.push(bases.len() as u8);
    for base in bases {
        body.extend_from_slice(base.0.as_bytes());
    }
    body.extend_from_slice(&(manifest.len() as u32).to_le_bytes());
    body.extend_from_slice(manifest);
    body.extend_from_slice(frames);
    body
}

fn answer_json<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| ClientError::Answer {
        route: format!("POST {path}"),
        reason: error.to_string(),
    })
}

fn json_bytes(path: &str, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(body).map_err(|error| ClientError::Answer {
        route: format!("POST {path}"),
        reason: error.to_string(),
    })
}

/// A query string under construction.
#[derive(Default)]
struct Query(String);

impl Query {
    fn push(&mut self, name: &str, value: impl ToString) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        self.0.push_str(&encoded(&value.to_string()));
    }

    fn push_some(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.push(name, value);
        }
    }

    fn after(self, path: &str) -> String {
        format!("{path}{}", self.0)
    }
}

/// Percent-encodes everything but the unreserved characters of RFC 3986 and `@`.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'@' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(encoded("@last"), "@last");
        assert_eq!(encoded("../a?b&c d/é"), "..%2Fa%3Fb%26c%20d%2F%C3%A9");
    }

    #[test]
    fn a_query_repeats_its_phases() {
        let mut query = Query::default();
        query.push("phase", Phase::Queued);
        query.push("phase", Phase::Failed);
        query.push_some("limit", Some(3));
        query.push_some("cursor", None::<u64>);
        assert_eq!(
            query.after("/v1/runs"),
            "/v1/runs?phase=queued&phase=failed&limit=3"
        );
    }
}
