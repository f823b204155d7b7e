//! Asks services on this machine whether they answer: one token, one inference, a page, a
//! connection; and counts who is connected to them. It decides nothing about them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use mlmesh_model::{Ask, BoxFuture, EngineModel, Name, NotChanged, Prober, ReadyRequest};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Characters of an answer that are shown.
const SHOWN_CHARS_MAX: usize = 200;
/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a list of models.
const ASK_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a model that is loaded or unloaded.
const CHANGE_MAX: Duration = Duration::from_secs(120);
/// Elements of a made-up input. What asks for more cannot be tried by zeros.
const ELEMENTS_MAX: u64 = 1 << 20;
/// State of an established connection in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// Asks over HTTP/1.1, a connection for each question.
pub(crate) struct HttpProber;

impl Prober for HttpProber {
    fn ask(&self, ask: Ask) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ask.port));
            match &ask.request {
                ReadyRequest::Tcp => connect(to).await.map(drop),
                ReadyRequest::Http(path) => call(to, Method::GET, path, None).await.map(drop),
                ReadyRequest::Completion => complete(to, ask.model.as_ref()).await,
                ReadyRequest::Inference => infer(to, ask.model.as_ref()).await,
            }
        })
    }

    fn models(&self, port: u16) -> BoxFuture<'_, Result<Vec<EngineModel>, String>> {
        Box::pin(async move {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let asked = tokio::time::timeout(ASK_MAX, models_of(to)).await;
            asked.unwrap_or_else(|_| Err("it did not answer in time".to_owned()))
        })
    }

    fn change_model(
        &self,
        port: u16,
        model: String,
        load: bool,
    ) -> BoxFuture<'_, Result<(), NotChanged>> {
        Box::pin(async move {
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if repository(to).await.is_err() {
                return Err(NotChanged::NoRepository);
            }
            let verb = if load { "load" } else { "unload" };
            let path = format!("/v2/repository/models/{model}/{verb}");
            let asked = call(to, Method::POST, &path, Some(json!({})));
            match tokio::time::timeout(CHANGE_MAX, asked).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(said)) => Err(NotChanged::Said(said)),
                Err(_) => Err(NotChanged::Said("it did not answer in time".to_owned())),
            }
        })
    }

    fn connections(&self, port: u16) -> BoxFuture<'_, Result<usize, String>> {
        Box::pin(async move {
            let counted = tokio::task::spawn_blocking(move || {
                let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
                let texts = tables.map(std::fs::read_to_string);
                let [first, second] = texts;
                // Machines without version 6 have no such table.
                let second = second.unwrap_or_default();
                first.map(|first| established(&first, port) + established(&second, port))
            });
            let counted = counted.await.map_err(|error| error.to_string())?;
            counted.map_err(|error| format!("read /proc/net/tcp: {error}"))
        })
    }
}

/// Lines of a table of sockets that are connections to this local port.
fn established(table: &str, port: u16) -> usize {
    let ends = format!(":{port:04X}");
    let lines = table.lines().skip(1);
    lines
        .filter(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let local = words.next();
            let state = words.nth(1);
            local.is_some_and(|local| local.ends_with(&ends)) && state == Some(ESTABLISHED)
        })
        .count()
}

async fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("connect to {to}: {error}")),
        Err(_) => Err(format!("connect to {to}: no answer")),
    }
}

