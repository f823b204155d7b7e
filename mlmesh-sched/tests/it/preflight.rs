//! Each rule of preflight, and what the plan is made of.

use std::collections::{BTreeMap, BTreeSet};

use mlmesh_model::*;
use mlmesh_sched::{Load, LockSeen, ModelSeen, ParentSeen, Preflight, World, preflight};

use crate::jobs::{cpus, id};

const TREE: &[u8] = b"tree";

fn lock_facts() -> LockFacts {
    LockFacts {
        path: "requirements.lock".into(),
        sha256: Digest::of(b"lock"),
        requirements: 3,
        unhashed: vec![],
    }
}

/// A world in which [`submission`] reaches L3.
fn world() -> World {
    World {
        interpreters: vec![Interpreter {
            version: "3.11".into(),
            exact: "3.11.2".into(),
            path: "/usr/bin/python3.11".into(),
            sha256: Digest::of(b"python"),
        }],
        datasets: vec![Dataset {
            tenant: Tenant::default(),
            owner: "ada".parse().unwrap(),
            name: "digits".parse().unwrap(),
            version: "1".into(),
            checksum: Digest::of(b"data"),
            directory: false,
            path: "/data/digits".into(),
            copied: false,
            about: DatasetAbout::default(),
            bytes: 4,
            files: 1,
            registered_at: Micros(0),
        }],
        abilities: Abilities {
            sandbox: true,
            network_none: true,
            network_hosts: true,
            limits: vec!["cpu".into(), "memory".into(), "time".into()],
            separates_users: true,
            ..Abilities::default()
        },
        capacity: cpus(2),
        after: BTreeMap::new(),
        secrets: BTreeSet::new(),
        commit_complete: true,
        lock: LockSeen::Read(lock_facts()),
        caller_is_daemon_owner: true,
        hook_commands: true,
        service_open: false,
        model: ModelSeen::NotAsked,
        load: Load {
            queued: 0,
            free_cpu_milli: 2_000,
            free_memory_bytes: 1_000,
            free_gpus: 2,
        },
    }
}

fn submission() -> Submission {
    let experiment = Experiment {
        name: "digits".parse().unwrap(),
        command: vec![
            "python".into(),
            "train.py".into(),
            "${lr}".into(),
            "${seed}".into(),
        ],
        params: BTreeMap::from([("lr".into(), ParamValue::Text("0.10".into()))]),
        seed: Seed::Value(7),
        sweep: None,
        environment: Some(Environment::Locked {
            python: "3.11".into(),
            lock: "requirements.lock".into(),
        }),
        datasets: vec![DatasetRef {
            name: "digits".parse().unwrap(),
            version: Some("1".into()),
            checksum: Some(Digest::of(b"data")),
            mount: "data/digits".into(),
        }],
        outputs: vec!["model.npz".into()],
        resources: Resources::default(),
        env: BTreeMap::new(),
        secrets: vec![],
        network: None,
        retries: 0,
        retry_on: vec![],
        tolerance: BTreeMap::new(),
        on_finish: None,
        api: false,
        sandbox: false,
        limits: LimitsPolicy::Recorded,
        after: vec![],
    };
    Submission {
        workload: Workload::Experiment(Box::new(experiment)),
        commit: CommitId(Digest::of(TREE)),
        recipe_path: "train.yaml".into(),
        git: None,
        lock: Some(lock_facts()),
        current: None,
        policy: ReproPolicy::Strict,
        executor: None,
        priority: 0,
        expected_plan: None,
        secret_values: BTreeMap::new(),
    }
}

type Change = fn(&mut Submission, &mut Experiment, &mut World);

fn judged(change: Change) -> Preflight {
    let (mut submission, mut world) = (submission(), world());
    let mut experiment = submission.workload.job().clone();
    change(&mut submission, &mut experiment, &mut world);
    submission.workload = Workload::Experiment(Box::new(experiment));
    preflight(&submission, &world)
}

fn codes(refusals: &[Refusal]) -> Vec<&str> {
    refusals
        .iter()
        .map(|refusal| refusal.code.as_str())
        .collect()
}

