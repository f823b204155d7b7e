//! Croissant: what MLCommons' JSON-LD form for descriptions of datasets (1.0 and 1.1)
//! says of a dataset's files. Nothing is read but the document, nothing is fetched.
//!
//! Its `sha256` is taken as given. A file without one is refused, since nothing would say
//! what it has to be. What lies inside of another file (`containedIn`) is part of that
//! file. Record sets say how rows are read; they are not looked at.
//!
//! Sources: the Croissant format specification 1.0 and 1.1; JSON-LD is not expanded: a
//! property is found under its short name or under the prefixes `sc:`, `schema:`, `cr:`.

use std::collections::BTreeMap;

use mlmesh_model::{DatasetAbout, Digest};
use serde_json::{Map, Value};

/// Bytes of a document that are read.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 16 << 20;
/// Files that one document lists.
const FILES_MAX: usize = 100_000;

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// As it stands there; may be no name of ours.
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) about: DatasetAbout,
    /// At least one, by path.
    pub(crate) files: BTreeMap<String, Listed>,
}

/// A file that a document lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) sha256: Digest,
    /// Where it can be had, when that is not beside the document.
    pub(crate) url: Option<String>,
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CroissantError {
    #[error("it is not JSON: {0}")]
    Json(String),
    #[error("it is no Croissant document: {0}")]
    Form(String),
    #[error("`conformsTo` is `{0}`; Croissant 1.0 and 1.1 are read")]
    Version(String),
    #[error("the file `{0}` has no `sha256`, by which it could be known again")]
    NoChecksum(String),
    #[error("the `sha256` of `{file}` is `{seen}`; it is 64 hex digits")]
    BadChecksum { file: String, seen: String },
    #[error("the file `{file}` is at `{seen}`; {rule}")]
    Place {
        file: String,
        seen: String,
        rule: String,
    },
    #[error("the path `{0}` is listed twice")]
    Twice(String),
    #[error("the set of files `{0}` has no checksums and lies in no file that has one")]
    FileSet(String),
    #[error("it lists {0} files; at most 100,000 are taken")]
    TooMany(usize),
    #[error("it lists no file")]
    NoFiles,
}

impl Document {
    /// Reads a document.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, CroissantError> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| CroissantError::Json(error.to_string()))?;
        let Value::Object(root) = value else {
            return Err(CroissantError::Form("the root is no object".to_owned()));
        };
        if !is_a(&root, "Dataset") {
            return Err(CroissantError::Form(
                "`@type` is not `sc:Dataset`".to_owned(),
            ));
        }
        check_version(&root)?;
        let listed = match property(&root, "distribution") {
            Some(Value::Array(items)) => items.iter().collect(),
            Some(item) => vec![item],
            None => Vec::new(),
        };
        if listed.len() > FILES_MAX {
            return Err(CroissantError::TooMany(listed.len()));
        }
        let mut files = BTreeMap::new();
        for item in listed {
            let Value::Object(item) = item else {
                let form = "an entry of `distribution` is no object";
                return Err(CroissantError::Form(form.to_owned()));
            };
            if let Some((path, file)) = file_of(item)?
                && files.insert(path.clone(), file).is_some()
            {
                return Err(CroissantError::Twice(path));
            }
        }
        if files.is_empty() {
            return Err(CroissantError::NoFiles);
        }
        Ok(Self {
            name: text_of(&root, "name"),
            version: text_of(&root, "version"),
            about: about(&root),
            files,
        })
    }
}

fn check_version(root: &Map<String, Value>) -> Result<(), CroissantError> {
    let said: Vec<&str> = match property(root, "conformsTo") {
        Some(Value::Array(items)) => items.iter().filter_map(text).collect(),
        Some(item) => text(item).into_iter().collect(),
        None => Vec::new(),
    };
    let known = |said: &&str| {
        let version = said.rsplit_once("mlcommons.org/croissant/");
        version.is_some_and(|(_, version)| matches!(version, "1.0" | "1.1"))
    };
    if said.iter().any(known) {
        return Ok(());
    }
    Err(CroissantError::Version(shown(&said.join(", "))))
}

