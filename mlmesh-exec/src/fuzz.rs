//! What the executor reads from disk, from its own processes and from jobs: journals,
//! logs, metrics, messages, the kernel's process lines. No bytes panic, and what is
//! damaged is an error or skipped and counted.

#![cfg(test)]

use std::fs;

use mlmesh_model::{Cause, Exit, LogStream, Micros};
use mlmesh_testkit::fuzz::{border, folder};

use crate::channel::{Inbox, Message};
use crate::journal::{Entry, Journal, Marker, append};
use crate::log::{LogWriter, read_lines};
use crate::metrics::{METRICS_FILE, Metrics};
use crate::process::Stat;
use crate::record::AttemptDir;

/// Whatever a journal holds, it can be read and added to, and what it says of the
/// command's start is not forgotten.
#[test]
fn fuzz_attempt_journals() {
    let folder = folder();
    let dir = AttemptDir::at(folder.path());
    let spec = br#"{"spec":{"schema":"mlmesh.attempt/1","run":"aaaaaaaaaaaa","number":1,"argv":["true"],
        "directory":"/w","env":{"A":"b"},"launch":"plain","limits":[{"name":"cpu","asked":1,"by":{"nothing":"x"}}],
        "limits_required":false,"network_enforced":false,"umask":18,"log_bytes_max":1,"grace_ms":5,
        "datasets_verified":[],"environment":null}}"#;
    let life = br#"{"begun":{"pid":7,"start_time":8,"boot_id":"b"}}
{"stop":{"cause":"cancelled","grace_ms":5}}
{"started":{"time":5,"isolation":{"namespaces":["net"],"sandboxed":false,"network_enforced":true,"limits":[]}}}
{"ended":{"started_at":5,"ended_at":9,"exit":{"code":1},"cause":"exit","message":"","isolation":{"namespaces":[],"sandboxed":false,"network_enforced":true,"limits":[]},"log_bytes_dropped":0}}
"#;
    let spec: Vec<u8> = spec.iter().copied().filter(|byte| *byte != b'\n').collect();
    let samples = [&life[..], b"\"void\"\n", &spec];
    let words: &[&[u8]] = &[
        b"\n",
        b"{",
        b"}",
        b"[[[[[[[[",
        b"\"",
        b"null",
        b"\\u0000",
        b"\\ud800",
        b"1e999",
        b"-1",
        b",",
        b"{\"begun\":",
        b"\"void\"\n",
        b"\"started_at\":",
        b"\xff",
    ];
    let mut understood = [0_u32; 5];
    border("journals of attempts", &samples, words, |bytes| {
        fs::write(dir.journal(), bytes).unwrap();
        let journal = Journal::read(&dir).unwrap();
        let seen = [
            journal.spec.is_some(),
            journal.marker == Some(Marker::Void),
            matches!(journal.marker, Some(Marker::By(Some(_)))),
            journal.running.is_some() && journal.stop.is_some(),
            journal.ended.is_some(),
        ];
        for (count, seen) in understood.iter_mut().zip(seen) {
            *count += u32::from(seen);
        }
        append(&dir, &Entry::Void).unwrap();
        let later = Journal::read(&dir).unwrap();
        match journal.marker {
            // A torn line may have been any; nobody adds `void` behind one.
            Some(Marker::By(None)) => assert!(later.marker.is_some()),
            Some(marker) => assert_eq!(later.marker, Some(marker)),
            None => assert_eq!(later.marker, Some(Marker::Void)),
        }
        assert_eq!((later.spec, later.ended), (journal.spec, journal.ended));
    });
    assert!(!understood.contains(&0), "a sample is none: {understood:?}");
}

