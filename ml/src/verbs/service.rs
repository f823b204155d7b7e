//! `ml service`: start, list, scale and stop. A replica is a run; whatever else is done to
//! runs is done to it by their verbs.

use mlmesh_api::{IdempotencyKey, ReplicaDto, RunDto, ServiceDto, ServicesDto};
use mlmesh_model::{Phase, RunId};
use serde_json::{Value, json};

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::follow::{Patient, ended_badly};
use crate::output::{Table, Tone};
use crate::verbs::submit;

/// Starts, lists, scales or stops.
pub(crate) fn service(context: &Context, verb: &cli::Service) -> Outcome {
    match verb {
        cli::Service::Start(verb) => start(context, verb),
        cli::Service::List => list(context),
        cli::Service::Endpoints => endpoints(context),
        cli::Service::Scale {
            name,
            replicas,
            no_wait,
        } => scale(context, name, *replicas, *no_wait),
        cli::Service::Stop { name, no_wait } => stop(context, name, *no_wait),
    }
}

fn start(context: &Context, verb: &cli::StartService) -> Outcome {
    let (accepted, client) = submit::submit_service(context, &verb.submit)?;
    let output = &context.output;
    let first = accepted.id;
    let services = client.services()?;
    let Some(service) = of_run(&services, first) else {
        // It has ended already.
        return Err(not_there(&client.run(&first.to_string())?));
    };
    output.say(format_args!(
        "queued service `{}` as {}",
        service.name,
        listed(service.replicas.iter().map(|replica| replica.run))
    ));
    if verb.no_wait {
        return said(context, service);
    }
    let runs: Vec<RunId> = service.replicas.iter().map(|replica| replica.run).collect();
    let name = service.name.clone();
    output.hint("Ctrl-C ends the waiting, not the service");
    let mut patient = Patient::with(context, client)?;
    until_ready(&mut patient, &runs)?;
    let services = patient.call(|client| client.services())?;
    match services.services.iter().find(|one| one.name == name) {
        Some(service) => said(context, service),
        None => Err(gone(&name)),
    }
}

/// Waits for each run; one that has ended instead is the failure.
fn until_ready(patient: &mut Patient, runs: &[RunId]) -> Outcome {
    for run in runs {
        let seen = patient.wait_until(&run.to_string(), |run| {
            run.phase == Phase::Ready || run.phase.is_ended()
        })?;
        if seen.phase.is_ended() {
            return Err(not_there(&seen));
        }
    }
    Ok(())
}

fn said(context: &Context, service: &ServiceDto) -> Outcome {
    let output = &context.output;
    if output.json {
        return output.json(&started(service));
    }
    for replica in &service.replicas {
        let addresses = addresses(replica);
        output.line(format_args!(
            "{} {} {addresses}",
            replica.run,
            word(replica)
        ))?;
    }
    Ok(())
}

/// What scripts read when a service has been started: the first replica, and all.
fn started(service: &ServiceDto) -> Value {
    let first = service.replicas.first();
    json!({
        "schema": "mlmesh.started_service/1",
        "name": service.name,
        "id": first.map(|replica| replica.run),
        "node": first.and_then(|replica| replica.node.clone()),
        "endpoints": first.map_or(&[][..], |replica| &replica.endpoints),
        "model": service.model,
        "replicas": service.replicas,
    })
}

fn list(context: &Context) -> Outcome {
    let services = context.client()?.services()?;
    let output = &context.output;
    if output.json {
        return output.json(&services);
    }
    if services.services.is_empty() {
        output.say("no service is there");
        output.hint("`ml service start RECIPE` starts one");
        return Ok(());
    }
    let mut table = Table::new(&[
        "SERVICE",
        "KIND",
        "MODEL",
        "RUN",
        "STATE",
        "TRIES",
        "ENDPOINTS",
    ]);
    for service in &services.services {
        let model = service.model.as_ref().map_or("-", |model| &model.name);
        let kind = service.kind.as_deref().unwrap_or("command");
        for replica in &service.replicas {
            let tone = match replica.phase {
                Phase::Ready => Tone::Good,
                _ => Tone::Busy,
            };
            let mut where_to = addresses(replica);
            if !replica.said.is_empty() {
                where_to = format!("{where_to} ({})", replica.said);
            }
            table.row([
                (service.name.clone(), Tone::Plain),
                (kind.to_owned(), Tone::Dim),
                (model.to_owned(), Tone::Plain),
                (replica.run.to_string(), Tone::Plain),
                (word(replica).to_owned(), tone),
                (replica.attempts.to_string(), Tone::Dim),
                (where_to, Tone::Plain),
            ]);
        }
    }
    output.table(&table)
}