/// The path and checksum of an entry; `None` when it is part of another one.
fn file_of(item: &Map<String, Value>) -> Result<Option<(String, Listed)>, CroissantError> {
    let called = text_of(item, "@id").or_else(|| text_of(item, "name"));
    let called = shown(&called.unwrap_or_else(|| "without a name".to_owned()));
    let contained = property(item, "containedIn").is_some_and(|value| !value.is_null());
    if is_a(item, "FileSet") {
        return match contained {
            true => Ok(None),
            false => Err(CroissantError::FileSet(called)),
        };
    }
    if !is_a(item, "FileObject") {
        return Err(CroissantError::Form(format!(
            "`{called}` is neither a FileObject nor a FileSet"
        )));
    }
    if contained {
        return Ok(None);
    }
    let Some(said) = text_of(item, "sha256") else {
        return Err(CroissantError::NoChecksum(called));
    };
    let Ok(sha256) = said.to_ascii_lowercase().parse() else {
        return Err(CroissantError::BadChecksum {
            file: called,
            seen: shown(&said),
        });
    };
    let place = |seen: &str, rule: &str| CroissantError::Place {
        file: called.clone(),
        seen: shown(seen),
        rule: rule.to_owned(),
    };
    let Some(content) = text_of(item, "contentUrl") else {
        return Err(place("", "it has to have a `contentUrl`"));
    };
    let (path, url) = match content.split_once("://") {
        Some(("http" | "https", rest)) => {
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            let last = rest.rsplit_once('/').map(|(_, last)| last);
            let last = last.filter(|last| !last.is_empty());
            let Some(name) = last.map(str::to_owned).or_else(|| text_of(item, "name")) else {
                return Err(place(&content, "the URL ends in no name of a file"));
            };
            (name, Some(content.clone()))
        }
        Some(_) => return Err(place(&content, "a path beside the document, http or https")),
        None => {
            let path = content.strip_prefix("./").unwrap_or(&content);
            (path.to_owned(), None)
        }
    };
    mlmesh_cas::check_path(&path).map_err(|rule| place(&path, &rule.to_string()))?;
    if path.chars().any(char::is_control) {
        return Err(place(&path, "a path has no control characters"));
    }
    Ok(Some((path, Listed { sha256, url })))
}

/// What the document says of the dataset, within the bounds of the catalog.
fn about(root: &Map<String, Value>) -> DatasetAbout {
    let clean = |text: String, chars_max: usize, lines: bool| {
        let kept = text.chars().map(|c| match c {
            '\n' | '\t' if lines => c,
            c if c.is_control() => ' ',
            c => c,
        });
        let text: String = kept.take(chars_max).collect();
        let text = text.trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    let one = |value: &Value| match value {
        Value::Object(object) => ["name", "url", "@id"]
            .iter()
            .find_map(|key| text_of(object, key)),
        value => text(value).map(str::to_owned),
    };
    let all = |key: &str| match property(root, key) {
        Some(Value::Array(items)) => items.iter().filter_map(one).collect(),
        Some(item) => one(item).into_iter().collect::<Vec<String>>(),
        None => Vec::new(),
    };
    let keywords = all("keywords").into_iter();
    let keywords = keywords.flat_map(|words| {
        let words: Vec<String> = words.split(',').map(str::to_owned).collect();
        words
    });
    let mut tags: Vec<String> = keywords.filter_map(|word| clean(word, 64, false)).collect();
    tags.sort_unstable();
    tags.dedup();
    tags.truncate(100);
    DatasetAbout {
        description: text_of(root, "description").and_then(|text| clean(text, 16_384, true)),
        licence: clean(all("license").join(", "), 256, false),
        source: clean(
            all("url").into_iter().next().unwrap_or_default(),
            4_096,
            false,
        ),
        tags,
    }
}

/// A property under its short name or one of the usual prefixes.
fn property<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let prefixes = [
        "",
        "sc:",
        "schema:",
        "cr:",
        "dct:",
        "https://schema.org/",
        "http://schema.org/",
        "http://mlcommons.org/croissant/",
    ];
    let mut names = prefixes.iter().map(|prefix| format!("{prefix}{name}"));
    names.find_map(|name| object.get(&name))
}

fn text_of(object: &Map<String, Value>, name: &str) -> Option<String> {
    match property(object, name)? {
        Value::Number(number) => Some(number.to_string()),
        value => text(value).map(str::to_owned),
    }
}

/// A text, also where JSON-LD wraps it.
fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(object) => object.get("@value").or_else(|| object.get("@id"))?.as_str(),
        _ => None,
    }
}

fn is_a(object: &Map<String, Value>, class: &str) -> bool {
    let is = |value: &Value| {
        let name = value.as_str().unwrap_or_default();
        name.rsplit([':', '/', '#']).next() == Some(class)
    };
    match object.get("@type") {
        Some(Value::Array(items)) => items.iter().any(is),
        Some(item) => is(item),
        None => false,
    }
}

