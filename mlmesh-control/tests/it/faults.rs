//! A store that is away now and then, or that does what it was asked and cannot say so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mlmesh_model::*;

use crate::fake::{House, caller, submission, with};

/// Fails about every `every`-th write, half of them after the write was done.
struct Flaky {
    inner: Arc<dyn Store>,
    every: AtomicU64,
    writes: AtomicU64,
    down: AtomicBool,
}

impl Flaky {
    fn over(house: &mut House, every: u64) -> Arc<Self> {
        let flaky = Arc::new(Self {
            inner: Arc::clone(&house.store),
            every: AtomicU64::new(every),
            writes: AtomicU64::new(0),
            down: AtomicBool::new(false),
        });
        house.store = Arc::clone(&flaky) as Arc<dyn Store>;
        flaky
    }

    fn write<'a, T: Send + 'a>(
        &'a self,
        call: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        let away = || StoreError::Unavailable("the disk is full".into());
        Box::pin(async move {
            if self.down.load(Ordering::SeqCst) {
                return Err(away());
            }
            let count = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
            // Fixed, and in step with nothing that control does.
            let random = count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            if !random.is_multiple_of(self.every.load(Ordering::SeqCst)) {
                return call.await;
            }
            if count.is_multiple_of(2) {
                call.await?;
            }
            Err(away())
        })
    }
}

macro_rules! writes {
    ($($name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> BoxFuture<'_, Result<$output, StoreError>> {
            self.write(self.inner.$name($($argument),*))
        })*
    };
}

macro_rules! passes {
    ($($name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> BoxFuture<'_, Result<$output, StoreError>> {
            self.inner.$name($($argument),*)
        })*
    };
}

impl Store for Flaky {
    writes! {
        submit(submit: Submit) -> Submitted;
        import(import: Import) -> ();
        claim(claim: Claim) -> Attempt;
        advance(advance: Advance) -> Run;
        move_unleased(change: UnleasedMove) -> Moved;
        judge(judgement: Reproduction, audit: AuditNote) -> bool;
        set_metrics(run: RunId, token: FencingToken, metrics: BTreeMap<String, MetricSummary>) -> ();
    }
    passes! {
        attempt_key(run: RunId) -> Option<ApiKey>;
        runs(query: RunQuery) -> Vec<Run>;
        find(search: RunSearch) -> Vec<Run>;
        open_runs() -> Vec<Run>;
        unjudged() -> Vec<Run>;
        untold() -> Vec<Untold>;
        told(told: Told) -> ();
        tellings(tenant: &Tenant, run: Option<RunId>) -> Vec<Telling>;
        repetitions(tenant: &Tenant, run: RunId) -> Vec<Repetition>;
        attempts(run: RunId) -> Vec<Attempt>;
        last_event() -> Sequence;
        record(event: Option<Event>, audit: Option<AuditNote>) -> ();
        audit_rows(after: u64, limit: u32) -> Vec<AuditRow>;
        put_dataset(dataset: Dataset, audit: AuditNote) -> ();
        put_key(key: ApiKey, audit: AuditNote) -> ();
        keys() -> Vec<ApiKey>;
        users() -> Vec<User>;
        change_user(change: UserChange, audit: AuditNote) -> User;
        change_key(change: KeyChange, audit: AuditNote) -> ();
        possess(tenant: &Tenant, owner: &Owner, objects: Vec<ObjectId>) -> ();
        possesses(tenant: &Tenant, owner: &Owner, objects: Vec<ObjectId>) -> Vec<bool>;
        references() -> References;
        check() -> ();
        runs_by_id(tenant: &Tenant, ids: Vec<RunId>) -> Vec<Run>;
        answered(tenant: &Tenant, key: &str, request_sha256: Digest) -> Option<String>;
        sweep_counts(tenant: &Tenant, sweep: RunId) -> Option<BTreeMap<Phase, u64>>;
        label(change: LabelChange) -> Labels;
        attest(tenant: &Tenant, repetition: RunId, statement: SignedStatement, audit: AuditNote) -> bool;
        pin(pin: Pin, audit: AuditNote) -> bool;
        unpin(tenant: &Tenant, target: PinTarget, audit: AuditNote) -> bool;
        pins(tenant: &Tenant) -> Vec<Pin>;
        run(tenant: &Tenant, id: RunId) -> Option<Run>;
        ids_by_prefix(tenant: &Tenant, prefix: &str, limit: u32) -> Vec<RunId>;
        counts(tenant: &Tenant) -> BTreeMap<Phase, u64>;
        events(tenant: &Tenant, after: Sequence, limit: u32) -> Vec<Event>;
        datasets(tenant: &Tenant) -> Vec<Dataset>;
        remove_dataset(tenant: &Tenant, name: &Name, version: &str, audit: AuditNote) -> bool;
        prune_runs(tenant: &Tenant, ended_before: Micros, audit: AuditNote) -> Vec<RunId>;
    }
}

