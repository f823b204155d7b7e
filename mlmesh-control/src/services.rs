//! Services as people see them: the live runs of one name, and what is done to all of
//! them together. Nothing of it is kept: which replicas there are, the store knows.

use std::sync::Arc;

use mlmesh_model::{
    AuditNote, Digest, EngineModel, Health, NewRun, NotChanged, Permission, Phase, Placement,
    Refusal, Run, RunId, RunKind, Service, Standing, Submit, Tenant, Trust,
};

use crate::actions::Changed;
use crate::config::Caller;
use crate::error::ControlError;
use crate::reactor::{Inner, KeyHeld};
use crate::{actions, admit};

/// A replica that has not ended.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Its run as it was last read.
    pub run: Arc<Run>,
    /// Where it stands.
    pub phase: Phase,
    /// What is known of it, once its command runs.
    pub standing: Option<Standing>,
}

/// All replicas of the tenant that have not ended, by name and in order of acceptance.
pub(crate) fn open(inner: &Inner, tenant: &Tenant) -> Vec<Replica> {
    let mut replicas: Vec<Replica> = {
        let state = inner.state();
        let services = state.runs.values();
        services
            .filter(|run| run.is_service() && run.tenant == *tenant)
            .filter_map(|run| {
                Some(Replica {
                    phase: state.scheduler.phase(run.id)?,
                    run: Arc::clone(run),
                    standing: None,
                })
            })
            .filter(|replica| !replica.phase.is_ended())
            .collect()
    };
    for replica in &mut replicas {
        replica.standing = inner.standings.of(replica.run.id);
    }
    replicas.sort_by(|one, other| {
        (&one.run.name, one.run.queued_at, one.run.id).cmp(&(
            &other.run.name,
            other.run.queued_at,
            other.run.id,
        ))
    });
    replicas
}

/// Requests that change which replicas a service has come one after the other.
pub(crate) async fn hold(inner: &Arc<Inner>, tenant: &Tenant, name: &str) -> KeyHeld {
    KeyHeld::take(inner, tenant, &format!("service {name}")).await
}

fn of_name(inner: &Inner, caller: &Caller, name: &str) -> Result<Vec<Replica>, ControlError> {
    let mut replicas = open(inner, &caller.tenant);
    replicas.retain(|replica| replica.run.name.as_str() == name);
    match replicas.is_empty() {
        true => Err(ControlError::NoService(name.to_owned())),
        false => Ok(replicas),
    }
}

/// Ends every replica.
pub(crate) async fn stop(
    inner: &Arc<Inner>,
    caller: &Caller,
    name: &str,
    key: Option<String>,
) -> Result<Vec<RunId>, ControlError> {
    let _held = hold(inner, &caller.tenant, name).await;
    let replicas = of_name(inner, caller, name)?;
    let ids: Vec<RunId> = replicas.iter().map(|replica| replica.run.id).collect();
    cancel(inner, caller, ids, key).await
}

