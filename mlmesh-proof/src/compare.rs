//! What differs between two runs, from their manifests: only differences, each by group
//! and name, with both values.
//!
//! What is different of any two runs is left out: ids, times, nodes' boots, digests of
//! what is compared itself. So is a command whose words differ only in values of
//! parameters that are listed anyway. The contents of code stand in `code_diff`.
//! Manifests are taken as they are; what is absent is null.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::completeness::list;

/// Something that is not the same in both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// What it belongs to.
    pub group: DifferenceGroup,
    /// What it is, within its group.
    pub name: String,
    /// Its value in the first run; null where that has none.
    pub a: Value,
    /// Its value in the second run; null where that has none.
    pub b: Value,
}

/// Groups, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceGroup {
    /// Name and owner.
    Run,
    /// The source tree.
    Code,
    /// Command, variables, resources, network.
    Command,
    /// Parameters.
    Params,
    /// The seed.
    Seed,
    /// Interpreter and packages.
    Environment,
    /// Data.
    Datasets,
    /// What the jobs have logged, but for the client's own tags.
    Logged,
    /// Last values, else what else there is of a metric.
    Metrics,
    /// Files that were left, by digest.
    Outputs,
    /// How it ended and what that proves.
    Outcome,
    /// Git facts.
    Git,
    /// Tags and notes.
    Labels,
    /// What is recorded beside the plan.
    Placement,
    /// The machine, and what was enforced on it.
    Host,
}

impl DifferenceGroup {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Code => "code",
            Self::Command => "command",
            Self::Params => "params",
            Self::Seed => "seed",
            Self::Environment => "environment",
            Self::Datasets => "datasets",
            Self::Logged => "logged",
            Self::Metrics => "metrics",
            Self::Outputs => "outputs",
            Self::Outcome => "outcome",
            Self::Git => "git",
            Self::Labels => "labels",
            Self::Placement => "placement",
            Self::Host => "host",
        }
    }
}

/// Everything that differs between two manifests, in the order of the groups.
pub fn compare(a: &Value, b: &Value) -> Vec<Difference> {
    let mut both = Both {
        a,
        b,
        found: Vec::new(),
    };
    both.at(DifferenceGroup::Run, &["/name", "/owner", "/tenant"]);
    both.at(DifferenceGroup::Code, &["/snapshot/sha256"]);
    both.command();
    both.keys(DifferenceGroup::Params, "/plan/params", &[]);
    both.at(DifferenceGroup::Seed, &["/plan/seed"]);
    both.environment();
    both.datasets();
    both.logged();
    both.metrics();
    both.outputs();
    both.outcome();
    both.keys(DifferenceGroup::Git, "/git", &[]);
    both.keys(DifferenceGroup::Labels, "/tags", &[]);
    both.at(DifferenceGroup::Labels, &["/note"]);
    // `after` and `reproduces` are ids of other runs, the node is said with the host.
    let ids = ["after", "node", "reproduces"];
    both.keys(DifferenceGroup::Placement, "/placement", &ids);
    both.keys(DifferenceGroup::Host, "/host", &["boot_id"]);
    // What went over the network is no setting.
    both.keys(DifferenceGroup::Host, "/isolation", &["hosts"]);
    both.at(DifferenceGroup::Host, &["/daemon_version"]);
    both.found
}

struct Both<'a> {
    a: &'a Value,
    b: &'a Value,
    found: Vec<Difference>,
}

