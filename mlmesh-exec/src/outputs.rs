//! Which files of a working directory are outputs: what the declared globs match
//! and everything in the output directory. Symbolic links are never followed and
//! never outputs, so that nothing outside the working directory is taken.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::mlflow;

/// The output directory, relative to the working directory.
pub(crate) const OUTPUT_DIR: &str = "outputs";

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Regular files relative to the working directory, sorted.
    pub(crate) files: Vec<String>,
    /// Declared globs that matched nothing.
    pub(crate) missing: Vec<String>,
}

/// Finds the outputs in `work`. `mounts` are the places of datasets, which are inputs.
pub(crate) fn find(work: &Path, globs: &[String], mounts: &[String]) -> io::Result<Found> {
    let mut walk = Walk {
        work,
        mounts: mounts.iter().map(PathBuf::from).collect(),
        files: BTreeSet::new(),
    };
    let mut missing = Vec::new();
    for glob in globs {
        if !walk.take(glob)? {
            missing.push(glob.clone());
        }
    }
    walk.below(Path::new(OUTPUT_DIR), &|_| true)?;
    Ok(Found {
        files: walk.files.into_iter().collect(),
        missing,
    })
}

impl Found {
    /// Adds what the job has uploaded: `artifacts/…` of the attempt's own run,
    /// `mlflow/…` of others. The files get a second name in the working directory, where
    /// whatever is in their way goes; nobody works there any more.
    pub(crate) fn add_uploaded(
        &mut self,
        work: &Path,
        attempt: &Path,
        run: &str,
    ) -> io::Result<()> {
        let from = attempt.join(mlflow::ARTIFACTS);
        for path in mlflow::uploaded(attempt)? {
            let place = place_of(&path, run);
            let Some(name) = place.to_str() else {
                tracing::warn!(path = %path.display(), "artifact whose name is not UTF-8 is left out");
                continue;
            };
            link_into(work, &place, &from.join(&path))?;
            if let Err(index) = self
                .files
                .binary_search_by(|known| known.as_str().cmp(name))
            {
                self.files.insert(index, name.to_owned());
            }
        }
        Ok(())
    }
}

/// `EXPERIMENT/RUN/artifacts/…` as an output.
fn place_of(path: &Path, run: &str) -> PathBuf {
    let mut parts = path.components();
    let own = parts.nth(1).is_some_and(|part| part.as_os_str() == run);
    match own {
        true => parts.as_path().to_owned(),
        false => Path::new("mlflow").join(path),
    }
}

fn link_into(work: &Path, place: &Path, from: &Path) -> io::Result<()> {
    let mut above = work.to_owned();
    for part in place.parent().into_iter().flat_map(Path::components) {
        above.push(part);
        match fs::symlink_metadata(&above) {
            Ok(facts) if facts.is_dir() => continue,
            Ok(_) => fs::remove_file(&above)?,
            Err(error) if absent(&error) => {}
            Err(error) => return Err(error),
        }
        fs::create_dir(&above)?;
    }
    let to = work.join(place);
    match fs::symlink_metadata(&to) {
        Ok(facts) if facts.is_dir() => fs::remove_dir_all(&to)?,
        Ok(_) => fs::remove_file(&to)?,
        Err(_) => {}
    }
    fs::hard_link(from, &to)
}

struct Walk<'a> {
    work: &'a Path,
    mounts: Vec<PathBuf>,
    files: BTreeSet<String>,
}

