//! `ml data`: the catalog of registered data.

use std::io::Read as _;
use std::path::Path;

use mlmesh_api::{
    CopiedDto, DatasetAboutDto, DatasetDto, DatasetsDto, IdempotencyKey, RegisterDatasetDto,
    error_code,
};
use mlmesh_cas::{Checksum, Mode, Options, Snapshot, Tree, TreeEntry, checksum};
use mlmesh_model::{Digest, Name};
use serde_json::json;

use crate::cli;
use crate::context::Context;
use crate::croissant::{DOCUMENT_BYTES_MAX, Document};
use crate::error::{Exit, Failure, Outcome};
use crate::output::{self, Output, Table, Tone, printable};
use crate::upload;

/// One of the verbs of `ml data`.
pub(crate) fn data(context: &Context, verb: &cli::Data) -> Outcome {
    match verb {
        cli::Data::Add(verb) => add(context, verb),
        cli::Data::ImportCroissant {
            file,
            name,
            version,
        } => import_croissant(context, file, name.as_deref(), version.as_deref()),
        cli::Data::List { search, sort } => list(context, search.as_deref(), *sort),
        cli::Data::Show { name, version } => show(context, name, version.as_deref()),
        cli::Data::Verify { name, version } => verify(context, name, version),
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

fn add(context: &Context, verb: &cli::DataAdd) -> Outcome {
    let path = std::fs::canonicalize(&verb.path)
        .map_err(|error| Failure::io("register", &verb.path, &error))?;
    let mut asked = RegisterDatasetDto {
        name: verb.name.clone(),
        version: verb.version.clone(),
        path: utf8(&path)?.to_owned(),
        checksum: verb.checksum,
        copied: None,
        about: DatasetAboutDto {
            description: verb.description.clone(),
            licence: verb.licence.clone(),
            source: verb.source.clone(),
            tags: verb.tag.clone(),
        },
    };
    if verb.copy {
        let (output, data_dir) = (&context.output, context.data_dir()?);
        let take = || upload::data_snapshot(output, &path, &data_dir);
        let first = take()?;
        let of_folder = path.is_dir();
        let sum = |snapshot: &Snapshot| checksum_of(snapshot, of_folder);
        if let Some(wanted) = verb.checksum.filter(|wanted| *wanted != sum(&first)) {
            return Err(other_checksum(&path, wanted, sum(&first)));
        }
        let synced = upload::sync(output, &context.client()?, &data_dir, first, take)?;
        asked.checksum = Some(verb.checksum.unwrap_or(sum(&synced.snapshot)));
        asked.copied = Some(match of_folder {
            true => CopiedDto::Folder,
            false => CopiedDto::File,
        });
    }
    register(context, &asked)
}

/// The checksum of a dataset: of a file its digest, of a folder its commit.
fn checksum_of(snapshot: &Snapshot, of_folder: bool) -> Digest {
    match snapshot.tree().entries.as_slice() {
        [file] if !of_folder => file.object.0,
        _ => snapshot.commit.0,
    }
}

fn other_checksum(path: &Path, wanted: Digest, seen: Digest) -> Failure {
    let message = format!(
        "`{}` has the checksum sha256:{seen}, asked for is sha256:{wanted}",
        path.display()
    );
    let hint = "get the data again, or register what is there under its own checksum";
    Failure {
        exit: Exit::Refused,
        ..Failure::failed(error_code::DATASET_CHECKSUM_DIFFERS, message, hint)
    }
}

fn register(context: &Context, asked: &RegisterDatasetDto) -> Outcome {
    let client = context.client()?;
    let dataset = client.register_dataset(asked, &IdempotencyKey::random()?)?;
    if context.output.json {
        return context.output.json(&dataset);
    }
    print_dataset(&context.output, &dataset)
}

fn utf8(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| {
        Failure::usage(
            format!("the path `{}` is not UTF-8", path.display()),
            "move the data to a path that is",
        )
    })
}

/// The files that a document lists become a dataset: one file by its own checksum, more
/// as a folder of exactly these. The daemon takes each only under the digest given.
fn import_croissant(
    context: &Context,
    file: &Path,
    name: Option<&str>,
    version: Option<&str>,
) -> Outcome {
    let file = std::fs::canonicalize(file).map_err(|error| Failure::io("read", file, &error))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let document = read_document(&file)?;
    let said = |what: &str, given: Option<&str>, said: &Option<String>| {
        let value = given.map(str::to_owned).or_else(|| said.clone());
        let value = value.filter(|value| value.parse::<Name>().is_ok());
        value.ok_or_else(|| {
            let said = said.as_deref().unwrap_or("nothing");
            Failure::usage(
                format!(
                    "the document's {what} is `{}`; a {what} here is up to 64 characters \
                     `A-Za-z0-9._-`",
                    said.chars()
                        .take(80)
                        .flat_map(char::escape_debug)
                        .collect::<String>()
                ),
                format!("give one with `--{what}`"),
            )
        })
    };
    let (name, version) = (
        said("name", name, &document.name)?,
        said("version", version, &document.version)?,
    );
    let client = context.client()?;
    let take = || listed_snapshot(folder, &document);
    let snapshot = take()?;
    let of_folder = document.files.len() > 1;
    let synced = upload::sync(
        &context.output,
        &client,
        &context.data_dir()?,
        snapshot,
        take,
    )?;
    register(
        context,
        &RegisterDatasetDto {
            name,
            version,
            path: utf8(folder)?.to_owned(),
            checksum: Some(checksum_of(&synced.snapshot, of_folder)),
            copied: Some(match of_folder {
                true => CopiedDto::Folder,
                false => CopiedDto::File,
            }),
            about: document.about.clone().into(),
        },
    )
}

fn read_document(path: &Path) -> Outcome<Document> {
    let failed = |error: std::io::Error| Failure::io("read", path, &error);
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let refused = |why: String| Failure {
        exit: Exit::Usage,
        ..Failure::failed(
            "croissant_refused",
            format!("`{}`: {why}", path.display()),
            "Croissant 1.0 or 1.1, each file with its `sha256` and a path beside the document",
        )
    };
    if text.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(refused("it is larger than 16 MiB".to_owned()));
    }
    Document::parse(&text).map_err(|error| refused(error.to_string()))
}

