//! Searches against a plain reference: every run read whole, asked, sorted.

use std::borrow::Cow;
use std::sync::Arc;

use mlmesh_model::filter::{Facts, Field, Filter, Rank, Sort, Statistic, Value};
use mlmesh_model::*;

use crate::fixtures::*;

const NOW: Micros = Micros(9_000_000);

/// A whole run, as the reference sees it.
struct Whole<'a>(&'a Run);

impl Facts for Whole<'_> {
    fn value(&self, field: &Field) -> Value<'_> {
        let run = self.0;
        let owned = |text: String| Value::Text(Cow::Owned(text));
        let time = |time: Option<Micros>| Value::or_missing(time.map(|t| Value::Whole(t.0)));
        match field {
            Field::Id => owned(run.id.to_string()),
            Field::Name => owned(run.name.to_string()),
            Field::Kind => Value::text(match run.kind {
                RunKind::Single => "single",
                RunKind::Parent { .. } => "sweep",
                RunKind::Child { .. } => "point",
            }),
            Field::Phase => Value::text(run.phase.as_str()),
            Field::Owner => owned(run.owner.to_string()),
            Field::Commit => owned(run.commit.to_string()),
            Field::Parent => match run.kind {
                RunKind::Child { parent, .. } => owned(parent.to_string()),
                _ => Value::Missing,
            },
            Field::Priority => Value::Whole(i64::from(run.placement.priority)),
            Field::Created => Value::Whole(run.queued_at.0),
            Field::Started => time(run.started_at),
            Field::Ended => time(run.ended_at),
            Field::Duration => match run.started_at {
                Some(start) => Value::Whole(run.ended_at.unwrap_or(NOW).since(start)),
                None => Value::Missing,
            },
            Field::Trust => match run.standing_trust() {
                Some(trust) => Value::Whole(trust.level as i64),
                None => Value::Missing,
            },
            Field::Metric(name, statistic) => match run.metrics.get(name) {
                Some(metric) => Value::Number(match statistic {
                    Statistic::Last => metric.last.0,
                    Statistic::Min => metric.min.0,
                    Statistic::Max => metric.max.0,
                    Statistic::Steps => metric.steps as f64,
                }),
                None => Value::Missing,
            },
            Field::Param(name) => {
                let plan = run.plan.as_ref();
                let value = plan.and_then(|plan| plan.params.get(name));
                Value::or_missing(value.map(Value::param))
            }
            Field::Tag(name) => match run.labels.tags.get(name) {
                Some(tag) => Value::text(tag),
                None => Value::Missing,
            },
            Field::LoggedParam(name) => {
                let logged = run.logged.as_ref();
                let value = logged.and_then(|logged| logged.params.get(name));
                Value::or_missing(value.map(|text| Value::text(text)))
            }
            Field::LoggedTag(name) => {
                let logged = run.logged.as_ref();
                let value = logged.and_then(|logged| logged.tags.get(name));
                Value::or_missing(value.map(|text| Value::text(text)))
            }
        }
    }
}

fn plainly(all: &[Run], filter: Option<&Filter>, sort: Option<&Sort>) -> Vec<RunId> {
    let mut found: Vec<&Run> = all
        .iter()
        .filter(|run| filter.is_none_or(|filter| filter.matches(&Whole(run), NOW)))
        .collect();
    found.sort_by(|a, b| match sort {
        None => b.seq.cmp(&a.seq),
        Some(sort) => {
            let rank = |run: &Run| Rank::of(&sort.field, &Whole(run).value(&sort.field));
            let by_seq = match sort.descending {
                true => b.seq.cmp(&a.seq),
                false => a.seq.cmp(&b.seq),
            };
            rank(a).order(&rank(b), sort.descending).then(by_seq)
        }
    });
    found.into_iter().map(|run| run.id).collect()
}

fn summary(last: f64) -> MetricSummary {
    MetricSummary {
        last: MetricValue(last),
        min: MetricValue(last - 1.0),
        max: MetricValue(last + 1.0),
        steps: 3,
    }
}