#[test]
fn fuzz_logs() {
    let folder = folder();
    let path = folder.path().join("log");
    let mut log = LogWriter::new(path.clone(), 1 << 20, &Default::default());
    log.push(LogStream::Stdout, Micros(5), b"one\ntwo 3 4 \n");
    log.push(LogStream::Stderr, Micros(6), b"\n\xff\xfe no end");
    log.finish(Micros(7));
    let sample = fs::read(&path).unwrap();
    let words: &[&[u8]] = &[
        b"1 5 4 ",
        b"2 -1 0 \n",
        b"0 ",
        b" ",
        b"\n",
        b"1 5 65536 ",
        b"+",
    ];
    let mut case = 0_u64;
    border("logs of attempts", &[&sample], words, |bytes| {
        case += 1;
        fs::write(&path, bytes).unwrap();
        // From its start, from anywhere, from behind its end.
        let mut from = [0, case % (bytes.len() as u64 + 1), 1 << 53][(case % 3) as usize];
        while let Ok((lines, next)) = read_lines(&path, from, 1 + case % 90) {
            assert_eq!(lines.is_empty(), next == from);
            assert!(next <= bytes.len() as u64 || lines.is_empty());
            if lines.is_empty() {
                break;
            }
            from = next;
        }
    });
}

#[test]
fn fuzz_metrics() {
    let folder = folder();
    let path = folder.path().join(METRICS_FILE);
    let samples: [&[u8]; 2] = [
        b"{\"name\":\"loss\",\"value\":3.5,\"step\":5,\"time\":1.5}\n{\"name\":\"loss\",\"value\":NaN}\n\n",
        b"{\"name\":\"a\\\"Infinity\",\"value\":-Infinity}\n{\"name\":\"b\",\"value\":\"nan\",\"step\":-9}\n{\"name",
    ];
    let words: &[&[u8]] = &[
        b"NaN",
        b"-Infinity",
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[[[[",
        b"\n",
        b"1e400",
        b"\"step\":9223372036854775807",
        b"\"name\":\"\"",
        b"\xff",
        b"null",
    ];
    border("metrics.jsonl", &samples, words, |bytes| {
        let mut metrics = Metrics::of(&[folder.path().to_owned()]);
        let mut points = 0;
        // Half of it is there at the first look.
        for part in [&bytes[..bytes.len() / 2], bytes] {
            fs::write(&path, part).unwrap();
            metrics.read(&mut |_| points += 1).unwrap();
        }
        metrics.finish(&mut |_| points += 1).unwrap();
        let lines = bytes.split(|byte| *byte == b'\n');
        let filled = lines.filter(|line| !line.trim_ascii().is_empty()).count() as u64;
        assert_eq!(
            points + metrics.lines_bad,
            filled,
            "a line was lost or read twice"
        );
        let steps: u64 = metrics
            .summaries()
            .values()
            .map(|summary| summary.steps)
            .sum();
        assert_eq!(steps, points);
    });
}

#[test]
fn fuzz_messages() {
    let messages = [
        Message::Init { pid: 4 },
        Message::Started,
        Message::Exited(Exit::Code(3)),
        Message::CgroupRefused {
            group: "g".into(),
            why: "w".into(),
        },
        Message::Failed {
            cause: Cause::CommandNotFound,
            message: "m".into(),
        },
    ];
    let mut sample = Vec::new();
    for message in &messages {
        sample.extend_from_slice(&serde_json::to_vec(message).unwrap());
        sample.push(b'\n');
    }
    let words: &[&[u8]] = &[
        b"\n",
        b"{",
        b"\"started\"\n",
        b"[[[[",
        b"null\n",
        b"\"",
        b"}",
    ];
    border("messages to the supervisor", &[&sample], words, |bytes| {
        let whole = Inbox::default().push(bytes).unwrap();
        // Pieces give what the whole gives.
        let mut inbox = Inbox::default();
        let pieces: Vec<Message> = bytes
            .chunks(7)
            .flat_map(|piece| inbox.push(piece).unwrap())
            .collect();
        assert_eq!(pieces, whole);
    });
}

#[test]
fn fuzz_process_lines() {
    let stat = b"77 (a) b) (c) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 1 1\n";
    border(
        "/proc/PID/stat",
        &[stat],
        &[b")", b"(", b" ", b"-1"],
        |bytes| {
            Stat::parse(bytes);
        },
    );
}
