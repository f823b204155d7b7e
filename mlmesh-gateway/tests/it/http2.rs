//! Clients that speak HTTP/2, hyper's, in front of targets that the test plays: raw
//! sockets of HTTP/1.1, and hyper's server for gRPC.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::select;
use futures_util::stream::{self, Stream};
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri, Version};
use hyper_util::rt::TokioIo;
use mlmesh_gateway::{Gateway, Waits};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use crate::wire::{PATIENCE, Place, settings};

pub(crate) type Piece = Result<Frame<Bytes>, Infallible>;
pub(crate) type Frames = StreamBody<Pin<Box<dyn Stream<Item = Piece>>>>;
pub(crate) type Sent = Either<Full<Bytes>, Frames>;

#[derive(Clone)]
struct Here;

impl<F: Future<Output = ()> + 'static> Executor<F> for Here {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

pub(crate) fn in_time<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let all = LocalSet::new();
    let runtime = runtime.unwrap();
    let done = all.block_on(&runtime, async { timeout(PATIENCE, future).await });
    done.expect("it ends in time")
}

pub(crate) async fn connect(gateway: SocketAddr) -> SendRequest<Sent> {
    let stream = TcpStream::connect(gateway).await.unwrap();
    let (sender, connection) = http2::handshake(Here, TokioIo::new(stream)).await.unwrap();
    spawn_local(async move { drop(connection.await) });
    sender
}

pub(crate) fn request(path: &str, body: Sent) -> Request<Sent> {
    let uri: Uri = format!("http://gateway.test{path}").parse().unwrap();
    let request = Request::post(uri)
        .header("x-own", "1")
        .header("te", "trailers");
    request.body(body).unwrap()
}

pub(crate) fn text(text: &'static str) -> Sent {
    Either::Left(Full::from(text))
}

/// A body that is what is sent here, until the sender goes.
fn frames() -> (mpsc::Sender<Piece>, Frames) {
    let (sender, mut receiver) = mpsc::channel(4);
    let pieces = stream::poll_fn(move |cx| receiver.poll_recv(cx));
    (sender, StreamBody::new(Box::pin(pieces)))
}

fn data(text: &'static str) -> Piece {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn next(body: &mut Incoming) -> String {
    let frame = body.frame().await.expect("a frame").unwrap();
    let data = frame.into_data().expect("data");
    String::from_utf8(data.to_vec()).unwrap()
}

/// What comes until the end.
pub(crate) async fn rest(body: &mut Incoming) -> Bytes {
    body.collect().await.unwrap().to_bytes()
}

/// What a raw socket does, beside the tasks of the test.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[test]
fn a_stream_comes_back_as_the_target_writes_it() {
    let place = Place::new();
    let gateway = place.gateway.address();
    let (told, tell) = std::sync::mpsc::sync_channel::<()>(0);
    let target = std::thread::spawn(move || {
        let mut target = place.target();
        let head = target.until("\r\n\r\n");
        target.expect("ask!");
        target.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: keep-alive, x-hop\r\n\
             X-Hop: 1\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        );
        tell.recv().unwrap();
        target.send("6\r\nsecond\r\n0\r\n\r\n");
        // The next request comes over the same connection.
        target.until("\r\n\r\nmore");
        target.send("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno");
        place.counted("2xx", 1);
        place.counted("4xx", 1);
        head
    });
    in_time(async {
        let mut client = connect(gateway).await;
        let sent = client.send_request(request("/v1/chat/completions?a=b", text("ask!")));
        let response = sent.await.unwrap();
        assert_eq!(
            (response.status(), response.version()),
            (200.try_into().unwrap(), Version::HTTP_2)
        );
        let headers = response.headers().clone();
        assert_eq!(headers["content-type"], "text/event-stream");
        for of_hop in ["connection", "keep-alive", "x-hop", "transfer-encoding"] {
            assert!(!headers.contains_key(of_hop), "{headers:?}");
        }
        let mut body = response.into_body();
        assert_eq!(next(&mut body).await, "first");
        beside(move || told.send(()).unwrap()).await;
        assert_eq!(next(&mut body).await, "second");
        assert_eq!(rest(&mut body).await, "");
        let response = client
            .send_request(request("/", text("more")))
            .await
            .unwrap();
        assert_eq!(response.status(), 404);
        assert_eq!(rest(&mut response.into_body()).await, "no");
    });
    let head = target.join().unwrap();
    let lower = head.to_ascii_lowercase();
    assert!(
        head.starts_with("POST /v1/chat/completions?a=b HTTP/1.1\r\n"),
        "{head}"
    );
    for field in [
        "x-own: 1\r\n",
        "via: 2.0 mlmesh\r\n",
        "content-length: 4\r\n",
    ] {
        assert!(lower.contains(field), "{field} in {head}");
    }
    assert!(
        !lower.contains("te: trailers") && !lower.contains("gateway.test"),
        "{head}"
    );
    assert_eq!(lower.matches("host:").count(), 1, "{head}");
}