/// A text of the document for a person, cut.
fn shown(text: &str) -> String {
    text.chars()
        .take(120)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(distribution: Value) -> Vec<u8> {
        let document = json!({
            "@context": {"@language": "en", "@vocab": "https://schema.org/",
                "sc": "https://schema.org/", "cr": "http://mlcommons.org/croissant/",
                "dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo"},
            "@type": "sc:Dataset", "name": "tides", "version": "1.2.0",
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "description": "water levels\nof two harbours",
            "license": ["https://creativecommons.org/licenses/by/4.0/"],
            "url": "https://example.org/tides", "keywords": ["sea", "levels, hourly"],
            "distribution": distribution, "recordSet": [{"@type": "cr:RecordSet"}],
        });
        document.to_string().into_bytes()
    }

    fn file(id: &str, url: &str) -> Value {
        json!({"@type": "cr:FileObject", "@id": id, "name": id, "contentUrl": url,
            "encodingFormat": "text/csv", "sha256": Digest::of(id.as_bytes())})
    }

    fn refusal(distribution: Value) -> CroissantError {
        Document::parse(&document(distribution)).unwrap_err()
    }

    #[test]
    fn what_a_document_says_is_read() {
        let read = Document::parse(&document(json!([
            file("a.csv", "data/a.csv"),
            file("b.zip", "https://example.org/get/b.zip?version=2"),
            {"@type": "cr:FileSet", "@id": "images", "containedIn": {"@id": "b.zip"}, "includes": "*.png"},
            {"@type": "cr:FileObject", "@id": "inner", "containedIn": {"@id": "b.zip"}, "contentUrl": "../x"},
        ])))
        .unwrap();
        assert_eq!(read.name.as_deref(), Some("tides"));
        assert_eq!(read.version.as_deref(), Some("1.2.0"));
        assert_eq!(read.about.tags, ["hourly", "levels", "sea"]);
        assert_eq!(
            read.about.licence.as_deref(),
            Some("https://creativecommons.org/licenses/by/4.0/")
        );
        let paths: Vec<&str> = read.files.keys().map(String::as_str).collect();
        assert_eq!(paths, ["b.zip", "data/a.csv"]);
        assert_eq!(read.files["data/a.csv"].sha256, Digest::of(b"a.csv"));
        assert!(read.files["b.zip"].url.is_some());
    }

    #[test]
    fn hostile_documents_are_refused() {
        for path in [
            "../x",
            "/etc/passwd",
            "a/../../x",
            "a//b",
            "",
            "a\u{1}b",
            ".",
            "./../x",
        ] {
            let error = refusal(json!([file("f", path)]));
            assert!(
                matches!(error, CroissantError::Place { .. }),
                "{path}: {error}"
            );
        }
        let error = refusal(json!([file("f", "file:///etc/passwd")]));
        assert!(matches!(error, CroissantError::Place { .. }), "{error}");
        let error = refusal(json!([file("f", "https://example.org/a/..")]));
        assert!(matches!(error, CroissantError::Place { .. }), "{error}");
        assert_eq!(
            refusal(json!([file("one", "x"), file("two", "./x")])),
            CroissantError::Twice("x".into())
        );
        let mut wrong = file("f", "x");
        wrong["sha256"] = json!("https://github.com/mlcommons/croissant/issues/80");
        assert!(matches!(
            refusal(json!([wrong])),
            CroissantError::BadChecksum { .. }
        ));
        let mut absent = file("f", "x");
        absent.as_object_mut().unwrap().remove("sha256");
        absent["md5"] = json!("0123");
        assert_eq!(
            refusal(json!([absent])),
            CroissantError::NoChecksum("f".into())
        );
        let set = json!([{"@type": "cr:FileSet", "@id": "all", "includes": "*"}]);
        assert_eq!(refusal(set), CroissantError::FileSet("all".into()));
        assert_eq!(refusal(json!([])), CroissantError::NoFiles);
        let many = vec![json!({}); FILES_MAX + 1];
        assert_eq!(refusal(json!(many)), CroissantError::TooMany(FILES_MAX + 1));
        let deep = "[".repeat(100_000);
        assert!(matches!(
            Document::parse(deep.as_bytes()),
            Err(CroissantError::Json(_))
        ));
        let old = document(json!([file("f", "x")]));
        let old = String::from_utf8(old)
            .unwrap()
            .replace("croissant/1.0", "croissant/0.8");
        assert!(matches!(
            Document::parse(old.as_bytes()),
            Err(CroissantError::Version(_))
        ));
    }

    /// Whatever is given, nothing panics, and what is accepted stays below its folder.
    #[test]
    fn fuzz_croissant_documents() {
        let one = document(json!([
            file("a.csv", "data/a.csv"),
            file("b", "https://e.org/b")
        ]));
        let samples: Vec<&[u8]> = vec![&one];
        let words: &[&[u8]] = &[
            b"../",
            b"\"@type\"",
            b"\"cr:FileObject\"",
            b"\"cr:FileSet\"",
            b"\"sha256\"",
            b"null",
            b"\"containedIn\":",
            b"[",
            b"]",
            b"{",
            b"}",
            b",",
            b"\\u0000",
            b"\\ud800",
            b"1e999",
            b"\xff",
            b"\"@value\"",
            b"http://",
            b"\"distribution\":",
        ];
        mlmesh_testkit::fuzz::border("Croissant documents", &samples, words, |bytes| {
            let Ok(read) = Document::parse(bytes) else {
                return;
            };
            assert!(!read.files.is_empty());
            for path in read.files.keys() {
                let mut parts = std::path::Path::new(path).components();
                assert!(
                    parts.all(|part| matches!(part, std::path::Component::Normal(_))),
                    "{path}"
                );
            }
            assert!(read.about.tags.len() <= 100);
        });
    }
}
