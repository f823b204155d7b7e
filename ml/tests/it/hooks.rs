//! Who is told of the end of a run: commands, webhooks, and a daemon that dies between.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use serde_json::{Value, json};

use crate::mesh::Mesh;
use crate::program::answer;

/// More than any test here is told.
const DELIVERIES_MAX: usize = 64;

/// Writes what it was told beside itself.
const HOOK: &str = r#"
import json, os, sys
told = {"words": sys.argv[2:], "env": dict(os.environ), "body": json.load(sys.stdin)}
with open(sys.argv[1] + ".new", "w") as f:
    json.dump(told, f)
os.rename(sys.argv[1] + ".new", sys.argv[1])
print("heard", os.environ["MLMESH_RUN_ID"])
"#;

fn telling(mesh: &Mesh, run: &str) -> Value {
    let client = mlmesh_api::Client::open(&mesh.place.data()).unwrap();
    let tellings = client.tellings(Some(run)).unwrap();
    serde_json::to_value(&tellings.tellings[0]).unwrap()
}

fn wait_for_state(mesh: &Mesh, run: &str, state: &str) -> Value {
    mesh.wait(&format!("run {run} to be told: {state}"), || {
        telling(mesh, run)["state"] == state
    });
    telling(mesh, run)
}

#[test]
fn a_command_hears_of_the_ends_that_it_wants() {
    let mesh = Mesh::up_with("", "[daemon]\nhook_commands = \"on\"\n");
    let script = mesh.place.path("hook.py");
    fs::write(&script, HOOK).unwrap();
    let told = mesh.place.path("told.json");
    let command = json!(["python3", script, told, "a b; $(x)"]);
    let hook = format!("on_finish: {{command: {command}, when: [failed]}}");
    let good = mesh.queue(&mesh.recipe("good", &["ok"], &hook));
    mesh.wait_for_phase(&good, "completed");
    wait_for_state(&mesh, &good, "not_wanted");
    assert!(!told.exists());
    let bad = mesh.queue(&mesh.recipe("bad", &["exit", "7"], &hook));
    let said = wait_for_state(&mesh, &bad, "delivered");
    assert_eq!(said["message"], format!("heard {bad}"));
    let events = mesh.ml(&["events", "--json"]).exits(0).stdout;
    let events = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told_of: Vec<_> = events
        .filter(|event| event["event"]["type"] == "end_told")
        .map(|event| (event["run"].clone(), event["event"]["state"].clone()))
        .collect();
    assert_eq!(told_of, [(json!(bad), json!("delivered"))]);
    let told: Value = serde_json::from_str(&fs::read_to_string(&told).unwrap()).unwrap();
    assert_eq!(told["words"], json!(["a b; $(x)"]));
    let env = &told["env"];
    assert_eq!(
        (&env["MLMESH_PHASE"], &env["MLMESH_EXIT_CODE"]),
        (&json!("failed"), &json!("7"))
    );
    // The daemon has both of these.
    for name in ["MLMESH_DATA_DIR", "MLMESH_CONFIG_DIR"] {
        assert!(env.get(name).is_none(), "{name}");
    }
    assert_eq!(told["body"]["run"]["id"], bad);
    assert_eq!(told["body"]["run"]["metrics"]["loss"]["last"], 0.75);
    assert!(
        mesh.ml(&["info", &bad])
            .exits(0)
            .stdout
            .contains("told: heard")
    );

    // Placement: the plan is the same, and the manifest says nothing of it.
    let plan = |recipe: &str| {
        mesh.ml(&["explain", recipe, "--json"]).exits(0).json()["plan_sha256"].clone()
    };
    let with = mesh.recipe("same", &["ok"], &hook);
    let digest = plan(&with);
    mesh.recipe("same", &["ok"], "");
    assert_eq!(plan(&with), digest);
    let manifest = mesh.ml(&["info", &bad, "--json"]).exits(0).stdout;
    assert!(!manifest.contains("hook.py"), "{manifest}");

    // One that fails changes nothing of the run, and is known to the doctor.
    let hook = "on_finish: {command: [/nowhere/program]}";
    let deaf = mesh.queue(&mesh.recipe("deaf", &["ok"], hook));
    mesh.wait("a try", || {
        telling(&mesh, &deaf)["tries"].as_u64() > Some(0)
    });
    assert_eq!(
        mesh.ml(&["info", &deaf, "--json"]).exits(0).json()["phase"],
        "completed"
    );
    let doctor = mesh.ml(&["doctor", "--json"]).json();
    let findings = doctor["findings"].as_array().unwrap().iter();
    let hooks: Vec<_> = findings.filter(|it| it["check"] == "hooks").collect();
    assert!(
        hooks[0]["message"].as_str().unwrap().contains(&deaf),
        "{hooks:?}"
    );
}

