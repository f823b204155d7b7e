//! Where the symbolic links of a tree may lead.

/// Whether the link at `path` with `target` leads to a place inside the tree.
///
/// `..` is allowed only in front: the folders above a link are real, so each such
/// step is known, while one behind a name could step out of another link's target.
pub fn link_stays_inside(path: &str, target: &str) -> bool {
    if target.is_empty() || target.starts_with('/') || target.contains('\0') {
        return false;
    }
    let mut depth = path.matches('/').count();
    let mut descended = false;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if descended || depth == 0 => return false,
            ".." => depth -= 1,
            ".git" => return false,
            _ => descended = true,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_may_climb_only_in_front_and_only_to_the_root() {
        for (path, target) in [
            ("a", "b"),
            ("a/b", "../c"),
            ("a/b/c", "../../d/e"),
            ("a", "./b//c"),
        ] {
            assert!(link_stays_inside(path, target), "{path} -> {target}");
        }
        for (path, target) in [
            ("a", "/etc"),
            ("a", ".."),
            ("a", "../b"),
            ("a/b", "../../c"),
            ("a", "b/.."),
            ("p/q/x", "d/../.."),
            ("a", ""),
            ("a", ".git/hooks"),
        ] {
            assert!(!link_stays_inside(path, target), "{path} -> {target}");
        }
    }
}
