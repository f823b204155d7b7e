//! Services and their kinds: what a recipe becomes, and each thing that is refused with
//! the line it stands on.

use mlmesh_model::{ParamValue, ReadyRequest, Restart, Service, Workload};
use mlmesh_recipe::{
    KindSource, built_in_kinds, check, check_kind, expand, fill, kind_schema, parse, parse_with,
    start_names, substitute,
};

const DIGEST: &str = "1111111111111111111111111111111111111111111111111111111111111111";

fn service(text: &str) -> Service {
    match parse("s.yaml", text) {
        Ok(Workload::Service(service)) => *service,
        Ok(Workload::Experiment(_)) => panic!("an experiment: {text}"),
        Err(errors) => panic!("{errors}\n{text}"),
    }
}

/// `line:column code` of the first error.
fn refused(text: &str) -> String {
    let errors = parse("s.yaml", text).expect_err("a refusal");
    let first = &errors.errors[0];
    format!(
        "{}:{} {} {}",
        first.line, first.column, first.code, first.message
    )
}

#[test]
fn a_command_with_a_port_is_a_service() {
    let one = service(
        "service:\n  name: pages\n  command: [./serve, \"${host}:${port_http}\", \"${mode}\"]\n  \
         args: [--more]\n  parameters: {mode: fast}\n  ports: {http: auto, admin: 9000}\n  \
         ready: {path: /up, port: http, timeout: 1m30s}\n  restart: always\n  restarts: 2\n  \
         ttl: 8h\n  drain: 5s\n  labels: {team: blue}\n  env: {A: b}\n",
    );
    assert_eq!(one.ports["http"], 0);
    assert_eq!(one.ports["admin"], 9000);
    assert_eq!(one.ready.request, ReadyRequest::Http("/up".into()));
    assert_eq!((one.ready.timeout_s, one.replicas), (90, 1));
    let keep = &one.keep;
    assert_eq!((keep.restart, keep.restarts_max), (Restart::Always, 2));
    assert_eq!((keep.ttl_s, keep.drain_s), (Some(8 * 3600), 5));
    assert_eq!(one.labels["team"], "blue");
    assert_eq!(one.job.command.last().unwrap(), "--more");
    assert_eq!(start_names(&one), ["host", "port_admin", "port_http"]);
    assert!(check(&Workload::Service(Box::new(one))).is_ok());
}

#[test]
fn a_kind_gives_what_the_recipe_does_not_say() {
    let text = format!(
        "service:\n  name: chat\n  kind: llama-server\n  model: tiny@sha256:{DIGEST}\n  \
         parameters: {{slots: 2}}\n  args: [--verbose]\n  ready: {{timeout: 5s}}\n"
    );
    let one = service(&text);
    assert_eq!(one.ready.request, ReadyRequest::Completion);
    assert_eq!(one.ready.health.as_deref(), Some("/health"));
    assert_eq!(one.ready.timeout_s, 5);
    assert_eq!(one.job.params["slots"], ParamValue::Int(2));
    assert_eq!(one.job.params["context"], ParamValue::Int(16_384));
    let kind = one.kind.as_ref().unwrap();
    assert_eq!(kind.runtime.as_deref(), Some("llama_cpp"));
    // What only the machine knows stays as it is until the start.
    let mut point = expand(&one.job).unwrap().remove(0);
    for name in start_names(&one) {
        let itself = ParamValue::Text(format!("${{{name}}}"));
        point.params.insert(name, itself);
    }
    let argv = substitute(&one.job, &point).unwrap();
    assert_eq!(&argv[..3], ["llama-server", "--model", "${model}"]);
    assert_eq!(argv.last().unwrap(), "--verbose");
    let values = [("model".to_owned(), "w/t.gguf".to_owned())].into();
    assert_eq!(fill(&argv[2], &values), "w/t.gguf");
    assert_eq!(fill("${other} $${model}", &values), "${other} $w/t.gguf");
}