#[test]
fn what_reaches_l3_is_let_through_with_its_plan() {
    let judged = judged(|_, _, _| {});
    assert_eq!(codes(&judged.refusals), [""; 0]);
    assert_eq!(codes(&judged.waits), [""; 0]);
    assert_eq!(judged.trust.level, TrustLevel::L3);
    let [run] = judged.runs.as_slice() else {
        panic!("one run");
    };
    assert_eq!(run.plan.argv, ["python", "train.py", "0.10", "7"]);
    assert_eq!(run.plan.network, PlanNetwork::None);
    assert_eq!(Some(run.plan_sha256), judged.plan_sha256);
    assert_eq!(run.plan.digest().unwrap(), run.plan_sha256);
    assert!(judged.placement.sandbox);
    let groups = &judged.groups;
    assert_eq!(groups.commit, CommitId(Digest::of(TREE)));
    assert_eq!(groups.experiment.sha256, judged.plan_sha256);
    assert_eq!(groups.deps.as_ref().unwrap().name, "requirements.lock");
    assert_eq!(groups.snapshot.sha256, Digest::of(TREE));
    assert!(groups.datasets[0].registered);
    assert_eq!(groups.candidate_image, None);
}

#[test]
fn each_rule_refuses_with_its_code_and_a_hint() {
    let cases: Vec<(&[&str], Change)> = vec![
        (&["environment_absent"], |_, experiment, _| {
            experiment.environment = None
        }),
        (&["environment_unhashed"], |submission, _, world| {
            let facts = LockFacts {
                unhashed: vec!["numpy".into()],
                ..lock_facts()
            };
            submission.lock = Some(facts.clone());
            world.lock = LockSeen::Read(facts);
        }),
        (&["seed_absent"], |_, experiment, _| {
            experiment.seed = Seed::Absent;
            experiment.command.truncate(3);
        }),
        (&["network_open"], |_, experiment, _| {
            experiment.network = Some(Network::Open)
        }),
        (&["network_not_enforced"], |_, _, world| {
            world.abilities.network_none = false
        }),
        (&["network_not_enforced"], |_, experiment, world| {
            experiment.network = Some(Network::Hosts(vec!["example.org".into()]));
            world.abilities.network_hosts = false;
        }),
        (&["sandbox_unavailable"], |_, _, world| {
            world.abilities.sandbox = false
        }),
        (&["sandbox_unavailable"], |submission, experiment, world| {
            submission.policy = ReproPolicy::Relaxed;
            experiment.sandbox = true;
            world.abilities.sandbox = false;
        }),
        (&["python_not_found"], |_, _, world| {
            world.interpreters[0].version = "3.12".into()
        }),
        (&["lock_missing"], |_, _, world| {
            world.lock = LockSeen::Missing
        }),
        (&["lock_missing"], |submission, _, world| {
            submission.lock = None;
            world.lock = LockSeen::NotRead;
        }),
        (&["lock_differs"], |submission, _, _| {
            submission.lock.as_mut().unwrap().unhashed = vec!["numpy".into()];
        }),
        (&["dataset_checksum_missing"], |_, experiment, _| {
            experiment.datasets[0].checksum = None
        }),
        (
            &["dataset_checksum_missing"],
            |submission, experiment, _| {
                submission.policy = ReproPolicy::Relaxed;
                experiment.datasets[0].checksum = None;
            },
        ),
        (&["dataset_unknown"], |_, _, world| world.datasets.clear()),
        (&["dataset_unknown"], |_, experiment, _| {
            experiment.datasets[0].version = Some("2".into());
        }),
        (&["dataset_checksum_differs"], |_, experiment, _| {
            experiment.datasets[0].checksum = Some(Digest::of(b"other"));
        }),
        (
            &["resources_never_fit", "resources_never_fit"],
            |_, experiment, _| {
                experiment.resources.cpu_milli = 3_000;
                experiment.resources.gpus = 3;
            },
        ),
        (&["limit_not_enforced"], |_, experiment, world| {
            experiment.limits = LimitsPolicy::Required;
            experiment.resources.memory_bytes = Some(10);
            world.abilities.limits = vec!["cpu".into()];
        }),
        (&["secret_without_value"], |_, experiment, _| {
            experiment.secrets = vec!["KEY".into()]
        }),
        (&["plan_moved"], |submission, _, _| {
            submission.expected_plan = Some(PlanDigest(Digest::of(b"earlier")));
        }),
        (&["owner_only"], |_, _, world| {
            world.abilities.separates_users = false;
            world.caller_is_daemon_owner = false;
        }),
        (&["environment_current"], |submission, experiment, _| {
            current(submission, experiment)
        }),
        (
            &["current_environment_absent"],
            |submission, experiment, _| {
                submission.policy = ReproPolicy::Relaxed;
                experiment.environment = Some(Environment::Current);
            },
        ),
        (
            &["current_environment_foreign"],
            |submission, experiment, world| {
                submission.policy = ReproPolicy::Relaxed;
                current(submission, experiment);
                world.caller_is_daemon_owner = false;
            },
        ),
        (&["lock_foreign_unpinned"], |submission, _, world| {
            let facts = LockFacts {
                unhashed: vec!["-e".into()],
                ..lock_facts()
            };
            submission.policy = ReproPolicy::Relaxed;
            submission.lock = Some(facts.clone());
            world.lock = LockSeen::Read(facts);
            world.caller_is_daemon_owner = false;
        }),
        (&["hook_owner_only"], |_, experiment, world| {
            experiment.on_finish = Some(told_command());
            world.caller_is_daemon_owner = false;
        }),
        (&["hook_commands_off"], |_, experiment, world| {
            experiment.on_finish = Some(told_command());
            world.hook_commands = false;
        }),
        (&["hook_secret_absent"], |_, experiment, _| {
            experiment.on_finish = Some(OnFinish {
                webhook: Some("https://example.org/".into()),
                secret: Some("NONE".into()),
                ..OnFinish::default()
            });
        }),
        (&["after_unknown"], |_, experiment, _| {
            experiment.after = vec!["abc".into()]
        }),
        (&["after_ambiguous"], |_, experiment, world| {
            experiment.after = vec!["abc".into()];
            world.after.insert("abc".into(), ParentSeen::Ambiguous(2));
        }),
        (&["after_not_completed"], |_, experiment, world| {
            experiment.after = vec!["abc".into()];
            let phase = Phase::Failed;
            world
                .after
                .insert("abc".into(), ParentSeen::Found { id: id(1), phase });
        }),
    ];
    for (place, (expected, change)) in cases.into_iter().enumerate() {
        let judged = judged(change);
        assert_eq!(codes(&judged.refusals), expected, "case {place}");
        for refusal in &judged.refusals {
            assert!(!refusal.hint.is_empty(), "{refusal:?}");
        }
    }
}

