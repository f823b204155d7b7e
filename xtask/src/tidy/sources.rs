//! The project's text files in memory, each with the package that it belongs to.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use cargo_metadata::Metadata;

use super::rust_text;
use crate::workspace::Workspace;

/// All text files, by path from the root.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    files: BTreeMap<String, String>,
    /// Folder of each package, from the root, and the package's name.
    packages: BTreeMap<String, String>,
}

/// A Rust file outside tests, with everything but its code blanked.
pub(crate) struct RustFile<'a> {
    pub(crate) path: &'a str,
    pub(crate) package: &'a str,
    /// Comments, literals and tests are blanked.
    pub(crate) code: String,
    /// Comments and tests are blanked, literals are kept.
    pub(crate) text: String,
}

impl Sources {
    /// Reads every file of the project that is UTF-8; other files hold no words.
    pub(crate) fn read(workspace: &Workspace, metadata: &Metadata) -> Result<Sources> {
        let mut files = BTreeMap::new();
        for path in workspace.files()? {
            let bytes = fs::read(workspace.root.join(&path))
                .with_context(|| format!("read {}", path.display()))?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.insert(path.to_string_lossy().into_owned(), text);
            }
        }
        let mut packages = BTreeMap::new();
        for package in metadata.workspace_packages() {
            let folder = package
                .manifest_path
                .parent()
                .and_then(|folder| folder.strip_prefix(&workspace.root).ok());
            let folder = folder
                .with_context(|| format!("package {} lies outside the workspace", package.name))?;
            packages.insert(folder.to_string(), package.name.to_string());
        }
        Ok(Sources { files, packages })
    }

    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Every Rust file of a package with this name, tests included.
    pub(crate) fn of_package<'a>(
        &'a self,
        package: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.all().filter(move |(path, _)| {
            path.ends_with(".rs") && self.package_of(path) == Some(package)
        })
    }

    pub(crate) fn has_package(&self, package: &str) -> bool {
        self.packages.values().any(|name| name == package)
    }

    /// The Rust files that are part of a library or a program: neither integration
    /// tests nor benches nor build scripts, and without their test modules.
    pub(crate) fn product(&self) -> impl Iterator<Item = RustFile<'_>> {
        self.all().filter_map(|(path, text)| {
            let package = self.package_of(path)?;
            let rest = path.split_once('/').map(|(_, rest)| rest)?;
            if !path.ends_with(".rs")
                || !rest.starts_with("src/")
                || path.ends_with("/tests.rs")
                || path.contains("/tests/")
            {
                return None;
            }
            let code = rust_text::code_only(text);
            let uncommented = rust_text::without_comments(text);
            let product_text = rust_text::without_tests(&code, &uncommented);
            let product_code = rust_text::without_tests(&code, &code);
            Some(RustFile {
                path,
                package,
                code: product_code,
                text: product_text,
            })
        })
    }

    fn package_of(&self, path: &str) -> Option<&str> {
        let folder = path.split('/').next()?;
        self.packages.get(folder).map(String::as_str)
    }

    #[cfg(test)]
    pub(crate) fn sample(files: &[(&str, &str)]) -> Sources {
        let files: BTreeMap<String, String> = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
            .collect();
        let packages = files
            .keys()
            .filter(|path| path.ends_with(".rs"))
            .filter_map(|path| path.split('/').next())
            .map(|folder| (folder.to_owned(), folder.to_owned()))
            .collect();
        Sources { files, packages }
    }
}

/// The line of a position, counted from 1.
pub(crate) fn line_of(text: &str, position: usize) -> usize {
    text.as_bytes()[..position]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

/// Every position of a word, left to right.
pub(crate) fn positions<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(position, _)| position)
}
