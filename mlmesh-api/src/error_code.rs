//! Every error code that the API answers with. A code is stable: scripts compare it.
//! `docs/errors.md` has a row for each; refusals of preflight carry codes of their own,
//! listed there too.

/// No key, or one that is not known.
pub const UNAUTHENTICATED: &str = "unauthenticated";
/// The key is known and may not do this.
pub const FORBIDDEN: &str = "forbidden";
/// No route, run, dataset, commit or object of that name.
pub const NOT_FOUND: &str = "not_found";
/// The prefix of an id fits several runs.
pub const AMBIGUOUS_ID: &str = "ambiguous_id";
/// The route exists, for other methods.
pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
/// The body is not JSON of the documented shape.
pub const BAD_REQUEST: &str = "bad_request";
/// A query parameter or a part of the path is not what it has to be.
pub const BAD_PARAMETER: &str = "bad_parameter";
/// The body's content type is not the one that the route reads.
pub const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported_media_type";
/// The body is larger than the route takes.
pub const BODY_TOO_LARGE: &str = "body_too_large";
/// The body did not arrive in time.
pub const REQUEST_TIMEOUT: &str = "request_timeout";
/// Preflight refuses; `details.refusals` has each reason.
pub const REFUSED: &str = "refused";
/// The idempotency key was used for another request.
pub const IDEMPOTENCY_MISMATCH: &str = "idempotency_mismatch";
/// Name and version of a dataset are taken by other data.
pub const DATASET_EXISTS: &str = "dataset_exists";
/// The path cannot be registered: nobody may read it, or it holds what is no data.
pub const DATASET_UNREADABLE: &str = "dataset_unreadable";
/// The data are not what the registered checksum says.
pub const DATASET_CHANGED: &str = "dataset_changed";
/// The data have another checksum than was asked for.
pub const DATASET_CHECKSUM_DIFFERS: &str = "dataset_checksum_differs";
/// A result under an old lease.
pub const STALE_TOKEN: &str = "stale_token";
/// The run is in a phase in which this is not possible.
pub const WRONG_PHASE: &str = "wrong_phase";
/// The commit lacks objects in the store.
pub const COMMIT_INCOMPLETE: &str = "commit_incomplete";
/// What is imported contradicts itself, or its signature does not hold.
pub const BAD_IMPORT: &str = "bad_import";
/// A signed statement is not about the judgement that it is to be kept with.
pub const BAD_STATEMENT: &str = "bad_statement";
/// A run of this id is there, and it is another one.
pub const RUN_EXISTS: &str = "run_exists";
/// An object, frame or listing is not what its digest or form says.
pub const BAD_OBJECT: &str = "bad_object";
/// A part of the daemon is away: retry later.
pub const UNAVAILABLE: &str = "unavailable";
/// The name of a user is taken.
pub const USER_EXISTS: &str = "user_exists";
/// The name of a key, or the key itself, is taken.
pub const KEY_EXISTS: &str = "key_exists";
/// Nobody could change users and keys any more.
pub const LAST_ADMIN: &str = "last_admin";
/// The permissions file is not taken; what held before goes on.
pub const PERMISSIONS_FILE: &str = "permissions_file";
/// The daemon is on its way down.
pub const SHUTTING_DOWN: &str = "shutting_down";
/// The store or the objects hold something that nobody of ours can have written.
pub const DAMAGED: &str = "damaged";
/// The disk is full.
pub const NO_SPACE: &str = "no_space";
/// A defect of ours.
pub const INTERNAL: &str = "internal";
/// The daemon does not answer (said by the client).
pub const DAEMON_UNREACHABLE: &str = "daemon_unreachable";
/// No gateway answers (said by the client).
pub const GATEWAY_UNREACHABLE: &str = "gateway_unreachable";
/// The data directory has no daemon's file (said by the client).
pub const NO_DAEMON: &str = "no_daemon";
/// A key file is readable by others (said by the client and by the daemon).
pub const KEY_MODE: &str = "key_mode";
/// Who answers does not hold the data directory's certificate (said by the client).
pub const DAEMON_UNTRUSTED: &str = "daemon_untrusted";
/// The answer is not of the documented shape (said by the client).
pub const BAD_ANSWER: &str = "bad_answer";
/// An attempt has posted as much as it may.
pub const BUDGET_EXHAUSTED: &str = "budget_exhausted";
/// The operation failed on this machine (said by the client and by `meshd`).
pub const LOCAL: &str = "local_failure";
/// A setting that is not known, or a value that it does not take.
pub const BAD_SETTING: &str = "bad_setting";

/// All of them, in the order of this file.
pub const ERROR_CODES: &[&str] = &[
    UNAUTHENTICATED,
    FORBIDDEN,
    NOT_FOUND,
    AMBIGUOUS_ID,
    METHOD_NOT_ALLOWED,
    BAD_REQUEST,
    BAD_PARAMETER,
    UNSUPPORTED_MEDIA_TYPE,
    BODY_TOO_LARGE,
    REQUEST_TIMEOUT,
    REFUSED,
    IDEMPOTENCY_MISMATCH,
    DATASET_EXISTS,
    DATASET_UNREADABLE,
    DATASET_CHANGED,
    DATASET_CHECKSUM_DIFFERS,
    STALE_TOKEN,
    WRONG_PHASE,
    COMMIT_INCOMPLETE,
    BAD_IMPORT,
    BAD_STATEMENT,
    RUN_EXISTS,
    BAD_OBJECT,
    UNAVAILABLE,
    USER_EXISTS,
    KEY_EXISTS,
    LAST_ADMIN,
    PERMISSIONS_FILE,
    SHUTTING_DOWN,
    DAMAGED,
    NO_SPACE,
    INTERNAL,
    DAEMON_UNREACHABLE,
    GATEWAY_UNREACHABLE,
    NO_DAEMON,
    KEY_MODE,
    DAEMON_UNTRUSTED,
    BAD_ANSWER,
    BUDGET_EXHAUSTED,
    LOCAL,
    BAD_SETTING,
];