/// Runs of every kind with few values, so that many are equal.
async fn filled(store: &dyn Store) -> Vec<Run> {
    let losses = [0.5, -0.0, 0.0, f64::NAN, f64::INFINITY, -2.5, 1e300];
    let mut ids = Vec::new();
    for turn in 0..12_usize {
        let mut children = Vec::new();
        for place in 0..4_usize {
            let mut plan = plan("x");
            let lr = ["0.1", "0.01", "word", "1e-1"][(turn + place) % 4];
            let lr = ParamValue::Text(lr.into());
            plan.params = [
                ("lr".to_owned(), lr),
                ("n".to_owned(), ParamValue::Int(place as i64)),
            ]
            .into();
            let mut child = run_of(plan);
            child.owner = ["ada", "bob"][turn % 2].parse().unwrap();
            child.placement.priority = turn as i32 % 3;
            children.push(child);
        }
        let single = children.pop().unwrap();
        let mut runs = submitted(store, sweep_of(children)).await;
        runs.extend(submitted(store, vec![single]).await);
        ids.extend(runs.iter().map(|run| run.id));
        for (place, run) in runs.iter().enumerate().skip(1) {
            let mut end = (turn + place) % 5;
            if turn % 3 == 0 {
                let tags = [("team", ["red", "blue"][place % 2])];
                store
                    .label(label_of(run.id, &tags, None, None))
                    .await
                    .unwrap();
            }
            if end == 0 {
                continue;
            }
            let attempt = store.claim(claim_of(run.id)).await.unwrap();
            let mut metrics = std::collections::BTreeMap::new();
            metrics.insert(
                "loss".to_owned(),
                summary(losses[(turn * 3 + place) % losses.len()]),
            );
            if turn % 2 == 0 {
                metrics.insert("val/acc".to_owned(), summary(place as f64 / 4.0));
            }
            let set = store.set_metrics(run.id, attempt.token, metrics.clone());
            set.await.unwrap();
            if end == 1 {
                continue;
            }
            metrics.insert("late".to_owned(), summary(turn as f64));
            metrics
                .entry("loss".to_owned())
                .and_modify(|loss| loss.last.0 += 0.25);
            let last = if end == 2 {
                Phase::Failed
            } else {
                Phase::Completed
            };
            let mut advance = advance_of(&attempt, &[Phase::Running, Phase::Finishing, last]);
            advance.record.metrics = Some(metrics);
            let lr = ["0.5", "word", "1e-3", "nan"][turn % 4];
            let claims = logged(&[("lr", lr)], &[("it's \"odd\"", "red")]);
            advance.record.logged = (place % 2 == 1).then_some(claims);
            advance.record.started_at = (end != 4).then_some(Micros(5_000_000 + turn as i64));
            store.advance(advance).await.unwrap();
            end += turn;
            if end % 7 == 2 && last == Phase::Failed {
                // Put back: its metrics go with the next claim.
                let again = unleased(run.id, Phase::Failed, Phase::Queued);
                move_one(store, again).await.unwrap();
                store.claim(claim_of(run.id)).await.unwrap();
            }
        }
    }
    let mut all = Vec::new();
    for id in ids {
        all.push(stored_run(store, id).await);
    }
    all
}

async fn found(
    store: &dyn Store,
    filter: Option<&Filter>,
    sort: Option<&Sort>,
    limit: u32,
) -> Vec<RunId> {
    let mut ids = Vec::new();
    let mut cursor = None;
    loop {
        let search = RunSearch {
            tenant: tenant(),
            filter: filter.cloned(),
            sort: sort.cloned(),
            cursor,
            limit,
            now: NOW,
        };
        let page = store.find(search).await.unwrap();
        ids.extend(page.iter().map(|run| run.id));
        assert!(ids.len() < 10_000, "pages go round");
        match page.last() {
            Some(last) if page.len() as u32 == limit => cursor = Some(last.seq),
            _ => return ids,
        }
    }
}

