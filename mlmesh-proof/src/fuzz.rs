//! Manifests as anybody may have written them: no bytes panic, and a complete one
//! says what its phase requires.

#![cfg(test)]

use mlmesh_testkit::fuzz::border;
use serde_json::Value;

use crate::manifest::completeness;

#[test]
fn fuzz_manifests() {
    let sample = br#"{"schema":"mlmesh.run_manifest/1","run":"aaaaaaaaaaaa","name":"n","phase":"completed",
        "cause":null,"exit_code":0,"queued_at":1,"started_at":2,"ended_at":3,"plan_sha256":"00","plan":{},
        "snapshot":{"id":"00","sha256":"00"},"datasets":[{"name":"d","checksum":"00"}]}"#;
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
        let named = |pointer: &str| defects.iter().any(|defect| defect.pointer == pointer);
        for pointer in ["/run", "/plan", "/plan_sha256", "/snapshot/sha256"] {
            let there = manifest
                .pointer(pointer)
                .is_some_and(|value| !value.is_null());
            assert!(there || named(pointer), "{pointer}");
        }
    });
}
