//! One stream: a request, its target, and the response.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use http_body_util::{Either, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version, http::request::Parts};
use tokio::time::timeout;

use crate::call::Call;
use crate::connection::Door;
use crate::errand::{Errand, Unplaced};
use crate::field::Field;
use crate::http2::passed::{Held, Passed, UnderWay};
use crate::keys;
use crate::metrics::Outcome;
use crate::pages::{self, Answer};
use crate::refusal::Refusal;
use crate::request::Page;
use crate::target::Target;
use crate::telling::Trip;
use crate::thread::Thread;

/// The gateway's own, or a target's.
pub(crate) type Reply = Response<Either<Full<Bytes>, Passed>>;

/// The number by which a request's decision is found.
const REQUEST: HeaderName = HeaderName::from_static("mlmesh-request");

/// Answers a request, whatever it is.
pub(crate) async fn answer(
    thread: Rc<Thread>,
    request: Request<Incoming>,
    door: Door,
) -> Result<Reply, Infallible> {
    let is_grpc = is_grpc(request.headers());
    let page = match door {
        Door::TargetsAndPages => Page::at(request.uri().path()),
        Door::Targets => None,
        Door::Pages => Some(Page::at(request.uri().path()).unwrap_or(Page::Unknown)),
    };
    if let Some(page) = page {
        let is_draining = thread.is_draining.get();
        return Ok(own(pages::answer(page, &thread.shared, is_draining)));
    }
    let mut trip = thread.shared.teller.as_ref().map(|teller| {
        let of = |name| request.headers().get(name).map(HeaderValue::as_bytes);
        let (method, path) = (request.method().as_str(), request.uri().path());
        teller.begin(method, path, of("traceparent"), of("x-request-id"))
    });
    let refusal = match carry(&thread, request, is_grpc, &mut trip).await {
        Ok(reply) => return Ok(reply),
        Err(refusal) => refusal,
    };
    thread.counters.refused.fetch_add(1, Ordering::Relaxed);
    if let Some(trip) = &mut trip {
        trip.status = refusal.code_of_status();
    }
    Ok(match is_grpc {
        true => trailers_only(refusal),
        false => own(Answer::from(refusal)),
    })
}

/// Carries a request to a target. It is sent a second time only where none of it was sent:
/// to the next target when this one takes no connection, and over a new connection when an
/// idle one had ended.
async fn carry(
    thread: &Rc<Thread>,
    request: Request<Incoming>,
    is_grpc: bool,
    trip: &mut Option<Trip>,
) -> Result<Reply, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::MethodUnsupported);
    }
    let waits = thread.shared.waits;
    let (parts, mut body) = request.into_parts();
    let tenant = thread.shared.tenant(key_of(&parts.headers))?;
    let call = match is_grpc {
        true => Call::of_grpc(parts.uri.path()),
        false => Call::of(
            parts.method.as_str(),
            parts.uri.path(),
            !body.is_end_stream(),
        ),
    };
    // The messages of a gRPC call may wait for its answers.
    let held = match call != Call::Other && !is_grpc && thread.shared.reads_bodies() {
        true => Held::read(thread, &mut body, waits.request_body).await?,
        false => Held::default(),
    };
    let announced = body.size_hint().lower();
    let data = (!held.is_empty()).then(|| held.data());
    let bytes = data.as_ref().map_or(0, Bytes::len) as u64 + announced;
    let told = Errand::tell(thread, call, data.as_deref(), bytes, tenant.as_ref())?;
    let mut waiting = Some(Passed::request(held, body, waits.request_body));
    let targets = &thread.shared.targets;
    // A client that goes away drops this.
    let placed = told.place(thread, |_| false).await;
    let mut errand = Some(placed.map_err(Unplaced::refusal)?);
    let mut may_reuse = true;
    while let (Some(body), Some(mine)) = (waiting.take(), errand.take()) {
        let target = mine.target();
        let mut under_way = UnderWay::at(thread, target);
        let idle = match may_reuse {
            true => thread.upstreams.take(target, is_grpc, waits.idle_upstream),
            false => None,
        };
        let upstream = match idle {
            Some(upstream) => upstream,
            None => {
                let connect =
                    thread
                        .upstreams
                        .connect(target, &targets[target], is_grpc, waits.connect);
                match connect.await {
                    Ok(upstream) => {
                        let connects = &thread.counters.targets[target].connects;
                        connects.fetch_add(1, Ordering::Relaxed);
                        upstream
                    }
                    Err(outcome) => {
                        under_way.outcome = outcome;
                        let placed = mine.elsewhere(thread, |_| false).await;
                        errand = Some(placed.map_err(Unplaced::refusal)?);
                        may_reuse = true;
                        waiting = Some(body);
                        continue;
                    }
                }
            }
        };
        under_way.is_connected = true;
        let was_idle = upstream.was_idle();
        let keeps_key = tenant.is_some();
        let mut request = for_target(&parts, body, &targets[target], is_grpc, keeps_key)?;
        if let Some(trip) = trip {
            trip.target = Some(targets[target].host().to_owned());
            belongs(request.headers_mut(), trip);
        }
        match timeout(waits.response_head, upstream.send(request)).await {
            Ok(Ok((response, http1))) => {
                under_way.answered(&response, http1, mine, trip.take());
                return Ok(passed_on(response, waits.response_body, under_way));
            }
            Ok(Err(mut error)) => {
                // Nobody but the target has failed; it says what it did by the next one.
                under_way.outcome = Outcome::Failed;
                match error.take_message() {
                    Some(unsent) if was_idle => {
                        may_reuse = false;
                        errand = Some(mine);
                        waiting = Some(unsent.into_body());
                    }
                    _ => return Err(Refusal::TargetFailed("the connection ended")),
                }
            }
            Err(_) => {
                under_way.outcome = Outcome::TimedOut;
                return Err(Refusal::TargetTimeout);
            }
        }
    }
    Err(Refusal::TargetUnreachable)
}

