//! `--set name=value` on top of a parsed recipe.

use mlmesh_model::{Experiment, ParamValue, Refusal, Seed, Sweep, Workload};

use crate::error::{code, shown};
use crate::scalar::{INTEGER_END, clean_text, typed};
use crate::substitute::{Piece, pieces};
use crate::table::did_you_mean;
use crate::units;

/// Replaces parameters and the seed. Only what the recipe declares can be set,
/// and nothing that its sweep varies. A value means what it means unquoted in a
/// recipe: `0.10` stays `0.10`.
///
/// # Errors
/// The first override that cannot be applied; the workload is then unchanged.
pub fn apply_overrides(
    workload: &mut Workload,
    overrides: &[(String, String)],
) -> Result<(), Refusal> {
    let experiment = workload.job_mut();
    let mut changed = experiment.clone();
    for (name, value) in overrides {
        apply(&mut changed, name, value)?;
    }
    *experiment = changed;
    Ok(())
}

fn apply(experiment: &mut Experiment, name: &str, value: &str) -> Result<(), Refusal> {
    if swept(experiment.sweep.as_ref()).any(|axis| axis == name) {
        return Err(refused(
            format!("`--set {}` names what the recipe sweeps", shown(name)),
            format!(
                "remove `{}` from `sweep:`, or leave the override away",
                shown(name)
            ),
        ));
    }
    if let Err(fault) = clean_text(value) {
        return Err(refused(fault.message, fault.hint));
    }
    if name == "seed" {
        experiment.seed = seed(experiment, value)?;
        return Ok(());
    }
    let known = experiment.params.keys().map(String::as_str).chain(["seed"]);
    let nearest = did_you_mean(name, known);
    let Some(param) = experiment.params.get_mut(name) else {
        return Err(refused(
            format!(
                "`--set {}` names no parameter of the recipe{nearest}",
                shown(name)
            ),
            "only what stands in `params:`, and `seed`, can be set",
        ));
    };
    *param = match typed(value) {
        ParamValue::Text(_) => ParamValue::Text(value.to_owned()),
        other => other,
    };
    Ok(())
}

fn seed(experiment: &Experiment, value: &str) -> Result<Seed, Refusal> {
    if value == "none" {
        let used = experiment
            .command
            .iter()
            .flat_map(|element| pieces(element))
            .any(|piece| piece == Piece::Reference("seed"));
        if used {
            return Err(refused(
                "`--set seed=none` takes the seed away, and the command uses `${seed}`".to_owned(),
                "set it to a number".to_owned(),
            ));
        }
        return Ok(Seed::None);
    }
    units::whole(value, INTEGER_END - 1)
        .map(Seed::Value)
        .ok_or_else(|| {
            refused(
                format!(
                    "`--set seed={}` is not a seed; a seed is a whole number from 0, below 2^53, or `none`",
                    shown(value)
                ),
                "write it like `--set seed=7`",
            )
        })
}

fn swept(sweep: Option<&Sweep>) -> impl Iterator<Item = &str> {
    let (lists, random) = match sweep {
        Some(Sweep::Grid(axes) | Sweep::Zip(axes)) => (axes.as_slice(), [].as_slice()),
        Some(Sweep::Random { axes, .. }) => ([].as_slice(), axes.as_slice()),
        None => ([].as_slice(), [].as_slice()),
    };
    lists
        .iter()
        .map(|axis| axis.param.as_str())
        .chain(random.iter().map(|axis| axis.param.as_str()))
}

fn refused(message: impl Into<String>, hint: impl Into<String>) -> Refusal {
    Refusal::new(code::OVERRIDE, message, hint)
}
