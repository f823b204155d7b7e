//! Repetitions of runs: noted, judged once, kept while the original is.

use std::collections::BTreeMap;
use std::sync::Arc;

use mlmesh_model::*;

use crate::fixtures::*;

fn repeats(original: &Run) -> Run {
    let mut repeated = run_of((**original.plan.as_ref().unwrap()).clone());
    repeated.placement.reproduces = Some(original.id);
    repeated
}

/// A judgement; with a reason it does not count.
pub(crate) fn judgement(repeated: &Run, original: RunId, denied: Option<&str>) -> Reproduction {
    Reproduction {
        run: repeated.id,
        original,
        tenant: tenant(),
        plan_sha256: repeated.plan_sha256,
        original_manifest_sha256: Some(Digest::of(b"one")),
        manifest_sha256: None,
        verdict: match denied {
            None => ReproductionVerdict::BitIdentical,
            Some(_) => ReproductionVerdict::Differs,
        },
        outputs_compared: 2,
        metrics_compared: 1,
        differences: vec![ResultDifference {
            kind: ResultKind::Metric,
            name: "accuracy".into(),
            original: Some("0.5".into()),
            repeated: None,
            first_byte: None,
            allowed: true,
        }],
        differences_total: 1,
        tolerance: BTreeMap::new(),
        denied: denied.map(|code| TrustReason {
            level: TrustLevel::L4,
            code: code.into(),
            message: "why".into(),
            hint: String::new(),
        }),
        time: Micros(7_000_000),
    }
}

async fn end(store: &dyn Store, run: RunId) {
    let attempt = store.claim(claim_of(run)).await.unwrap();
    let phases = [Phase::Running, Phase::Finishing, Phase::Completed];
    store.advance(advance_of(&attempt, &phases)).await.unwrap();
}

