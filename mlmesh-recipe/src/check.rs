//! The parser's rules for a workload that some other program has written: what
//! arrives over the wire obeys them too, or is refused before it is planned.
//!
//! Types have checked names and digests. References in the command are checked
//! by [`crate::substitute`], the number of points by [`crate::expand`].

use std::collections::BTreeSet;

use mlmesh_model::{
    Environment, Experiment, Keep, Network, ParamValue, ReadyRequest, Refusal, Resources, Seed,
    Service, Sweep, Workload,
};

use crate::error::{Fault, code, shown};
use crate::experiment::{ARGUMENTS_MAX, ENTRIES_MAX, ITEMS_MAX, RETRIES_MAX, argument};
use crate::fields::{bound, check_on_finish};
use crate::hosts::{self, HOSTS_MAX};
use crate::rules;
use crate::scalar::{INTEGER_END, clean_text};
use crate::service::{http_path, port_name};
use crate::sweep::AXES_MAX;
use crate::units::{CPUS_MAX, GPUS_MAX, TIME_S_MAX};

/// Checks what `parse` would have checked, without places.
///
/// # Errors
/// The first value that no recipe could have said.
pub fn check(workload: &Workload) -> Result<(), Refusal> {
    let experiment = workload.job();
    command(experiment)
        .and_then(|()| params(experiment))
        .and_then(|()| sweep(experiment))
        .and_then(|()| inputs(experiment))
        .and_then(|()| outputs(experiment))
        .and_then(|()| resources(&experiment.resources))
        .and_then(|()| variables(experiment))
        .and_then(|()| policy(experiment))
        .and_then(|()| workload.service().map_or(Ok(()), service))
        .map_err(|fault| Refusal::new(code::VALUE, fault.message, fault.hint))
}

/// Checks the name of a secret, as `secrets:` in a recipe would.
///
/// # Errors
/// A name that no recipe could have.
pub fn check_secret_name(name: &str) -> Result<(), Refusal> {
    rules::variable_name(name).map_err(|fault| Refusal::new(code::VALUE, fault.message, fault.hint))
}

type Checked = Result<(), Fault>;

/// What the table of `service:` could not have said.
fn service(service: &Service) -> Checked {
    let fault = |message: &str, hint: &str| Err(Fault::new(message.to_owned(), hint));
    let job = &service.job;
    if job.sweep.is_some() || job.retries > 0 || !job.after.is_empty() || !job.outputs.is_empty() {
        return fault(
            "a service has neither a sweep, outputs, `retries` nor `after`",
            "`restart` says after which ends it is started again",
        );
    }
    if service.ports.is_empty() {
        return fault("a service lacks `ports`", "write `ports: {http: auto}`");
    }
    at_most("ports", service.ports.len(), Service::PORTS_MAX)?;
    service.ports.keys().try_for_each(|name| port_name(name))?;
    let ready = &service.ready;
    let port = ready.port.as_ref();
    if port.is_some_and(|port| !service.ports.contains_key(port)) {
        return fault(
            "`ready` names no port of the service",
            "name one of `ports`",
        );
    }
    if let ReadyRequest::Http(path) = &ready.request {
        http_path(path)?;
    }
    ready.health.as_deref().map_or(Ok(()), http_path)?;
    let paths = service.kind.iter().flat_map(|kind| &kind.metrics);
    paths.into_iter().try_for_each(|path| http_path(path))?;
    if !(1..=Service::REPLICAS_MAX).contains(&service.replicas) {
        return Err(out_of_range(
            "replicas",
            u64::from(service.replicas),
            "from 1 to 64",
        ));
    }
    let keep = &service.keep;
    let times = [Some(ready.timeout_s), keep.ttl_s, Some(keep.drain_s)];
    if let Some(time) = times.into_iter().flatten().find(|time| *time > TIME_S_MAX) {
        return Err(out_of_range("a duration", time, "at most 366 d"));
    }
    if keep.restarts_max > Keep::RESTARTS_MAX {
        return Err(out_of_range(
            "restarts",
            u64::from(keep.restarts_max),
            "at most 1000",
        ));
    }
    let fixed = service.ports.values().any(|port| *port != 0);
    if fixed && service.replicas > 1 {
        return fault(
            "several replicas cannot listen on one port",
            "write `auto` for it",
        );
    }
    if let Some(model) = &service.model {
        let by_run = model.run.is_some() && model.path.is_some();
        if by_run == model.sha256.is_some() {
            return fault(
                "a model is named by its digest, or by a run and a path",
                "write `NAME@sha256:DIGEST` or `NAME@RUN:PATH`",
            );
        }
        model.run.as_deref().map_or(Ok(()), rules::run_reference)?;
        model.path.as_deref().map_or(Ok(()), rules::relative_path)?;
    }
    at_most(
        "labels",
        service.labels.len(),
        mlmesh_model::Labels::TAGS_MAX,
    )?;
    let mut words = service
        .labels
        .iter()
        .flat_map(|(name, value)| [name, value]);
    words.try_for_each(|word| text(word))
}