impl Walk<'_> {
    /// Takes what a declared glob matches; a folder that it names counts with all
    /// that is in it. Returns whether anything matched.
    fn take(&mut self, glob: &str) -> io::Result<bool> {
        let glob = glob.trim_end_matches('/');
        let matcher = match GlobBuilder::new(glob).literal_separator(true).build() {
            Ok(glob) => glob.compile_matcher(),
            // The recipe's parser has refused such; a plan of another make matches nothing.
            Err(_) => return Ok(false),
        };
        let begin: PathBuf = Path::new(glob)
            .components()
            .take_while(|part| !has_pattern(&part.as_os_str().to_string_lossy()))
            .collect();
        let inside = |path: &Path| {
            path.components()
                .all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        if !inside(&begin) {
            return Ok(false);
        }
        self.below(&begin, &|path| matches_or_is_below(&matcher, path))
    }

    /// Takes the accepted files at and below `path`; whether there was one.
    fn below(&mut self, path: &Path, accept: &dyn Fn(&Path) -> bool) -> io::Result<bool> {
        let mut above = PathBuf::new();
        for part in path.components() {
            above.push(part);
            let facts = fs::symlink_metadata(self.work.join(&above));
            match facts {
                Ok(facts) if facts.is_symlink() => return Ok(false),
                Ok(_) => {}
                Err(error) if absent(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let mut any = false;
        let mut open = vec![path.to_owned()];
        while let Some(path) = open.pop() {
            if self.mounts.contains(&path) {
                continue;
            }
            let here = self.work.join(&path);
            let facts = match fs::symlink_metadata(&here) {
                Ok(facts) => facts,
                Err(error) if absent(&error) => continue,
                Err(error) => return Err(error),
            };
            if facts.is_dir() {
                for entry in fs::read_dir(&here)? {
                    open.push(path.join(entry?.file_name()));
                }
            } else if facts.is_file() && accept(&path) {
                let Some(name) = path.to_str() else {
                    tracing::warn!(path = %path.display(), "output whose name is not UTF-8 is left out");
                    continue;
                };
                any = true;
                self.files.insert(name.to_owned());
            }
        }
        Ok(any)
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn has_pattern(part: &str) -> bool {
    part.contains(['*', '?', '[', '{', '\\'])
}

fn matches_or_is_below(matcher: &GlobMatcher, path: &Path) -> bool {
    path.ancestors()
        .filter(|above| !above.as_os_str().is_empty())
        .any(|above| matcher.is_match(above))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for path in paths {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "12345").unwrap();
        }
        folder
    }

    fn found(folder: &Path, globs: &[&str], mounts: &[&str]) -> Found {
        let own = |list: &[&str]| {
            list.iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>()
        };
        find(folder, &own(globs), &own(mounts)).unwrap()
    }

    #[test]
    fn globs_folders_and_the_output_directory() {
        let folder = tree(&[
            "train.py",
            "model.npz",
            "plots/a.svg",
            "plots/b.png",
            "plots/deep/c.svg",
            "outputs/x/y.txt",
            "logs/run/1.txt",
        ]);
        let found = found(
            folder.path(),
            &["model.npz", "plots/*.svg", "logs", "absent.bin", "*.none"],
            &[],
        );
        let expected = [
            "logs/run/1.txt",
            "model.npz",
            "outputs/x/y.txt",
            "plots/a.svg",
        ];
        assert_eq!(found.files, expected);
        assert_eq!(found.missing, ["absent.bin", "*.none"]);
    }

    #[test]
    fn double_star_descends_and_datasets_stay_out() {
        let folder = tree(&["a/1.txt", "a/b/2.txt", "data/3.txt", "4.txt"]);
        let found = found(folder.path(), &["**/*.txt"], &["data"]);
        assert_eq!(found.files, ["4.txt", "a/1.txt", "a/b/2.txt"]);
    }

    #[test]
    fn links_lead_nowhere() {
        let folder = tree(&["real/x.txt"]);
        let secret = tree(&["key"]);
        symlink(secret.path(), folder.path().join("outputs")).unwrap();
        symlink(secret.path().join("key"), folder.path().join("model.npz")).unwrap();
        symlink(secret.path(), folder.path().join("real/up")).unwrap();
        let found = found(
            folder.path(),
            &["model.npz", "real/**", "../*", "real/up/key", "/etc/passwd"],
            &[],
        );
        assert_eq!(found.files, ["real/x.txt"]);
        assert_eq!(
            found.missing,
            ["model.npz", "../*", "real/up/key", "/etc/passwd"]
        );
    }
}
