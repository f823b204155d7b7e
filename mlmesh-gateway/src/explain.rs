//! Why requests went where they went, as the pages say it: `/-/decisions` and
//! `/-/decisions/NUMBER`. Times are in milliseconds, ages and instants before now.

use mlmesh_route::{
    Candidate, Change, Decided, Enough, Explanation, Kept, Reason, Refusal, RequestId, TargetId,
};
use serde_json::{Value, json};

use crate::thread::Shared;

/// Decisions that one page lists, the newest.
const LISTED_MAX: usize = 200;

/// The decisions that are kept: what was refused, failed, hedged or slow, and a sample.
pub(crate) fn list(shared: &Shared) -> Value {
    let explanations = &shared.brain.explanations;
    let now_us = shared.brain.clock().now_us();
    let kept = explanations.kept();
    let listed: Vec<Value> = kept
        .iter()
        .take(LISTED_MAX)
        .map(|one| {
            json!({
                "request": one.request.0,
                "ago_ms": ms(now_us.saturating_sub(one.at_us)),
                "kept_as": one.kept.map(kept_as),
                "decided": decided(one),
                "target": went_to(one).map(|target| host(shared, target)),
                "prompt_tokens": one.prompt_tokens,
                "first_token_ms": one.first_token_us.map(|at_us| ms(at_us - one.at_us)),
            })
        })
        .collect();
    json!({
        "schema": "mlmesh.gateway.decisions/1",
        "strategy": shared.brain.strategy(),
        "retention_s": explanations.retention_s(now_us),
        "kept": kept.len(),
        "lost": explanations.lost(),
        "decisions": listed,
    })
}

/// One decision, if it is still known.
pub(crate) fn one(shared: &Shared, request: u64) -> Option<Value> {
    let one = shared.brain.explanations.find(RequestId(request))?;
    let now_us = shared.brain.clock().now_us();
    let changes = one.changes();
    let change = |target: TargetId| changes.iter().find(|change| change.target == target);
    let taken = went_to(&one);
    let targets: Vec<Value> = one
        .terms()
        .map(|term| {
            let known = &term.known;
            json!({
                "target": host(shared, known.target),
                "taken": taken == Some(known.target),
                "cost": term.cost,
                "first_token_ms": ms(known.ttft_us()),
                "terms": terms(known),
                "would_be_taken_with": change(known.target).map(enough),
            })
        })
        .collect();
    let since = |at_us: u64| ms(at_us.saturating_sub(one.at_us));
    Some(json!({
        "schema": "mlmesh.gateway.decision/1",
        "request": request,
        "strategy": shared.brain.strategy(),
        "ago_ms": ms(now_us.saturating_sub(one.at_us)),
        "prompt_tokens": one.prompt_tokens,
        "first_token_due_in_ms": (one.deadline_us < u64::MAX).then(|| since(one.deadline_us)),
        "inputs_age_ms": ms(one.age_us),
        "decided": decided(&one),
        "refused": refusal(&one).map(|refusal| refused(&refusal)),
        "targets": targets,
        "compared": one.compared,
        "left_out": one.left_out,
        "waited_ms": one.bound.map(|(_, at_us)| since(at_us)),
        "hedged_at": one.hedged.map(|target| host(shared, target)),
        "failed_at": one.failed.map(|target| host(shared, target)),
        "first_token_ms": one.first_token_us.map(since),
        "kept_as": one.kept.map(kept_as),
    }))
}

fn terms(known: &Candidate) -> Value {
    json!({
        "queued_ms": ms(known.queued_us),
        "queued_doubt_ms": ms(known.queued_doubt_us),
        "prefill_ms": ms(known.prefill_us),
        "prefill_doubt_ms": ms(known.prefill_doubt_us),
        "decode_ms": ms(known.decode_us),
        "rtt_ms": ms(known.rtt_us),
        "penalty_ms": ms(known.penalty_us),
        "cached_tokens": known.cached_tokens,
        "in_flight": known.in_flight,
    })
}

fn enough(change: &Change) -> Value {
    match change.enough {
        Enough::ShorterQueue(us) => json!({"queue_shorter_by_ms": ms(us)}),
        Enough::MoreCached(tokens) => json!({"more_cached_tokens": tokens}),
        Enough::NoPenalty => json!({"penalty_ms": 0}),
        Enough::Several => json!("several of them"),
    }
}

fn went_to(one: &Explanation) -> Option<TargetId> {
    if let Some((bound, _)) = one.bound {
        return Some(bound.target);
    }
    let first = one.terms().next()?;
    (one.decided == Decided::Bound).then_some(first.known.target)
}

fn decided(one: &Explanation) -> &'static str {
    match (one.decided, one.bound, one.refused) {
        (Decided::Bound, _, _) => "sent at once",
        (Decided::Refused(_), _, _) => "refused at once",
        (Decided::Waits, Some(_), _) => "waited and sent",
        (Decided::Waits, None, Some(_)) => "waited and refused",
        (Decided::Waits, None, None) => "waits, or its client has left",
    }
}

fn refusal(one: &Explanation) -> Option<Refusal> {
    match (one.refused, one.decided) {
        (Some(refusal), _) | (None, Decided::Refused(refusal)) => Some(refusal),
        (None, Decided::Bound | Decided::Waits) => None,
    }
}

fn refused(refusal: &Refusal) -> Value {
    let retry_after_ms = ms(refusal.retry_after_us);
    match refusal.reason {
        Reason::NoTarget => json!({"rule": "no_target", "retry_after_ms": retry_after_ms}),
        Reason::DeadlineMissed {
            predicted_us,
            deadline_us,
        } => json!({
            "rule": "deadline_missed",
            "late_by_ms": ms(predicted_us.saturating_sub(deadline_us)),
            "retry_after_ms": retry_after_ms,
        }),
        Reason::QueueFull { queue_max } => json!({
            "rule": "queue_full",
            "queue_max": queue_max,
            "retry_after_ms": retry_after_ms,
        }),
    }
}

const fn kept_as(kept: Kept) -> &'static str {
    match kept {
        Kept::Refused => "refused",
        Kept::Failed => "failed",
        Kept::Hedged => "hedged",
        Kept::Slow => "slow",
        Kept::Sampled => "sampled",
    }
}

fn host(shared: &Shared, target: TargetId) -> &str {
    let target = shared.targets.get(target.index());
    target.map_or("", |target| target.host())
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}