async fn cancel(
    inner: &Arc<Inner>,
    caller: &Caller,
    ids: Vec<RunId>,
    key: Option<String>,
) -> Result<Vec<RunId>, ControlError> {
    let outcomes = actions::cancel(inner, caller, &ids, key).await?;
    let mut ended = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(Changed { runs, .. }) => ended.extend(runs),
            // It ended by itself meanwhile.
            Err(ControlError::Phase { .. } | ControlError::NoRun(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

/// Brings the number of replicas to `wanted`: the newest end first. Returns those that
/// are to be there then, and those that were told to end.
pub(crate) async fn scale(
    inner: &Arc<Inner>,
    caller: &Caller,
    name: &str,
    wanted: u32,
    key: Option<String>,
) -> Result<(Vec<RunId>, Vec<RunId>), ControlError> {
    if inner.cancel.is_cancelled() {
        return Err(ControlError::ShuttingDown);
    }
    let _held = hold(inner, &caller.tenant, name).await;
    let mut replicas = of_name(inner, caller, name)?;
    let Some(newest) = replicas.last().map(|replica| Arc::clone(&replica.run)) else {
        return Err(ControlError::NoService(name.to_owned()));
    };
    let what = || format!("to scale service `{name}`");
    let reached = caller.reach(&newest.owner, Permission::RunsCancelOthers, what);
    reached.map_err(Box::new)?;
    check(&newest, wanted)?;
    // What is on its way out does not count.
    replicas.retain(|replica| replica.phase != Phase::Draining);
    let mut ids: Vec<RunId> = replicas.iter().map(|replica| replica.run.id).collect();
    let wanted = wanted as usize;
    if wanted < ids.len() {
        let surplus = ids.split_off(wanted);
        let ended = cancel(inner, caller, surplus, key).await?;
        return Ok((ids, ended));
    }
    if wanted > ids.len() {
        let more = wanted - ids.len();
        ids.extend(grow(inner, caller, &newest, more, key).await?);
    }
    Ok((ids, Vec::new()))
}

fn check(newest: &Run, wanted: u32) -> Result<(), ControlError> {
    let refused = |code: &str, message: String, hint: String| {
        Err(ControlError::Refused(vec![Refusal::new(
            code, message, hint,
        )]))
    };
    let name = &newest.name;
    if !(1..=Service::REPLICAS_MAX).contains(&wanted) {
        return refused(
            "replicas_out_of_range",
            format!(
                "{wanted} replicas of `{name}` were asked for; from 1 to {} are possible",
                Service::REPLICAS_MAX
            ),
            format!("`ml service stop {name}` ends all of them"),
        );
    }
    let service = newest.plan.as_ref().and_then(|plan| plan.service.as_ref());
    let fixed = service.is_some_and(|service| service.ports.values().any(|port| *port != 0));
    if fixed && wanted > 1 {
        return refused(
            "replicas_out_of_range",
            format!("the recipe of `{name}` names a port, on which one replica alone can listen"),
            "write `auto` for the port and start it again".to_owned(),
        );
    }
    Ok(())
}

/// Queues replicas with the plan of one that is there.
async fn grow(
    inner: &Arc<Inner>,
    caller: &Caller,
    like: &Run,
    more: usize,
    key: Option<String>,
) -> Result<Vec<RunId>, ControlError> {
    let time = inner.ports.clock.now();
    let request = format!("service.scale {} {more} beside {}", like.name, like.id);
    let request_sha256 = Digest::of(request.as_bytes());
    let runs: Vec<Run> = (0..more)
        .map(|_| {
            let mut run = Run::from(NewRun {
                id: RunId::from_random((inner.ports.random)()),
                tenant: like.tenant.clone(),
                owner: like.owner.clone(),
                name: like.name.clone(),
                kind: RunKind::Single,
                commit: like.commit,
                plan: like.plan.clone(),
                plan_sha256: like.plan_sha256,
                placement: Placement {
                    node: None,
                    ..like.placement.clone()
                },
                git: like.git.clone(),
                trust: like.trust.clone().map(|trust| Trust {
                    reproduced: None,
                    ..trust
                }),
                queued_at: time,
            });
            run.labels.tags.clone_from(&like.labels.tags);
            run
        })
        .collect();
    let submit = Submit {
        idempotency_key: key,
        request_sha256,
        audit: AuditNote {
            time,
            tenant: caller.tenant.clone(),
            owner: caller.owner.clone(),
            key: caller.key.clone(),
            remote: caller.remote.clone(),
            action: "service.scale".into(),
            subject: like.name.to_string(),
            details_sha256: Some(request_sha256),
        },
        runs,
    };
    let accepted = admit::enqueue(inner, submit, Default::default()).await?;
    Ok(accepted.children)
}

/// What the engine of a replica says of its models, or why it says nothing.
pub type ModelsSaid = Result<Vec<EngineModel>, String>;

/// Models of every replica that is offered.
pub(crate) async fn models(inner: &Inner, tenant: &Tenant) -> Vec<(Replica, ModelsSaid)> {
    let ready = open(inner, tenant).into_iter();
    let asked = ready.filter_map(|replica| {
        let port = asked_port(&replica)?;
        Some(async move { (replica, inner.ports.prober.models(port).await) })
    });
    futures_util::future::join_all(asked).await
}

/// The port of a healthy replica that requests go to.
fn asked_port(replica: &Replica) -> Option<u16> {
    let standing = replica.standing.as_ref()?;
    let service = replica.run.plan.as_ref()?.service.as_ref()?;
    let port = match &service.ready.port {
        Some(name) => standing.ports.get(name),
        None => standing.ports.values().next(),
    };
    port.copied().filter(|_| standing.health == Health::Healthy)
}

/// Has every replica of a service load a model, or unload it.
pub(crate) async fn change_model(
    inner: &Arc<Inner>,
    caller: &Caller,
    name: &str,
    model: &str,
    load: bool,
) -> Result<Vec<RunId>, ControlError> {
    let replicas = of_name(inner, caller, name)?;
    let what = || format!("to change models of service `{name}`");
    for replica in &replicas {
        let reached = caller.reach(&replica.run.owner, Permission::RunsCancelOthers, what);
        reached.map_err(Box::new)?;
    }
    let mut changed = Vec::new();
    for replica in &replicas {
        let Some(port) = asked_port(replica) else {
            continue;
        };
        let asked = inner
            .ports
            .prober
            .change_model(port, model.to_owned(), load);
        asked.await.map_err(|why| not_changed(name, replica, why))?;
        changed.push(replica.run.id);
    }
    let note = AuditNote {
        time: inner.ports.clock.now(),
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        key: caller.key.clone(),
        remote: caller.remote.clone(),
        action: if load { "model.load" } else { "model.unload" }.into(),
        subject: format!("{name}/{model}"),
        details_sha256: None,
    };
    inner.ports.store.record(None, Some(note)).await?;
    Ok(changed)
}

fn not_changed(name: &str, replica: &Replica, why: NotChanged) -> ControlError {
    let (code, message, hint) = match why {
        NotChanged::NoRepository => (
            "model_control_unavailable",
            format!(
                "the engine of `{name}` has no repository of models: what it serves comes and \
                 goes with it"
            ),
            "`ml service start` and `stop` do; kinds with a repository are triton and mlserver",
        ),
        NotChanged::Said(said) => (
            "model_not_changed",
            format!("replica `{}` of `{name}`: {said}", replica.run.id),
            "Triton loads and unloads on demand with `parameters: {control: explicit}`",
        ),
    };
    ControlError::Refused(vec![Refusal::new(code, message, hint)])
}
