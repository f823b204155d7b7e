//! Arbitrary text never panics, and what parses stays within its rules.

use mlmesh_model::Workload;
use mlmesh_recipe::{ERRORS_MAX, apply_overrides, endpoints, expand, lock, parse, substitute};
use proptest::prelude::*;

/// Pieces of recipes, put together in any order.
fn fragment() -> impl Strategy<Value = String> {
    let words = [
        "experiment:",
        "name: a",
        "command:",
        "[x, \"${lr}\"]",
        "params:",
        "sweep:",
        "random:",
        "zip:",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "- ",
        "\n",
        "\n  ",
        "\n    ",
        "&a ",
        "*a",
        "!!str ",
        "|\n",
        ">-\n",
        "# x",
        "---\n",
        "...\n",
        "'",
        "\"",
        "${seed}",
        "$",
        "1GiB",
        "0.10",
        "1e-3",
        "none",
        "~",
        "<<: ",
        "? ",
        "\t",
        "datasets:",
        "mount: ../x",
        "env:",
        "MLMESH_X",
        "network:",
        "resources:",
        "memory: 1",
        "count: 3",
        "{loguniform: [1e-4, 1]}",
        "\r\n",
        "\u{feff}",
        "é",
        "\0",
        "%YAML 1.2\n",
    ];
    proptest::sample::select(words.to_vec()).prop_map(str::to_owned)
}

fn recipes() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        proptest::collection::vec(fragment(), 0..60).prop_map(|words| words.concat()),
        // A good recipe with one piece put in or cut out.
        (
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
            fragment()
        )
            .prop_map(|(from, to, word)| {
                let good = mlmesh_recipe::example();
                let places: Vec<usize> = good.char_indices().map(|(place, _)| place).collect();
                let (from, to) = (
                    places[from.index(places.len())],
                    places[to.index(places.len())],
                );
                format!("{}{word}{}", &good[..from], &good[to..])
            }),
    ]
}

fn check(text: &str) {
    let mut workload = match parse("train.yaml", text) {
        Ok(workload) => workload,
        Err(errors) => {
            assert!((1..=ERRORS_MAX).contains(&errors.errors.len()));
            for error in &errors.errors {
                assert!(!error.message.chars().any(char::is_control), "{error:?}");
                assert!(!error.hint.chars().any(char::is_control), "{error:?}");
            }
            return;
        }
    };
    let json = serde_json::to_string(&workload).expect("what parses goes on");
    assert_eq!(
        serde_json::from_str::<Workload>(&json).expect("what parses goes on"),
        workload
    );
    mlmesh_recipe::check(&workload).expect("what parses passes the check of the wire");
    let experiment = workload.job();
    let points = expand(experiment).expect("what parses goes on");
    for point in points.iter().take(3) {
        let argv = substitute(experiment, point).expect("what parses goes on");
        assert_eq!(argv.len(), experiment.command.len());
    }
    for path in experiment
        .datasets
        .iter()
        .map(|dataset| &dataset.mount)
        .chain(&experiment.outputs)
    {
        assert!(
            !path.starts_with('/') && path.split('/').all(|part| part != ".." && !part.is_empty())
        );
    }
    let before = workload.clone();
    if apply_overrides(&mut workload, &[("lr".to_owned(), "2".to_owned())]).is_err() {
        assert_eq!(workload, before);
    }
}

/// 2,000 cases; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases.max(2000),
        failure_persistence: None,
        ..config
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn fuzz_any_text_is_a_workload_or_errors(text in recipes()) {
        check(&text);
    }

    #[test]
    fn fuzz_any_bytes_are_a_lock_or_say_why_not(
        bytes in prop_oneof![
            any::<Vec<u8>>(),
            "(a==1|b>=2| |\\\\\n|\n|#|;|\\[x\\]|--hash=sha256:[0-9a-f]{64}|-e|@|name = \"a\"|\\[\\[package\\]\\]\n|version = 1\n){0,20}"
                .prop_map(String::into_bytes),
        ],
        uv in any::<bool>(),
    ) {
        let path = if uv { "uv.lock" } else { "requirements.txt" };
        let facts = lock::facts(path, &bytes);
        let requirements = lock::to_requirements(path, &bytes);
        prop_assert_eq!(requirements.is_ok(), facts.unhashed.is_empty());
        if let Ok(text) = requirements {
            // What is given to an installer is itself a lock with the same pins.
            let again = lock::facts("requirements.txt", text.as_bytes());
            prop_assert_eq!(again.requirements, facts.requirements);
            prop_assert_eq!(again.unhashed.len(), 0);
        }
    }

    /// Whatever is taken for a host has one form that means the same again, and
    /// nothing in it could say more than a host in a file of hosts.
    #[test]
    fn any_text_is_a_host_or_says_why_not(
        text in prop_oneof![
            any::<String>(),
            "(a|B|9|-|_|\\.|:|\\[|\\]|::1|10\\.0|0x|\\*|/|%|@| |\n|\0|ä|://|localhost|443|65536){0,12}",
        ],
    ) {
        let typed = [text];
        match endpoints(&typed) {
            Ok(all) => {
                prop_assert!((1..=2).contains(&all.len()));
                let forms: Vec<String> = all.iter().map(ToString::to_string).collect();
                prop_assert!(forms.is_sorted());
                for form in &forms {
                    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:[]".contains(&byte);
                    prop_assert!(form.bytes().all(good), "{}", form);
                }
                let again = endpoints(&forms);
                prop_assert_eq!(again.as_ref(), Ok(&all));
            }
            Err(refusal) => {
                prop_assert!(!refusal.hint.is_empty());
                let told = format!("{}{}", refusal.message, refusal.hint);
                prop_assert!(!told.chars().any(char::is_control), "{:?}", told);
            }
        }
    }

    #[test]
    fn fuzz_values_keep_their_text_on_the_way_to_argv(value in "[ -z|}~]{0,40}") {
        let quoted = value.replace('\'', "''");
        let text = format!("experiment:\n  name: a\n  command: [x, '${{v}}', '{quoted}']\n  params: {{v: '{quoted}'}}\n");
        let workload = parse("r", &text).unwrap();
        let experiment = workload.job();
        let argv = substitute(experiment, &expand(experiment).unwrap()[0]).unwrap();
        prop_assert_eq!(&argv[1], &value);
        prop_assert_eq!(&argv[2], &value);
    }
}
