//! What several tests need: folders with files in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

/// Writes `files` below `root`: a content, `-> target` for a link, or content
/// after `+x ` for a program.
pub(crate) fn write_files(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if let Some(target) = content.strip_prefix("-> ") {
            symlink(target, &path).unwrap();
        } else if let Some(content) = content.strip_prefix("+x ") {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        } else {
            fs::write(&path, content).unwrap();
        }
    }
}

/// `count` files of `bytes` bytes each, 100 a folder, all different.
pub(crate) fn write_many(root: &Path, count: usize, bytes: usize) {
    for index in 0..count {
        let path = root.join(format!("folder-{:03}/file-{index:05}.txt", index / 100));
        if index % 100 == 0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        let mut content = format!("file {index}\n").into_bytes();
        content.resize(bytes, b'x');
        fs::write(path, content).unwrap();
    }
}
