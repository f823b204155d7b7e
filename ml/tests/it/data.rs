//! The catalog: data in place and copied in, what is said of them, Croissant documents,
//! and what a kill leaves of an upload.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};

use mlmesh_model::Digest;
use mlmesh_testkit::place::noise;
use serde_json::{Value, json};

use crate::mesh::Mesh;

/// A folder of data outside of the project.
fn folder(mesh: &Mesh) -> std::path::PathBuf {
    let folder = mesh.place.path("tides");
    fs::create_dir_all(folder.join("north")).unwrap();
    fs::write(folder.join("north/a.csv"), "1,2\n").unwrap();
    fs::write(folder.join("north/b.csv"), "3,4\n").unwrap();
    fs::write(folder.join("large.bin"), noise(400_000)).unwrap();
    folder
}

fn add(mesh: &Mesh, more: &[&str]) -> Value {
    let arguments = ["data", "add", "--json"].iter().chain(more);
    let arguments: Vec<&str> = arguments.copied().collect();
    mesh.ml(&arguments).exits(0).json()
}

/// A job that reads the dataset and tries to change it.
fn reader(mesh: &Mesh, dataset: &Value) -> String {
    mesh.place.write(
        "job.py",
        "import os\nprint(open('data/tides/north/a.csv').read())\n\
         if os.path.exists('spoil'):\n    os.chmod('data/tides/north/a.csv', 0o644)\n    \
         open('data/tides/north/a.csv', 'w').write('spoilt')\n",
    );
    let reference = format!(
        "datasets: [{{name: tides, version: \"1\", checksum: {}}}]",
        dataset["checksum"]
    );
    mesh.recipe("reads", &[], &reference)
}