#[test]
fn requests_of_one_connection_are_under_way_together() {
    let place = Place::new();
    let gateway = place.gateway.address();
    let (told, tell) = std::sync::mpsc::sync_channel::<()>(0);
    let target = std::thread::spawn(move || {
        let mut first = place.target();
        first.until("\r\n\r\nask");
        let mut second = place.target();
        second.until("\r\n\r\nask");
        second.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond");
        tell.recv().unwrap();
        first.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst");
        place
    });
    in_time(async {
        let client = connect(gateway).await;
        let ask = |mut client: SendRequest<Sent>| {
            Box::pin(async move {
                let response = client.send_request(request("/", text("ask"))).await;
                next(response.unwrap().body_mut()).await
            })
        };
        let (answer, other) = select(ask(client.clone()), ask(client))
            .await
            .factor_first();
        assert_eq!(answer, "second");
        beside(move || told.send(()).unwrap()).await;
        assert_eq!(other.await, "first");
    });
    drop(target.join().unwrap());
}

#[test]
fn a_stream_that_is_reset_ends_the_targets_side() {
    for begun in [false, true] {
        let place = Place::new();
        let gateway = place.gateway.address();
        let (told, tell) = std::sync::mpsc::sync_channel::<()>(0);
        let target = std::thread::spawn(move || {
            let mut target = place.target();
            target.until("\r\n\r\nask");
            if begun {
                target.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome");
            }
            tell.recv().unwrap();
            assert_eq!(target.rest(), "", "it ends");
            place.counted("client_gone", 1);
            place
        });
        let place = in_time(async {
            let mut client = connect(gateway).await;
            let sent = client.send_request(request("/", text("ask")));
            if begun {
                let mut response = sent.await.unwrap();
                assert_eq!(next(response.body_mut()).await, "some");
                beside(move || told.send(()).unwrap()).await;
                drop(response);
            } else {
                let waited = timeout(Duration::from_millis(50), sent).await;
                beside(move || told.send(()).unwrap()).await;
                assert!(waited.is_err(), "nothing was answered");
            }
            // The connection stays, one stream of it is gone.
            let place = beside(move || target.join().unwrap()).await;
            client.ready().await.unwrap();
            place
        });
        place.gateway.drain(PATIENCE);
    }
}

/// A target that speaks HTTP/2: it answers each frame with itself, and ends with trailers.
async fn echo(request: Request<Incoming>) -> Result<Response<Frames>, Infallible> {
    assert_eq!(request.version(), Version::HTTP_2);
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["via"], "2.0 mlmesh");
    assert_eq!(
        request.uri().path(),
        "/inference.GRPCInferenceService/ModelStreamInfer"
    );
    let (sender, answer) = frames();
    let mut body = request.into_body();
    spawn_local(async move {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return };
            if sender.send(Ok(frame)).await.is_err() {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        drop(sender.send(Ok(Frame::trailers(trailers))).await);
    });
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(answer).unwrap())
}

fn grpc(body: Sent) -> Request<Sent> {
    let mut request = request("/inference.GRPCInferenceService/ModelStreamInfer", body);
    let kind = "application/grpc+proto".parse().unwrap();
    request.headers_mut().insert("content-type", kind);
    request
}

