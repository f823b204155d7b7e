//! `ml route`: what a gateway's router has decided, and why.

use mlmesh_api::gateway_page;
use serde_json::Value;

use crate::cli;
use crate::error::{Exit, Failure, Outcome};
use crate::output::{Output, Table, Tone};

/// Says why a request went where it went.
pub(crate) fn explain(output: &Output, verb: &cli::RouteExplain) -> Outcome {
    let path = format!("/-/decisions/{}", verb.request);
    let decision = page(&verb.gateway.gateway, &path)?;
    if output.json {
        return output.json(&decision);
    }
    let text = |name: &str| decision[name].as_str().unwrap_or_default().to_owned();
    output.line(format_args!(
        "request {}: {}, by {}, {:.1} s ago",
        verb.request,
        text("decided"),
        text("strategy"),
        number(&decision["ago_ms"]) / 1e3,
    ))?;
    let tokens = &decision["prompt_tokens"];
    let due = match decision["first_token_due_in_ms"].as_f64() {
        Some(ms) => format!(", first token due within {}", time(ms)),
        None => String::new(),
    };
    let age = time(number(&decision["inputs_age_ms"]));
    output.line(format_args!(
        "prompt of about {tokens} tokens{due}; what was known was {age} old"
    ))?;
    if let Some(refused) = decision["refused"].as_object() {
        let rule = refused["rule"].as_str().unwrap_or_default();
        let late = refused.get("late_by_ms").and_then(Value::as_f64);
        let late = late.map_or(String::new(), |ms| format!(", {} too late", time(ms)));
        let again = time(number(&refused["retry_after_ms"]));
        output.line(format_args!("refused: {rule}{late}; again after {again}"))?;
    }
    output.table(&targets(&decision))?;
    for (name, what) in [
        ("waited_ms", "waited"),
        ("first_token_ms", "first token after"),
    ] {
        if let Some(ms) = decision[name].as_f64() {
            output.line(format_args!("{what} {}", time(ms)))?;
        }
    }
    for (name, what) in [("failed_at", "failed at"), ("hedged_at", "also asked")] {
        if let Some(target) = decision[name].as_str() {
            output.line(format_args!("{what} {target}"))?;
        }
    }
    Ok(())
}

/// Lists the decisions that are kept.
pub(crate) fn list(output: &Output, verb: &cli::RouteList) -> Outcome {
    let list = page(&verb.gateway.gateway, "/-/decisions")?;
    if output.json {
        return output.json(&list);
    }
    let mut table = Table::new(&[
        "REQUEST",
        "AGO",
        "KEPT AS",
        "DECIDED",
        "TARGET",
        "FIRST TOKEN",
    ]);
    let decisions = list["decisions"].as_array();
    for one in decisions.into_iter().flatten() {
        let text = |name: &str| one[name].as_str().unwrap_or("–").to_owned();
        let first = one["first_token_ms"].as_f64();
        table.row([
            (one["request"].to_string(), Tone::Plain),
            (time(number(&one["ago_ms"])), Tone::Dim),
            (text("kept_as"), Tone::Plain),
            (text("decided"), Tone::Plain),
            (text("target"), Tone::Plain),
            (first.map_or("–".to_owned(), time), Tone::Plain),
        ]);
    }
    output.table(&table)?;
    output.say(format_args!(
        "{} are kept, for {:.0} s as things go now",
        list["kept"],
        number(&list["retention_s"]),
    ));
    Ok(())
}

/// The targets that were compared, the best first.
fn targets(decision: &Value) -> Table {
    let mut table = Table::new(&[
        "TARGET",
        "FIRST TOKEN",
        "QUEUED",
        "PREFILL",
        "DECODE",
        "WAY",
        "PENALTY",
        "CACHED",
        "WOULD BE TAKEN WITH",
    ]);
    let targets = decision["targets"].as_array();
    for target in targets.into_iter().flatten() {
        let tone = match target["taken"].as_bool() {
            Some(true) => Tone::Good,
            _ => Tone::Plain,
        };
        let name = target["target"].as_str().unwrap_or_default();
        let terms = &target["terms"];
        let of = |name: &str| (time(number(&terms[name])), tone);
        let cached = terms["cached_tokens"].to_string();
        table.row([
            (name.to_owned(), tone),
            (time(number(&target["first_token_ms"])), tone),
            of("queued_ms"),
            of("prefill_ms"),
            of("decode_ms"),
            of("rtt_ms"),
            of("penalty_ms"),
            (cached, tone),
            (change(&target["would_be_taken_with"]), Tone::Dim),
        ]);
    }
    table
}

fn change(change: &Value) -> String {
    if let Some(ms) = change["queue_shorter_by_ms"].as_f64() {
        return format!("a queue shorter by {}", time(ms));
    }
    if let Some(tokens) = change["more_cached_tokens"].as_u64() {
        return format!("{tokens} more tokens cached");
    }
    match change {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        _ => "no penalty".to_owned(),
    }
}

fn page(url: &str, path: &str) -> Outcome<Value> {
    let (status, page) = gateway_page(url, path)?;
    if status == 200 {
        return Ok(page);
    }
    let text = |name: &str| page["error"][name].as_str().unwrap_or_default().to_owned();
    let (code, message) = (text("code"), text("message"));
    if code.is_empty() {
        let hint = "`--gateway` is the address of `--admin`, or of `--listen` on the same machine";
        let message = format!("{url} is no gateway: it answered {status}");
        return Err(Failure::failed("page_unknown", message, hint));
    }
    let exit = if status == 404 {
        Exit::NotFound
    } else {
        Exit::Failed
    };
    Err(Failure {
        exit,
        ..Failure::failed(&code, message, "`ml route list` shows what is kept")
    })
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// A time as people read it.
fn time(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.0} s", ms / 1e3),
        ms if ms >= 1_000.0 => format!("{:.2} s", ms / 1e3),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.2} ms"),
    }
}
