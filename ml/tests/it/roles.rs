//! Every verb with every role, through the program, about what belongs to somebody else:
//! a table written by hand.

use crate::help::VERBS;
use crate::mesh::Mesh;
use crate::users::{Person, add, recipe};

const ROLES: [&str; 4] = ["admin", "operator", "member", "viewer"];

/// Verbs that ask no daemon, or only the one of the own data directory.
const LOCAL: &[&str] = &[
    "up",
    "down",
    "init",
    "recipe",
    "config",
    "completions",
    "man",
    "deps",
    "bench",
    "route",
    "sim",
];
/// It goes on until it is interrupted, with the calls of `status` and `events`.
const FOLLOWING: &[&str] = &["monitor"];

/// `y` is let through (and may find nothing to do), `n` is refused with the permission
/// that is lacking, `h` is told that there is no such thing. In the order of [`ROLES`].
/// RUN is a completed run of the daemon's owner, DATA a dataset of theirs, FILE a file
/// beside it, EXPORT an export of RUN, OWN a name of each role's own.
const TABLE: &[(&str, &str)] = &[
    ("doctor --objects", "yynn"),
    ("sync", "yyyn"),
    ("explain own.yaml", "yyyn"),
    ("queue own.yaml", "yyyn"),
    ("run own.yaml", "yyyn"),
    ("retry RUN", "yynn"),
    ("list", "yyyy"),
    ("status", "yyyy"),
    ("watch RUN", "yyyy"),
    ("logs RUN", "ynnn"),
    ("info RUN", "yyyy"),
    ("metrics RUN", "yyyy"),
    ("plot RUN -o OWN.svg", "yyyy"),
    ("compare RUN RUN", "yyyy"),
    ("reproduce RUN --no-wait", "ynnn"),
    ("validate --task RUN", "yynn"),
    ("outputs RUN", "ynnn"),
    ("export RUN -o OWN.zip", "ynnn"),
    ("import EXPORT", "yyyn"),
    ("key add --user bob -o OWN.json", "ynnn"),
    ("key list", "yyyy"),
    ("key rotate owner", "ynhh"),
    ("key revoke owner", "ynhh"),
    ("user add OWN --role viewer", "ynnn"),
    ("user list", "yynn"),
    ("user show", "yyyy"),
    ("user show bob", "yynn"),
    ("user role bob viewer", "ynnn"),
    ("user remove OWN", "ynnn"),
    ("user permissions show", "yyyy"),
    ("user permissions reload", "ynnn"),
    ("cancel RUN", "yynn"),
    ("tag RUN a=b", "yynn"),
    ("note RUN text", "yynn"),
    ("pin RUN", "yynn"),
    ("unpin RUN", "yynn"),
    ("prune --dry-run", "yynn"),
    ("data add OWN 1 FILE", "ynnn"),
    ("data list", "yyyy"),
    ("data show DATA", "yyyy"),
    ("data verify DATA 1", "yyyn"),
    ("data remove DATA 1", "yynn"),
    ("secret list", "yyyn"),
    ("secret remove NAME", "yyyn"),
    ("service start serve.yaml --no-wait", "yyyn"),
    ("model list", "yyyy"),
    ("model load OWN m", "hhhn"),
    ("model unload OWN m", "hhhn"),
    ("model pin OWN", "hhhh"),
    ("model unpin OWN", "hhhh"),
    ("service list", "yyyy"),
    ("service endpoints", "yyyy"),
    ("service scale OWN 1", "hhhn"),
    ("service stop OWN", "hhhn"),
    ("info DIGEST", "hhhn"),
    ("events", "yyyy"),
    ("audit list", "yynn"),
    ("audit verify", "yynn"),
];

#[test]
fn each_verb_is_open_to_the_roles_of_the_table() {
    let mesh = Mesh::up();
    mesh.place.write("own.yaml", recipe("echo > o.txt"));
    let run = mesh.queue("own.yaml");
    mesh.wait_for_phase(&run, "completed");
    let file = mesh.place.write("numbers.csv", "1\n");
    let export = mesh.place.path("x.zip");
    mesh.ml(&["export", &run, "-o", export.to_str().unwrap()])
        .exits(0);
    mesh.ml(&["user", "add", "bob", "--role", "viewer"])
        .exits(0);
    for (place, role) in ROLES.into_iter().enumerate() {
        let person = Person::at_home();
        person.write("mlmesh.toml", "[client]\nrepro_policy = \"relaxed\"\n");
        person.write("own.yaml", recipe("echo > o.txt"));
        let serve = "service: {name: NAME, command: [sleep, \"9\"], ports: {http: auto}, ttl: 1s, resources: {cpus: 0.1}}\n";
        person.write("serve.yaml", serve.replace("NAME", &format!("s-{role}")));
        person.connect(&add(&mesh, &format!("its-{role}"), role));
        for (line, letters) in TABLE {
            // Earlier ones may have taken these away.
            mesh.ml(&["pin", &run]).exits(0);
            let data = ["data", "add", "theirs", "1", file.to_str().unwrap()];
            mesh.ml(&data).exits(0);
            let words = line.split(' ').map(|word| {
                word.replace("RUN", &run)
                    .replace("DATA", "theirs")
                    .replace("FILE", file.to_str().unwrap())
                    .replace("EXPORT", export.to_str().unwrap())
                    .replace("OWN", &format!("own-{role}"))
                    .replace("DIGEST", &"0".repeat(64))
            });
            let words: Vec<String> = words.chain(["--json".to_owned()]).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let answer = person.ml(&words);
            let what = format!("{role}: {line}: {answer:?}");
            let is_forbidden = answer.stderr.contains("\"code\":\"forbidden\"");
            match letters.chars().nth(place).unwrap() {
                'y' => {
                    assert!(!is_forbidden, "{what}");
                    let unknown = answer.stderr.contains("\"code\":\"unauthenticated\"");
                    assert!(!unknown, "{what}");
                }
                'n' => {
                    assert!(is_forbidden, "{what}");
                    assert!(answer.stderr.contains("\"permission\":\""), "{what}");
                    let code = if line.starts_with("run ") { 125 } else { 3 };
                    assert_eq!(answer.code, code, "{what}");
                }
                _ => assert!(!is_forbidden && answer.code == 4, "{what}"),
            }
        }
    }
    for verb in VERBS.iter().filter(|verb| !verb.is_empty()) {
        let known = [LOCAL, FOLLOWING].concat().contains(&verb[0]);
        let mut lines = TABLE.iter().map(|(line, _)| line.split(' ').next());
        let told = lines.any(|first| first == Some(verb[0]));
        assert!(known != told, "who may do `ml {}`?", verb[0]);
    }
}