#[test]
fn a_copied_dataset_needs_its_source_no_more() {
    let mesh = Mesh::up();
    let source = folder(&mesh);
    let path = source.to_str().unwrap();
    let before = add(&mesh, &["tides", "0", path]);
    let added = add(&mesh, &["tides", "1", path, "--copy"]);
    assert_eq!(
        (&added["copied"], &added["files"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(
        before["checksum"], added["checksum"],
        "one checksum both ways"
    );
    fs::remove_dir_all(&source).unwrap();
    mesh.ml(&["data", "verify", "tides", "1"]).exits(0);
    let gone = mesh
        .ml(&["data", "verify", "tides", "0", "--json"])
        .exits(1);
    assert_eq!(gone.error()["details"]["changes"][0]["change"], "missing");
    prune(&mesh);
    let recipe = reader(&mesh, &added);
    let run = mesh.queue(&recipe);
    mesh.wait_for_phase(&run, "completed");
    let said = mesh.ml(&["logs", &run]).exits(0).stdout;
    assert!(said.starts_with("1,2\n"), "{said}");
    let info = mesh.ml(&["info", &run, "--json"]).exits(0).json();
    let unverified = |reason: &Value| reason["code"] == "data_unverified";
    assert!(
        !info["trust"]["reasons"]
            .as_array()
            .unwrap()
            .iter()
            .any(unverified)
    );
    let checksum = added["checksum"].as_str().unwrap();
    let place = mesh.place.data().join("data/cache/datasets").join(checksum);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&place.join("north/a.csv")), 0o444);
    assert_eq!(mode(&place), 0o500);

    // What a job does to its copy is seen, and the next job gets the data again.
    mesh.place.write("spoil", "");
    let spoils = mesh.queue(&recipe);
    mesh.wait_for_phase(&spoils, "completed");
    let info = mesh.ml(&["info", &spoils, "--json"]).exits(0).json();
    assert!(
        info["trust"]["reasons"]
            .as_array()
            .unwrap()
            .iter()
            .any(unverified),
        "{info:#}"
    );
    fs::remove_file(mesh.place.project().join("spoil")).unwrap();
    let third = mesh.queue(&recipe);
    mesh.wait_for_phase(&third, "completed");
    let said = mesh.ml(&["logs", &third]).exits(0).stdout;
    assert!(said.starts_with("1,2\n"), "{said}");

    // Runs keep it from prune after it left the catalog.
    mesh.ml(&["data", "remove", "tides", "1"]).exits(0);
    prune(&mesh);
    let again = register_sent(&mesh, path, &added);
    assert_eq!(again["copied"], true);
    mesh.ml(&["data", "verify", "tides", "1"]).exits(0);
}

fn prune(mesh: &Mesh) {
    let client = client(mesh);
    let asked = mlmesh_api::PruneRequestDto {
        grace_s: Some(0),
        ..Default::default()
    };
    client.prune(&asked).unwrap();
}

fn client(mesh: &Mesh) -> mlmesh_api::Client {
    mlmesh_api::Client::open(&mesh.place.data()).unwrap()
}

fn register_sent(mesh: &Mesh, path: &str, was: &Value) -> Value {
    let asked = mlmesh_api::RegisterDatasetDto {
        name: "tides".into(),
        version: "1".into(),
        path: path.into(),
        checksum: Some(was["checksum"].as_str().unwrap().parse().unwrap()),
        copied: Some(mlmesh_api::CopiedDto::Folder),
        about: Default::default(),
    };
    let key = mlmesh_api::IdempotencyKey::random().unwrap();
    let dataset = client(mesh).register_dataset(&asked, &key).unwrap();
    serde_json::to_value(dataset).unwrap()
}

#[test]
fn what_is_said_of_data_is_kept_and_found() {
    let mesh = Mesh::up();
    let source = folder(&mesh);
    let path = source.to_str().unwrap();
    let one = source.join("north/a.csv");
    let sum = Digest::of(b"1,2\n").to_string();
    let (file, sum) = (one.to_str().unwrap(), sum.as_str());
    let said = add(
        &mesh,
        &[
            "harbour",
            "2024",
            file,
            "--copy",
            "--checksum",
            sum,
            "--description",
            "Water levels",
            "--licence",
            "CC-BY-4.0",
            "--source",
            "https://example.org/tides",
            "--tag",
            "sea",
            "--tag",
            "hourly",
        ],
    );
    assert_eq!(said["about"]["tags"], json!(["hourly", "sea"]));
    assert_eq!(
        (&said["checksum"], &said["directory"]),
        (&json!(sum), &json!(false))
    );
    add(&mesh, &["all", "1", path]);
    let found = |text: &str| {
        let list = mesh
            .ml(&["data", "list", "--search", text, "--json"])
            .exits(0)
            .json();
        let names = list["datasets"].as_array().unwrap().iter();
        names
            .map(|set| set["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(found("WATER sea"), ["harbour"]);
    assert_eq!(found("cc-by example.org 2024"), ["harbour"]);
    assert_eq!(found("sea all"), [""; 0]);
    assert_eq!(found(""), ["all", "harbour"]);
    let list = mesh
        .ml(&["data", "list", "--sort", "size", "--json"])
        .exits(0)
        .json();
    assert_eq!(list["datasets"][0]["name"], "all");
    // The same again without a word keeps what was said; another checksum is refused.
    let again = add(&mesh, &["harbour", "2024", file]);
    assert_eq!(
        (&again["about"], &again["copied"]),
        (&said["about"], &json!(true))
    );
    let zeros = "0".repeat(64);
    for copy in [&["--copy"][..], &[]] {
        let mut words = vec![
            "data",
            "add",
            "other",
            "1",
            file,
            "--checksum",
            &zeros,
            "--json",
        ];
        words.extend(copy);
        let refused = mesh.ml(&words).exits(3);
        assert_eq!(refused.error()["code"], "dataset_checksum_differs");
    }
    let refused = mesh
        .ml(&[
            "data",
            "add",
            "odd",
            "1",
            file,
            "--licence",
            "a\u{1b}[2J",
            "--json",
        ])
        .exits(2);
    assert_eq!(refused.error()["code"], "bad_request");
}

#[test]
fn verify_names_each_changed_missing_and_extra_path() {
    let mesh = Mesh::up();
    let source = folder(&mesh);
    add(&mesh, &["tides", "1", source.to_str().unwrap()]);
    fs::write(source.join("north/a.csv"), "1,9\n").unwrap();
    fs::remove_file(source.join("large.bin")).unwrap();
    fs::write(source.join("new\nline"), "").unwrap();
    let answer = mesh.ml(&["data", "verify", "tides", "1"]).exits(1);
    assert_eq!(
        answer.stdout,
        "missing large.bin\nextra new\\nline\nchanged north/a.csv\n"
    );
    let error = mesh
        .ml(&["data", "verify", "tides", "1", "--json"])
        .exits(1)
        .error();
    assert_eq!(error["details"]["changes_total"], 3, "{error}");
    // A copy that is damaged in the content store is named by its path.
    let copied = mesh.place.path("copied");
    fs::create_dir(&copied).unwrap();
    fs::write(copied.join("big.bin"), noise(300_000)).unwrap();
    fs::write(copied.join("small"), "x").unwrap();
    add(&mesh, &["set", "1", copied.to_str().unwrap(), "--copy"]);
    let object = Digest::of(&noise(300_000)).to_string();
    let loose = mesh.place.data().join("data/objects/loose");
    let loose = loose.join(&object[..2]).join(&object[2..]);
    let mut bytes = fs::read(&loose).unwrap();
    bytes[7] ^= 1;
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&loose, bytes).unwrap();
    let answer = mesh.ml(&["data", "verify", "set", "1"]).exits(1);
    assert_eq!(answer.stdout, "changed big.bin\n");
    // Sending it once more mends it.
    add(&mesh, &["set", "1", copied.to_str().unwrap(), "--copy"]);
    mesh.ml(&["data", "verify", "set", "1"]).exits(0);
}

#[test]
fn croissant_documents_bring_their_files_by_their_checksums() {
    let mesh = Mesh::up();
    let source = folder(&mesh);
    let sum = |path: &str| Digest::of(&fs::read(source.join(path)).unwrap()).to_string();
    let entry = |path: &str, url: &str, sum: &str| {
        json!({"@type": "cr:FileObject", "@id": path, "name": path, "contentUrl": url,
            "encodingFormat": "text/csv", "sha256": sum})
    };
    let write = |files: Value| {
        let document = json!({
            "@context": {"@vocab": "https://schema.org/", "sc": "https://schema.org/",
                "cr": "http://mlcommons.org/croissant/", "conformsTo": "dct:conformsTo"},
            "@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.1",
            "name": "Harbour tides", "version": "1.0.0", "description": "water levels",
            "license": "https://creativecommons.org/licenses/by/4.0/",
            "url": "https://example.org/tides", "keywords": ["sea"],
            "distribution": files,
        });
        let path = source.join("croissant.json");
        fs::write(&path, document.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let a = entry("a", "north/a.csv", &sum("north/a.csv"));
    let large = entry("large", "https://example.org/large.bin", &sum("large.bin"));
    let file = write(json!([a, large]));
    let import = |more: &[&str]| {
        let words = ["data", "import-croissant", &file, "--json"];
        let words: Vec<&str> = words.iter().chain(more).copied().collect();
        mesh.ml(&words)
    };
    let error = import(&[]).exits(2).error();
    assert!(
        error["hint"].as_str().unwrap().contains("--name"),
        "{error}"
    );
    let set = import(&["--name", "tides"]).exits(0).json();
    assert_eq!(
        (&set["version"], &set["files"]),
        (&json!("1.0.0"), &json!(2))
    );
    assert_eq!(set["about"]["tags"], json!(["sea"]));
    assert_eq!(
        import(&["--name", "tides"]).exits(0).json()["checksum"],
        set["checksum"]
    );

    fs::rename(source.join("large.bin"), source.join("kept")).unwrap();
    fs::write(source.join("north/a.csv"), "9,9\n").unwrap();
    let error = import(&["--name", "tides", "--version", "2"])
        .exits(1)
        .error();
    assert_eq!(error["code"], "croissant_files");
    assert_eq!(error["details"]["differing"], json!(["north/a.csv"]));
    let missing = &error["details"]["missing"];
    assert_eq!(
        missing,
        &json!(["large.bin (download https://example.org/large.bin)"])
    );
    // One file is a dataset by its own checksum; a link out of the folder is none.
    let one = entry("kept", "kept", &sum("kept"));
    write(json!([one]));
    let single = import(&["--name", "one"]).exits(0).json();
    assert_eq!(
        (&single["checksum"], &single["directory"]),
        (&one["sha256"], &json!(false))
    );
    std::os::unix::fs::symlink(mesh.place.data().join("owner.key"), source.join("link")).unwrap();
    let key = Digest::of(&fs::read(mesh.place.data().join("owner.key")).unwrap());
    write(json!([entry("link", "link", &key.to_string())]));
    assert_eq!(
        import(&["--name", "key"]).exits(1).error()["code"],
        "croissant_files"
    );
    write(json!([entry("up", "../x", &key.to_string())]));
    assert_eq!(
        import(&["--name", "up"]).exits(2).error()["code"],
        "croissant_refused"
    );
    let names = mesh.ml(&["data", "list", "--json"]).exits(0).json();
    assert_eq!(names["datasets"].as_array().unwrap().len(), 2, "{names}");
}

/// Begins to copy in a large file and comes back when a part of it has arrived.
fn half_copied(mesh: &Mesh, path: &str) -> Child {
    let child = mesh
        .place
        .command(&["data", "add", "large", "1", path, "--copy"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = mesh.place.data().join("data/objects/partial");
    mesh.wait("a part of the file to arrive", || {
        let folders = fs::read_dir(&partial).into_iter().flatten().flatten();
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten());
        files
            .flatten()
            .any(|file| file.metadata().is_ok_and(|file| file.len() > 0))
    });
    child
}

#[test]
fn a_killed_copy_registers_nothing_and_goes_on_where_it_stopped() {
    let mesh = Mesh::up();
    let content = noise(96 << 20);
    let path = mesh.place.path("large.bin");
    fs::write(&path, &content).unwrap();
    let path = path.to_str().unwrap();
    let nothing = |mesh: &Mesh| {
        let list = mesh.ml(&["data", "list", "--json"]).exits(0).json();
        assert_eq!(list["datasets"], json!([]));
    };
    let mut client = half_copied(&mesh, path);
    client.kill().unwrap();
    client.wait().unwrap();
    nothing(&mesh);
    let mut client = half_copied(&mesh, path);
    mesh.kill();
    client.wait().unwrap();
    mesh.ml(&["up", "--port", "0"]).exits(0);
    nothing(&mesh);
    let position = {
        let object = mlmesh_model::ObjectId(Digest::of(&content));
        self::client(&mesh).upload_position(object).unwrap()
    };
    assert!(position.offset > 0 && !position.complete, "{position:?}");
    let added = add(&mesh, &["large", "1", path, "--copy"]);
    assert_eq!(added["checksum"], Digest::of(&content).to_string());
    fs::remove_file(path).unwrap();
    mesh.ml(&["data", "verify", "large", "1"]).exits(0);
}