/// A tree of what the document lists, each file by the checksum that is given there.
fn listed_snapshot(folder: &Path, document: &Document) -> Outcome<Snapshot> {
    let mut entries = Vec::new();
    let (mut missing, mut differing) = (Vec::new(), Vec::new());
    for (path, listed) in &document.files {
        let place = folder.join(path);
        let seen = match std::fs::canonicalize(&place) {
            Ok(real) if !real.starts_with(folder) => {
                differing.push(format!("{path} (leads out of the folder)"));
                continue;
            }
            Ok(real) => checksum(&real, &Options::dataset(None)).map_err(|error| {
                Failure::failed("file_access", format!("read `{path}`: {error}"), "")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                missing.push(match &listed.url {
                    Some(url) => format!("{path} (download {url})"),
                    None => path.clone(),
                });
                continue;
            }
            Err(error) => return Err(Failure::io("read", &place, &error)),
        };
        match seen {
            Checksum::File { object, size } if object.0 == listed.sha256 => {
                entries.push(TreeEntry {
                    path: path.clone(),
                    mode: Mode::File,
                    size,
                    object,
                });
            }
            _ => differing.push(path.clone()),
        }
    }
    refuse(folder, &missing, &differing)?;
    let tree = Tree::from_entries(entries).map_err(|error| {
        Failure::failed(
            "croissant_refused",
            format!("the files make no folder: {error}"),
            "",
        )
    })?;
    Ok(Snapshot::of_tree(folder, tree))
}

/// Names what is not there and what is something else.
fn refuse(folder: &Path, missing: &[String], differing: &[String]) -> Outcome {
    if missing.is_empty() && differing.is_empty() {
        return Ok(());
    }
    let some = |what: &str, paths: &[String]| {
        let shown = paths
            .iter()
            .take(10)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let more = paths.len().saturating_sub(10);
        match (paths.len(), more) {
            (0, _) => String::new(),
            (_, 0) => format!("; {what}: {shown}"),
            _ => format!("; {what}: {shown} and {more} more"),
        }
    };
    let message = format!(
        "the files in `{}` are not those of the document{}{}",
        folder.display(),
        some("not there", missing),
        some("other bytes than its sha256 says", differing)
    );
    let hint = "nothing is fetched: put each file at its path beside the document, then repeat";
    let failure = Failure::failed("croissant_files", message, hint);
    Err(failure.with_details(json!({ "missing": missing, "differing": differing })))
}

fn verify(context: &Context, name: &str, version: &str) -> Outcome {
    let output = &context.output;
    let dataset = match context.client()?.verify_dataset(name, version) {
        Ok(dataset) => dataset,
        Err(error) => {
            let failure = Failure::from(error);
            let changes = failure.details["changes"].as_array();
            for change in changes.into_iter().flatten().filter(|_| !output.json) {
                let text = |key: &str| change[key].as_str().unwrap_or_default();
                let path = printable(text("path"));
                output.line(format_args!("{} {path}", text("change")))?;
            }
            return Err(failure);
        }
    };
    if output.json {
        return output.json(&dataset);
    }
    output.line(format_args!(
        "{name} {version}: {}, {}, all as registered",
        output::counted(dataset.files, "file"),
        output::bytes(dataset.bytes)
    ))
}

fn list(context: &Context, search: Option<&str>, sort: cli::DataSort) -> Outcome {
    let mut catalog = context.client()?.datasets()?;
    let output = &context.output;
    let words: Vec<String> = search
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_lowercase)
        .collect();
    catalog.datasets.retain(|dataset| fits(dataset, &words));
    match sort {
        cli::DataSort::Name => {}
        cli::DataSort::Added => catalog
            .datasets
            .sort_by_key(|dataset| std::cmp::Reverse(dataset.registered_at)),
        cli::DataSort::Size => catalog
            .datasets
            .sort_by_key(|dataset| std::cmp::Reverse(dataset.bytes)),
    }
    if output.json {
        return output.json(&catalog);
    }
    let mut table = Table::new(&[
        "NAME", "VERSION", "CHECKSUM", "FILES", "SIZE", "TAGS", "PATH",
    ]);
    for dataset in &catalog.datasets {
        let path = match dataset.copied {
            true => "copied in".to_owned(),
            false => dataset.path.clone(),
        };
        table.row([
            (dataset.name.clone(), Tone::Plain),
            (dataset.version.clone(), Tone::Plain),
            (dataset.checksum.short(), Tone::Dim),
            (dataset.files.to_string(), Tone::Plain),
            (output::bytes(dataset.bytes), Tone::Plain),
            (dataset.about.tags.join(","), Tone::Plain),
            (path, Tone::Plain),
        ]);
    }
    if table.is_empty() {
        output.say(match words.is_empty() {
            true => "no datasets",
            false => "no dataset has all of these words",
        });
        output.hint("`ml data add NAME VERSION PATH` registers one");
        return Ok(());
    }
    output.table(&table)
}

