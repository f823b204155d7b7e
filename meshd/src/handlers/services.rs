//! Services: which there are, where they answer, how many of them there are to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use mlmesh_api::{
    CHANGED_MODEL_SCHEMA, ChangedModelDto, ENDPOINTS_SCHEMA, EndpointDto, EndpointsDto,
    MAKER_SCHEMA, MODELS_SCHEMA, MakerDto, ModelDto, ModelsDto, PortDto, ReplicaDto,
    SCALED_SERVICE_SCHEMA, SERVICES_SCHEMA, ScaleServiceDto, ScaledServiceDto, ServedModelDto,
    ServiceDto, ServicesDto,
};
use mlmesh_control::{Caller, Replica};
use mlmesh_model::{AttemptNumber, Health, Name, ObjectId, PlanModel, PlanService, RunId};

use super::runs::idempotency_key;
use crate::daemon::Daemon;
use crate::http::body::read_json;
use crate::http::query::{PathParts, parsed};
use crate::limits::JSON_BYTES_MAX;
use crate::reply::{ApiError, ApiResult, ok};

/// Where services listen; the executor starts them on the daemon's own machine.
const HOST: &str = "127.0.0.1";

pub(crate) async fn list(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let mut services: BTreeMap<String, ServiceDto> = BTreeMap::new();
    for replica in daemon.control.services(&caller.tenant) {
        let Some(about) = about(&replica) else {
            continue;
        };
        let name = replica.run.name.to_string();
        let service = services.entry(name.clone()).or_insert_with(|| ServiceDto {
            name,
            owner: replica.run.owner.to_string(),
            kind: about.kind.as_ref().map(|kind| kind.name.to_string()),
            model: about.model.as_ref().map(served),
            ready: 0,
            replicas: Vec::new(),
        });
        service.ready += u32::from(is_ready(&replica));
        service.replicas.push(shown(&replica));
    }
    Ok(ok(&ServicesDto {
        schema: SERVICES_SCHEMA.to_owned(),
        services: services.into_values().collect(),
    }))
}

pub(crate) async fn endpoints(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let replicas = daemon.control.services(&caller.tenant);
    let ready = replicas.iter().filter(|replica| is_ready(replica));
    Ok(ok(&EndpointsDto {
        schema: ENDPOINTS_SCHEMA.to_owned(),
        endpoints: ready.filter_map(endpoint).collect(),
    }))
}

pub(crate) async fn models(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let mut models = Vec::new();
    for (replica, said) in daemon.control.models(&caller.tenant).await {
        let weights = about(&replica).and_then(|about| about.model.as_ref());
        let model = |name: String, loaded: bool, said: String| ModelDto {
            service: replica.run.name.to_string(),
            run: replica.run.id,
            weights: weights
                .filter(|weights| weights.name.as_str() == name)
                .map(served),
            name,
            loaded,
            said,
        };
        match said {
            Ok(all) => models.extend(
                all.into_iter()
                    .map(|one| model(one.name, one.loaded, one.said)),
            ),
            Err(why) => models.push(model(String::new(), false, why)),
        }
    }
    Ok(ok(&ModelsDto {
        schema: MODELS_SCHEMA.to_owned(),
        models,
    }))
}

pub(crate) async fn load(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    change_model(&daemon, &caller, &path, true).await
}

pub(crate) async fn unload(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    change_model(&daemon, &caller, &path, false).await
}

async fn change_model(
    daemon: &Daemon,
    caller: &Caller,
    path: &PathParts,
    load: bool,
) -> ApiResult<Response> {
    let service = path.first();
    // It becomes part of a path of the engine.
    let model: Name = parsed("model", path.second(), "a model's name")?;
    let changed = daemon
        .control
        .change_model(caller, service, model.as_str(), load);
    let replicas = changed.await?;
    Ok(ok(&ChangedModelDto {
        schema: CHANGED_MODEL_SCHEMA.to_owned(),
        service: service.to_owned(),
        model: model.to_string(),
        loaded: load,
        replicas,
    }))
}