pub(super) async fn a_repetition_is_judged_once(store: Arc<dyn Store>) {
    // A point of a sweep has its template's trust until it gets its own.
    let points = submitted(&*store, sweep(2)).await;
    let original = points[1].clone();
    let repeated = submitted(&*store, vec![repeats(&original)]).await.remove(0);
    assert_eq!(repeated.placement.reproduces, Some(original.id));
    let waiting = Repetition {
        run: repeated.id,
        original: original.id,
        judgement: None,
        statement: None,
    };
    for run in [original.id, repeated.id] {
        let found = store.repetitions(&tenant(), run).await.unwrap();
        assert_eq!(found, std::slice::from_ref(&waiting));
    }
    assert_eq!(
        store.repetitions(&tenant(), points[2].id).await.unwrap(),
        []
    );
    assert_eq!(store.unjudged().await.unwrap(), [], "it has not ended");
    end(&*store, original.id).await;
    end(&*store, repeated.id).await;
    let left = store.unjudged().await.unwrap();
    assert_eq!(left, [stored_run(&*store, repeated.id).await]);

    let before = store.audit_rows(0, 100).await.unwrap().len();
    let same = judgement(&repeated, original.id, None);
    let judge = async |judgement: &Reproduction| {
        let note = note("run.judge");
        store.judge(judgement.clone(), note).await.unwrap()
    };
    let of_another = judgement(&repeated, points[2].id, None);
    assert!(!judge(&of_another).await, "it repeats another run");
    assert!(judge(&same).await);
    let differs = judgement(&repeated, original.id, Some("reproduction_differs"));
    assert!(!judge(&differs).await, "the first judgement stays");
    assert!(!judge(&judgement(&original, original.id, None)).await);
    assert_eq!(store.audit_rows(0, 100).await.unwrap().len(), before + 1);
    assert_eq!(store.unjudged().await.unwrap(), []);
    let found = store.repetitions(&tenant(), original.id).await.unwrap();
    assert_eq!(found[0].judgement, Some(same));
    let trust = stored_run(&*store, original.id).await.trust.unwrap();
    assert_eq!(trust.level, TrustLevel::L4);
    assert_eq!(trust.reproduced.unwrap().by, repeated.id);
    for other in [points[2].id, repeated.id] {
        let trust = stored_run(&*store, other).await.trust.unwrap();
        assert_eq!((trust.level, trust.reproduced), (TrustLevel::L3, None));
    }

    // The first statement about it stays.
    let attest = async |run: RunId, tenant: &Tenant, signer: &str| {
        let statement = SignedStatement {
            envelope: format!("signed by {signer}"),
            signer: signer.to_owned(),
        };
        let note = note("run.attest");
        store.attest(tenant, run, statement, note).await.unwrap()
    };
    let signer = async || {
        let trust = stored_run(&*store, original.id).await.trust.unwrap();
        trust.reproduced.unwrap().signer
    };
    let unjudged = submitted(&*store, vec![repeats(&original)]).await.remove(0);
    assert!(!attest(unjudged.id, &tenant(), "ada").await);
    assert!(
        !attest(original.id, &tenant(), "ada").await,
        "no repetition"
    );
    assert!(!attest(repeated.id, &"other".parse().unwrap(), "eve").await);
    assert_eq!(signer().await, None);
    assert!(attest(repeated.id, &tenant(), "ada").await);
    assert!(!attest(repeated.id, &tenant(), "bob").await);
    assert_eq!(signer().await.as_deref(), Some("ada"));
    let found = store.repetitions(&tenant(), repeated.id).await.unwrap();
    let kept = found[0].statement.clone().unwrap();
    assert_eq!(
        (kept.envelope.as_str(), kept.signer.as_str()),
        ("signed by ada", "ada")
    );
    assert_eq!(
        store
            .audit_rows(0, 100)
            .await
            .unwrap()
            .iter()
            .filter(|row| row.note.action == "run.attest")
            .count(),
        1
    );

    // A later result that differs counts more.
    let again = submitted(&*store, vec![repeats(&original)]).await.remove(0);
    end(&*store, again.id).await;
    assert!(
        judge(&judgement(
            &again,
            original.id,
            Some("reproduction_differs")
        ))
        .await
    );
    let trust = stored_run(&*store, original.id).await.trust.unwrap();
    assert_eq!((trust.level, trust.reproduced), (TrustLevel::L3, None));
    assert_eq!(trust.reasons[0].code, "reproduction_differs");
    assert_eq!(
        store
            .repetitions(&tenant(), original.id)
            .await
            .unwrap()
            .len(),
        3
    );
    let stranger: Tenant = "other".parse().unwrap();
    assert_eq!(store.repetitions(&stranger, original.id).await.unwrap(), []);
}

pub(super) async fn judgements_stay_while_the_original_does(store: Arc<dyn Store>) {
    let original = submitted(&*store, vec![run()]).await.remove(0);
    end(&*store, original.id).await;
    let prune = async || {
        let note = note("run.prune");
        let removed = store.prune_runs(&tenant(), Micros(i64::MAX), note).await;
        removed.unwrap()
    };
    let repeated = submitted(&*store, vec![repeats(&original)]).await.remove(0);
    assert_eq!(prune().await, [], "what is repeated is needed");
    end(&*store, repeated.id).await;
    let same = judgement(&repeated, original.id, None);
    assert!(store.judge(same, note("run.judge")).await.unwrap());
    let pin = Pin {
        tenant: tenant(),
        owner: "ada".parse().unwrap(),
        target: PinTarget::Run(original.id),
        time: Micros(6_000_000),
    };
    store.pin(pin, note("pin.add")).await.unwrap();
    assert_eq!(prune().await, [repeated.id]);
    let found = store.repetitions(&tenant(), original.id).await.unwrap();
    assert_eq!(found.len(), 1, "the judgement outlives the repetition");
    let target = PinTarget::Run(original.id);
    store
        .unpin(&tenant(), target, note("pin.remove"))
        .await
        .unwrap();
    assert_eq!(prune().await, [original.id]);
    assert_eq!(store.repetitions(&tenant(), original.id).await.unwrap(), []);
}
