//! Recipes that parse, and to what.

use std::collections::BTreeMap;

use mlmesh_model::{
    Axis, DatasetRef, Environment, Experiment, LimitsPolicy, Network, ParamValue, Resources,
    RetryOn, Seed, Sweep, Tolerance, Workload,
};
use mlmesh_recipe::{example, init_recipe, parse};

pub(crate) fn experiment(text: &str) -> Experiment {
    match parse("train.yaml", text) {
        Ok(Workload::Experiment(experiment)) => *experiment,
        Ok(Workload::Service(_)) => panic!("a service: {text}"),
        Err(errors) => panic!("{errors}\n{text}"),
    }
}

fn text(value: &str) -> ParamValue {
    ParamValue::Text(value.to_owned())
}

pub(crate) const FULL: &str = r#"
experiment:
  name: digits
  command: [python, train.py, --lr, "${lr}", --seed, "${seed}"]
  params: {lr: 0.1}
  seed: 7                              # given to the job
  sweep: {lr: [0.01, 0.1, 1.0]}        # grid
  environment: {python: "3.11", lock: requirements.lock}
  datasets: [{name: digits, version: "1", checksum: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", mount: data/digits}]
  outputs: [model.npz, "plots/*.svg"]
  resources: {cpus: 1, memory: 1GiB, gpus: 0, time: 10m}
  env: {OMP_NUM_THREADS: "1"}
  secrets: [WANDB_API_KEY]             # names only
  network: none
  retries: 1
  tolerance: {accuracy: {abs: 0}}
"#;

#[test]
fn the_example_of_the_manual_becomes_the_expected_workload() {
    let expected = Experiment {
        name: "digits".parse().unwrap(),
        command: ["python", "train.py", "--lr", "${lr}", "--seed", "${seed}"]
            .map(String::from)
            .to_vec(),
        params: BTreeMap::from([("lr".to_owned(), text("0.1"))]),
        seed: Seed::Value(7),
        sweep: Some(Sweep::Grid(vec![Axis {
            param: "lr".to_owned(),
            values: vec![text("0.01"), text("0.1"), text("1.0")],
        }])),
        environment: Some(Environment::Locked {
            python: "3.11".to_owned(),
            lock: "requirements.lock".to_owned(),
        }),
        datasets: vec![DatasetRef {
            name: "digits".parse().unwrap(),
            version: Some("1".to_owned()),
            checksum: Some(mlmesh_model::Digest::of(b"")),
            mount: "data/digits".to_owned(),
        }],
        outputs: vec!["model.npz".to_owned(), "plots/*.svg".to_owned()],
        resources: Resources {
            cpu_milli: 1000,
            memory_bytes: Some(1 << 30),
            gpus: 0,
            time_s: Some(600),
        },
        env: BTreeMap::from([("OMP_NUM_THREADS".to_owned(), "1".to_owned())]),
        secrets: vec!["WANDB_API_KEY".to_owned()],
        network: Some(Network::None),
        retries: 1,
        retry_on: vec![],
        tolerance: BTreeMap::from([(
            "accuracy".to_owned(),
            Tolerance {
                abs: Some("0".to_owned()),
                rel: None,
            },
        )]),
        on_finish: None,
        api: false,
        sandbox: false,
        limits: LimitsPolicy::Recorded,
        after: vec![],
    };
    assert_eq!(experiment(FULL), expected);
}

#[test]
fn the_smallest_recipe_takes_every_default() {
    let experiment = experiment("experiment:\n  name: a\n  command: ['true']\n");
    assert_eq!(experiment.seed, Seed::Absent);
    assert_eq!(experiment.resources, Resources::default());
    assert_eq!(experiment.network, None);
    assert_eq!(experiment.environment, None);
    assert_eq!(experiment.sweep, None);
}

#[test]
fn scalars_stay_as_typed() {
    let experiment = experiment(
        "experiment:
  name: 7
  command: [python, -c, 0.10, 1e-3, 007, 0x1f, true, 2026-01-01, 1_000]
  params: {a: 0.10, b: 1e-3, c: 7, d: '7', e: true, f: 'true', g: True, h: 9007199254740992, i: -3, j: 007, k: yes, l: '', m: .inf}
  environment: {python: 3.10, lock: uv.lock}
  datasets: [{name: d, version: 1.0}]
  env: {A: 1.50, B: true}
",
    );
    let expected = [
        "python",
        "-c",
        "0.10",
        "1e-3",
        "007",
        "0x1f",
        "true",
        "2026-01-01",
        "1_000",
    ];
    assert_eq!(experiment.command, expected);
    let expected = [
        ("a", text("0.10")),
        ("b", text("1e-3")),
        ("c", ParamValue::Int(7)),
        ("d", text("7")),
        ("e", ParamValue::Bool(true)),
        ("f", text("true")),
        ("g", text("True")),
        ("h", text("9007199254740992")),
        ("i", ParamValue::Int(-3)),
        ("j", text("007")),
        ("k", text("yes")),
        ("l", text("")),
        ("m", text(".inf")),
    ];
    let expected: BTreeMap<_, _> = expected
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(experiment.params, expected);
    assert_eq!(
        experiment.environment,
        Some(Environment::Locked {
            python: "3.10".to_owned(),
            lock: "uv.lock".to_owned()
        })
    );
    assert_eq!(experiment.datasets[0].version.as_deref(), Some("1.0"));
    assert_eq!(experiment.datasets[0].mount, "data/d");
    assert_eq!(experiment.env["A"], "1.50");
}

#[test]
fn the_other_keys_mean_what_they_say() {
    let experiment = experiment(
        "experiment:
  name: a
  command:
    - python
    - -c
    - |
      print('two')
      print('lines')
  seed: none
  environment: current
  network: [example.org:443, packages.example.org]
  retry_on: [exit]
  sandbox: true
  limits: required
  after: ['@last', abcd]
  secrets: [B, A]
  resources: {cpus: 0.5, time: 1h30m}
",
    );
    assert_eq!(experiment.command[2], "print('two')\nprint('lines')\n");
    assert_eq!(experiment.seed, Seed::None);
    assert_eq!(experiment.environment, Some(Environment::Current));
    assert_eq!(
        experiment.network,
        Some(Network::Hosts(vec![
            "example.org:443".to_owned(),
            "packages.example.org".to_owned()
        ]))
    );
    assert_eq!(experiment.retry_on, [RetryOn::Exit]);
    assert!(experiment.sandbox);
    assert_eq!(experiment.limits, LimitsPolicy::Required);
    assert_eq!(experiment.after, ["@last", "abcd"]);
    assert_eq!(experiment.secrets, ["A", "B"]);
    assert_eq!(experiment.resources.cpu_milli, 500);
    assert_eq!(experiment.resources.time_s, Some(5400));
}

#[test]
fn aliases_windows_lines_and_a_byte_order_mark_are_read() {
    let plain = experiment("experiment:\n  name: a\n  command: [x, y]\n");
    let windows = "\u{feff}experiment:\r\n  name: &n a\r\n  command: [x, y]\r\n";
    assert_eq!(experiment(windows), plain);
    let alias = experiment("experiment:\n  name: &n a\n  command: [*n, *n]\n");
    assert_eq!(alias.command, ["a", "a"]);
}

#[test]
fn a_parsed_workload_survives_its_json() {
    let workload = parse("train.yaml", FULL).unwrap();
    let text = serde_json::to_string(&workload).unwrap();
    assert_eq!(serde_json::from_str::<Workload>(&text).unwrap(), workload);
}

#[test]
fn the_recipe_of_init_parses_whatever_the_folder_is_called() {
    experiment(example());
    for (folder, name) in [
        ("digits", "digits"),
        ("my project", "my-project"),
        ("..x", "x"),
        ("日本", "train"),
        ("", "train"),
        ("null", "train"),
        ("${lr}: [", "lr"),
    ] {
        assert_eq!(
            experiment(&init_recipe(folder)).name.as_str(),
            name,
            "{folder}"
        );
    }
}
