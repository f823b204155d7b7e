//! `uv.lock`: the packages that the project's own dependencies reach.
//!
//! The project itself is not among them: its code is the commit. Dependency
//! groups (`dev`) and extras of the project are left out, as with
//! `uv sync --no-dev`; extras that a dependency asks for are followed.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::Refusal;
use serde::Deserialize;

use super::markers::{ALTERNATIVES_MAX, Condition, TooMany};
use super::{Pin, is_hash, is_project_name, is_version, refused};
use crate::error::shown;

/// The format that is read; uv raises it only with changes that old readers miss.
const VERSION: u64 = 1;
/// Edges that are followed, each as often as the condition of its start grows.
const STEPS_MAX: usize = 500_000;
const EXPORT_HINT: &str = "export it: `uv export --no-emit-project --no-dev -o requirements.lock`";

#[derive(Deserialize)]
struct Lock {
    version: u64,
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Package {
    name: String,
    version: Option<String>,
    #[serde(default)]
    source: BTreeMap<String, toml::Value>,
    #[serde(default)]
    resolution_markers: Vec<String>,
    #[serde(default)]
    dependencies: Vec<Dependency>,
    #[serde(default)]
    optional_dependencies: BTreeMap<String, Vec<Dependency>>,
    sdist: Option<Artifact>,
    #[serde(default)]
    wheels: Vec<Artifact>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    version: Option<String>,
    marker: Option<String>,
    #[serde(default)]
    extra: Vec<String>,
}

#[derive(Deserialize)]
struct Artifact {
    hash: Option<String>,
}

/// The pins, by name and version.
pub(super) fn read(path: &str, text: &str) -> Result<Vec<Pin>, Refusal> {
    let lock: Lock = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .and_then(|span| text.get(..span.start))
            .map_or(1, |before| before.matches('\n').count() + 1);
        refused(
            format!(
                "`{}` is not a uv.lock: line {line}: {}",
                shown(path),
                error.message()
            ),
            "write it again with `uv lock`",
        )
    })?;
    if lock.version != VERSION {
        return Err(refused(
            format!(
                "`{}` has the format version {}; {VERSION} is read",
                shown(path),
                lock.version
            ),
            EXPORT_HINT,
        ));
    }
    let mut walk = Walk::new(path, &lock.package)?;
    walk.run()?;
    let mut pins = walk.pins();
    pins.sort_by(|one, two| (&one.name, &one.requirement).cmp(&(&two.name, &two.requirement)));
    Ok(pins)
}

/// A package, or one of its extras.
type Wanted<'l> = (usize, Option<&'l str>);

/// Finds under which condition each package is wanted, from the project on.
struct Walk<'l> {
    path: &'l str,
    packages: &'l [Package],
    by_name: BTreeMap<&'l str, Vec<usize>>,
    conditions: BTreeMap<Wanted<'l>, Condition<'l>>,
    queue: BTreeSet<Wanted<'l>>,
    steps: usize,
}

impl<'l> Walk<'l> {
    fn new(path: &'l str, packages: &'l [Package]) -> Result<Self, Refusal> {
        let mut walk = Self {
            path,
            packages,
            by_name: BTreeMap::new(),
            conditions: BTreeMap::new(),
            queue: BTreeSet::new(),
            steps: 0,
        };
        for (index, package) in packages.iter().enumerate() {
            walk.by_name.entry(&package.name).or_default().push(index);
            if package.is_project() {
                walk.conditions.insert((index, None), Condition::always());
                walk.queue.insert((index, None));
            }
        }
        if walk.queue.is_empty() && !packages.is_empty() {
            return Err(refused(
                format!(
                    "`{}` names no project: no package has the source `virtual` or `editable`",
                    shown(path)
                ),
                "write it with `uv lock` in the project's folder",
            ));
        }
        Ok(walk)
    }

    fn run(&mut self) -> Result<(), Refusal> {
        while let Some((index, extra)) = self.queue.pop_first() {
            let condition = self.conditions.get(&(index, extra)).cloned();
            for dependency in self.packages[index].edges(extra) {
                self.follow(dependency, &condition.clone().unwrap_or_default())?;
            }
        }
        Ok(())
    }

    fn follow(
        &mut self,
        dependency: &'l Dependency,
        condition: &Condition<'l>,
    ) -> Result<(), Refusal> {
        let targets = self.targets(dependency)?;
        let forked = targets.len() > 1;
        for target in targets {
            let wanted_when = dependency
                .condition(&self.packages[target], forked)
                .and_then(|edge| edge.and(condition))
                .map_err(|TooMany| self.too_many(&dependency.name))?;
            let extras = dependency.extra.iter().map(|extra| Some(extra.as_str()));
            for node in std::iter::once(None)
                .chain(extras)
                .map(|extra| (target, extra))
            {
                let changed = self.conditions.entry(node).or_default().or(&wanted_when);
                if changed.map_err(|TooMany| self.too_many(&dependency.name))? {
                    self.queue.insert(node);
                }
            }
        }
        Ok(())
    }

