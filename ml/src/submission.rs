//! From a recipe on disk to what is sent: overrides, facts about the lock, the
//! caller's interpreter, values of secrets. The tree is snapshotted, not sent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use mlmesh_api::ExplanationDto;
use mlmesh_cas::Snapshot;
use mlmesh_model::{
    CurrentEnvironment, Environment, ExecutorKind, Experiment, LockFacts, OnFinish, Refusal,
    ReproPolicy, SecretText, Submission, Workload,
};
use serde::Deserialize;

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome, plain};
use crate::moved::{self, ExpectedPlan};
use crate::project::{self, RecipeFile};
use crate::upload;
use crate::verbs::recipe::invalid;

/// A recipe that is ready to be sent, and the tree it names.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// What is sent.
    pub(crate) submission: Submission,
    /// The tree as it was when the recipe was read.
    pub(crate) snapshot: Snapshot,
    /// What the caller saw before, if `--plan` names a file.
    pub(crate) seen_before: Option<ExplanationDto>,
    root: PathBuf,
    data_dir: PathBuf,
    exclude: Vec<String>,
}

/// Reads a recipe and everything that only the caller's machine knows.
pub(crate) fn prepare(context: &Context, submit: &cli::Submit) -> Outcome<Prepared> {
    let (expected_plan, seen_before) = match &submit.plan {
        None => (None, None),
        Some(ExpectedPlan::Digest(digest)) => (Some(*digest), None),
        Some(ExpectedPlan::File(path)) => {
            let (digest, explanation) = moved::read(path)?;
            (Some(digest), Some(explanation))
        }
    };
    let recipe = project::read_recipe(&submit.recipe)?;
    let mut workload = workload(&recipe, submit)?;
    let experiment = workload.job_mut();
    if experiment.on_finish.is_none() {
        experiment.on_finish = on_finish(context, &recipe.root)?;
    }
    let policy = policy(context, &recipe.root, submit)?;
    let exclude: Vec<String> = experiment
        .datasets
        .iter()
        .map(|dataset| dataset.mount.clone())
        .collect();
    let data_dir = context.data_dir()?;
    let git = project::look_at_git(&recipe.root);
    let snapshot = upload::snapshot(&context.output, &recipe.root, &data_dir, &exclude)?;
    let (lock, current) = match &experiment.environment {
        None => (None, None),
        Some(Environment::Locked { lock, .. }) => (lock_facts(&recipe.root, lock)?, None),
        Some(Environment::Current) => (None, current_environment()?),
    };
    let submission = Submission {
        secret_values: secret_values(experiment),
        commit: snapshot.commit,
        recipe_path: recipe.relative,
        git: git.facts(),
        lock,
        current,
        policy,
        executor: Some(match submit.on {
            cli::Executor::Process => ExecutorKind::Process,
        }),
        priority: submit.priority,
        expected_plan,
        workload,
    };
    Ok(Prepared {
        submission,
        snapshot,
        seen_before,
        root: recipe.root,
        data_dir,
        exclude,
    })
}

impl Prepared {
    /// Makes the tree complete at the daemon. Files that changed meanwhile are
    /// sent as they are now, and the submission follows them.
    pub(crate) fn upload(&mut self, context: &Context, client: &mlmesh_api::Client) -> Outcome {
        let first = self.snapshot.clone();
        let again = || upload::snapshot(&context.output, &self.root, &self.data_dir, &self.exclude);
        let synced = upload::sync(&context.output, client, &self.data_dir, first, again)?;
        self.submission.commit = synced.snapshot.commit;
        Ok(())
    }
}

