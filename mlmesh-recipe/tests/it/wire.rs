//! A workload that some other program wrote obeys the parser's rules or is refused.

use mlmesh_model::{
    Axis, Environment, Experiment, Network, ParamValue, Seed, Sweep, Tolerance, Workload,
};
use mlmesh_recipe::{check, example};

use crate::example::{FULL, experiment};

fn checked(experiment: &Experiment) -> Result<(), String> {
    check(&Workload::Experiment(Box::new(experiment.clone()))).map_err(|refusal| refusal.message)
}

#[test]
fn what_the_parser_accepts_passes() {
    assert_eq!(checked(&experiment(FULL)), Ok(()));
    assert_eq!(checked(&experiment(example())), Ok(()));
}

#[test]
fn what_no_recipe_could_say_is_refused() {
    type Change = (&'static str, fn(&mut Experiment));
    let changes: &[Change] = &[
        ("no program", |e| e.command.clear()),
        ("blank program", |e| e.command[0] = " ".into()),
        ("zero byte in argv", |e| e.command[1] = "a\0b".into()),
        ("endless argument", |e| e.command[1] = "x".repeat(1 << 20)),
        ("endless argv", |e| e.command = vec!["x".into(); 5000]),
        ("parameter's name", |e| {
            drop(e.params.insert("a-b".into(), ParamValue::Bool(true)))
        }),
        ("parameter seed", |e| {
            drop(e.params.insert("seed".into(), ParamValue::Int(1)))
        }),
        ("parameter's value", |e| {
            drop(
                e.params
                    .insert("lr".into(), ParamValue::Text("\u{1b}".into())),
            )
        }),
        ("parameter's size", |e| {
            drop(e.params.insert("lr".into(), ParamValue::Int(1 << 53)))
        }),
        ("seed", |e| e.seed = Seed::Value(1 << 53)),
        ("axis twice", |e| {
            let axis = Axis {
                param: "lr".into(),
                values: vec![ParamValue::Int(1)],
            };
            e.sweep = Some(Sweep::Grid(vec![axis.clone(), axis]));
        }),
        ("axis' name", |e| {
            e.sweep = Some(Sweep::Zip(vec![Axis {
                param: "".into(),
                values: vec![],
            }]));
        }),
        ("python", |e| {
            e.environment = Some(Environment::Locked {
                python: "../bin".into(),
                lock: "l".into(),
            });
        }),
        ("lock", |e| {
            e.environment = Some(Environment::Locked {
                python: "3.11".into(),
                lock: "/l".into(),
            });
        }),
        ("mount", |e| e.datasets[0].mount = "../x".into()),
        ("version", |e| e.datasets[0].version = Some("a b".into())),
        ("mounts", |e| {
            e.datasets = vec![e.datasets[0].clone(), e.datasets[0].clone()]
        }),
        ("output", |e| e.outputs.push("../../etc/*".into())),
        ("output twice", |e| e.outputs = vec!["a".into(), "a".into()]),
        ("cpus", |e| e.resources.cpu_milli = 0),
        ("memory", |e| e.resources.memory_bytes = Some(u64::MAX)),
        ("time", |e| e.resources.time_s = Some(0)),
        ("gpus", |e| e.resources.gpus = u32::MAX),
        ("variable", |e| {
            drop(e.env.insert("MLMESH_SEED".into(), "1".into()))
        }),
        ("variable's name", |e| {
            drop(e.env.insert("A=B".into(), "1".into()))
        }),
        ("variable's value", |e| {
            drop(e.env.insert("A".into(), "a\0".into()))
        }),
        ("secret", |e| e.secrets.push("a=b".into())),
        ("secret twice", |e| e.secrets = vec!["A".into(), "A".into()]),
        ("secrets unsorted", |e| {
            e.secrets = vec!["B".into(), "A".into()]
        }),
        ("secret and variable", |e| {
            e.secrets = vec!["OMP_NUM_THREADS".into()]
        }),
        ("host", |e| {
            e.network = Some(Network::Hosts(vec!["a b".into()]))
        }),
        ("retries", |e| e.retries = 101),
        ("tolerance", |e| {
            let bounds = Tolerance {
                abs: Some("-1".into()),
                rel: None,
            };
            e.tolerance.insert("x".into(), bounds);
        }),
        ("after", |e| e.after.push("; rm".into())),
    ];
    for (what, change) in changes {
        let mut experiment = experiment(FULL);
        change(&mut experiment);
        assert!(checked(&experiment).is_err(), "{what}");
    }
}