#[tokio::test]
async fn a_store_that_fails_now_and_then_loses_nothing_and_starts_nothing_twice() {
    for every in [2, 3, 5] {
        let mut house = House::new();
        let flaky = Flaky::over(&mut house, every);
        let control = house.control().await;
        let mut accepted = Vec::new();
        for turn in 0..12 {
            let lost_once = turn % 4 == 0;
            let command: &[&str] = if lost_once { &["lose", "1"] } else { &["true"] };
            let request = with(submission(command), |experiment| experiment.retries = 1);
            let key = Some(format!("key {turn}"));
            // As a client does: again with the same key until it is answered.
            let id = loop {
                match control
                    .submit(&caller(), request.clone(), key.clone())
                    .await
                {
                    Ok(accepted) => break accepted.id,
                    Err(error) => assert_eq!(error.code(), "store_unavailable"),
                }
            };
            accepted.push((id, lost_once));
        }
        control.wait_idle().await;
        for (id, lost_once) in accepted {
            let run = house.run(id).await;
            assert_eq!(run.phase, Phase::Completed, "every {every}: {run:?}");
            let executions = house.fake.executions(id);
            // An attempt whose claim was not answered never started, the lost one too.
            let is_right = executions == 1 || (lost_once && executions == 2);
            assert!(is_right, "every {every}: {executions} of {run:?}");
            assert_eq!(mlmesh_proof::completeness(&house.manifest(id)), vec![]);
        }
        assert!(flaky.writes.load(Ordering::SeqCst) > 24);
    }
}

#[tokio::test]
async fn a_run_whose_submission_was_never_answered_runs_all_the_same() {
    let mut house = House::new();
    // The second write is done and not answered.
    let flaky = Flaky::over(&mut house, 1);
    flaky.writes.store(1, Ordering::SeqCst);
    let control = house.control().await;
    let refused = control.submit(&caller(), submission(&["hold"]), None).await;
    assert_eq!(refused.unwrap_err().code(), "store_unavailable");
    flaky.every.store(u64::MAX, Ordering::SeqCst);
    let id = loop {
        let open = house.store.open_runs().await.unwrap();
        if let [run] = open.as_slice() {
            break run.id;
        }
        tokio::task::yield_now().await;
    };
    house.fake.executed(id).await;
    house.fake.release(id);
    house.reaches(id, Phase::Completed).await;
    assert_eq!(house.fake.executions(id), 1);
}

#[tokio::test]
async fn ends_wait_for_a_store_that_is_away() {
    let mut house = House::new();
    let flaky = Flaky::over(&mut house, u64::MAX);
    let control = house.control().await;
    let held = control
        .submit(&caller(), submission(&["hold"]), None)
        .await
        .unwrap();
    house.reaches(held.id, Phase::Running).await;
    flaky.down.store(true, Ordering::SeqCst);
    house.fake.release(held.id);
    while control.live() > 0 {
        tokio::task::yield_now().await;
        if house
            .dir
            .path()
            .join(format!("data/experiments/{}/run_manifest.json", held.id))
            .exists()
        {
            break;
        }
    }
    assert_eq!(house.run(held.id).await.phase, Phase::Running);
    flaky.down.store(false, Ordering::SeqCst);
    control.wait_idle().await;
    assert_eq!(house.run(held.id).await.phase, Phase::Completed);
}

#[tokio::test]
async fn a_result_under_an_old_lease_is_dropped() {
    let house = House::new();
    let control = house.control().await;
    let held = control
        .submit(&caller(), submission(&["hold"]), None)
        .await
        .unwrap();
    let run = house.reaches(held.id, Phase::Running).await;
    // Another node takes the run over: it goes back and is leased again.
    let back = Advance {
        run: run.id,
        token: run.token,
        to: vec![Phase::Queued],
        time: Micros(5),
        record: RunUpdate::default(),
        not_before: None,
    };
    house.store.advance(back).await.unwrap();
    let claim = Claim {
        run: run.id,
        node: "elsewhere".parse().unwrap(),
        token_sha256: None,
        boot_id: "boot".into(),
        time: Micros(6),
    };
    house.store.claim(claim).await.unwrap();
    house.fake.release(held.id);
    control.wait_idle().await;
    let run = house.run(held.id).await;
    assert_eq!((run.phase, run.token), (Phase::Starting, FencingToken(2)));
    assert_eq!(run.placement.node, Some("elsewhere".parse().unwrap()));
}