fn command(experiment: &Experiment) -> Checked {
    at_most("command", experiment.command.len(), ARGUMENTS_MAX)?;
    if experiment
        .command
        .first()
        .is_none_or(|program| program.trim().is_empty())
    {
        return Err(Fault::new(
            "`command` names no program; its first element is one",
            "write it like `[python, train.py]`",
        ));
    }
    experiment
        .command
        .iter()
        .try_for_each(|element| text(element))
}

fn params(experiment: &Experiment) -> Checked {
    at_most("params", experiment.params.len(), ENTRIES_MAX)?;
    for (name, value) in &experiment.params {
        rules::param_name(name)?;
        param_value(value)?;
        if name == "seed" {
            return Err(Fault::new(
                "`seed` is not a parameter; it is a key of `experiment`",
                "move it one level up: `seed: 7`",
            ));
        }
    }
    match experiment.seed {
        Seed::Value(seed) if seed >= INTEGER_END => Err(out_of_range("seed", seed, "below 2^53")),
        Seed::Value(_) | Seed::None | Seed::Absent => Ok(()),
    }
}

fn sweep(experiment: &Experiment) -> Checked {
    let (names, values): (Vec<&String>, Vec<&ParamValue>) = match &experiment.sweep {
        None => return Ok(()),
        Some(Sweep::Grid(axes) | Sweep::Zip(axes)) => (
            axes.iter().map(|axis| &axis.param).collect(),
            axes.iter().flat_map(|axis| &axis.values).collect(),
        ),
        Some(Sweep::Random { axes, .. }) => (
            axes.iter().map(|axis| &axis.param).collect(),
            axes.iter()
                .filter_map(|axis| match &axis.range {
                    mlmesh_model::RandomRange::Choice(values) => Some(values),
                    _ => None,
                })
                .flatten()
                .collect(),
        ),
    };
    at_most("sweep", names.len(), AXES_MAX)?;
    names.iter().try_for_each(|name| rules::param_name(name))?;
    different("sweep", names.into_iter().map(String::as_str))?;
    values.into_iter().try_for_each(param_value)
}

fn inputs(experiment: &Experiment) -> Checked {
    if let Some(Environment::Locked { python, lock }) = &experiment.environment {
        rules::python_version(python)?;
        rules::relative_path(lock)?;
    }
    at_most("datasets", experiment.datasets.len(), ITEMS_MAX)?;
    for (index, dataset) in experiment.datasets.iter().enumerate() {
        rules::relative_path(&dataset.mount)?;
        if let Some(version) = &dataset.version {
            rules::dataset_version(version)?;
        }
        let mounts = experiment.datasets[..index]
            .iter()
            .map(|other| &other.mount);
        if let Some(other) = mounts
            .into_iter()
            .find(|other| rules::overlap(other, &dataset.mount))
        {
            return Err(Fault::new(
                format!(
                    "the mount `{}` overlaps `{}`",
                    shown(&dataset.mount),
                    shown(other)
                ),
                "give each dataset a mount of its own",
            ));
        }
    }
    Ok(())
}

fn outputs(experiment: &Experiment) -> Checked {
    at_most("outputs", experiment.outputs.len(), ENTRIES_MAX)?;
    experiment
        .outputs
        .iter()
        .try_for_each(|glob| rules::glob(glob))?;
    different("outputs", experiment.outputs.iter().map(String::as_str))
}

