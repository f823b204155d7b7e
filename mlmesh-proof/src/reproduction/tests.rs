//! Tables of results and verdicts.

use super::*;
use mlmesh_model::{
    CommitId, Digest, FencingToken, Labels, MetricSummary, PLAN_VERSION, Placement, Plan,
    PlanDigest, PlanNetwork, PlanSeed, Resources, RunId, RunKind, Sequence, Tenant, Trust,
};
use std::sync::Arc;

fn run(id: &str, reproduces: Option<&str>) -> Run {
    let plan = Plan {
        plan_version: PLAN_VERSION,
        commit: CommitId(Digest::of(b"tree")),
        argv: vec!["true".into()],
        params: Default::default(),
        env: Default::default(),
        secrets: vec![],
        deps: None,
        datasets: vec![],
        seed: PlanSeed::Value(7),
        outputs: vec![],
        resources: Resources::default(),
        image: None,
        network: PlanNetwork::None,
        service: None,
    };
    let summary = |value| MetricSummary {
        last: MetricValue(value),
        min: MetricValue(0.0),
        max: MetricValue(1.0),
        steps: 3,
    };
    Run {
        id: id.parse::<RunId>().unwrap(),
        seq: Sequence(1),
        tenant: Tenant::default(),
        owner: "ada".parse().unwrap(),
        name: "digits".parse().unwrap(),
        kind: RunKind::Single,
        commit: plan.commit,
        plan_sha256: PlanDigest(Digest::of(b"plan")),
        plan: Some(Arc::new(plan)),
        placement: Placement {
            reproduces: reproduces.map(|id| id.parse().unwrap()),
            ..Placement::default()
        },
        git: None,
        phase: Phase::Completed,
        cause: None,
        message: String::new(),
        exit: None,
        attempts: 1,
        token: FencingToken(1),
        queued_at: Micros(1),
        not_before: None,
        started_at: Some(Micros(2)),
        ended_at: Some(Micros(3)),
        trust: Some(Trust {
            level: TrustLevel::L3,
            reasons: vec![],
            reproduced: None,
        }),
        metrics: BTreeMap::from([
            ("accuracy".to_owned(), summary(0.96)),
            ("loss".to_owned(), summary(0.25)),
        ]),
        outputs: None,
        manifest_sha256: Some(Digest::of(id.as_bytes())),
        isolation: None,
        pinned: false,
        labels: Labels::default(),
        logged: None,
    }
}

fn file(path: &str, content: &str) -> ListedFile {
    ListedFile {
        path: path.into(),
        mode: "644".into(),
        size: content.len() as u64,
        sha256: Digest::of(content.as_bytes()),
    }
}

/// An original, its repetition, and their files.
struct Pair {
    one: Run,
    two: Run,
    files: [Vec<ListedFile>; 2],
}

impl Pair {
    fn of(change: impl FnOnce(&mut Self)) -> Self {
        let files = || vec![file("a.txt", "a"), file("b.txt", "b")];
        let mut pair = Self {
            one: run("aaaaaaaaaaaa", None),
            two: run("bbbbbbbbbbbb", Some("aaaaaaaaaaaa")),
            files: [files(), files()],
        };
        change(&mut pair);
        pair
    }

    fn tolerance(&mut self, name: &str, abs: Option<&str>, rel: Option<&str>) {
        let bounds = Tolerance {
            abs: abs.map(str::to_owned),
            rel: rel.map(str::to_owned),
        };
        self.two.placement.tolerance.insert(name.into(), bounds);
    }

    fn judge(&self) -> Reproduction {
        let (one, two) = (
            RunResult {
                run: &self.one,
                outputs: &self.files[0],
            },
            RunResult {
                run: &self.two,
                outputs: &self.files[1],
            },
        );
        judge(Some(one), two, Micros(9), &mut |_, _| Some(17))
    }

    fn told(&self) -> (ReproductionVerdict, Option<String>, Vec<String>) {
        let it = self.judge();
        let names = it.differences.into_iter().map(|it| it.name).collect();
        (it.verdict, it.denied.map(|it| it.code), names)
    }
}

