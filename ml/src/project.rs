//! A project: its root, the recipe in it, and what git says.
//!
//! The root is the nearest folder above the recipe (its own included) that has
//! `mlmesh.toml` or `.git`, else the recipe's folder. Git's files are read
//! directly; only whether the folder differs from HEAD is asked of `git` itself, while
//! the snapshot is taken.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mlmesh_model::{GitFacts, Workload};
use mlmesh_recipe::{KindSource, RecipeErrors};

use crate::error::{Failure, Outcome};

/// A recipe's text and place.
#[derive(Debug)]
pub(crate) struct RecipeFile {
    /// The folder that is snapshotted.
    pub(crate) root: PathBuf,
    /// Relative to the root, with `/`.
    pub(crate) relative: String,
    /// Its text.
    pub(crate) text: String,
}

/// Reads a recipe and finds its project.
pub(crate) fn read_recipe(path: &Path) -> Outcome<RecipeFile> {
    let text = read_text(path)?;
    let real = fs::canonicalize(path).map_err(|error| Failure::io("read", path, &error))?;
    let folder = real.parent().unwrap_or(Path::new("/"));
    let root = root_of(folder);
    let relative = real.strip_prefix(&root).unwrap_or(&real);
    Ok(RecipeFile {
        relative: relative.to_string_lossy().into_owned(),
        root,
        text,
    })
}

/// Parses a recipe. A kind of service that it names is looked for in `kinds/` of its
/// project, then among the user's own; else it may be a built-in one.
pub(crate) fn parse(path: &Path, shown: &str, text: &str) -> Result<Workload, RecipeErrors> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let root = root_of(real.parent().unwrap_or(Path::new("/")));
    let own = crate::config::user_folder().map(|folder| folder.join("kinds"));
    let folders = [Some(root.join("kinds")), own];
    mlmesh_recipe::parse_with(shown, text, &|kind| {
        // The parser has seen to it that a kind's name is no path.
        let files = folders.iter().flatten();
        let mut files = files.map(|folder| folder.join(format!("{kind}.yaml")));
        let file = files.find(|file| file.is_file())?;
        let text = read_text(&file).ok()?;
        let file = file.strip_prefix(&root).unwrap_or(&file);
        let file = file.display().to_string();
        Some(KindSource { file, text })
    })
}

/// The text of a recipe; larger files than a recipe may be are refused unread.
pub(crate) fn read_text(path: &Path) -> Outcome<String> {
    let missing = |error: &io::Error| {
        let mut failure = Failure::io("read", path, error);
        failure.exit = crate::error::Exit::Usage;
        if error.kind() == io::ErrorKind::NotFound {
            failure.code = "recipe_absent".to_owned();
            failure.hint = "`ml init` writes a commented `train.yaml`".to_owned();
        }
        failure
    };
    let file = fs::File::open(path).map_err(|error| missing(&error))?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Failure::usage(
            format!("`{}` is a folder, a recipe is a file", path.display()),
            "name the recipe, such as `train.yaml`",
        ));
    }
    let limit = mlmesh_recipe::FILE_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| missing(&error))?;
    String::from_utf8(bytes).map_err(|error| {
        Failure::usage(
            format!(
                "{}: byte {} is not UTF-8, a recipe must be",
                path.display(),
                error.utf8_error().valid_up_to()
            ),
            "save the file as UTF-8",
        )
    })
}

/// The root of the project that `folder` lies in.
pub(crate) fn root_of(folder: &Path) -> PathBuf {
    folder
        .ancestors()
        .find(|folder| is_root(folder))
        .unwrap_or(folder)
        .to_owned()
}

fn is_root(folder: &Path) -> bool {
    folder.join("mlmesh.toml").is_file() || folder.join(".git").exists()
}

/// What git says of a project, asked in the background.
pub(crate) struct GitLook {
    facts: Option<GitFacts>,
    status: Option<Child>,
}

/// Begins to ask. Where there is no commit nothing is asked.
pub(crate) fn look_at_git(root: &Path) -> GitLook {
    let facts = git_facts(root);
    // No watcher of files that the repository's settings name is started, and nothing is
    // written.
    let status = facts.as_ref().and_then(|_| {
        Command::new("git")
            .arg("-C")
            .arg(root)
            .args(["-c", "core.fsmonitor=false", "--no-optional-locks"])
            .args(["status", "--porcelain", "--", "."])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()
    });
    GitLook { facts, status }
}

impl GitLook {
    /// The answer. Whether the folder is as HEAD has it is said when there is a `git`
    /// that knows.
    pub(crate) fn facts(self) -> Option<GitFacts> {
        let dirty = self.status.and_then(differs);
        Some(GitFacts {
            dirty,
            ..self.facts?
        })
    }
}

/// One byte of a list says that it is not empty.
fn differs(mut status: Child) -> Option<bool> {
    let mut output = status.stdout.take()?;
    let read = output.read(&mut [0]).ok()?;
    drop(output);
    if read > 0 {
        // It need not finish its list.
        let _ = status.kill();
        let _ = status.wait();
        return Some(true);
    }
    status.wait().ok()?.success().then_some(false)
}