fn resources(resources: &Resources) -> Checked {
    if !(1..=CPUS_MAX * 1000).contains(&resources.cpu_milli) {
        return Err(out_of_range(
            "cpus",
            resources.cpu_milli,
            "thousandths above 0",
        ));
    }
    if let Some(bytes) = resources
        .memory_bytes
        .filter(|bytes| !(1..INTEGER_END).contains(bytes))
    {
        return Err(out_of_range("memory", bytes, "above 0 and below 8 PiB"));
    }
    if let Some(seconds) = resources
        .time_s
        .filter(|seconds| !(1..=TIME_S_MAX).contains(seconds))
    {
        return Err(out_of_range("time", seconds, "from 1 s to 366 d"));
    }
    if u64::from(resources.gpus) > GPUS_MAX {
        return Err(out_of_range("gpus", resources.gpus.into(), "at most 1024"));
    }
    Ok(())
}

fn variables(experiment: &Experiment) -> Checked {
    at_most("env", experiment.env.len(), ENTRIES_MAX)?;
    at_most("secrets", experiment.secrets.len(), ITEMS_MAX)?;
    for (name, value) in &experiment.env {
        rules::variable_name(name)?;
        text(value)?;
    }
    for name in &experiment.secrets {
        rules::variable_name(name)?;
        if experiment.env.contains_key(name) {
            return Err(Fault::new(
                format!("`{name}` is both a secret and a variable of `env`; a name has one value"),
                "keep it in `secrets` and remove it from `env`",
            ));
        }
    }
    if !experiment.secrets.is_sorted() {
        return Err(Fault::new(
            "the names in `secrets` are not sorted; the plan holds them in order",
            "send them sorted",
        ));
    }
    different("secrets", experiment.secrets.iter().map(String::as_str))
}

fn policy(experiment: &Experiment) -> Checked {
    if let Some(Network::Hosts(hosts)) = &experiment.network {
        at_most("network", hosts.len(), HOSTS_MAX)?;
        hosts::distinct(hosts.iter().map(String::as_str))?;
    }
    if u64::from(experiment.retries) > RETRIES_MAX {
        return Err(out_of_range(
            "retries",
            experiment.retries.into(),
            "at most 100",
        ));
    }
    at_most("retry_on", experiment.retry_on.len(), 1)?;
    at_most("tolerance", experiment.tolerance.len(), ENTRIES_MAX)?;
    for (metric, tolerance) in &experiment.tolerance {
        clean_text(metric)?;
        tolerance
            .abs
            .iter()
            .chain(&tolerance.rel)
            .try_for_each(|text| bound(text))?;
    }
    if let Some(hook) = &experiment.on_finish {
        check_on_finish(hook)?;
    }
    at_most("after", experiment.after.len(), ITEMS_MAX)?;
    experiment
        .after
        .iter()
        .try_for_each(|run| rules::run_reference(run))?;
    different("after", experiment.after.iter().map(String::as_str))
}

fn text(value: &str) -> Checked {
    clean_text(value)?;
    argument(value).map(drop)
}

fn param_value(value: &ParamValue) -> Checked {
    match value {
        ParamValue::Text(value) => clean_text(value),
        ParamValue::Int(value) if value.unsigned_abs() >= INTEGER_END => Err(Fault::new(
            format!("`{value}` is out of range; a number is below 2^53"),
            "send it as text",
        )),
        ParamValue::Int(_) | ParamValue::Bool(_) => Ok(()),
    }
}

fn at_most(key: &str, seen: usize, allowed: usize) -> Checked {
    if seen <= allowed {
        return Ok(());
    }
    Err(Fault::new(
        format!("`{key}` has `{seen}` entries; at most {allowed} are read"),
        "split the recipe, or move data into a file of the project",
    ))
}

fn different<'a>(key: &str, values: impl Iterator<Item = &'a str>) -> Checked {
    let mut seen = BTreeSet::new();
    for value in values {
        if !seen.insert(value) {
            return Err(Fault::new(
                format!("`{key}` lists `{}` twice", shown(value)),
                "remove one of the two",
            ));
        }
    }
    Ok(())
}

fn out_of_range(key: &str, seen: u64, rule: &str) -> Fault {
    Fault::new(
        format!("`{key}` is `{seen}`, which is out of range; it is {rule}"),
        "write the recipe with `ml`, which checks it",
    )
}
