//! The datasets of an attempt: as they are registered when it starts, and whether they
//! still are what they were when it has ended.

use std::sync::Arc;

use mlmesh_model::{Cause, Dataset, Plan, Run, StartError};

use crate::persist::persist;
use crate::reactor::Inner;

/// The registered datasets that a plan names, in its order.
pub(crate) async fn of_plan(
    inner: &Inner,
    run: &Run,
    plan: &Plan,
) -> Result<Vec<Dataset>, StartError> {
    if plan.datasets.is_empty() {
        return Ok(Vec::new());
    }
    let store = &inner.ports.store;
    let known = persist(&inner.cancel, "read datasets", || {
        store.datasets(&run.tenant)
    })
    .await
    .map_err(|error| StartError {
        cause: Cause::PrepareFailed,
        message: error.to_string(),
    })?;
    plan.datasets
        .iter()
        .map(|wanted| {
            known
                .iter()
                .find(|dataset| {
                    dataset.name == wanted.name
                        && dataset.checksum == wanted.checksum
                        && wanted
                            .version
                            .as_ref()
                            .is_none_or(|version| *version == dataset.version)
                })
                .cloned()
                .ok_or_else(|| StartError {
                    cause: Cause::DatasetChanged,
                    message: format!(
                        "dataset `{}` is not registered any more with checksum sha256:{}",
                        wanted.name, wanted.checksum
                    ),
                })
        })
        .collect()
}

/// Names of the run's datasets that are not what they were at its start, each with what
/// a person reads about it. Files whose stat is as it was are not read again.
pub(crate) async fn changed(inner: &Inner, run: &Run) -> Vec<(String, String)> {
    let Some(plan) = run.plan.clone() else {
        return Vec::new();
    };
    let datasets = match of_plan(inner, run, &plan).await {
        Ok(datasets) => datasets,
        Err(error) => {
            let names = plan.datasets.iter().map(|dataset| dataset.name.to_string());
            return names.map(|name| (name, error.message.clone())).collect();
        }
    };
    let snapshots = Arc::clone(&inner.ports.snapshots);
    let looked = tokio::task::spawn_blocking(move || {
        let changed = datasets.iter().filter_map(|dataset| {
            let error = snapshots.verify_dataset(dataset, false).err()?;
            let Dataset { name, version, .. } = dataset;
            let why = format!(
                "dataset `{name}` {version} is not what it was when the run started: {error}"
            );
            Some((name.to_string(), why))
        });
        changed.collect()
    });
    looked.await.unwrap_or_else(|error| {
        let names = plan.datasets.iter().map(|dataset| dataset.name.to_string());
        let why = format!("the datasets could not be looked at after the run: {error}");
        names.map(|name| (name, why.clone())).collect()
    })
}