/// The request as the target gets it.
fn for_target(
    parts: &Parts,
    body: Passed,
    target: &Target,
    is_grpc: bool,
    keeps_key: bool,
) -> Result<Request<Passed>, Refusal> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri = match is_grpc {
        true => format!("http://{}{path}", target.host()),
        false => path.to_owned(),
    };
    let malformed = Refusal::Malformed("the path is no path");
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri.parse::<Uri>().map_err(|_| malformed)?;
    let headers = request.headers_mut();
    *headers = parts.headers.clone();
    leave_hop(headers);
    if keeps_key {
        headers.remove(header::AUTHORIZATION);
    }
    headers.append(header::VIA, HeaderValue::from_static("2.0 mlmesh"));
    if is_grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        *request.version_mut() = Version::HTTP_2;
    } else {
        let host = HeaderValue::from_str(target.host()).map_err(|_| malformed)?;
        headers.insert(header::HOST, host);
    }
    Ok(request)
}

/// Says to which trace a request belongs.
fn belongs(headers: &mut HeaderMap, trip: &Trip) {
    for (name, value) in [
        ("traceparent", trip.traceparent().as_str()),
        ("x-request-id", trip.request_id()),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// The response as the client gets it.
fn passed_on(
    response: Response<Incoming>,
    wait: std::time::Duration,
    under_way: UnderWay,
) -> Reply {
    let request = under_way.request();
    let mut response = response.map(|body| Either::Right(Passed::response(body, wait, under_way)));
    *response.version_mut() = Version::HTTP_2;
    leave_hop(response.headers_mut());
    response.headers_mut().remove(header::TRANSFER_ENCODING);
    if let Some(request) = request {
        response.headers_mut().insert(REQUEST, request.into());
    }
    response
}

/// Removes the fields of one hop.
fn leave_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let of_hop: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            matches!(Field::named(name.as_str()), Field::Hop | Field::Connection)
                || named.contains(name)
        })
        .cloned()
        .collect();
    for name in of_hop {
        headers.remove(name);
    }
}

/// What stands behind `Authorization: Bearer`.
fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    let field = headers.get(header::AUTHORIZATION)?;
    keys::bearer(field.as_bytes())
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| {
        kind.starts_with(b"application/grpc") && !kind.starts_with(b"application/grpc-web")
    })
}

fn own(answer: Answer) -> Reply {
    let status = answer.status.get(..3).and_then(|code| code.parse().ok());
    let mut reply = Response::new(Either::Left(Full::from(answer.body)));
    *reply.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = HeaderValue::from_static(answer.content_type);
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    if let Some(request) = answer.request {
        reply.headers_mut().insert(REQUEST, request.into());
    }
    if let Some(seconds) = answer.retry_after_s {
        reply
            .headers_mut()
            .insert(header::RETRY_AFTER, seconds.into());
    }
    reply
}

/// A refusal as gRPC has it: no message, and the status in the head (gRPC over HTTP/2,
/// "Trailers-Only").
fn trailers_only(refusal: Refusal) -> Reply {
    let code = match refusal {
        Refusal::TargetTimeout => "4",
        Refusal::TargetUnreachable | Refusal::TargetFailed(_) | Refusal::NoTarget { .. } => "14",
        Refusal::Hopeless { .. } | Refusal::QueueFull { .. } | Refusal::OverLimit { .. } => "8",
        Refusal::KeyUnknown => "16",
        Refusal::MethodUnsupported | Refusal::PageUnknown => "12",
        _ => "13",
    };
    let mut reply = Response::new(Either::Left(Full::default()));
    let headers = reply.headers_mut();
    let kind = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert("grpc-status", HeaderValue::from_static(code));
    headers.insert("grpc-message", HeaderValue::from_static(refusal.code()));
    reply
}
