//! Golden errors: `errors.golden` holds recipes and, word for word, what people
//! are told about them.

use mlmesh_recipe::{DEPTH_MAX, ERRORS_MAX, FILE_BYTES_MAX, NODES_MAX, parse};

/// Sections begin with `=== title`; the answer stands below `---`.
const GOLDEN: &str = include_str!("errors.golden");

#[test]
fn every_bad_recipe_is_answered_as_written_down() {
    let mut actual = String::new();
    let mut sections = 0;
    for section in GOLDEN.split("=== ").skip(1) {
        let (title, rest) = section.split_once('\n').unwrap();
        let (recipe, _) = rest.split_once("---\n").unwrap();
        let recipe_text = recipe.replace("<TAB>", "\t").replace("<NUL>", "\\0");
        let answer = match parse("train.yaml", &recipe_text) {
            Ok(workload) => panic!("`{title}` is accepted: {workload:?}"),
            Err(errors) => errors.to_string(),
        };
        actual.push_str(&format!("=== {title}\n{recipe}---\n{answer}\n"));
        sections += 1;
    }
    assert!(sections >= 25, "{sections} recipes");
    assert!(actual == GOLDEN, "the answers are now:\n{actual}");
}

#[test]
fn every_error_has_a_place_a_word_in_backticks_and_a_hint() {
    for section in GOLDEN.split("=== ").skip(1) {
        let (recipe, _) = section.split_once("---\n").unwrap();
        let recipe = recipe.split_once('\n').unwrap().1;
        let recipe = recipe.replace("<TAB>", "\t").replace("<NUL>", "\\0");
        let errors = parse("train.yaml", &recipe).unwrap_err();
        assert!(!errors.errors.is_empty());
        let lines = recipe.lines().count() as u32 + 1;
        for error in &errors.errors {
            assert!((1..=lines).contains(&error.line), "{error}");
            assert!(error.column >= 1, "{error}");
            assert!(
                error.message.contains('`') || error.code == "recipe_syntax",
                "{error}"
            );
            assert!(
                !error.hint.is_empty() && !error.message.ends_with('.'),
                "{error}"
            );
        }
        assert!(
            errors
                .errors
                .is_sorted_by_key(|error| (error.line, error.column))
        );
    }
}

#[test]
fn at_most_twenty_errors_are_shown_and_the_rest_is_counted() {
    let keys: String = (0..50).map(|index| format!("  key{index}: 1\n")).collect();
    let errors = parse("r", &format!("experiment:\n{keys}")).unwrap_err();
    assert_eq!(errors.errors.len(), ERRORS_MAX);
    // `name` and `command` are missing too.
    assert_eq!(errors.omitted, 50 + 2 - ERRORS_MAX);
    assert!(errors.to_string().ends_with("… and 32 more"));
}

fn code(text: &str) -> &'static str {
    parse("r", text).expect_err("a refusal").errors[0].code
}

#[test]
fn oversized_files_are_refused_before_they_are_read() {
    let text = format!("#{}", "x".repeat(FILE_BYTES_MAX));
    let errors = parse("r", &text).unwrap_err();
    assert_eq!(
        errors.errors[0].message,
        "the file has `1048577` bytes; a recipe has at most 1048576"
    );
}

#[test]
fn alias_bombs_are_refused_at_the_alias_that_goes_too_far() {
    let mut text = "experiment:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("  a{level}: &a{level} [{aliases}]\n"));
    }
    let errors = parse("r", &text).unwrap_err();
    assert_eq!(errors.errors.last().unwrap().code, "recipe_too_large");
    assert!(
        errors
            .to_string()
            .contains(&format!("more than `{NODES_MAX}` values"))
    );
}

#[test]
fn deep_nesting_is_refused_in_every_style() {
    let flow = format!("experiment: {}", "[".repeat(10_000));
    let block: String = (0..DEPTH_MAX * 2)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    let compact = format!("experiment:\n  {}x", "- ".repeat(10_000));
    let keys = format!("{}x", "? ".repeat(10_000));
    for text in [flow, block, compact, keys] {
        let code = code(&text);
        assert!(
            matches!(code, "recipe_syntax" | "recipe_too_large"),
            "{code}"
        );
    }
}

#[test]
fn many_keys_are_read_in_reasonable_work() {
    let keys: String = (0..90_000).map(|index| format!("k{index}: 1\n")).collect();
    assert_eq!(code(&keys), "recipe_unknown_key");
    let duplicates = "k: 1\n".repeat(100_000);
    assert_eq!(code(&duplicates), "recipe_duplicate_key");
    let datasets: String = (0..20_000)
        .map(|index| format!("    - {{name: d{index}}}\n"))
        .collect();
    assert_eq!(
        code(&format!(
            "experiment:\n  name: a\n  command: [x]\n  datasets:\n{datasets}"
        )),
        "recipe_too_large"
    );
}