#[test]
fn grpc_streams_both_ways_and_its_status_arrives() {
    in_time(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let connections = spawn_local(async move {
            let mut connections = 0;
            while let Ok(accepted) = timeout(Duration::from_secs(1), listener.accept()).await {
                let io = TokioIo::new(accepted.unwrap().0);
                let builder = hyper::server::conn::http2::Builder::new(Here);
                spawn_local(builder.serve_connection(io, service_fn(echo)));
                connections += 1;
            }
            connections
        });
        let gateway = beside(move || Gateway::start(settings([target].into_iter())).unwrap()).await;
        let mut client = connect(gateway.address()).await;
        for _ in 0..2 {
            let (sender, body) = frames();
            let response = client
                .send_request(grpc(Either::Right(body)))
                .await
                .unwrap();
            assert_eq!(response.headers()["content-type"], "application/grpc");
            let mut answer = response.into_body();
            for part in ["one", "two"] {
                sender.send(data(part)).await.unwrap();
                assert_eq!(next(&mut answer).await, part);
            }
            drop(sender);
            let last = answer.frame().await.expect("trailers").unwrap();
            let trailers = last.into_trailers().expect("trailers");
            assert_eq!(trailers["grpc-status"], "0");
        }
        assert_eq!(
            connections.await.unwrap(),
            1,
            "both calls went over one connection"
        );
        drop(client);
        beside(move || gateway.drain(PATIENCE)).await;
    });
}

#[test]
fn refusals_have_the_form_of_their_protocol() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = nobody.local_addr().unwrap();
    drop(nobody);
    let gateway = Gateway::start(settings([target].into_iter())).unwrap();
    in_time(async {
        let mut client = connect(gateway.address()).await;
        let refused = client.send_request(grpc(text("call"))).await.unwrap();
        assert_eq!(refused.status(), 200);
        assert_eq!(refused.headers()["grpc-status"], "14");
        assert_eq!(refused.headers()["grpc-message"], "target_unreachable");
        let refused = client
            .send_request(request("/v1/models", text("")))
            .await
            .unwrap();
        assert_eq!(refused.status(), 502);
        let body = rest(&mut refused.into_body()).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "target_unreachable");
        let health = client
            .send_request(request("/-/health", text("")))
            .await
            .unwrap();
        assert_eq!(health.status(), 200);
        let body = rest(&mut health.into_body()).await;
        assert!(
            body.starts_with(b"{\"schema\":\"mlmesh.gateway.health/1\""),
            "{body:?}"
        );
    });
    gateway.drain(PATIENCE);
}

#[test]
fn who_asks_nothing_for_long_has_to_go() {
    let waits = Waits {
        idle: Duration::from_millis(100),
        ..Waits::default()
    };
    let place = Place::with(1, waits);
    let gateway = place.gateway.address();
    in_time(async {
        let stream = TcpStream::connect(gateway).await.unwrap();
        let io = TokioIo::new(stream);
        let (mut sender, connection) = http2::handshake(Here, io).await.unwrap();
        let connection = spawn_local(connection);
        let asked = sender.send_request(request("/-/health", text(""))).await;
        assert_eq!(
            rest(&mut asked.unwrap().into_body()).await.first(),
            Some(&b'{')
        );
        connection.await.unwrap().unwrap();
    });
    // A client that says nothing at all is let go, too.
    let mut silent = place.client();
    assert_eq!(silent.rest(), "");
}

#[test]
fn a_drain_lets_streams_finish_and_takes_no_new_ones() {
    let place = Place::new();
    let gateway = place.gateway.address();
    let Place {
        gateway: draining,
        targets,
    } = place;
    let (told, tell) = std::sync::mpsc::sync_channel::<()>(0);
    let target = std::thread::spawn(move || {
        let mut target = crate::wire::accepted(&targets[0]);
        target.until("\r\n\r\nask");
        target.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst");
        tell.recv().unwrap();
        target.send(" last");
        target
    });
    in_time(async {
        let mut client = connect(gateway).await;
        let mut response = client
            .send_request(request("/", text("ask")))
            .await
            .unwrap();
        assert_eq!(next(response.body_mut()).await, "first");
        let drained = spawn_local(beside(move || draining.drain(PATIENCE)));
        // The door is closed when nobody can connect any more.
        while TcpStream::connect(gateway).await.is_ok() {
            tokio::task::yield_now().await;
        }
        beside(move || told.send(()).unwrap()).await;
        assert_eq!(next(response.body_mut()).await, " last");
        assert_eq!(rest(response.body_mut()).await, "");
        drained.await.unwrap();
    });
    drop(target.join().unwrap());
}
