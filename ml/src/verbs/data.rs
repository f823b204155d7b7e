//! `ml data`: the catalog of registered data.

use mlmesh_api::{DatasetDto, DatasetsDto, IdempotencyKey, RegisterDatasetDto};
use serde_json::json;

use crate::cli;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::{self, Output, Table, Tone};

/// One of the verbs of `ml data`.
pub(crate) fn data(context: &Context, verb: &cli::Data) -> Outcome {
    match verb {
        cli::Data::Add {
            name,
            version,
            path,
        } => {
            let absolute = std::fs::canonicalize(path)
                .map_err(|error| Failure::io("register", path, &error))?;
            add(context, name, version, &absolute)
        }
        cli::Data::List => list(context),
        cli::Data::Show { name, version } => show(context, name, version.as_deref()),
        cli::Data::Verify { name, version } => {
            let dataset = context.client()?.verify_dataset(name, version)?;
            if context.output.json {
                return context.output.json(&dataset);
            }
            context.output.line(format_args!(
                "{name} {version}: {}, {}, all as registered",
                output::counted(dataset.files, "file"),
                output::bytes(dataset.bytes)
            ))
        }
        cli::Data::Remove { name, version } => {
            context.client()?.remove_dataset(name, version)?;
            if context.output.json {
                let removed = json!({
                    "schema": "mlmesh.dataset_removed/1", "name": name, "version": version,
                });
                return context.output.json(&removed);
            }
            context.output.line(format_args!(
                "removed {name} {version} from the catalog; its files stay"
            ))
        }
    }
}

fn add(context: &Context, name: &str, version: &str, path: &std::path::Path) -> Outcome {
    let path = path.to_str().ok_or_else(|| {
        Failure::usage(
            format!("the path `{}` is not UTF-8", path.display()),
            "move the data to a path that is",
        )
    })?;
    let dataset = context.client()?.register_dataset(
        &RegisterDatasetDto {
            name: name.to_owned(),
            version: version.to_owned(),
            path: path.to_owned(),
        },
        &IdempotencyKey::random()?,
    )?;
    if context.output.json {
        return context.output.json(&dataset);
    }
    print_dataset(&context.output, &dataset)
}

fn list(context: &Context) -> Outcome {
    let catalog = context.client()?.datasets()?;
    let output = &context.output;
    if output.json {
        return output.json(&catalog);
    }
    let mut table = Table::new(&["NAME", "VERSION", "CHECKSUM", "FILES", "SIZE", "PATH"]);
    for dataset in &catalog.datasets {
        table.row([
            (dataset.name.clone(), Tone::Plain),
            (dataset.version.clone(), Tone::Plain),
            (dataset.checksum.short(), Tone::Dim),
            (dataset.files.to_string(), Tone::Plain),
            (output::bytes(dataset.bytes), Tone::Plain),
            (dataset.path.clone(), Tone::Plain),
        ]);
    }
    if table.is_empty() {
        output.say("no datasets");
        output.hint("`ml data add NAME VERSION PATH` registers one");
        return Ok(());
    }
    output.table(&table)
}

fn show(context: &Context, name: &str, version: Option<&str>) -> Outcome {
    let catalog = context.client()?.datasets()?;
    let found: Vec<DatasetDto> = catalog
        .datasets
        .into_iter()
        .filter(|dataset| dataset.name == name)
        .filter(|dataset| version.is_none_or(|version| dataset.version == version))
        .collect();
    if found.is_empty() {
        let version = version.map_or(String::new(), |version| format!(" version `{version}`"));
        return Err(Failure {
            code: mlmesh_api::error_code::NOT_FOUND.to_owned(),
            exit: Exit::NotFound,
            ..Failure::failed(
                "",
                format!("no dataset `{name}`{version}"),
                "`ml data list` shows what is registered",
            )
        });
    }
    let output = &context.output;
    if output.json {
        return output.json(&DatasetsDto {
            schema: catalog.schema,
            datasets: found,
        });
    }
    found
        .iter()
        .try_for_each(|dataset| print_dataset(output, dataset))
}

/// What a person copies into a recipe.
fn print_dataset(output: &Output, dataset: &DatasetDto) -> Outcome {
    output.line(format_args!(
        "{} {}: {}, {}, {}",
        dataset.name,
        dataset.version,
        output::counted(dataset.files, "file"),
        output::bytes(dataset.bytes),
        dataset.path
    ))?;
    output.line(format_args!(
        "  - {{name: {}, version: \"{}\", checksum: \"sha256:{}\"}}",
        dataset.name, dataset.version, dataset.checksum
    ))
}
