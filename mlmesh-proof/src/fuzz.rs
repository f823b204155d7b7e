//! Manifests as anybody may have written them: no bytes panic, and a complete one
//! says what its phase requires.

#![cfg(test)]

use mlmesh_testkit::fuzz::border;
use serde_json::Value;

use crate::completeness::{completeness, tests::complete};

#[test]
fn fuzz_manifests() {
    let sample = complete("completed").to_string();
    let sample = sample.as_bytes();
    assert_eq!(completeness(&serde_json::from_slice(sample).unwrap()), []);
    let words: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"\"failed\"",
        b"\"running\"",
        b"\"exit_code\":",
        b",",
        b"[[[[[[[[",
        b"\"cause\":\"exit\"",
        b"\"datasets\":",
        b"1e999",
        b"\"",
        b"\\ud800",
    ];
    border("run_manifest.json", &[sample], words, |bytes| {
        let Ok(manifest) = serde_json::from_slice::<Value>(bytes) else {
            return;
        };
        let defects = completeness(&manifest);
        let named = |pointer: &str| defects.iter().any(|defect| defect.at == pointer);
        for pointer in ["/run", "/plan", "/plan_sha256", "/snapshot/sha256"] {
            let there = manifest
                .pointer(pointer)
                .is_some_and(|value| !value.is_null());
            assert!(there || named(pointer), "{pointer}");
        }
    });
}