    /// The locked packages that a dependency may mean: one, or one of each fork.
    fn targets(&mut self, dependency: &Dependency) -> Result<Vec<usize>, Refusal> {
        let named = self
            .by_name
            .get(dependency.name.as_str())
            .map_or(&[][..], Vec::as_slice);
        self.steps += 1 + named.len() + dependency.extra.len();
        if self.steps > STEPS_MAX {
            return Err(self.too_many(&dependency.name));
        }
        let targets: Vec<usize> = named
            .iter()
            .copied()
            .filter(|index| {
                dependency.version.is_none() || self.packages[*index].version == dependency.version
            })
            .collect();
        if targets.is_empty() {
            return Err(refused(
                format!(
                    "`{}` needs `{}` and does not lock it",
                    shown(self.path),
                    shown(&dependency.name)
                ),
                "write it again with `uv lock`",
            ));
        }
        Ok(targets)
    }

    fn too_many(&self, name: &str) -> Refusal {
        refused(
            format!(
                "`{}`: `{}` is wanted in more ways than are followed ({ALTERNATIVES_MAX} markers, {STEPS_MAX} steps)",
                shown(self.path),
                shown(name)
            ),
            EXPORT_HINT,
        )
    }

    fn pins(&self) -> Vec<Pin> {
        self.conditions
            .iter()
            .filter(|((_, extra), _)| extra.is_none())
            .map(|((index, _), condition)| (&self.packages[*index], condition))
            .filter(|(package, _)| !package.is_project())
            .map(|(package, condition)| package.pin(condition))
            .collect()
    }
}

impl Dependency {
    fn condition<'l>(
        &'l self,
        target: &'l Package,
        forked: bool,
    ) -> Result<Condition<'l>, TooMany> {
        let edge = Condition::any_of(self.marker.as_deref())?;
        if !forked {
            return Ok(edge);
        }
        let forks = target.resolution_markers.iter().map(String::as_str);
        edge.and(&Condition::any_of(forks)?)
    }
}

impl Package {
    /// The project itself or a member of its workspace: code that the commit holds.
    fn is_project(&self) -> bool {
        ["virtual", "editable"]
            .iter()
            .any(|kind| self.source.contains_key(*kind))
    }

    fn edges(&self, extra: Option<&str>) -> &[Dependency] {
        match extra {
            None => &self.dependencies,
            Some(extra) => self
                .optional_dependencies
                .get(extra)
                .map_or(&[], Vec::as_slice),
        }
    }

    fn pin(&self, condition: &Condition<'_>) -> Pin {
        let artifacts = self.wheels.iter().chain(&self.sdist);
        let mut hashes: Vec<String> = artifacts.filter_map(|file| file.hash.clone()).collect();
        hashes.sort();
        hashes.dedup();
        let (marker, loose) = match condition.marker() {
            Ok(marker) => {
                let loose = self.loose(&hashes, marker.as_deref());
                (marker, loose)
            }
            Err(TooMany) => (None, Some("its marker is too long".to_owned())),
        };
        let version = self.version.as_deref().unwrap_or("");
        let requirement = match marker {
            Some(marker) => format!("{}=={version} ; {marker}", self.name),
            None => format!("{}=={version}", self.name),
        };
        Pin {
            requirement,
            name: self.name.clone(),
            hashes,
            loose,
        }
    }

    fn loose(&self, hashes: &[String], marker: Option<&str>) -> Option<String> {
        if !is_project_name(&self.name) || !self.version.as_deref().is_some_and(is_version) {
            return Some("its name or version cannot be read".to_owned());
        }
        if let Some(hash) = hashes.iter().find(|hash| !is_hash(hash)) {
            return Some(format!("`{}` is no hash", shown(hash)));
        }
        // The text goes into a line of a requirements file.
        if marker.is_some_and(|marker| {
            marker.contains(['\\', '#', ';']) || marker.contains(char::is_control)
        }) {
            return Some("its marker cannot be read".to_owned());
        }
        // Which index serves a package does not matter where its hash is known.
        let registry = self.source.get("registry").and_then(toml::Value::as_str);
        match registry {
            Some(index) if index.starts_with("https://") || index.starts_with("http://") => None,
            Some(folder) => Some(format!("from the folder `{}`, not an index", shown(folder))),
            None => {
                let kinds: Vec<&str> = self.source.keys().map(String::as_str).collect();
                Some(format!(
                    "its source is `{}`, not an index",
                    shown(&kinds.join(", "))
                ))
            }
        }
    }
}