fn current(submission: &mut Submission, experiment: &mut Experiment) {
    experiment.environment = Some(Environment::Current);
    submission.current = Some(CurrentEnvironment {
        prefix: "/home/ada/.venv".into(),
        python: "3.11".into(),
        frozen: vec!["numpy==2.0.0".into()],
    });
}

#[test]
fn the_hints_name_what_is_there() {
    let missing = judged(|_, experiment, _| experiment.datasets[0].checksum = None);
    let hint = &missing.refusals[0].hint;
    assert!(missing.refusals[0].message.contains("checksum"));
    assert!(hint.contains(&Digest::of(b"data").to_string()), "{hint}");
    let absent = judged(|_, experiment, _| {
        experiment.environment = Some(Environment::Locked {
            python: "3.9".into(),
            lock: "requirements.lock".into(),
        });
    });
    assert!(absent.refusals[0].hint.contains("`3.11`"));
}

#[test]
fn all_refusals_are_given_at_once_and_the_plan_with_them() {
    let judged = judged(|_, experiment, world| {
        experiment.seed = Seed::None;
        experiment.command.truncate(3);
        experiment.network = Some(Network::Open);
        experiment.secrets = vec!["KEY".into()];
        world.interpreters.clear();
    });
    let expected = ["python_not_found", "secret_without_value", "network_open"];
    assert_eq!(codes(&judged.refusals), expected);
    assert!(judged.plan_sha256.is_some());
}

#[test]
fn relaxed_runs_it_and_says_what_it_misses() {
    let judged = judged(|submission, experiment, _| {
        submission.policy = ReproPolicy::Relaxed;
        experiment.environment = None;
    });
    assert_eq!(codes(&judged.refusals), [""; 0]);
    assert_eq!(judged.trust.level, TrustLevel::L1);
    assert_eq!(judged.runs[0].plan.network, PlanNetwork::Open);
    assert!(!judged.placement.sandbox);
    let reasons: Vec<_> = judged
        .trust
        .reasons
        .iter()
        .map(|reason| reason.code.as_str())
        .collect();
    assert_eq!(
        reasons,
        ["environment_absent", "network_open", "sees_host_files"]
    );
}