/// A server that answers with these statuses, one after another, and tells each request.
fn server(listener: TcpListener, statuses: &'static [&'static str]) -> Receiver<(String, Vec<u8>)> {
    let (tell, told) = sync_channel(DELIVERIES_MAX);
    thread::spawn(move || {
        for status in statuses {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let request = read_request(&mut stream);
            let answer = format!(
                "HTTP/1.1 {status}\r\nlocation: /other\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).unwrap();
            tell.send(request).unwrap();
        }
    });
    told
}

fn read_request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let mut body = vec![0; length.lines().next().unwrap().trim().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| *key == name).unwrap().1
}

#[test]
fn a_project_says_who_is_told_and_a_recipe_goes_first() {
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (project, recipe) = (listen(), listen());
    let url = |listener: &TcpListener| format!("http://{}/", listener.local_addr().unwrap());
    let settings = format!("on_finish = '{{webhook: \"{}\"}}'\n", url(&project));
    let own = format!("on_finish: {{webhook: \"{}\"}}", url(&recipe));
    let mesh = Mesh::up_with(&settings, "");
    let told = server(project, &["200 Yes"]);
    let told_own = server(recipe, &["200 Yes"]);
    let run = |name: &str, more: &str| {
        let run = mesh.queue(&mesh.recipe(name, &["ok"], more));
        wait_for_state(&mesh, &run, "delivered");
        json!(run)
    };
    let heard = |told: Receiver<(String, Vec<u8>)>| {
        let bodies = told
            .iter()
            .map(|(_, body)| serde_json::from_slice(&body).unwrap());
        let ids = bodies.map(|body: Value| body["run"]["id"].clone());
        ids.collect::<Vec<_>>()
    };
    let (first, second) = (run("plain", ""), run("other", &own));
    assert_eq!((heard(told), heard(told_own)), (vec![first], vec![second]));

    // Commands are another matter: whoever wrote the recipe would have the machine.
    let command = mesh.recipe("command", &["ok"], "on_finish: {command: [echo]}");
    let refused = mesh.ml(&["queue", &command, "--json"]).exits(3);
    assert!(
        refused.stderr.contains("hook_commands_off"),
        "{}",
        refused.stderr
    );
    mesh.place
        .write("mlmesh.toml", "[client]\non_finish = '{webhok: a}'\n");
    let odd = mesh.recipe("odd", &["ok"], "");
    let refused = mesh.ml(&["queue", &odd, "--json"]).exits(2);
    assert!(refused.stderr.contains("webhook"), "{}", refused.stderr);
}