/// Parses, then applies `--set` and `--after`.
fn workload(recipe: &RecipeFile, submit: &cli::Submit) -> Outcome<Workload> {
    let shown = submit.recipe.display().to_string();
    let mut workload =
        project::parse(&submit.recipe, &shown, &recipe.text).map_err(|errors| invalid(&errors))?;
    let overrides = submit
        .set
        .iter()
        .map(|text| {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                Failure::usage(
                    format!("`--set {text}` has no `=`, it takes KEY=VALUE"),
                    "write `--set lr=0.1`",
                )
            })?;
            Ok((name.trim().to_owned(), value.to_owned()))
        })
        .collect::<Outcome<Vec<_>>>()?;
    mlmesh_recipe::apply_overrides(&mut workload, &overrides).map_err(not_meant)?;
    let experiment = workload.job_mut();
    experiment.after.extend(submit.after.iter().cloned());
    Ok(workload)
}

fn not_meant(refusal: Refusal) -> Failure {
    Failure {
        code: refusal.code,
        exit: Exit::Usage,
        ..Failure::failed("", refusal.message, refusal.hint)
    }
}

/// `--repro-policy`, else the setting of environment, project, user, default.
fn policy(context: &Context, root: &Path, submit: &cli::Submit) -> Outcome<ReproPolicy> {
    Ok(match submit.repro_policy {
        Some(cli::Policy::Strict) => ReproPolicy::Strict,
        Some(cli::Policy::Relaxed) => ReproPolicy::Relaxed,
        None => match context.config(Some(root))?.value("client.repro_policy") {
            "relaxed" => ReproPolicy::Relaxed,
            _ => ReproPolicy::Strict,
        },
    })
}

/// What the project, the environment or the user's settings tell at the end of runs.
fn on_finish(context: &Context, root: &Path) -> Outcome<Option<OnFinish>> {
    let config = context.config(Some(root))?;
    match config.value("client.on_finish") {
        "" => Ok(None),
        text => mlmesh_recipe::parse_on_finish("client.on_finish", text)
            .map(Some)
            .map_err(|errors| invalid(&errors)),
    }
}

/// Facts about the lock; none when there is no such file, which preflight refuses.
fn lock_facts(root: &Path, lock: &str) -> Outcome<Option<LockFacts>> {
    let path = root.join(lock);
    let mut bytes = Vec::new();
    let limit = mlmesh_recipe::lock::LOCK_BYTES_MAX as u64 + 1;
    let read = File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(mlmesh_recipe::lock::facts(lock, &bytes))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io("read the lock", &path, &error)),
    }
}

/// Values that the caller's environment has; the daemon may know others.
fn secret_values(experiment: &Experiment) -> BTreeMap<String, SecretText> {
    experiment
        .secrets
        .iter()
        .filter_map(|name| Some((name.clone(), SecretText(std::env::var(name).ok()?))))
        .collect()
}

#[derive(Deserialize)]
struct Frozen {
    python: String,
    frozen: Vec<String>,
}

/// The virtual environment that the caller is in; without one preflight refuses.
fn current_environment() -> Outcome<Option<CurrentEnvironment>> {
    let refused = |message: String| Failure {
        code: "current_environment_unusable".to_owned(),
        exit: Exit::Refused,
        ..Failure::failed(
            "",
            message,
            "activate one (`. .venv/bin/activate`), or pin packages in a lock",
        )
    };
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"];
    let Some(prefix) = active.into_iter().find_map(crate::config::set) else {
        return Ok(None);
    };
    let python = prefix.join("bin/python");
    let answer = Command::new(&python)
        .args(["-I", "-c", mlmesh_recipe::lock::FREEZE])
        .output()
        .map_err(|error| {
            refused(format!(
                "`{}` does not start: {}",
                python.display(),
                plain(&error)
            ))
        })?;
    let frozen: Option<Frozen> = serde_json::from_slice(&answer.stdout).ok();
    let frozen = frozen.filter(|_| answer.status.success()).ok_or_else(|| {
        let words = String::from_utf8_lossy(&answer.stderr);
        let last = words.lines().last().unwrap_or_default().to_owned();
        refused(format!(
            "`{}` cannot list its packages: {last}",
            python.display()
        ))
    })?;
    Ok(Some(CurrentEnvironment {
        prefix: prefix.display().to_string(),
        python: frozen.python,
        frozen: frozen.frozen,
    }))
}
