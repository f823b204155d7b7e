//! What `ml compare` says of two runs.

use crate::mesh::Mesh;

fn words<'a>(value: &'a serde_json::Value, key: &str) -> Vec<&'a str> {
    let items = value[key].as_array().unwrap().iter();
    let word = |it: &'a serde_json::Value| it["name"].as_str().or(it["path"].as_str());
    items.filter_map(word).collect()
}

#[test]
fn points_of_a_sweep_differ_in_one_line() {
    let mesh = Mesh::up();
    let recipe = mesh.recipe(
        "swept",
        &["ok", "--lr=${lr}"],
        "params: {lr: 0.1}\nsweep: {lr: [0.1, 0.25]}",
    );
    let sweep = mesh.queue(&recipe);
    mesh.ml(&["watch", &sweep]).exits(0);
    let points = mesh
        .ml(&["list", "--parent", &sweep, "--json"])
        .exits(0)
        .json();
    let [a, b] = [0, 1].map(|index| points["runs"][index]["id"].as_str().unwrap().to_owned());
    let said = mesh.ml(&["compare", &a, &b[..8]]).exits(0);
    assert_eq!(
        (said.stdout.as_str(), said.stderr.as_str()),
        ("params  lr  0.1 → 0.25\n", "")
    );
    let none = mesh.ml(&["compare", &a, &a]).exits(0);
    assert_eq!(
        (none.stdout.as_str(), none.stderr.as_str()),
        ("", "nothing differs\n")
    );
    // What people write after the end counts as it stands now.
    mesh.ml(&["tag", &b, "stage=final"]).exits(0);
    let tagged = mesh.ml(&["compare", &a, &b]).exits(0).stdout;
    assert_eq!(
        tagged,
        "params  lr     0.1 → 0.25\nlabels  stage  – → final\n"
    );
    // A sweep has no manifest of its own.
    let refused = mesh.ml(&["compare", &a, &sweep, "--json"]).exits(4);
    assert!(refused.stderr.contains("each point"), "{}", refused.stderr);
}

#[test]
fn changed_code_is_shown_as_a_diff_also_from_manifests_on_disk() {
    let mesh = Mesh::up();
    mesh.place.write("data.bin", "\0one");
    mesh.place.write("only.txt", "first\n");
    let recipe = mesh.recipe("coded", &["ok"], "");
    let a = mesh.queue(&recipe);
    mesh.ml(&["watch", &a]).exits(0);
    let job = std::fs::read_to_string(mesh.place.project().join("job.py")).unwrap();
    mesh.place.write("job.py", job.replace("0.75]", "0.125]"));
    mesh.place.write("data.bin", "\0two");
    std::fs::remove_file(mesh.place.project().join("only.txt")).unwrap();
    let b = mesh.queue(&recipe);
    mesh.ml(&["watch", &b]).exits(0);

    let json = mesh.ml(&["compare", &a, &b, "--json"]).exits(0).json();
    assert_eq!(json["schema"], "mlmesh.compare/1");
    assert_eq!(words(&json, "differences"), ["sha256", "loss"]);
    assert_eq!(json["differences"][1]["a"], 0.75);
    assert_eq!(json["differences"][1]["b"], 0.125);
    assert_eq!(words(&json, "files"), ["data.bin", "job.py", "only.txt"]);
    assert_eq!(json["files"][0]["note"], "binary files differ");
    assert_eq!(json["files"][2]["change"], "removed");
    let diff = json["files"][1]["diff"].as_str().unwrap();
    assert!(diff.starts_with("@@ -"), "{diff}");
    let changed: Vec<&str> = diff
        .lines()
        .filter(|line| line.starts_with(['-', '+']))
        .collect();
    assert_eq!(changed.len(), 2, "{diff}");
    assert!(changed[1].contains("0.125]"), "{diff}");

    let page = mesh.place.project().join("page.html");
    let html = ["compare", &a, &b, "--html", page.to_str().unwrap()];
    let text = mesh.ml(&html).exits(0).stdout;
    assert!(text.contains("--- a/job.py\n+++ b/job.py\n@@ -"), "{text}");
    assert!(text.contains("\n+++ /dev/null\n"), "{text}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<h2>a/job.py → b/job.py</h2>"), "{page}");

    // Files alone say all but the content of the code.
    let place = |run: &str| {
        let folder = mesh.place.data().join("data/experiments").join(run);
        folder.join("run_manifest.json").display().to_string()
    };
    let (one, two) = (place(&a), place(&b));
    let same = mesh.ml(&["compare", &one, &two, "--json"]).exits(0).json();
    assert_eq!(same, json);
    mesh.ml(&["down"]).exits(0);
    let offline = mesh.ml(&["compare", &one, &two]).exits(0);
    assert_eq!(offline.stdout.lines().count(), 2, "{}", offline.stdout);
    assert!(
        offline.stderr.contains("the code is not compared: "),
        "{}",
        offline.stderr
    );
    mesh.ml(&["up"]).exits(0);
}