pub(crate) async fn maker(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
) -> ApiResult<Response> {
    let ObjectId(sha256) = parsed("object", path.first(), "64 hex digits")?;
    let found = daemon.control.maker(&caller, sha256).await?;
    let found = found.ok_or_else(|| {
        ApiError::not_found(
            format!("no run that you may read has put out sha256:{sha256}"),
            "`ml outputs RUN` shows what a run put out",
        )
    })?;
    Ok(ok(&MakerDto {
        schema: MAKER_SCHEMA.to_owned(),
        sha256: found.sha256.to_string(),
        run: found.run,
        path: found.path,
        size: found.size,
    }))
}

pub(crate) async fn scale(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, &caller)?;
    let name = path.first().to_owned();
    let (wanted, _) = read_json::<ScaleServiceDto>(&headers, body, JSON_BYTES_MAX).await?;
    let scaled = daemon
        .control
        .scale_service(&caller, name.clone(), wanted.replicas, key);
    let (replicas, ending) = scaled.await?;
    Ok(ok(&changed(name, replicas, ending)))
}

pub(crate) async fn stop(
    State(daemon): State<Arc<Daemon>>,
    Extension(caller): Extension<Caller>,
    path: PathParts,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let key = idempotency_key(&headers, &caller)?;
    let name = path.first().to_owned();
    let stopped = daemon.control.stop_service(&caller, name.clone(), key);
    let ending = stopped.await?;
    Ok(ok(&changed(name, Vec::new(), ending)))
}

fn changed(name: String, replicas: Vec<RunId>, ending: Vec<RunId>) -> ScaledServiceDto {
    ScaledServiceDto {
        schema: SCALED_SERVICE_SCHEMA.to_owned(),
        name,
        replicas,
        ending,
    }
}

fn about(replica: &Replica) -> Option<&PlanService> {
    replica.run.plan.as_ref()?.service.as_ref()
}

fn is_ready(replica: &Replica) -> bool {
    let standing = replica.standing.as_ref();
    standing.is_some_and(|standing| standing.health == Health::Healthy)
}

fn shown(replica: &Replica) -> ReplicaDto {
    let standing = replica.standing.as_ref();
    let ports = standing.iter().flat_map(|standing| &standing.ports);
    ReplicaDto {
        run: replica.run.id,
        phase: replica.phase,
        health: standing.map(|standing| standing.health.into()),
        since: standing.map(|standing| standing.since.into()),
        said: standing.map_or(String::new(), |standing| standing.said.clone()),
        node: standing.map(|standing| standing.node.to_string()),
        attempts: standing.map_or(replica.run.attempts, |standing| {
            let AttemptNumber(number) = standing.attempt;
            number
        }),
        endpoints: ports
            .map(|(name, port)| PortDto {
                name: name.clone(),
                address: format!("{HOST}:{port}"),
                url: format!("http://{HOST}:{port}"),
            })
            .collect(),
    }
}

fn served(model: &PlanModel) -> ServedModelDto {
    ServedModelDto {
        name: model.name.to_string(),
        sha256: model.sha256.to_string(),
        run: model.run,
        path: model.path.clone(),
    }
}

fn endpoint(replica: &Replica) -> Option<EndpointDto> {
    let about = about(replica)?;
    let standing = replica.standing.as_ref()?;
    let named = about.ready.port.as_ref();
    let port = match named {
        Some(name) => standing.ports.get(name),
        None => standing.ports.values().next(),
    }?;
    let kind = about.kind.as_ref();
    Some(EndpointDto {
        service: replica.run.name.to_string(),
        run: replica.run.id,
        node: standing.node.to_string(),
        url: format!("http://{HOST}:{port}"),
        metrics: kind.and_then(|kind| kind.metrics.clone()),
        runtime: kind.and_then(|kind| kind.runtime.clone()),
        kind: kind.map(|kind| kind.name.to_string()),
        model: about.model.as_ref().map(served),
        since: standing.since.into(),
    })
}