fn last(run: &mut Run, name: &str, value: f64) {
    run.metrics.get_mut(name).unwrap().last = MetricValue(value);
}

#[test]
fn the_same_result_of_two_l3_runs_is_enough() {
    let judgement = Pair::of(|_| {}).judge();
    assert_eq!(judgement.verdict, ReproductionVerdict::BitIdentical);
    assert_eq!(judgement.denied, None);
    assert_eq!(
        (judgement.outputs_compared, judgement.metrics_compared),
        (2, 2)
    );
    let digests = (
        judgement.original_manifest_sha256,
        judgement.manifest_sha256,
    );
    let of = |id: &str| Some(Digest::of(id.as_bytes()));
    assert_eq!(digests, (of("aaaaaaaaaaaa"), of("bbbbbbbbbbbb")));
    // Not-a-number is the same result again.
    let nan = Pair::of(|it| {
        last(&mut it.one, "loss", f64::NAN);
        last(&mut it.two, "loss", -f64::NAN);
    });
    assert_eq!(nan.told().0, ReproductionVerdict::BitIdentical);
}

#[test]
fn what_must_not_count_does_not() {
    use ReproductionVerdict::*;
    type Change = fn(&mut Pair);
    let cases: &[(&str, Change, ReproductionVerdict, &str)] = &[
        (
            "itself",
            |it| it.two.id = it.one.id,
            NotCompared,
            "reproduction_other_plan",
        ),
        (
            "another plan",
            |it| it.two.plan_sha256 = PlanDigest(Digest::of(b"other")),
            NotCompared,
            "reproduction_other_plan",
        ),
        (
            "a run that was not asked to",
            |it| it.two.placement.reproduces = Some("cccccccccccc".parse().unwrap()),
            NotCompared,
            "reproduction_other_plan",
        ),
        (
            "a run of the same plan by chance",
            |it| it.two.placement.reproduces = None,
            NotCompared,
            "reproduction_other_plan",
        ),
        (
            "failed",
            |it| it.two.phase = Phase::Failed,
            NotCompared,
            "reproduction_incomplete",
        ),
        (
            "a failed original",
            |it| it.one.phase = Phase::Interrupted,
            NotCompared,
            "reproduction_incomplete",
        ),
        (
            "no manifest",
            |it| it.two.manifest_sha256 = None,
            NotCompared,
            "reproduction_incomplete",
        ),
        (
            "nothing to compare",
            |it| {
                it.files = [vec![], vec![]];
                it.one.metrics.clear();
                it.two.metrics.clear();
            },
            NotCompared,
            "reproduction_empty",
        ),
        (
            "declared outputs absent in both",
            |it| {
                it.files = [vec![], vec![]];
                let plan = Plan {
                    outputs: vec!["a.txt".into()],
                    ..(**it.two.plan.as_ref().unwrap()).clone()
                };
                it.two.plan = Some(Arc::new(plan));
            },
            NotCompared,
            "reproduction_empty",
        ),
        (
            "an original below L3",
            |it| it.one.trust.as_mut().unwrap().level = TrustLevel::L2,
            BitIdentical,
            "reproduction_below_l3",
        ),
        (
            "a repetition below L3",
            |it| it.two.trust.as_mut().unwrap().level = TrustLevel::L2,
            BitIdentical,
            "reproduction_below_l3",
        ),
        (
            "another file",
            |it| it.files[1][1] = file("b.txt", "c"),
            Differs,
            "reproduction_differs",
        ),
        (
            "another mode",
            |it| it.files[1][1].mode = "755".into(),
            Differs,
            "reproduction_differs",
        ),
        (
            "a missing file",
            |it| assert!(it.files[1].pop().is_some()),
            Differs,
            "reproduction_differs",
        ),
        (
            "a new metric",
            |it| assert!(it.one.metrics.remove("loss").is_some()),
            Differs,
            "reproduction_differs",
        ),
        (
            "the last bit of a metric",
            |it| last(&mut it.two, "loss", 0.25_f64.next_up()),
            Differs,
            "reproduction_differs",
        ),
    ];
    for (name, change, verdict, code) in cases {
        let (found, denied, _) = Pair::of(change).told();
        assert_eq!(
            (found, denied.as_deref()),
            (*verdict, Some(*code)),
            "{name}"
        );
    }
    let two = run("bbbbbbbbbbbb", Some("aaaaaaaaaaaa"));
    let alone = RunResult {
        run: &two,
        outputs: &[],
    };
    let judgement = judge(None, alone, Micros(9), &mut |_, _| None);
    assert_eq!(judgement.denied.unwrap().code, "reproduction_original_gone");
}