/// Whether each word stands somewhere in what is known of a dataset.
fn fits(dataset: &DatasetDto, words: &[String]) -> bool {
    let about = &dataset.about;
    let said = [&about.description, &about.licence, &about.source];
    let texts = [&dataset.name, &dataset.version]
        .into_iter()
        .chain(said.into_iter().flatten())
        .chain(&about.tags);
    let texts: Vec<String> = texts.map(|text| text.to_lowercase()).collect();
    let stands = |word: &String| texts.iter().any(|text| text.contains(word.as_str()));
    words.iter().all(stands)
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
    let copied = if dataset.copied { "copied from " } else { "" };
    output.line(format_args!(
        "{} {}: {}, {}, {copied}{}",
        dataset.name,
        dataset.version,
        output::counted(dataset.files, "file"),
        output::bytes(dataset.bytes),
        dataset.path
    ))?;
    let about = &dataset.about;
    let said = [
        ("description", about.description.clone()),
        ("licence", about.licence.clone()),
        ("source", about.source.clone()),
        (
            "tags",
            (!about.tags.is_empty()).then(|| about.tags.join(", ")),
        ),
    ];
    for (what, text) in said {
        if let Some(text) = text {
            output.line(format_args!("  {what}: {}", printable(&text)))?;
        }
    }
    output.line(format_args!(
        "  - {{name: {}, version: \"{}\", checksum: \"sha256:{}\"}}",
        dataset.name, dataset.version, dataset.checksum
    ))
}
