//! Every verb of `ml` stands in `docs/cli.md`.

use super::Finding;

const DOCUMENT: &str = "docs/cli.md";

/// The verbs in the list that `ml --help` prints under `Commands:`.
pub(crate) fn from_help(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| line.trim_end() != "Commands:")
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .map(str::to_owned)
        .collect()
}

/// Finds verbs without a heading or a row that begins with `` `ml VERB ``.
pub(crate) fn check(verbs: &[String], document: &str) -> Vec<Finding> {
    if verbs.is_empty() {
        return vec![Finding::error(
            "ml --help",
            "lists no verbs under `Commands:`",
        )];
    }
    verbs
        .iter()
        .filter(|verb| !document.lines().any(|line| documents(line, verb)))
        .map(|verb| Finding::error(DOCUMENT, format!("verb `ml {verb}` has no heading or row")))
        .collect()
}

fn documents(line: &str, verb: &str) -> bool {
    let start = line
        .strip_prefix("| `ml ")
        .or_else(|| line.trim_start_matches('#').strip_prefix(" `ml "));
    start
        .and_then(|rest| rest.strip_prefix(verb))
        .is_some_and(|rest| rest.starts_with([' ', '`']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "What it does\n\nUsage: ml [OPTIONS] <COMMAND>\n\nCommands:\n  up      Start the daemon\n          and wait\n  queue   Queue a recipe\n  help    Print this\n\nOptions:\n  -h, --help\n";

    #[test]
    fn verbs_are_read_from_help() {
        assert_eq!(from_help(HELP), ["up", "queue"]);
    }

    #[test]
    fn an_undocumented_verb_is_found() {
        let found = check(&from_help(HELP), "## `ml up`\n## `ml queued`\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].text.contains("`ml queue`"));
        assert!(check(&from_help(HELP), "| `ml up` | a |\n| `ml queue FILE` | b |").is_empty());
    }

    #[test]
    fn help_without_verbs_is_found() {
        assert_eq!(check(&[], "").len(), 1);
    }
}