impl Both<'_> {
    fn add(&mut self, group: DifferenceGroup, name: &str, a: &Value, b: &Value) {
        if a != b {
            self.found.push(Difference {
                group,
                name: name.to_owned(),
                a: a.clone(),
                b: b.clone(),
            });
        }
    }

    /// Values at these pointers, by the last step of each.
    fn at(&mut self, group: DifferenceGroup, pointers: &[&str]) {
        for pointer in pointers {
            let name = pointer.rsplit('/').next().unwrap_or(pointer);
            let (a, b) = (value(self.a, pointer), value(self.b, pointer));
            self.add(group, name, a, b);
        }
    }

    /// The members of two objects, by key.
    fn keys(&mut self, group: DifferenceGroup, pointer: &str, but: &[&str]) {
        let (a, b) = (value(self.a, pointer), value(self.b, pointer));
        for key in keys(a).union(&keys(b)) {
            if !but.contains(key) {
                self.add(group, key, &a[*key], &b[*key]);
            }
        }
    }

    fn command(&mut self) {
        let group = DifferenceGroup::Command;
        let (a, b) = (value(self.a, "/plan/argv"), value(self.b, "/plan/argv"));
        if !self.is_explained(a, b) {
            self.add(group, "argv", a, b);
        }
        self.keys(group, "/plan/env", &[]);
        self.keys(group, "/plan/resources", &[]);
        let rest = [
            "/plan/secrets",
            "/plan/outputs",
            "/plan/network",
            "/plan/image",
        ];
        self.at(group, &rest);
    }

    /// Whether two commands differ only in values of parameters, or in the seed.
    fn is_explained(&self, a: &Value, b: &Value) -> bool {
        let (Some(a), Some(b)) = (a.as_array(), b.as_array()) else {
            return false;
        };
        let (params_a, params_b) = (value(self.a, "/plan/params"), value(self.b, "/plan/params"));
        let names = keys(params_a);
        let params = names
            .iter()
            .map(|name| (&params_a[*name], &params_b[*name]));
        let seeds = (value(self.a, "/plan/seed"), value(self.b, "/plan/seed"));
        let values: Vec<(String, String)> = params
            .chain([seeds])
            .filter(|(a, b)| a != b && !a.is_null() && !b.is_null())
            .map(|(a, b)| (text(a), text(b)))
            .collect();
        let is_same = |(a, b): (&Value, &Value)| match (a.as_str(), b.as_str()) {
            (Some(a), Some(b)) => a == b || is_substitution(a, b, &values),
            _ => a == b,
        };
        a.len() == b.len() && a.iter().zip(b).all(is_same)
    }

    fn environment(&mut self) {
        let group = DifferenceGroup::Environment;
        let found = self.found.len();
        self.keys(
            group,
            "/environment",
            &["interpreter", "packages", "packages_sha256", "deps_sha256"],
        );
        // The path is the machine's; the digest says whether it is another one.
        self.keys(group, "/environment/interpreter", &["path", "version"]);
        let packages = |manifest| -> BTreeMap<String, Value> {
            let lines = list(manifest, "/environment/packages");
            let lines = lines.filter_map(|(_, line)| line.as_str());
            lines
                .map(|line| {
                    let (name, version) = line.split_once("==").unwrap_or((line, ""));
                    (name.to_owned(), Value::from(version))
                })
                .collect()
        };
        self.maps(group, &packages(self.a), &packages(self.b));
        if self.found.len() == found {
            // Another lock that leads to the same packages, or one that was never built.
            self.at(group, &["/environment/deps_sha256"]);
        }
    }

    fn datasets(&mut self) {
        let named = |manifest| -> BTreeMap<String, &Value> {
            let datasets = list(manifest, "/datasets");
            let named = datasets.filter_map(|(_, dataset)| {
                let (name, mount) = (dataset["name"].as_str()?, dataset["mount"].as_str()?);
                Some((format!("{name} at {mount}"), dataset))
            });
            named.collect()
        };
        let (a, b) = (named(self.a), named(self.b));
        for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
            let group = DifferenceGroup::Datasets;
            match (a.get(name), b.get(name)) {
                (Some(a), Some(b)) => {
                    for key in ["version", "checksum", "verified"] {
                        self.add(group, &format!("{name} {key}"), &a[key], &b[key]);
                    }
                }
                (a, b) => {
                    let sum = |dataset: Option<&&Value>| {
                        dataset.map_or(Value::Null, |dataset| dataset["checksum"].clone())
                    };
                    self.add(group, name, &sum(a), &sum(b));
                }
            }
        }
    }

    fn logged(&mut self) {
        let said = |manifest| -> BTreeMap<String, Value> {
            let each = |part: &'static str| {
                let texts = value(manifest, "/logged")[part].as_object();
                texts
                    .into_iter()
                    .flatten()
                    .map(move |(name, text)| (part, name, text))
            };
            // The client names and times each run anew.
            let own = |(part, name): (&str, &str)| part == "tags" && name.starts_with("mlflow.");
            each("params")
                .chain(each("tags"))
                .filter(|(part, name, _)| !own((*part, name.as_str())))
                .map(|(part, name, text)| (format!("{part}.{name}"), text.clone()))
                .collect()
        };
        self.maps(DifferenceGroup::Logged, &said(self.a), &said(self.b));
    }

    fn metrics(&mut self) {
        let group = DifferenceGroup::Metrics;
        let (a, b) = (value(self.a, "/metrics"), value(self.b, "/metrics"));
        for name in keys(a).union(&keys(b)) {
            let (a, b) = (&a[*name], &b[*name]);
            if a["last"] != b["last"] {
                self.add(group, name, &a["last"], &b["last"]);
                continue;
            }
            for key in ["min", "max", "steps"] {
                self.add(group, &format!("{name} {key}"), &a[key], &b[key]);
            }
        }
    }

    fn outputs(&mut self) {
        let group = DifferenceGroup::Outputs;
        let found = self.found.len();
        let files = |manifest| -> BTreeMap<String, Value> {
            let files = list(manifest, "/outputs/listed");
            let files = files.filter_map(|(_, file)| {
                let (path, sha256) = (file["path"].as_str()?, file["sha256"].as_str()?);
                let mode = file["mode"].as_str().filter(|mode| *mode != "644");
                let mode = mode.map_or(String::new(), |mode| format!(" ({mode})"));
                Some((path.to_owned(), Value::from(format!("{sha256}{mode}"))))
            });
            files.collect()
        };
        self.maps(group, &files(self.a), &files(self.b));
        if self.found.len() == found {
            // A manifest does not list all of very many files.
            self.at(group, &["/outputs/listing"]);
        }
    }

    fn outcome(&mut self) {
        let group = DifferenceGroup::Outcome;
        self.at(group, &["/phase", "/cause", "/message", "/exit_code"]);
        self.add(
            group,
            "trust",
            value(self.a, "/trust/level"),
            value(self.b, "/trust/level"),
        );
        let reasons = |manifest| -> BTreeMap<String, Value> {
            let reasons = list(manifest, "/trust/reasons");
            let codes = reasons.filter_map(|(_, reason)| reason["code"].as_str());
            codes
                .map(|code| (code.to_owned(), Value::Bool(true)))
                .collect()
        };
        self.maps(group, &reasons(self.a), &reasons(self.b));
        let tries = |manifest| Value::from(list(manifest, "/attempts").count());
        self.add(group, "attempts", &tries(self.a), &tries(self.b));
    }

    fn maps(
        &mut self,
        group: DifferenceGroup,
        a: &BTreeMap<String, Value>,
        b: &BTreeMap<String, Value>,
    ) {
        for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
            let (a, b) = (a.get(name), b.get(name));
            self.add(
                group,
                name,
                a.unwrap_or(&Value::Null),
                b.unwrap_or(&Value::Null),
            );
        }
    }
}