#[test]
fn the_first_difference_is_named_with_its_byte_or_values() {
    let file_first = Pair::of(|it| {
        it.files[1][1] = file("b.txt", "c");
        last(&mut it.two, "accuracy", 0.5);
    });
    let judgement = file_first.judge();
    assert_eq!(judgement.differences[0].first_byte, Some(17));
    assert_eq!(judgement.differences_total, 2);
    let message = judgement.denied.unwrap().message;
    assert!(
        message.ends_with("`b.txt` differs from byte 17 on"),
        "{message}"
    );
    let metric = Pair::of(|it| last(&mut it.two, "accuracy", 0.5)).judge();
    let message = metric.denied.unwrap().message;
    assert!(
        message.ends_with("`accuracy` was 0.96 and is 0.5"),
        "{message}"
    );
}

#[test]
fn a_tolerance_decides_for_what_it_names() {
    use ReproductionVerdict::*;
    let near = |abs: Option<&str>, rel: Option<&str>, value: f64| {
        let pair = Pair::of(|it| {
            it.tolerance("accuracy", abs, rel);
            last(&mut it.two, "accuracy", value);
            last(&mut it.two, "loss", 7.0);
            it.files[1][0] = file("a.txt", "other");
        });
        pair.told().0
    };
    for (abs, rel, value, verdict) in [
        (Some("0.01"), None, 0.97, WithinTolerance),
        (Some("0.01"), None, 0.95, WithinTolerance),
        (Some("0.01"), None, 0.970_000_1, Differs),
        (Some("0"), None, 0.96_f64.next_up(), Differs),
        (None, Some("0.1"), 0.87, WithinTolerance),
        (None, Some("0.1"), 0.8, Differs),
        (Some("1"), Some("0.01"), 0.9, Differs),
        (Some("0.01"), Some("1"), 0.9, Differs),
        (Some("1e300"), None, f64::NAN, Differs),
        (Some("inf"), None, f64::INFINITY, Differs),
        (Some("word"), None, 0.95, Differs),
        (None, None, 0.95, Differs),
    ] {
        assert_eq!(near(abs, rel, value), verdict, "{abs:?} {rel:?} {value}");
    }
    let of = |change: fn(&mut Pair)| {
        let pair = Pair::of(|it| {
            it.tolerance("accuracy", Some("0.01"), None);
            change(it);
        });
        pair.told()
    };
    // Names are part of the result, and a metric that nobody logged decides nothing.
    assert_eq!(of(|it| assert!(it.files[1].pop().is_some())).0, Differs);
    let absent = of(|it| {
        it.one.metrics.remove("accuracy");
        it.two.metrics.remove("accuracy");
        last(&mut it.two, "loss", 7.0);
    });
    assert_eq!(absent.0, Differs);
    let (verdict, denied, names) = of(|it| {
        last(&mut it.two, "loss", 7.0);
        it.files[1][0] = file("a.txt", "other");
        it.files[1][1].path = "c.txt".into();
    });
    assert_eq!(
        (verdict, denied.as_deref()),
        (Differs, Some("reproduction_differs"))
    );
    assert_eq!(
        names,
        ["b.txt", "c.txt", "a.txt", "loss"],
        "what decides is first"
    );
}
