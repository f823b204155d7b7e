//! `ml recipe`: recipes without a daemon.

use std::path::Path;

use mlmesh_recipe::{RecipeError, RecipeErrors};
use serde_json::{Value, json};

use crate::cli;
use crate::error::{Exit, Failure, Outcome};
use crate::output::Output;
use crate::project;

/// Checks recipes or prints the schema.
pub(crate) fn recipe(output: &Output, verb: &cli::Recipe) -> Outcome {
    match verb {
        cli::Recipe::Check { recipes } => {
            let mut failure = None;
            for path in recipes {
                match check(output, path) {
                    Ok(()) => {}
                    Err(next) if recipes.len() == 1 || next.is_output_closed() => return Err(next),
                    Err(next) => {
                        output.error(&next);
                        failure = Some(next);
                    }
                }
            }
            failure.map_or(Ok(()), |_| Err(several(recipes.len())))
        }
        cli::Recipe::Schema { kind } => {
            let schema = match kind {
                true => mlmesh_recipe::kind_schema(),
                false => mlmesh_recipe::schema(),
            };
            if output.json {
                return output.json(&schema);
            }
            output.line(format_args!("{schema:#}"))
        }
    }
}

fn several(count: usize) -> Failure {
    Failure {
        code: "recipe_invalid".to_owned(),
        exit: Exit::Usage,
        ..Failure::failed("", format!("not all of {count} recipes are valid"), "")
    }
}

fn check(output: &Output, path: &Path) -> Outcome {
    let text = crate::project::read_text(path)?;
    let shown = path.display().to_string();
    let workload = project::parse(path, &shown, &text).map_err(|errors| invalid(&errors))?;
    let experiment = workload.job();
    let kind = match workload.service() {
        Some(_) => "service",
        None => "experiment",
    };
    let points = mlmesh_recipe::expand(experiment)
        .map_err(|refusal| Failure {
            code: refusal.code,
            exit: Exit::Usage,
            ..Failure::failed("", format!("{shown}: {}", refusal.message), refusal.hint)
        })?
        .len();
    if output.json {
        return output.json(&json!({
            "schema": "mlmesh.recipe_check/1",
            "recipe": shown,
            "valid": true,
            "kind": kind,
            "name": experiment.name,
            "points": points,
        }));
    }
    let runs = if points == 1 { "run" } else { "runs" };
    output.line(format_args!(
        "{shown}: valid, {kind} `{}`, {points} {runs}",
        experiment.name
    ))
}

/// The errors of a recipe as one failure: their text is the message, the first one's
/// code is the code, all of them are in the details.
pub(crate) fn invalid(errors: &RecipeErrors) -> Failure {
    let details: Vec<Value> = errors.errors.iter().map(to_json).collect();
    let mut message = match errors.errors.as_slice() {
        [only] => format!(
            "{}:{}:{}: {}",
            only.file, only.line, only.column, only.message
        ),
        _ => errors.to_string(),
    };
    if errors.errors.len() > 1 {
        message = format!(
            "the recipe has {} errors\n{message}",
            errors.errors.len() + errors.omitted
        );
    }
    let hint = match errors.errors.as_slice() {
        [only] => only.hint.clone(),
        _ => String::new(),
    };
    Failure {
        code: errors
            .errors
            .first()
            .map_or("recipe_syntax", |first| first.code)
            .to_owned(),
        exit: Exit::Usage,
        ..Failure::failed("", message, hint)
    }
    .with_details(json!({"errors": details, "omitted": errors.omitted}))
}

fn to_json(error: &RecipeError) -> Value {
    json!({
        "file": error.file,
        "line": error.line,
        "column": error.column,
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
    })
}