fn endpoints(context: &Context) -> Outcome {
    let endpoints = context.client()?.endpoints()?;
    let output = &context.output;
    if output.json {
        return output.json(&endpoints);
    }
    if endpoints.endpoints.is_empty() {
        output.say("no replica is ready");
        return Ok(());
    }
    let mut table = Table::new(&["SERVICE", "URL", "RUN", "MODEL", "MADE BY"]);
    for endpoint in &endpoints.endpoints {
        let model = endpoint.model.as_ref();
        table.row([
            (endpoint.service.clone(), Tone::Plain),
            (endpoint.url.clone(), Tone::Plain),
            (endpoint.run.to_string(), Tone::Plain),
            (
                model.map_or("-".to_owned(), |model| {
                    format!("{} sha256:{}", model.name, model.sha256)
                }),
                Tone::Plain,
            ),
            (
                model.map_or("-".to_owned(), |model| model.run.to_string()),
                Tone::Plain,
            ),
        ]);
    }
    output.table(&table)
}

fn scale(context: &Context, name: &str, replicas: u32, no_wait: bool) -> Outcome {
    let client = context.client()?;
    let scaled = client.scale_service(name, replicas, &IdempotencyKey::random()?)?;
    if !no_wait {
        let mut patient = Patient::with(context, client)?;
        until_ended(&mut patient, &scaled.ending)?;
        until_ready(&mut patient, &scaled.replicas)?;
    }
    if context.output.json {
        return context.output.json(&scaled);
    }
    let now = scaled.replicas.len();
    let ending = scaled.ending.len();
    context
        .output
        .line(format_args!("{name}: {now} replicas, {ending} ended"))
}

fn stop(context: &Context, name: &str, no_wait: bool) -> Outcome {
    let client = context.client()?;
    let stopped = client.stop_service(name, &IdempotencyKey::random()?)?;
    if !no_wait {
        until_ended(&mut Patient::with(context, client)?, &stopped.ending)?;
    }
    if context.output.json {
        return context.output.json(&stopped);
    }
    let what = match no_wait {
        true => "stopping",
        false => "stopped",
    };
    let runs = listed(stopped.ending.iter().copied());
    context.output.line(format_args!("{what} {name}: {runs}"))
}

fn until_ended(patient: &mut Patient, runs: &[RunId]) -> Outcome {
    for run in runs {
        patient.wait_until(&run.to_string(), |run| run.phase.is_ended())?;
    }
    Ok(())
}

fn of_run(services: &ServicesDto, run: RunId) -> Option<&ServiceDto> {
    let mut all = services.services.iter();
    all.find(|service| service.replicas.iter().any(|replica| replica.run == run))
}

/// One word for where a replica stands: its phase, unless its health says more.
fn word(replica: &ReplicaDto) -> &'static str {
    match replica.health {
        Some(health) if replica.phase == Phase::Ready => match health {
            mlmesh_api::HealthWord::Healthy => "ready",
            other => other.as_str(),
        },
        _ => replica.phase.as_str(),
    }
}

fn addresses(replica: &ReplicaDto) -> String {
    let ports = replica.endpoints.iter();
    let ports = ports.map(|port| format!("{}={}", port.name, port.url));
    ports.collect::<Vec<_>>().join(" ")
}

fn listed(runs: impl Iterator<Item = RunId>) -> String {
    let runs: Vec<String> = runs.map(|run| run.to_string()).collect();
    runs.join(", ")
}

/// A replica has ended instead of becoming ready.
fn not_there(run: &RunDto) -> Failure {
    Failure {
        exit: Exit::Failed,
        ..ended_badly(run)
    }
}

fn gone(name: &str) -> Failure {
    Failure {
        exit: Exit::Failed,
        ..Failure::failed(
            "service_ended",
            format!("service `{name}` has ended"),
            "`ml list` shows its runs",
        )
    }
}