#[test]
fn declared_hosts_have_one_form_in_the_plan_and_reach_l3_in_a_sandbox() {
    fn declared(hosts: &[&str]) -> Option<Network> {
        let hosts = hosts.iter().map(|host| (*host).to_owned());
        Some(Network::Hosts(hosts.collect()))
    }
    let first = judged(|_, experiment, _| {
        experiment.network = declared(&["b.example:8443", "EXAMPLE.org"]);
    });
    assert_eq!(codes(&first.refusals), [""; 0]);
    assert_eq!(first.trust.level, TrustLevel::L3);
    let forms = ["b.example:8443", "example.org:443", "example.org:80"].map(str::to_owned);
    assert_eq!(
        first.runs[0].plan.network,
        PlanNetwork::Hosts(forms.to_vec())
    );
    let second = judged(|_, experiment, _| {
        experiment.network = declared(&["example.org:80", "B.example:8443", "example.org:443"]);
    });
    assert_eq!(first.plan_sha256, second.plan_sha256);

    // Without a sandbox nothing stands between the job and other hosts.
    let relaxed = judged(|submission, experiment, _| {
        submission.policy = ReproPolicy::Relaxed;
        experiment.network = declared(&["example.org"]);
    });
    assert_eq!(codes(&relaxed.refusals), [""; 0]);
    let reason = &relaxed.trust.reasons[0];
    assert_eq!(reason.code, "network_not_enforced");
    assert!(reason.hint.contains("sandbox: true"), "{reason:?}");

    let wrong = judged(|_, experiment, _| experiment.network = declared(&["*"]));
    assert_eq!(wrong.refusals[0].code, "recipe_invalid_value");
    assert_eq!(wrong.plan_sha256, None);
}

#[test]
fn what_makes_a_run_wait_is_no_refusal() {
    let judged = judged(|_, experiment, world| {
        experiment.after = vec!["@last".into()];
        let phase = Phase::Running;
        world
            .after
            .insert("@last".into(), ParentSeen::Found { id: id(1), phase });
        world.commit_complete = false;
        world.load.queued = 4;
        world.load.free_cpu_milli = 500;
    });
    assert_eq!(codes(&judged.refusals), [""; 0]);
    let expected = [
        "commit_not_synced",
        "waits_for_run",
        "waits_for_resources",
        "waits_for_turn",
    ];
    assert_eq!(codes(&judged.waits), expected);
    assert_eq!(judged.placement.after, [id(1)]);
}

#[test]
fn what_stands_beside_the_plan_does_not_move_its_digest() {
    let plain = judged(|_, _, _| {});
    let placed = judged(|submission, experiment, _| {
        submission.priority = 9;
        experiment.retries = 3;
        experiment.name = "another".parse().unwrap();
        let tolerance = Tolerance {
            abs: Some("0".into()),
            rel: None,
        };
        experiment.tolerance = BTreeMap::from([("accuracy".into(), tolerance)]);
    });
    assert_eq!(plain.plan_sha256, placed.plan_sha256);
    assert_eq!(
        (placed.placement.priority, placed.placement.retries),
        (9, 3)
    );
    let moved = judged(|_, experiment, _| experiment.resources.time_s = Some(60));
    assert_ne!(plain.plan_sha256, moved.plan_sha256);
}

#[test]
fn an_expected_plan_that_still_stands_is_let_through() {
    let digest = judged(|_, _, _| {}).plan_sha256;
    let mut submission = submission();
    submission.expected_plan = digest;
    assert_eq!(codes(&preflight(&submission, &world()).refusals), [""; 0]);
}

#[test]
fn ten_thousand_points_have_the_digests_of_their_plans() {
    let judged = judged(|_, experiment, _| {
        let axis = |param: &str| Axis {
            param: param.into(),
            values: (0..100).map(ParamValue::Int).collect(),
        };
        experiment.sweep = Some(Sweep::Grid(vec![axis("lr"), axis("seed")]));
    });
    assert_eq!(codes(&judged.refusals), [""; 0]);
    assert_eq!((judged.sweep, judged.runs.len()), (true, 10_000));
    for run in judged.runs.iter().step_by(997) {
        assert_eq!(run.plan.digest().unwrap(), run.plan_sha256);
    }
    let digests = judged.runs.iter().map(|run| run.plan_sha256);
    assert_eq!(judged.plan_sha256, Some(sweep_digest(digests)));
    assert_eq!(judged.runs[101].plan.argv[2..], ["1", "1"]);
}