/// Longest word of a command that is looked at for values of parameters.
const WORD_BYTES_MAX: usize = 4_096;

/// Whether `b` is `a` with values of the first run replaced by those of the second.
fn is_substitution(a: &str, b: &str, values: &[(String, String)]) -> bool {
    if a.len() > WORD_BYTES_MAX || b.len() > WORD_BYTES_MAX {
        return false;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut seen = BTreeSet::new();
    let mut open = vec![(0, 0)];
    while let Some((at, bt)) = open.pop() {
        if (at, bt) == (a.len(), b.len()) {
            return true;
        }
        if !seen.insert((at, bt)) {
            continue;
        }
        if at < a.len() && bt < b.len() && a[at] == b[bt] {
            open.push((at + 1, bt + 1));
        }
        for (from, to) in values {
            if a[at..].starts_with(from.as_bytes()) && b[bt..].starts_with(to.as_bytes()) {
                open.push((at + from.len(), bt + to.len()));
            }
        }
    }
    false
}

/// A value as a command holds it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn value<'a>(manifest: &'a Value, pointer: &str) -> &'a Value {
    manifest.pointer(pointer).unwrap_or(&Value::Null)
}

fn keys(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().into_iter().flatten();
    object.map(|(key, _)| key.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completeness::tests::complete;
    use proptest::prelude::*;
    use serde_json::json;

    fn full() -> Value {
        let mut manifest = complete("completed");
        manifest["plan"] = json!({
            "argv": ["python", "train.py", "--lr=0.1", "7"],
            "params": {"lr": "0.1", "depth": 3},
            "env": {"MODE": "fast"},
            "seed": 7,
            "resources": {"cpu_milli": 1000},
        });
        manifest["environment"]["packages"] = json!(["numpy==2.0.0", "scipy==1.0"]);
        manifest["metrics"] = json!({"accuracy":
            {"last": 0.9, "min": 0.1, "max": 0.9, "steps": 3}});
        manifest["outputs"] = json!({"listing": "00", "listed":
            [{"path": "model.npz", "mode": "644", "size": 1, "sha256": "aa"}]});
        manifest["tags"] = json!({"stage": "draft"});
        manifest["note"] = json!("");
        manifest["logged"] = json!({"params": {"lr": "0.1"}, "tags": {"mlflow.runName": "sly-fox"},
            "left_out": 0, "shortened": 0});
        manifest["datasets"][0]["mount"] = json!("data/d");
        manifest
    }

    fn lines(a: &Value, b: &Value) -> Vec<String> {
        let differences = compare(a, b).into_iter();
        let line = |it: Difference| format!("{} {} {} {}", it.group.as_str(), it.name, it.a, it.b);
        differences.map(line).collect()
    }

    #[test]
    fn each_difference_is_one_line_of_its_group() {
        let digest = "ab".repeat(32);
        let cases: &[(&str, Value, &str)] = &[
            ("/name", json!("other"), r#"run name "digits" "other""#),
            ("/plan/params/lr", json!("0.2"), r#"params lr "0.1" "0.2""#),
            ("/plan/params/wd", json!(1), "params wd null 1"),
            ("/plan/seed", json!("none"), r#"seed seed 7 "none""#),
            (
                "/plan/env/MODE",
                json!("slow"),
                r#"command MODE "fast" "slow""#,
            ),
            (
                "/plan/argv/3",
                json!("8"),
                r#"command argv ["python","train.py","--lr=0.1","7"] ["python","train.py","--lr=0.1","8"]"#,
            ),
            (
                "/environment/packages/0",
                json!("numpy==2.1.0"),
                r#"environment numpy "2.0.0" "2.1.0""#,
            ),
            (
                "/environment/deps_sha256",
                json!("cd"),
                &format!(r#"environment deps_sha256 "{digest}" "cd""#),
            ),
            (
                "/datasets/0/checksum",
                json!("cd"),
                &format!(r#"datasets d at data/d checksum "{digest}" "cd""#),
            ),
            (
                "/metrics/accuracy/last",
                json!("nan"),
                r#"metrics accuracy 0.9 "nan""#,
            ),
            (
                "/metrics/accuracy/steps",
                json!(4),
                "metrics accuracy steps 3 4",
            ),
            (
                "/logged/params/lr",
                json!("0.2"),
                r#"logged params.lr "0.1" "0.2""#,
            ),
            (
                "/logged/tags/team",
                json!("blue"),
                r#"logged tags.team null "blue""#,
            ),
            (
                "/outputs/listed/0/sha256",
                json!("bb"),
                r#"outputs model.npz "aa" "bb""#,
            ),
            (
                "/outputs/listing",
                json!("01"),
                r#"outputs listing "00" "01""#,
            ),
            (
                "/snapshot/sha256",
                json!("cd"),
                &format!(r#"code sha256 "{digest}" "cd""#),
            ),
            (
                "/phase",
                json!("failed"),
                r#"outcome phase "completed" "failed""#,
            ),
            ("/trust/level", json!("L4"), r#"outcome trust "L2" "L4""#),
            (
                "/tags/stage",
                json!("final"),
                r#"labels stage "draft" "final""#,
            ),
            ("/note", json!("a"), r#"labels note "" "a""#),
            ("/host/kernel", json!("6.2"), r#"host kernel "6.1" "6.2""#),
            (
                "/placement/sandbox",
                json!(true),
                "placement sandbox null true",
            ),
        ];
        for (pointer, value, expected) in cases {
            let mut other = full();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            match other.pointer_mut(pointer) {
                Some(there) => *there = value.clone(),
                None => other.pointer_mut(parent).unwrap()[key] = value.clone(),
            }
            assert_eq!(lines(&full(), &other), [*expected], "{pointer}");
        }
    }

    #[test]
    fn what_is_different_of_any_two_runs_is_none() {
        let mut other = full();
        for (key, value) in [
            ("run", json!("bbbbbbbbbbbb")),
            ("index", json!(3)),
            ("queued_at", json!(10)),
            ("started_at", json!(11)),
            ("ended_at", json!(12)),
            ("plan_sha256", json!("cd")),
        ] {
            other[key] = value;
        }
        other["host"]["boot_id"] = json!("another");
        other["placement"]["node"] = json!("n");
        assert_eq!(lines(&full(), &other), Vec::<String>::new());
    }

    #[test]
    fn points_of_a_sweep_differ_in_their_parameter_alone() {
        let mut other = full();
        other["plan"]["params"]["lr"] = json!("0.25");
        other["plan"]["argv"][2] = json!("--lr=0.25");
        assert_eq!(lines(&full(), &other), [r#"params lr "0.1" "0.25""#]);
        // The command does not follow the parameter.
        other["plan"]["argv"][2] = json!("--lr=0.3");
        assert_eq!(lines(&full(), &other).len(), 2);
        let values = [("1".to_owned(), "11".to_owned()), ("x".into(), "".into())];
        for (a, b, is_one) in [
            ("1-1", "11-11", true),
            ("1-1", "11-1", true),
            ("ax", "a", true),
            ("1", "12", false),
            ("", "", true),
            ("", "1", false),
        ] {
            assert_eq!(is_substitution(a, b, &values), is_one, "{a} {b}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3i64).prop_map(Value::from),
            "[a-c]{0,2}(==[12])?".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let key = prop_oneof![
                Just("last"),
                Just("name"),
                Just("path"),
                Just("sha256"),
                Just("mount"),
                Just("packages"),
                Just("interpreter"),
                Just("listed"),
                Just("params"),
                Just("argv"),
                Just("seed"),
                Just("code"),
                Just("reasons"),
                Just("level")
            ];
            let object =
                prop::collection::btree_map(key.prop_map(str::to_owned), inner.clone(), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                object.prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn any_manifest() -> impl Strategy<Value = Value> {
        let keys = [
            "name",
            "snapshot",
            "plan",
            "environment",
            "datasets",
            "metrics",
            "outputs",
            "phase",
            "trust",
            "attempts",
            "git",
            "tags",
            "note",
            "placement",
            "host",
        ];
        prop::collection::vec(any_json(), keys.len()).prop_map(move |values| {
            let members = keys.iter().map(|key| (*key).to_owned());
            Value::Object(members.zip(values).collect())
        })
    }

    proptest! {
        #[test]
        fn nothing_differs_from_itself_and_the_other_way_round_is_the_mirror(
            a in any_manifest(), b in any_manifest(),
        ) {
            prop_assert_eq!(compare(&a, &a), vec![]);
            let mirrored = compare(&b, &a).into_iter().map(|it| Difference { a: it.b, b: it.a, ..it });
            prop_assert_eq!(compare(&a, &b), mirrored.collect::<Vec<_>>());
        }
    }
}
