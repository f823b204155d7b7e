//! The order of points, the draw of random ones, substitution and overrides.

use mlmesh_model::{ParamValue, Seed, Sweep};
use mlmesh_recipe::{Point, apply_overrides, expand, parse, substitute};

use crate::example::experiment;

fn recipe(rest: &str) -> String {
    format!("experiment:\n  name: a\n  command: [p, '${{x}}', '${{y}}']\n{rest}")
}

fn xy(points: &[Point]) -> Vec<String> {
    points
        .iter()
        .map(|point| format!("{}{}", point.params["x"], point.params["y"]))
        .collect()
}

#[test]
fn a_grid_varies_its_last_axis_fastest_in_recipe_order() {
    let sweep = "  params: {x: 0, y: 0}\n  sweep: {y: [1, 2], x: [a, b, c]}\n";
    let points = expand(&experiment(&recipe(sweep))).unwrap();
    assert_eq!(xy(&points), ["a1", "b1", "c1", "a2", "b2", "c2"]);
}

#[test]
fn zip_goes_through_its_lists_together() {
    let points = expand(&experiment(&recipe(
        "  sweep: {zip: {x: [a, b], y: [1, 2]}}\n",
    )))
    .unwrap();
    assert_eq!(xy(&points), ["a1", "b2"]);
}

#[test]
fn without_a_sweep_there_is_one_point() {
    let experiment = experiment(&recipe("  params: {x: 0.10, y: true}\n  seed: 3\n"));
    let points = expand(&experiment).unwrap();
    assert_eq!(points.len(), 1);
    assert_eq!(points[0].seed, Seed::Value(3));
    assert_eq!(
        substitute(&experiment, &points[0]).unwrap(),
        ["p", "0.10", "true"]
    );
}

#[test]
fn a_swept_seed_is_the_points_seed() {
    let text = "experiment: {name: a, command: [p, '${seed}'], sweep: {seed: [5, 6]}}\n";
    let experiment = experiment(text);
    let argv: Vec<_> = expand(&experiment)
        .unwrap()
        .iter()
        .map(|point| substitute(&experiment, point).unwrap()[1].clone())
        .collect();
    assert_eq!(argv, ["5", "6"]);
}

const RANDOM: &str = "  sweep:
    random:
      count: 200
      seed: 1
      x: {loguniform: [1e-4, 1e-1]}
      y: {int: [1, 3]}
      z: [a, b]
      w: {uniform: [-1, 1]}
  params: {z: 0, w: 0}
";

#[test]
fn a_random_sweep_is_the_same_everywhere_and_within_its_bounds() {
    let experiment = experiment(&recipe(RANDOM));
    let points = expand(&experiment).unwrap();
    assert_eq!(points.len(), 200);
    assert_eq!(expand(&experiment).unwrap(), points);
    for point in &points {
        let number = |name: &str| point.params[name].to_string().parse::<f64>().unwrap();
        assert!((1e-4..1e-1).contains(&number("x")), "{point:?}");
        assert!((-1.0..1.0).contains(&number("w")), "{point:?}");
        assert!(
            matches!(point.params["y"], ParamValue::Int(1..=3)),
            "{point:?}"
        );
        assert!(
            matches!(point.params["z"].to_string().as_str(), "a" | "b"),
            "{point:?}"
        );
    }
    let below: usize = points
        .iter()
        .filter(|point| point.params["x"].to_string().parse::<f64>().unwrap() < 10_f64.powf(-2.5))
        .count();
    assert!(
        (70..130).contains(&below),
        "half of the draws lie below the middle exponent: {below}"
    );
    // Golden: a change here changes plans that people have run.
    assert_eq!(first_points(&points), GOLDEN);
}

fn first_points(points: &[Point]) -> Vec<String> {
    points
        .iter()
        .take(3)
        .map(|point| {
            let values: Vec<String> = point
                .params
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            values.join(" ")
        })
        .collect()
}

const GOLDEN: [&str; 3] = [
    "w=-0.11128156588845584 x=0.005008235306272243 y=2 z=a",
    "w=0.04613435970196278 x=0.00215176135020392 y=3 z=b",
    "w=0.21084073795065827 x=0.0007186642695333504 y=2 z=b",
];

#[test]
fn another_seed_is_another_draw() {
    let one = expand(&experiment(&recipe(RANDOM))).unwrap();
    let two = expand(&experiment(&recipe(&RANDOM.replace("seed: 1", "seed: 2")))).unwrap();
    assert_ne!(one, two);
}

#[test]
fn what_a_grid_would_take_in_memory_is_bounded() {
    let long = "x".repeat(4000);
    let seeds: Vec<String> = (0..100_000).map(|seed| seed.to_string()).collect();
    let text = format!(
        "experiment:\n  name: a\n  command: [p]\n  params: {{x: {long}}}\n  sweep: {{seed: [{}]}}\n",
        seeds.join(",")
    );
    let refusal = expand(&experiment(&text)).unwrap_err();
    assert_eq!(refusal.code, "sweep_refused");
}

