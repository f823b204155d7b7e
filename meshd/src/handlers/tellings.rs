//! What came of telling the ends of runs. What a command said is for those who may read
//! the run's logs.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use mlmesh_api::{TELLINGS_SCHEMA, TellingDto, TellingsDto};
use mlmesh_control::Caller;
use mlmesh_model::Permission;

use super::run_name;
use crate::daemon::Daemon;
use crate::http::query::Query;
use crate::reply::{ApiResult, ok};

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> ApiResult<Response> {
    let query = Query::parse(query.as_deref(), &["run"])?;
    let (run, reads) = match query.one("run")? {
        Some(name) => {
            let run = run_name::run(&daemon, &caller, name).await?;
            let reads = caller.reaches(&run.owner, Permission::OutputsReadOthers);
            (Some(run.id), reads)
        }
        None => (None, caller.may(Permission::OutputsReadOthers)),
    };
    let tellings = daemon.store.tellings(&caller.tenant, run).await?;
    let shown = tellings.iter().map(|telling| TellingDto {
        message: if reads {
            telling.message.clone()
        } else {
            String::new()
        },
        ..TellingDto::from(telling)
    });
    Ok(ok(&TellingsDto {
        schema: TELLINGS_SCHEMA.to_owned(),
        tellings: shown.collect(),
    }))
}
