//! What must hold between the keys of an experiment: mounts apart, references
//! that name something, a seed that is there when it is used.

use std::collections::BTreeSet;

use mlmesh_model::Seed;

use crate::error::{Report, code, shown};
use crate::experiment::Draft;
use crate::rules;
use crate::substitute::{Piece, pieces};
use crate::table::did_you_mean;

/// What must hold between keys.
pub(crate) fn check(report: &mut Report, draft: &Draft) {
    check_mounts(report, draft);
    check_axes(report, draft);
    check_references(report, draft);
    for secret in &draft.secrets {
        if draft.env.contains_key(&secret.value) {
            report.add(
                secret.at,
                code::CONFLICT,
                format!(
                    "`{}` is both a secret and a variable of `env`; a name has one value",
                    secret.value
                ),
                "keep it in `secrets` and remove it from `env`",
            );
        }
    }
}

fn check_mounts(report: &mut Report, draft: &Draft) {
    for (index, dataset) in draft.datasets.iter().enumerate() {
        let mount = &dataset.value.mount;
        let other = draft.datasets[..index]
            .iter()
            .find(|other| rules::overlap(&other.value.mount, mount));
        if let Some(other) = other {
            report.add(
                dataset.at,
                code::CONFLICT,
                format!(
                    "the mount `{}` overlaps `{}`; each dataset has a folder of its own",
                    shown(mount),
                    shown(&other.value.mount)
                ),
                format!(
                    "give it a mount of its own, like `mount: data/{}-2`",
                    dataset.value.name
                ),
            );
        }
    }
}

fn check_axes(report: &mut Report, draft: &Draft) {
    let Some(sweep) = &draft.sweep else { return };
    let referenced: BTreeSet<&str> = draft
        .command
        .iter()
        .flat_map(|element| pieces(&element.value))
        .filter_map(|piece| match piece {
            Piece::Reference(name) => Some(name),
            Piece::Literal(_) => None,
        })
        .collect();
    for (axis, at) in &sweep.axes {
        if axis == "seed" {
            if draft.seed == Seed::None {
                report.add(
                    *at,
                    code::CONFLICT,
                    "`seed` is swept, and `seed: none` declares that no randomness is drawn",
                    "remove one of the two",
                );
            }
        } else if !draft.params_named.contains(axis) && !referenced.contains(axis.as_str()) {
            let known = draft
                .params_named
                .iter()
                .map(String::as_str)
                .chain(referenced.iter().copied());
            report.add(
                *at,
                code::REFERENCE,
                format!(
                    "`{axis}` is swept, and neither `params` nor `command` names it{}",
                    did_you_mean(axis, known)
                ),
                format!("use `${{{axis}}}` in `command`, or declare it in `params`"),
            );
        }
    }
}

fn check_references(report: &mut Report, draft: &Draft) {
    if draft.sweep_broken {
        // What the sweep would have named is not known.
        return;
    }
    let axes = || {
        draft
            .sweep
            .iter()
            .flat_map(|sweep| &sweep.axes)
            .map(|(axis, _)| axis.as_str())
    };
    let swept: BTreeSet<&str> = axes().collect();
    let has_seed = draft.seed_at.is_some() && draft.seed != Seed::None || swept.contains("seed");
    for element in &draft.command {
        for piece in pieces(&element.value) {
            if report.is_full() {
                return;
            }
            let Piece::Reference(name) = piece else {
                continue;
            };
            if name == "seed" {
                if !has_seed {
                    report.add(
                        element.at,
                        code::REFERENCE,
                        "`${seed}` is used and the recipe gives no seed",
                        "add `seed: 7`, or remove `${seed}` from the command",
                    );
                }
            } else if !draft.params_named.contains(name) && !swept.contains(name) {
                let known = draft
                    .params_named
                    .iter()
                    .map(String::as_str)
                    .chain(swept.iter().copied());
                report.add(
                    element.at,
                    code::REFERENCE,
                    format!("`${{{name}}}` names no parameter{}", did_you_mean(name, known.chain(["seed"]))),
                    format!("add `{name}` to `params:`; a `$` that is not followed by `{{name}}` is literal"),
                );
            }
        }
    }
}