#[test]
fn what_no_recipe_could_say_is_refused_whoever_sends_it() {
    let escaping = judged(|_, experiment, _| experiment.datasets[0].mount = "../../etc".into());
    assert_eq!(escaping.refusals.len(), 1, "{:?}", escaping.refusals);
    let unknown = judged(|_, experiment, _| experiment.command.push("${nope}".into()));
    assert_eq!(unknown.refusals.len(), 1);
    assert_eq!(unknown.plan_sha256, None);
}

/// Whatever the policy says: jobs run with the rights of the daemon's user.
#[test]
fn what_others_queue_is_kept_apart() {
    for policy in [ReproPolicy::Strict, ReproPolicy::Relaxed] {
        for owner in [true, false] {
            let mut submission = submission();
            submission.policy = policy;
            let mut world = world();
            world.caller_is_daemon_owner = owner;
            let placement = preflight(&submission, &world).placement;
            let walled = !owner || policy == ReproPolicy::Strict;
            assert_eq!(placement.sandbox, walled, "{policy:?} {owner}");
            assert_eq!(placement.apart, !owner, "{policy:?} {owner}");
        }
    }
}

fn told_command() -> OnFinish {
    OnFinish {
        command: vec!["notify".into()],
        ..OnFinish::default()
    }
}

/// [`submission`] as a service.
fn service(change: impl FnOnce(&mut Service)) -> Submission {
    let mut submission = submission();
    let mut job = submission.workload.job().clone();
    job.command = vec!["serve".into(), "${host}:${port_http}".into()];
    job.seed = Seed::Absent;
    job.network = None;
    job.outputs.clear();
    let mut service = Service {
        job,
        ports: BTreeMap::from([("http".into(), 0)]),
        ready: Readiness {
            request: ReadyRequest::Tcp,
            port: None,
            health: None,
            timeout_s: 60,
        },
        kind: None,
        model: None,
        replicas: 2,
        keep: Keep::default(),
        labels: BTreeMap::new(),
    };
    change(&mut service);
    submission.workload = Workload::Service(Box::new(service));
    submission
}

#[test]
fn strict_asks_l2_of_a_service_and_lets_it_be_reached() {
    let codes = |submission: &Submission, world: &World| {
        let judged = preflight(submission, world);
        let refusals = judged.refusals.iter();
        refusals
            .map(|refusal| refusal.code.clone())
            .collect::<Vec<_>>()
    };
    let judged = preflight(&service(|_| {}), &world());
    assert_eq!(judged.refusals, []);
    assert_eq!(judged.trust.level, TrustLevel::L2);
    let plan = &judged.runs[0].plan;
    assert_eq!(
        plan.argv,
        ["serve", "${host}:${port_http}"],
        "known at the start alone"
    );
    assert_eq!(plan.network, PlanNetwork::Open);
    assert!(judged.placement.sandbox && judged.placement.keep.is_some());

    let bare = service(|service| service.job.environment = None);
    assert_eq!(codes(&bare, &world()), ["environment_absent"]);
    let closed = service(|service| service.job.network = Some(Network::None));
    assert_eq!(codes(&closed, &world()), ["service_unreachable"]);
    let mut twice = world();
    twice.service_open = true;
    assert_eq!(codes(&service(|_| {}), &twice), ["service_exists"]);
}

#[test]
fn weights_that_nobody_recorded_are_not_served() {
    let named = service(|service| {
        service.model = Some(ModelRef {
            name: "tiny".parse().unwrap(),
            sha256: Some(Digest::of(b"weights")),
            run: None,
            path: None,
        });
    });
    for (seen, code) in [
        (ModelSeen::Unrecorded, "model_unrecorded"),
        (ModelSeen::NoRun, "model_unknown"),
        (ModelSeen::NoOutput(id(1)), "model_unknown"),
    ] {
        let world = World {
            model: seen,
            ..world()
        };
        let judged = preflight(&named, &world);
        assert_eq!(judged.refusals[0].code, code);
        assert!(judged.runs.is_empty(), "no plan without weights");
    }
    let found = PlanModel {
        name: "tiny".parse().unwrap(),
        sha256: Digest::of(b"weights"),
        run: id(1),
        path: "w/tiny.gguf".into(),
        size: 7,
    };
    let world = World {
        model: ModelSeen::Found(found.clone()),
        ..world()
    };
    let judged = preflight(&named, &world);
    let service = judged.runs[0].plan.service.as_ref().unwrap();
    assert_eq!(service.model, Some(found));
}
