//! `ml model`: what engines of services have loaded, and the weights behind it.

use mlmesh_api::{Client, IdempotencyKey};

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::{Table, Tone};
use crate::verbs::pins;

/// Lists, loads, unloads; keeps weights.
pub(crate) fn model(context: &Context, verb: &cli::Model) -> Outcome {
    match verb {
        cli::Model::List => list(context),
        cli::Model::Load { service, model } => change(context, service, model, true),
        cli::Model::Unload { service, model } => change(context, service, model, false),
        cli::Model::Pin { model } => pin(context, model),
        cli::Model::Unpin { model } => {
            let run = maker(&context.client()?, model)?;
            let targets = vec![run];
            pins::unpin(context, &cli::Unpin { targets })
        }
    }
}

fn list(context: &Context) -> Outcome {
    let models = context.client()?.models()?;
    let output = &context.output;
    if output.json {
        return output.json(&models);
    }
    if models.models.is_empty() {
        output.say("no service is ready");
        return Ok(());
    }
    let mut table = Table::new(&["SERVICE", "RUN", "MODEL", "LOADED", "MADE BY", "SAYS"]);
    for model in &models.models {
        let maker = model.weights.as_ref();
        let maker = maker.map_or("-".to_owned(), |weights| weights.run.to_string());
        let (loaded, tone) = match model.loaded {
            true => ("yes", Tone::Good),
            false => ("no", Tone::Warn),
        };
        table.row([
            (model.service.clone(), Tone::Plain),
            (model.run.to_string(), Tone::Plain),
            (model.name.clone(), Tone::Plain),
            (loaded.to_owned(), tone),
            (maker, Tone::Plain),
            (model.said.clone(), Tone::Dim),
        ]);
    }
    output.table(&table)
}

fn change(context: &Context, service: &str, model: &str, load: bool) -> Outcome {
    let changed = context.client()?.change_model(service, model, load)?;
    if context.output.json {
        return context.output.json(&changed);
    }
    let verb = if load { "loaded" } else { "unloaded" };
    let count = changed.replicas.len();
    let line = format!("{verb} {model} in {count} replicas of {service}");
    context.output.line(line)
}

fn pin(context: &Context, model: &str) -> Outcome {
    let client = context.client()?;
    let run = maker(&client, model)?;
    let pin = client.pin(&run, &IdempotencyKey::random()?)?;
    if context.output.json {
        return context.output.json(&pin);
    }
    let line = format!("pinned run {run}, which put out the weights of {model}");
    context.output.line(line)
}

/// The run that put out the weights of a service, or of a model by its name.
fn maker(client: &Client, name: &str) -> Outcome<String> {
    let services = client.services()?.services;
    let mut models = services.iter().filter_map(|service| {
        let model = service.model.as_ref()?;
        (service.name == name || model.name == name).then_some(model)
    });
    let found = models.next().map(|model| model.run.to_string());
    found.ok_or_else(|| Failure {
        exit: Exit::NotFound,
        ..Failure::failed(
            "not_found",
            format!("no service has weights under the name `{name}`"),
            "`ml service endpoints` shows them; `ml pin RUN` keeps a run that nobody serves",
        )
    })
}