#[test]
fn a_sweep_that_no_parser_made_is_refused_and_not_a_panic() {
    let mut experiment = experiment(&recipe("  sweep: {zip: {x: [a, b], y: [1, 2]}}\n"));
    let Some(Sweep::Zip(axes)) = experiment.sweep.clone() else {
        panic!("zip")
    };
    let mut uneven = axes.clone();
    uneven[1].values.pop();
    let mut empty = axes.clone();
    empty[0].values.clear();
    let mut seed = axes.clone();
    seed[0].param = "seed".to_owned();
    for sweep in [
        Sweep::Zip(uneven),
        Sweep::Zip(vec![]),
        Sweep::Grid(empty),
        Sweep::Grid(seed),
        Sweep::Random {
            count: u32::MAX,
            seed: 0,
            axes: vec![],
        },
        Sweep::Random {
            count: 0,
            seed: 0,
            axes: vec![],
        },
    ] {
        experiment.sweep = Some(sweep.clone());
        assert!(expand(&experiment).is_err(), "{sweep:?}");
    }
}

#[test]
fn substitution_puts_text_in_and_reads_nothing_again() {
    let evil = "'; rm -rf / #\" $(id) `id` ${y} $HOME \\ * \n\t|&";
    let mut experiment = experiment(&recipe("  params: {x: 1, y: 2}\n"));
    experiment
        .params
        .insert("x".to_owned(), ParamValue::Text(evil.to_owned()));
    experiment
        .command
        .push("$HOME $$ ${ ${x:-1} a${y}b".to_owned());
    let point = expand(&experiment).unwrap().remove(0);
    let argv = substitute(&experiment, &point).unwrap();
    assert_eq!(argv, ["p", evil, "2", "$HOME $$ ${ ${x:-1} a2b"]);
}

#[test]
fn substitution_refuses_unknown_names_and_arguments_that_grow() {
    let mut experiment = experiment(&recipe("  params: {x: 1, y: 2}\n"));
    let point = expand(&experiment).unwrap().remove(0);
    for (element, code) in [
        ("${z}".to_owned(), "recipe_unknown_parameter"),
        ("${seed}".to_owned(), "recipe_unknown_parameter"),
        ("\0".to_owned(), "argument_refused"),
        ("${x}".repeat(200_000), "argument_refused"),
    ] {
        experiment.command = vec![element];
        assert_eq!(substitute(&experiment, &point).unwrap_err().code, code);
    }
}

#[test]
fn overrides_replace_parameters_and_the_seed() {
    let mut workload = parse("r", &recipe("  params: {x: 1, y: 2}\n")).unwrap();
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    apply_overrides(
        &mut workload,
        &[set("x", "0.10"), set("y", "3"), set("seed", "9")],
    )
    .unwrap();
    let experiment = workload.job();
    assert_eq!(experiment.params["x"], ParamValue::Text("0.10".to_owned()));
    assert_eq!(experiment.params["y"], ParamValue::Int(3));
    assert_eq!(experiment.seed, Seed::Value(9));
}

#[test]
fn overrides_that_cannot_be_applied_change_nothing() {
    let text = "experiment:
  name: a
  command: [p, '${lr}', '${seed}']
  params: {lr: 1, epochs: 2}
  seed: 1
  sweep: {lr: [1, 2]}
";
    let mut workload = parse("r", text).unwrap();
    let before = workload.clone();
    for (name, value, message) in [
        ("lr", "3", "`--set lr` names what the recipe sweeps"),
        (
            "epoch",
            "3",
            "`--set epoch` names no parameter of the recipe; did you mean `epochs`?",
        ),
        (
            "command",
            "x",
            "`--set command` names no parameter of the recipe; the nearest valid one is `seed`",
        ),
        (
            "seed",
            "-1",
            "`--set seed=-1` is not a seed; a seed is a whole number from 0, below 2^53, or `none`",
        ),
        (
            "seed",
            "none",
            "`--set seed=none` takes the seed away, and the command uses `${seed}`",
        ),
        (
            "epochs",
            "a\0",
            "`a\\u{0}` holds the control character `\\u{0}`; only tab and newline are allowed",
        ),
    ] {
        let overrides = [
            ("epochs".to_owned(), "9".to_owned()),
            (name.to_owned(), value.to_owned()),
        ];
        let refusal = apply_overrides(&mut workload, &overrides).unwrap_err();
        assert_eq!(refusal.message, message);
        assert_eq!(refusal.code, "override_refused");
        assert_eq!(workload, before);
    }
}