/// HEAD and branch of the repository that the folder is the root of, or lies in.
fn git_facts(root: &Path) -> Option<GitFacts> {
    let git = root.ancestors().find_map(|folder| {
        let git = folder.join(".git");
        git.exists().then_some(git)
    })?;
    let git = if git.is_file() {
        // A worktree or submodule: `gitdir: PATH`.
        let text = read_small(&git)?;
        let target = text.trim().strip_prefix("gitdir: ")?;
        git.parent()?.join(target)
    } else {
        git
    };
    let head = read_small(&git.join("HEAD"))?;
    let head = head.trim();
    let Some(reference) = head.strip_prefix("ref: ") else {
        return is_object_name(head).then(|| GitFacts {
            head: head.to_owned(),
            branch: None,
            dirty: None,
        });
    };
    let common = read_small(&git.join("commondir"))
        .map_or_else(|| git.clone(), |text| git.join(text.trim()));
    let name = resolve(&git, reference).or_else(|| resolve(&common, reference))?;
    Some(GitFacts {
        head: name,
        branch: reference.strip_prefix("refs/heads/").map(str::to_owned),
        dirty: None,
    })
}

fn resolve(git: &Path, reference: &str) -> Option<String> {
    if reference.contains("..") || reference.starts_with('/') {
        return None;
    }
    if let Some(text) = read_small(&git.join(reference)) {
        let name = text.trim();
        return is_object_name(name).then(|| name.to_owned());
    }
    let packed = read_small(&git.join("packed-refs"))?;
    packed.lines().find_map(|line| {
        let (name, of) = line.split_once(' ')?;
        (of == reference && is_object_name(name)).then(|| name.to_owned())
    })
}

fn is_object_name(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn read_small(path: &Path) -> Option<String> {
    const BYTES_MAX: u64 = 4 << 20;
    let mut text = String::new();
    fs::File::open(path)
        .ok()?
        .take(BYTES_MAX)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "0123456789012345678901234567890123456789";

    #[test]
    fn the_nearest_marked_folder_is_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b/c");
        fs::create_dir_all(&inner).unwrap();
        fs::create_dir(folder.path().join(".git")).unwrap();
        assert_eq!(root_of(&inner), folder.path());
        fs::write(folder.path().join("a/mlmesh.toml"), "").unwrap();
        assert_eq!(root_of(&inner), folder.path().join("a"));
        let recipe = inner.join("train.yaml");
        fs::write(&recipe, "experiment: {}\n").unwrap();
        let read = read_recipe(&recipe).unwrap();
        assert_eq!(read.relative, "b/c/train.yaml");
        assert_eq!(
            read.root,
            fs::canonicalize(folder.path().join("a")).unwrap()
        );
    }

    #[test]
    fn git_is_read_loose_packed_and_detached() {
        let folder = tempfile::tempdir().unwrap();
        let git = folder.path().join(".git");
        assert_eq!(git_facts(folder.path()), None);
        fs::create_dir_all(git.join("refs/heads")).unwrap();
        fs::write(git.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        assert_eq!(git_facts(folder.path()), None, "no commit yet");
        fs::write(
            git.join("packed-refs"),
            format!("# x\n{NAME} refs/heads/main\n"),
        )
        .unwrap();
        let facts = git_facts(folder.path()).unwrap();
        assert_eq!(
            (facts.head.as_str(), facts.branch.as_deref()),
            (NAME, Some("main"))
        );
        let newer = NAME.replace('0', "f");
        fs::write(git.join("refs/heads/main"), &newer).unwrap();
        assert_eq!(git_facts(folder.path()).unwrap().head, newer);
        fs::write(git.join("HEAD"), NAME).unwrap();
        assert_eq!(git_facts(folder.path()).unwrap().branch, None);
        fs::write(git.join("HEAD"), "ref: ../../etc/passwd").unwrap();
        assert_eq!(git_facts(folder.path()), None);
    }

    #[test]
    fn git_says_whether_the_folder_differs_from_its_head() {
        let folder = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let output = Command::new("git")
                .args(["-c", "user.name=ada", "-c", "user.email=ada@example.org"])
                .arg("-C")
                .arg(folder.path())
                .args(arguments)
                .output();
            output.map(|output| assert!(output.status.success(), "{output:?}"))
        };
        if git(&["init", "-q"]).is_err() {
            assert!(std::env::var_os("CI").is_none(), "no git in CI");
            println!("skipped: no git");
            return;
        }
        let dirty = || look_at_git(folder.path()).facts().map(|facts| facts.dirty);
        fs::write(folder.path().join("train.py"), "1").unwrap();
        assert_eq!(dirty(), None, "no commit yet");
        git(&["add", "train.py"]).unwrap();
        git(&["commit", "-qm", "first"]).unwrap();
        assert_eq!(dirty(), Some(Some(false)));
        fs::write(folder.path().join("train.py"), "2 ").unwrap();
        assert_eq!(dirty(), Some(Some(true)));
        git(&["checkout", "-q", "train.py"]).unwrap();
        fs::write(folder.path().join("new.py"), "").unwrap();
        assert_eq!(dirty(), Some(Some(true)), "a file that git does not know");
    }

    #[test]
    fn a_folder_is_not_a_recipe() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_text(folder.path()).unwrap_err().exit.code(), 2);
        let absent = read_text(&folder.path().join("x.yaml")).unwrap_err();
        assert_eq!(
            (absent.code.as_str(), absent.exit.code()),
            ("recipe_absent", 2)
        );
    }
}