#[test]
fn a_webhook_is_signed_tried_again_and_follows_nobody() {
    let mesh = Mesh::up();
    let mut set = mesh.place.command(&["secret", "set", "HOOK_KEY"]);
    let value = mesh.place.write("value", "s3cret");
    answer(set.stdin(fs::File::open(value).unwrap())).exits(0);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook?x=1", listener.local_addr().unwrap());
    let told = server(listener, &["500 No", "302 Elsewhere", "204 Taken"]);
    let hook = format!(
        "sweep: {{param: [1, 2, 3]}}\nparams: {{param: 1}}\non_finish: {{webhook: \"{url}\", secret: HOOK_KEY}}"
    );
    let recipe = mesh.recipe("swept", &["${param}"], &hook);
    let sweep = mesh.queue(&recipe);
    let said = wait_for_state(&mesh, &sweep, "delivered");
    assert_eq!(
        (&said["tries"], &said["message"]),
        (&json!(3), &json!("status 204"))
    );
    let requests: Vec<_> = told.iter().collect();
    assert_eq!(requests.len(), 3, "once for the sweep, whatever its points");
    let (head, body) = &requests[2];
    assert!(head.starts_with("post /hook?x=1 http/1.1"), "{head}");
    let ids: Vec<&str> = requests
        .iter()
        .map(|(head, _)| header(head, "x-mlmesh-delivery"))
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let program = "import hmac, sys; print(hmac.new(b's3cret', open(sys.argv[1], 'rb').read(), 'sha256').hexdigest())";
    let file = mesh.place.write("body", body);
    let signed = answer(Command::new("python3").args(["-c", program]).arg(file)).exits(0);
    assert_eq!(
        header(head, "x-mlmesh-signature"),
        format!("sha256={}", signed.stdout.trim())
    );
    let body: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(
        (&body["schema"], &body["run"]["id"]),
        (&json!("mlmesh.finish/1"), &json!(sweep))
    );

    let absent = mesh.recipe(
        "absent",
        &["ok"],
        "on_finish: {webhook: \"http://127.0.0.1:9\", secret: NONE}",
    );
    let refused = mesh.ml(&["queue", &absent, "--json"]).exits(3);
    assert!(
        refused.stderr.contains("hook_secret_absent"),
        "{}",
        refused.stderr
    );
    for odd in [
        "ftp://h/x",
        "https://user:word@h/",
        "https:///x",
        "http://a b",
    ] {
        let recipe = mesh.recipe(
            "odd",
            &["ok"],
            &format!("on_finish: {{webhook: \"{odd}\"}}"),
        );
        mesh.ml(&["recipe", "check", &recipe]).exits(2);
    }
    for odd in [
        "{}",
        "{command: [a], webhook: \"http://h/\"}",
        "{command: [a], when: [running]}",
        "{command: [a], secret: A}",
    ] {
        let recipe = mesh.recipe("odd", &["ok"], &format!("on_finish: {odd}"));
        mesh.ml(&["recipe", "check", &recipe]).exits(2);
    }
}

#[test]
fn an_end_that_nobody_heard_of_is_told_by_the_next_daemon() {
    let mesh = Mesh::up();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let hook = format!("on_finish: {{webhook: \"http://{address}/\"}}");
    let run = mesh.queue(&mesh.recipe("unheard", &["ok"], &hook));
    mesh.wait("a try in vain", || {
        telling(&mesh, &run)["tries"].as_u64() > Some(0)
    });
    mesh.kill();
    let told = server(TcpListener::bind(address).unwrap(), &["200 Taken"]);
    mesh.ml(&["up", "--port", "0"]).exits(0);
    wait_for_state(&mesh, &run, "delivered");
    let (_, body) = told.recv().unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&body["run"]["id"], &body["run"]["phase"]),
        (&json!(run), &json!("completed"))
    );
}

#[test]
fn the_other_side_of_https_is_checked() {
    let mesh = Mesh::up();
    let file = fs::read_to_string(mesh.place.data().join("meshd.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let url = file["urls"]["api"].as_str().unwrap();
    let hook = format!("on_finish: {{webhook: \"{url}/v1/none\"}}");
    let recipe = mesh.recipe("checked", &["ok"], &hook);
    let message = |words: &str| {
        let run = mesh.queue(&recipe);
        mesh.wait(&format!("a try that says {words}"), || {
            telling(&mesh, &run)["message"]
                .as_str()
                .unwrap()
                .contains(words)
        });
    };
    message("certificate");
    mesh.ml(&["down"]).exits(0);
    let ca = mesh.place.data().join("tls/ca.pem");
    let mut up = mesh.place.command(&["up", "--port", "0"]);
    answer(up.env("MLMESH_WEBHOOK_CA", ca)).exits(0);
    message("status 401");
}