pub(super) async fn searches_find_what_the_plain_reference_finds(store: Arc<dyn Store>) {
    let all = filled(&*store).await;
    let sweep = all[0].id;
    let filters = [
        "metrics.loss > 0.3".to_owned(),
        "metrics.loss >= 0 and metrics.loss <= 0.75".to_owned(),
        "metrics.loss = nan".to_owned(),
        "metrics.loss = inf or metrics.loss < -1".to_owned(),
        "not metrics.loss > 0".to_owned(),
        "metrics.loss != 0.5 and metrics.\"val/acc\" >= 0.5".to_owned(),
        "metrics.val/acc > 0.2 and params.lr <= 0.1 and not phase = failed".to_owned(),
        "metrics.late.max > 3 and metrics.loss.steps = 3".to_owned(),
        "params.lr = 0.1 and owner = ada".to_owned(),
        "params.lr ~ or and params.n in (1, 2)".to_owned(),
        "tags.team = red".to_owned(),
        "tags.team != red or kind = sweep".to_owned(),
        "logged.params.lr > 0.1".to_owned(),
        "logged.params.lr = word or logged.params.lr = nan".to_owned(),
        "not logged.params.lr < 0.1 and tags.team = blue".to_owned(),
        r#"logged.tags."it's \"odd\"" ~ e and metrics.loss > 0"#.to_owned(),
        "kind = point and trust >= L0 and priority > 0".to_owned(),
        "duration > 1s and ended > 1d ago".to_owned(),
        "started < 3s ago and phase in (completed, failed)".to_owned(),
        format!("parent = {sweep}"),
        format!("parent = {sweep} and metrics.loss > -3 and params.n < 2"),
        format!(
            "id = {} or commit = {}",
            &sweep.to_string()[..6],
            all[0].commit
        ),
        "name ~ zzz".to_owned(),
    ];
    let sorts = [
        "metrics.loss",
        "metrics.loss:desc",
        "metrics.late:desc",
        "metrics.late",
        "metrics.no:desc",
        "metrics.loss.min",
        "metrics.loss.max:desc",
        "metrics.late.steps",
        "params.lr",
        "params.lr:desc",
        "created:desc",
        "duration",
        "trust:desc",
        "tags.team",
        "logged.params.lr:desc",
        "phase",
    ];
    let none = [None];
    let filters = filters
        .iter()
        .map(|text| Some(text.parse::<Filter>().unwrap()));
    let sorts: Vec<_> = sorts
        .iter()
        .map(|text| Some(text.parse::<Sort>().unwrap()))
        .collect();
    for (row, filter) in filters.chain([None]).enumerate() {
        for (column, sort) in none.iter().chain(&sorts).enumerate() {
            // A server takes its time: each pair is looked at in one way of three.
            let limit = match (row + column) % 3 {
                0 => 7,
                1 => 500,
                _ => continue,
            };
            let expected = plainly(&all, filter.as_ref(), sort.as_ref());
            let found = found(&*store, filter.as_ref(), sort.as_ref(), limit).await;
            let shown = (filter.as_ref().map(ToString::to_string), sort);
            assert_eq!(found, expected, "{shown:?}, pages of {limit}");
        }
    }
    let search = RunSearch {
        tenant: "other".parse().unwrap(),
        filter: None,
        sort: None,
        cursor: None,
        limit: 500,
        now: NOW,
    };
    assert_eq!(store.find(search.clone()).await.unwrap(), []);
    let gone = RunSearch {
        sort: Some("created".parse().unwrap()),
        cursor: Some(Sequence(1 << 40)),
        ..search
    };
    let refused = store.find(gone).await.unwrap_err();
    assert!(matches!(refused, StoreError::NoPlace(_)), "{refused}");
}

