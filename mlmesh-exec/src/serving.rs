//! What a service needs beside what every job does: ports that are free, weights that are
//! what their digest says, and the names of both in its command and its environment.
//!
//! A port is free when it is chosen, and taken a moment later by the command: somebody
//! else may be faster. The command then ends, and the restart policy sees to it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use mlmesh_model::{Cause, Dataset, DatasetAbout, Micros, PlanModel, SnapshotsError};
use mlmesh_model::{Owner, StartError, StartSpec};
use mlmesh_recipe::fill;

use crate::executor::Inner;

/// Where services listen. What others than this machine reach goes through the gateway.
const HOST: &str = "127.0.0.1";

/// Weights that were verified.
pub(crate) struct Weights {
    /// Where they lie on the machine.
    pub(crate) file: PathBuf,
    /// Where the service finds them, relative to its working directory.
    pub(crate) mount: String,
}

/// What is known of a service at its start.
#[derive(Default)]
pub(crate) struct Serves {
    pub(crate) ports: BTreeMap<String, u16>,
    values: BTreeMap<String, String>,
}

impl Serves {
    /// Chooses ports; nothing of a run that is no service.
    pub(crate) fn of(start: &StartSpec, weights: Option<&Weights>) -> Result<Self, StartError> {
        let Some(service) = &start.plan.service else {
            return Ok(Self::default());
        };
        let mut ports = BTreeMap::new();
        // All are held until all are chosen, so that no two are the same.
        let mut held = Vec::new();
        for (name, wanted) in &service.ports {
            let port = match wanted {
                0 => {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
                    let chosen = listener.and_then(|listener| {
                        let port = listener.local_addr()?.port();
                        held.push(listener);
                        Ok(port)
                    });
                    chosen.map_err(|error| {
                        let message = format!("choose a free port: {error}");
                        StartError::of(Cause::PrepareFailed, message, Some(&error))
                    })?
                }
                wanted => *wanted,
            };
            ports.insert(name.clone(), port);
        }
        let mut values = BTreeMap::from([("host".to_owned(), HOST.to_owned())]);
        let named = ports.iter();
        values.extend(named.map(|(name, port)| (format!("port_{name}"), port.to_string())));
        if let (Some(model), Some(weights)) = (&service.model, weights) {
            values.insert("model".to_owned(), weights.mount.clone());
            values.insert("model_name".to_owned(), model.name.to_string());
        }
        Ok(Self { ports, values })
    }

    pub(crate) fn fill_argv(&self, argv: &[String]) -> Vec<String> {
        match self.values.is_empty() {
            true => argv.to_vec(),
            false => argv.iter().map(|text| fill(text, &self.values)).collect(),
        }
    }

    /// Fills in what the recipe's variables name, and tells the service who it is.
    pub(crate) fn fill_env(&self, start: &StartSpec, env: &mut BTreeMap<String, String>) {
        if self.values.is_empty() {
            return;
        }
        for name in start.plan.env.keys() {
            if let Some(value) = env.get_mut(name) {
                *value = fill(value, &self.values);
            }
        }
        env.insert("MLMESH_HOST".to_owned(), HOST.to_owned());
        for (name, port) in &self.ports {
            let name = format!("MLMESH_PORT_{}", name.to_ascii_uppercase());
            env.insert(name, port.to_string());
        }
        let service = start.plan.service.as_ref();
        if let Some(model) = service.and_then(|service| service.model.as_ref()) {
            env.insert("MLMESH_MODEL".to_owned(), model.name.to_string());
            env.insert("MLMESH_MODEL_SHA256".to_owned(), model.sha256.to_string());
        }
    }
}

/// Verifies a service's weights and says where they lie. What lies in the content store
/// is read when it is laid out, and its digest is checked.
pub(crate) fn place_weights(
    inner: &Inner,
    start: &StartSpec,
) -> Result<Option<Weights>, StartError> {
    let service = start.plan.service.as_ref();
    let Some(model) = service.and_then(|service| service.model.as_ref()) else {
        return Ok(None);
    };
    let placed = inner
        .config
        .snapshots
        .place_dataset(&as_data(start, model)?);
    let file = placed.map_err(|error| {
        let message = format!(
            "the weights of `{}` (sha256:{}, put out by run `{}`): {error}",
            model.name, model.sha256, model.run
        );
        match &error {
            SnapshotsError::Io { source, .. } => {
                StartError::of(Cause::PrepareFailed, message, Some(source))
            }
            _ => StartError::of(Cause::ModelChanged, message, None),
        }
    })?;
    let name = model.path.rsplit('/').next().unwrap_or(&model.path);
    let mount = format!(".mlmesh-model/{name}");
    Ok(Some(Weights { file, mount }))
}

/// Weights are laid out as data that were copied in.
fn as_data(start: &StartSpec, model: &PlanModel) -> Result<Dataset, StartError> {
    let owner: Result<Owner, _> = "mlmesh".parse();
    Ok(Dataset {
        tenant: start.tenant.clone(),
        owner: owner.map_err(|_| StartError::of(Cause::PrepareFailed, String::new(), None))?,
        name: model.name.clone(),
        version: "weights".to_owned(),
        checksum: model.sha256,
        directory: false,
        path: model.path.clone(),
        copied: true,
        about: DatasetAbout::default(),
        bytes: model.size,
        files: 1,
        registered_at: Micros(0),
    })
}
