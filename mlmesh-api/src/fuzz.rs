//! What clients and daemons read of settings, files and answers: no bytes panic, a
//! password is never shown, and what is accepted reads back as it was.

#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use mlmesh_model::filter::{Filter, Sort};
use mlmesh_testkit::fuzz::{border, folder};

use crate::settings::{SETTINGS, SettingKind, Settings, shown};
use crate::{DaemonFile, RunDto, StatusDto, Timestamp, read_key};

#[test]
fn fuzz_settings() {
    let folder = folder();
    let path = folder.path().join("mlmesh.toml");
    let samples: [&[u8]; 3] = [
        b"[client]\nrepro_policy = \"relaxed\"\n[daemon]\nport = 0\nmemory = \"4GiB\"\nlisten = \"::1\"\n",
        b"daemon.stop_grace = \"250ms\"\ndaemon.store = 'postgres://a:SECRET@h/d?password=SECRET'\n",
        b"[daemon]\ncpus = 3\nlog_files_max = 2 # x\nlog_level = '''debug'''\n",
    ];
    let words: &[&[u8]] = &[
        b"[",
        b"]",
        b"[[",
        b"{",
        b"}",
        b"= ",
        b"\"",
        b"'''",
        b"\n",
        b".",
        b"1e9",
        b"18446744073709551615",
        b"GiB",
        b"h",
        b"1979-05-27",
        b"nan",
        b"[[[[[[[[",
        b"client",
        b"daemon",
        b"://",
    ];
    border("mlmesh.toml, flags, variables", &samples, words, |bytes| {
        fs::write(&path, bytes).unwrap();
        match Settings::resolve(Some(&path), |_| None, &[]) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(settings) => {
                for setting in SETTINGS {
                    // What passed the check is what the daemon works with, not a default.
                    let text = settings.text(setting.key);
                    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
                    let number: u64 = text[..digits].parse().unwrap_or(0);
                    let is_zero = match setting.kind {
                        SettingKind::Bytes => settings.bytes(setting.key) == 0,
                        SettingKind::Time => settings.time(setting.key).is_zero(),
                        SettingKind::Count | SettingKind::Port => settings.count(setting.key) == 0,
                        _ => continue,
                    };
                    assert!(
                        is_zero == (number == 0) || text.starts_with('+'),
                        "`{text}`"
                    );
                }
            }
        }
        // The same text as a flag and as a variable.
        let text = String::from_utf8_lossy(bytes).into_owned();
        for setting in SETTINGS {
            let _ = Settings::resolve(None, |_| None, &[(setting.key, text.clone())]);
        }
        let _ = Settings::resolve(None, |_| Some(text.clone()), &[]);
    });
}

#[test]
fn fuzz_shown_passwords() {
    let samples: [&[u8]; 2] = [
        b"postgres://user:SECRET@host:5432/db?password=SECRET&x=1",
        b"host=h user=u password=SECRET dbname=d",
    ];
    let words: &[&[u8]] = &[
        b"://",
        b"@",
        b":",
        b"/",
        b"?",
        b"&",
        b" ",
        b"password=SECRET",
        b"user:SECRET@",
        b"#",
        b"(hidden)",
    ];
    border("passwords in settings", &samples, words, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let shown = shown(&text);
        assert!(
            !shown.contains("password=SECRET"),
            "`{text}` is shown as `{shown}`"
        );
    });
}

#[test]
fn fuzz_daemon_files() {
    let folder = folder();
    let samples: [&[u8]; 2] = [
        br#"{"schema":"mlmesh.daemon/1","pid":7,"urls":{"api":"https://127.0.0.1:9101"},"ca":"/x/ca.pem"}"#,
        b"mlmesh_0123456789abcdef\n",
    ];
    let words: &[&[u8]] = &[
        b"{",
        b"}",
        b"\"",
        b"[[[[",
        b"\\u0000",
        b"-1",
        b"https://",
        b"\n",
        b"\xff",
    ];
    let (file, key) = (
        folder.path().join("meshd.json"),
        folder.path().join("owner.key"),
    );
    fs::write(&key, "").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    border("meshd.json, owner.key", &samples, words, |bytes| {
        fs::write(&file, bytes).unwrap();
        fs::write(&key, bytes).unwrap();
        let _ = DaemonFile::read(folder.path());
        if let Ok(key) = read_key(&key) {
            assert!(key.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    });
}

#[test]
fn fuzz_answers_and_times() {
    let samples: [&[u8]; 3] = [
        br#"{"schema":"mlmesh.status/1","counts":{"queued":0,"starting":0,"running":0,"finishing":0,
            "completed":1,"failed":0,"cancelled":0,"interrupted":0},"runs":[],"prewarm":null}"#,
        b"2026-03-01T12:00:00.000250Z",
        b"9999-12-31T23:59:59.999999Z",
    ];
    let words: &[&[u8]] = &[
        b"-", b":", b"T", b"Z", b".", b"02-29", b"0000", b"[", b"{", b"\"", b"null",
    ];
    border("answers, times", &samples, words, |bytes| {
        let _ = serde_json::from_slice::<StatusDto>(bytes);
        let _ = serde_json::from_slice::<RunDto>(bytes);
        let text = String::from_utf8_lossy(bytes);
        if let Ok(time) = text.parse::<Timestamp>() {
            assert_eq!(time.to_string().parse(), Ok(time));
        }
    });
}

#[test]
fn fuzz_filters() {
    let samples: [&[u8]; 4] = [
        b"metrics.accuracy > 0.9 and params.lr <= 0.1 and not phase = failed",
        b"tags.team = \"a b\" or metrics.\"val/loss\".min < -1e-3 and (created > 2d ago)",
        b"params.lr not in (0.1, '1e-1') or trust >= L2 and duration < 1.5h",
        b"id = abc and ended < 2026-03-01T12:00:00Z and name ~ x and priority != -3",
    ];
    let words: &[&[u8]] = &[
        b" and ",
        b" or ",
        b"not ",
        b"(",
        b")",
        b"in (",
        b",",
        b"\"",
        b"\\",
        b"metrics.",
        b".min",
        b"params.",
        b"tags.",
        b"nan",
        b"-inf",
        b"9e999",
        b"<=",
        b"~",
        b"ago",
        b"99999999999d",
    ];
    border("filters", &samples, words, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        match text.parse::<Filter>() {
            Ok(filter) => {
                // What is sent to the daemon is what was meant.
                let sent = filter.to_string();
                if sent.len() <= mlmesh_model::filter::TEXT_BYTES_MAX {
                    let read: Filter = sent.parse().expect("an expression reads back");
                    assert_eq!(format!("{read:?}"), format!("{filter:?}"), "{sent}");
                }
                let _ = filter.needed_ranges();
            }
            Err(error) => drop(error.picture(&text)),
        }
        if let Ok(sort) = text.parse::<Sort>() {
            let read: Sort = sort.to_string().parse().expect("a key reads back");
            assert_eq!(read, sort);
        }
    });
}