#[test]
fn each_mistake_is_named_with_its_line() {
    let head = "service:\n  name: a\n";
    let cases = [
        ("", "1:1 recipe_missing_key `service` has neither"),
        (
            "  command: [x]\n",
            "1:1 recipe_missing_key a service lacks `ports`",
        ),
        (
            "  command: [x, \"${port_htp}\"]\n  ports: {http: auto}\n",
            "3:16 recipe_unknown_parameter `${port_htp}`",
        ),
        (
            "  command: [x]\n  ports: {http: 70000}\n",
            "4:17 recipe_invalid_value `http`: `70000` is not a port",
        ),
        (
            "  command: [x]\n  ports: {http: 8080}\n  replicas: 2\n",
            "1:1 recipe_conflict several replicas",
        ),
        (
            "  command: [x]\n  ports: {http: auto}\n  ready: {port: grpc}\n",
            "5:10 recipe_unknown_parameter `port: grpc`",
        ),
        (
            "  command: [x]\n  ports: {http: auto}\n  restart: sometimes\n",
            "5:12 recipe_invalid_value",
        ),
        (
            "  command: [x]\n  ports: {http: auto}\n  model: tiny\n",
            "5:10 recipe_invalid_value `model`: `tiny` is not a model",
        ),
        (
            "  command: [x]\n  ports: {http: auto}\n  model: t@abcd:w.gguf\n  ready: {path: /health}\n",
            "6:10 recipe_conflict a service with a model",
        ),
        (
            "  kind: lama-server\n",
            "3:9 recipe_unknown_parameter there is no kind `lama-server`",
        ),
        (
            "  kind: llama-server\n",
            "1:1 recipe_missing_key a service of kind `llama-server` needs a `model`",
        ),
        (
            "  kind: triton\n",
            "1:1 recipe_missing_key a service of kind `triton` needs `repository`",
        ),
        (
            "  kind: triton\n  parameters: {repository: r, control: often}\n",
            "4:40 recipe_invalid_value `control`: `often` is not one of",
        ),
        (
            "  kind: triton\n  parameters: {repositry: r}\n",
            "4:27 recipe_unknown_parameter `repositry` is no parameter of kind `triton`",
        ),
        (
            "  kind: mlserver\n  command: [x]\n  parameters: {folder: f}\n",
            "4:13 recipe_conflict `command` stands beside",
        ),
    ];
    for (more, expected) in cases {
        let said = refused(&format!("{head}{more}"));
        assert!(said.starts_with(expected), "{more}\n{said}");
    }
}

#[test]
fn what_no_recipe_could_say_of_a_service_is_refused() {
    let text = "service: {name: a, command: [x], ports: {http: auto}}";
    type Change = (&'static str, fn(&mut Service));
    let changes: [Change; 6] = [
        ("no port", |one| one.ports.clear()),
        ("a port's name", |one| {
            one.ports.insert("A b".into(), 0);
        }),
        ("replicas", |one| one.replicas = 65),
        ("a path", |one| one.ready.health = Some("no path".into())),
        ("retries", |one| one.job.retries = 1),
        ("restarts", |one| one.keep.restarts_max = 5_000),
    ];
    for (what, change) in changes {
        let mut one = service(text);
        change(&mut one);
        assert!(check(&Workload::Service(Box::new(one))).is_err(), "{what}");
    }
}

#[test]
fn every_kind_that_is_built_in_can_be_named() {
    let kinds: Vec<&str> = built_in_kinds().collect();
    assert_eq!(kinds, ["llama-server", "vllm", "triton", "mlserver"]);
    for (kind, more) in [
        ("llama-server", format!("model: t@sha256:{DIGEST}")),
        ("vllm", "parameters: {folder: weights}".to_owned()),
        ("triton", "parameters: {repository: models}".to_owned()),
        ("mlserver", "parameters: {folder: models}".to_owned()),
    ] {
        let one = service(&format!("service:\n  name: a\n  kind: {kind}\n  {more}\n"));
        assert_eq!(one.kind.as_ref().unwrap().name.as_str(), kind);
        assert!(one.ports.contains_key("http"), "{kind}");
        assert!(check(&Workload::Service(Box::new(one))).is_ok(), "{kind}");
    }
    assert_eq!(
        kind_schema()["required"],
        serde_json::json!(["kind", "command", "ports"])
    );
}

#[test]
fn a_kind_of_ones_own_is_a_file_whose_errors_have_lines() {
    let recipe = "service: {name: a, kind: mine, parameters: {size: 3}}";
    let with = |text: &str| {
        parse_with("s.yaml", recipe, &|name| {
            (name == "mine").then(|| KindSource {
                file: "kinds/mine.yaml".into(),
                text: text.to_owned(),
            })
        })
    };
    let good = "kind: mine\ncommand: [./mine, \"${size}\", \"${port_http}\"]\nports: {http: auto}\n\
                ready: {path: /}\nparameters:\n  size: {type: int, default: 1, max: 4}\n";
    let found = with(good).unwrap();
    assert_eq!(found.job().params["size"], ParamValue::Int(3));
    assert!(check_kind("kinds/mine.yaml", good).is_ok());
    let cases = [
        (
            good.replace("max: 4", "max: 2"),
            "s.yaml:1:51: `size`: `3` is not at most 2",
        ),
        (
            good.replace("${size}", "${sise}"),
            "kinds/mine.yaml:2:19: `${sise}` names nothing",
        ),
        (
            good.replace("type: int", "type: whole"),
            "kinds/mine.yaml:6:16:",
        ),
        (
            good.replace("default: 1", "default: 9"),
            "kinds/mine.yaml:6:30: the default of `size`",
        ),
        (
            good.replace("ready:", "redy:"),
            "kinds/mine.yaml:4:1: unknown key `redy`",
        ),
        (
            good.replace("kind: mine", "kind: other"),
            "s.yaml:1:26: `kinds/mine.yaml` describes",
        ),
    ];
    for (text, expected) in cases {
        let said = with(&text).unwrap_err().to_string();
        assert!(said.starts_with(expected), "{said}");
    }
}