/// So many that a search stops to look at them one by one.
pub(super) async fn searches_over_many_runs_find_the_same(store: Arc<dyn Store>) {
    let runs = (0..4_500_u32).map(|place| {
        let mut plan = plan("x");
        let n = ParamValue::Int(i64::from(place % 1_500));
        plan.params = [("n".to_owned(), n)].into();
        let mut run = run_of(plan);
        run.phase = Phase::Completed;
        let losses = [0.5, -0.0, 0.0, f64::NAN, f64::INFINITY, -2.5];
        let loss = losses[place as usize % 6] + f64::from(place % 31);
        if place % 7 > 0 {
            run.metrics.insert("loss".to_owned(), summary(loss));
        }
        let acc = summary(f64::from(place % 100) / 100.0);
        run.metrics.insert("acc".to_owned(), acc);
        let stage = ["raw", "final"][usize::from(place % 9 == 0)];
        let lr = format!("{}e-4", place % 700);
        let said = logged(&[("lr", &lr)], &[("stage", stage)]);
        run.logged = (place % 2 == 0).then_some(said);
        run
    });
    let mut runs: Vec<Run> = runs.collect();
    let import = Import {
        runs: runs.clone(),
        attempts: vec![],
        audit: note("run.import"),
    };
    store.import(import).await.unwrap();
    for (seq, run) in (1..).zip(&mut runs) {
        run.seq = Sequence(seq);
    }
    for (filter, sort, limit) in [
        ("params.n = 1499", None, 2),
        ("params.n = 1499", Some("metrics.loss"), 2),
        ("params.n in (3, 7, 8)", Some("metrics.loss:desc"), 5),
        ("not metrics.loss > -1", None, 500),
        ("metrics.loss != 0.5", Some("params.n:desc"), 500),
        ("not metrics.acc > 0.02", Some("metrics.loss"), 50),
        ("metrics.loss > 3 and params.n = 8", Some("metrics.loss"), 1),
        ("metrics.acc < 0.5 and metrics.loss >= 30", None, 50),
        ("metrics.loss.min < -2", Some("metrics.acc:desc"), 100),
        ("phase = failed", Some("metrics.acc"), 10),
        ("metrics.acc >= 0.01", Some("params.n:desc"), 500),
        ("metrics.acc.max > 0 and not params.n = 3", None, 400),
        ("metrics.acc.steps > 0", Some("metrics.loss.min"), 500),
        ("kind = single", Some("metrics.loss:desc"), 500),
        ("kind = single", Some("metrics.loss.max:desc"), 500),
        ("params.n = 1499", Some("metrics.loss.min"), 1),
        ("not metrics.acc > 2", Some("metrics.no.max"), 500),
        ("metrics.loss.max > 2", Some("metrics.loss.min:desc"), 500),
        ("logged.params.lr < 0.002", None, 50),
        (
            "logged.tags.stage = final",
            Some("metrics.acc.min:desc"),
            50,
        ),
        ("not logged.tags.stage = final", None, 500),
        ("logged.params.lr in (1, 1e-4) or params.n = 8", None, 3),
        (
            "logged.tags.stage ~ aw and logged.params.lr > 0.06",
            Some("logged.params.lr"),
            100,
        ),
    ] {
        let filter: Filter = filter.parse().unwrap();
        let sort: Option<Sort> = sort.map(|text| text.parse().unwrap());
        let expected = plainly(&runs, Some(&filter), sort.as_ref());
        let found = found(&*store, Some(&filter), sort.as_ref(), limit).await;
        assert!(found == expected, "{filter}, {sort:?}, pages of {limit}");
    }
}

pub(super) async fn searches_forget_what_is_pruned(store: Arc<dyn Store>) {
    filled(&*store).await;
    let filter: Filter = "metrics.loss > -inf or metrics.loss = nan".parse().unwrap();
    assert!(!found(&*store, Some(&filter), None, 500).await.is_empty());
    let all = store.open_runs().await.unwrap();
    let removed = store.prune_runs(&tenant(), Micros(i64::MAX), note("run.prune"));
    let removed = removed.await.unwrap();
    let sort: Sort = "metrics.loss".parse().unwrap();
    let left = found(&*store, Some(&filter), Some(&sort), 500).await;
    assert!(left.iter().all(|id| !removed.contains(id)));
    assert!(left.len() < all.len() + removed.len());
}