/// One request; the answer's body when it is a success.
async fn call(
    to: SocketAddr,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Bytes, String> {
    let what = format!("{method} {path}");
    let failed = |error: &dyn std::fmt::Display| format!("{what}: {error}");
    let stream = connect(to).await?;
    let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let bytes = body.map(|body| Bytes::from(body.to_string()));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, to.to_string())
        .header(CONNECTION, "close")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(bytes.unwrap_or_default()))
        .map_err(|error| failed(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| failed(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|error| failed(&error))?;
        Ok::<_, String>((status, body.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    // The connection is driven as long as the exchange lasts, and goes with it.
    let (status, bytes) = tokio::select! {
        answered = &mut exchange => answered,
        ended = connection => {
            ended.map_err(|error| failed(&error))?;
            exchange.await
        }
    }?;
    if status.is_success() {
        return Ok(bytes);
    }
    let said: String = String::from_utf8_lossy(&bytes)
        .chars()
        .filter(|character| !character.is_control())
        .take(SHOWN_CHARS_MAX)
        .collect();
    Err(format!("{what}: {} {said}", status.as_u16()))
}

async fn json_of(
    to: SocketAddr,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Value, String> {
    let what = format!("{method} {path}");
    let bytes = call(to, method, path, body).await?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{what}: no JSON: {error}"))
}

/// One token, by OpenAI's completions.
async fn complete(to: SocketAddr, model: Option<&Name>) -> Result<(), String> {
    let model = match model {
        Some(name) => name.to_string(),
        None => {
            let models = json_of(to, Method::GET, "/v1/models", None).await?;
            let first = models["data"][0]["id"].as_str();
            first.ok_or("GET /v1/models names no model")?.to_owned()
        }
    };
    let body = json!({"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0});
    let answer = json_of(to, Method::POST, "/v1/completions", Some(body)).await?;
    let has_choice = answer["choices"][0]["text"].is_string();
    let tokens = answer["usage"]["completion_tokens"].as_u64();
    match has_choice && tokens != Some(0) {
        true => Ok(()),
        false => Err("POST /v1/completions: the answer holds no token".to_owned()),
    }
}

/// The index of an engine's repository, by KServe's extension for it.
async fn repository(to: SocketAddr) -> Result<Vec<EngineModel>, String> {
    let path = "/v2/repository/index";
    let index = json_of(to, Method::POST, path, Some(json!({}))).await?;
    let models = index.as_array().ok_or("no index of a repository")?.iter();
    let models = models.filter_map(|model| {
        let state = model["state"].as_str().unwrap_or_default();
        let reason = model["reason"].as_str().unwrap_or_default();
        Some(EngineModel {
            name: model["name"].as_str()?.to_owned(),
            loaded: state == "READY",
            said: [state, reason].join(" ").trim().to_owned(),
        })
    });
    Ok(models.collect())
}

/// Models of an engine: of its repository, else those that it offers.
async fn models_of(to: SocketAddr) -> Result<Vec<EngineModel>, String> {
    if let Ok(models) = repository(to).await {
        return Ok(models);
    }
    let offered = json_of(to, Method::GET, "/v1/models", None).await?;
    let models = offered["data"].as_array().map(Vec::as_slice);
    let names = models.unwrap_or_default().iter();
    let names = names.filter_map(|model| model["id"].as_str());
    let loaded = |name: &str| EngineModel {
        name: name.to_owned(),
        loaded: true,
        said: String::new(),
    };
    Ok(names.map(loaded).collect())
}

/// One inference of zeros, by KServe's version 2.
async fn infer(to: SocketAddr, model: Option<&Name>) -> Result<(), String> {
    let model = match model {
        Some(name) => name.to_string(),
        None => {
            let models = repository(to).await?;
            let ready = models.into_iter().find(|model| model.loaded);
            let ready = ready.ok_or("no model of the repository is ready")?;
            ready.name
        }
    };
    let path = format!("/v2/models/{model}");
    let about = json_of(to, Method::GET, &path, None).await?;
    let inputs = about["inputs"].as_array().map(Vec::as_slice);
    let inputs = inputs.filter(|inputs| !inputs.is_empty()).ok_or_else(|| {
        format!(
            "model `{model}` declares no inputs, so that no inference can be made up for it; \
             declare them in its settings"
        )
    })?;
    let inputs: Result<Vec<Value>, String> = inputs.iter().map(zeros).collect();
    let body = json!({"inputs": inputs?});
    let path = format!("{path}/infer");
    let answer = json_of(to, Method::POST, &path, Some(body)).await?;
    match answer["outputs"].is_array() {
        true => Ok(()),
        false => Err(format!("POST {path}: the answer holds no outputs")),
    }
}

/// An input of zeros in the shape that a model declares; what is open there is 1.
fn zeros(input: &Value) -> Result<Value, String> {
    let name = input["name"].as_str().unwrap_or_default();
    let dimensions = input["shape"].as_array().map(Vec::as_slice);
    let shape: Vec<u64> = dimensions
        .unwrap_or_default()
        .iter()
        .map(|length| length.as_i64().unwrap_or(1).max(1).unsigned_abs())
        .collect();
    let product = shape
        .iter()
        .try_fold(1_u64, |product, length| product.checked_mul(*length));
    let elements = product
        .filter(|elements| *elements <= ELEMENTS_MAX)
        .ok_or_else(|| format!("input `{name}` asks for more than {ELEMENTS_MAX} elements"))?;
    let datatype = input["datatype"].as_str().unwrap_or("FP32");
    let zero = match datatype {
        "BYTES" => json!(""),
        "BOOL" => json!(false),
        _ => json!(0),
    };
    let data = vec![zero; usize::try_from(elements).unwrap_or(0)];
    Ok(json!({"name": name, "datatype": datatype, "shape": shape, "data": data}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_local_port_and_state() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0
   2: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0
   3: 0100007F:1F90 0100007F:9C42 06 00000000:00000000 00:00000000 00000000     0
";
        assert_eq!(established(table, 8080), 1);
        assert_eq!(established(table, 40_000), 1);
        assert_eq!(established(table, 80), 0);
    }

    #[test]
    fn zeros_have_the_shape_that_is_declared() {
        let input = json!({"name": "x", "datatype": "INT32", "shape": [-1, 3]});
        let made = zeros(&input).unwrap();
        assert_eq!(made["shape"], json!([1, 3]));
        assert_eq!(made["data"], json!([0, 0, 0]));
        let huge = json!({"name": "x", "datatype": "FP32", "shape": [1_u64 << 40, 1_u64 << 40]});
        assert!(zeros(&huge).is_err());
    }
}
