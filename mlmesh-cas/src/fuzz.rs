//! What the content store reads from others: bodies, listings, packs, chunk lists,
//! ignore files, and trees that are written to disk. No bytes panic; what is accepted
//! keeps the rules of its form; a checkout touches nothing outside its folder.
//!
//! Forms with a checksum are also tried with the checksum made right, since whoever
//! writes the bytes can do that too.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use mlmesh_model::{CommitId, Digest, ObjectId};
use mlmesh_testkit::fuzz::{border, folder};

use crate::chunks::ChunkManifest;
use crate::compare::{Comparison, remembered_tree};
use crate::format::{self, Location};
use crate::frame::{FrameLimits, FrameReader, FrameWriter};
use crate::rules::{self, FolderRules};
use crate::stat_cache::{FileStat, StatCache};
use crate::store::ObjectStore;
use crate::tree::{Mode, Tree, TreeEntry, check_path, parse_line};
use crate::walk::Seen;

fn id(content: &[u8]) -> ObjectId {
    ObjectId(Digest::of(content))
}

/// The bytes with the checksum at their end made right.
fn signed(bytes: &[u8], checksum_bytes: usize) -> Vec<u8> {
    let mut signed = bytes[..bytes.len().saturating_sub(checksum_bytes)].to_vec();
    let checksum = Digest::of(&signed);
    signed.extend_from_slice(&checksum.as_bytes()[..checksum_bytes]);
    signed
}

fn frame(contents: &[&[u8]]) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new()).unwrap();
    for content in contents {
        writer.record(id(content), content).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn fuzz_frames() {
    let samples = [
        frame(&[]),
        frame(&[b"one", b"", b"three"]),
        frame(&[&[7; 900]]),
    ];
    let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    let limits = FrameLimits {
        records_max: 4,
        record_bytes_max: 1000,
        total_bytes_max: 1500,
    };
    border("frames of objects", &samples, &[b"mlfrme\0\x01"], |bytes| {
        let mut reader = FrameReader::new(bytes, limits);
        let mut contents = Vec::new();
        let mut content = Vec::new();
        let whole = loop {
            match reader.next_record() {
                Ok(None) => break true,
                Ok(Some(_)) => match reader.content(&mut content) {
                    Ok(()) => contents.push(content.clone()),
                    Err(_) => break false,
                },
                Err(_) => break false,
            }
            assert!(contents.len() <= 4 && content.len() <= 1000);
        };
        if whole {
            let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
            assert!(
                bytes.starts_with(&frame(&contents)),
                "read as something else"
            );
        }
    });
}

fn listing() -> Vec<u8> {
    let entry = |path: &str, mode, content: &[u8]| TreeEntry {
        path: path.to_owned(),
        mode,
        size: content.len() as u64,
        object: id(content),
    };
    let entries = vec![
        entry("dir/sub/deep.txt", Mode::File, b"deep"),
        entry("dir/é\n\\x", Mode::File, b""),
        entry("run.sh", Mode::Executable, b"deep"),
        entry("to", Mode::Symlink, b"dir/sub"),
    ];
    Tree::from_entries(entries).unwrap().canonical_bytes()
}

/// Pieces of hostile listings.
const PATHS: &[&[u8]] = &[
    b"../",
    b"/",
    b"..",
    b".",
    b"//",
    b".git",
    b"\\x00",
    b"\\\\",
    b"\\x2f",
    b"to/",
    b"dir",
    b"link 7 ",
    b"644 0 ",
    b"755 4 ",
    b"\n",
    b" ",
    b"mlmesh-tree 1\n",
    b"/etc/passwd",
    b"outside/victim",
    b"a",
    b"\xff",
];

#[test]
fn fuzz_listings() {
    border(
        "tree listings",
        &[&listing(), b"mlmesh-tree 1\n"],
        PATHS,
        |bytes| {
            let Ok(tree) = Tree::parse(bytes) else {
                return;
            };
            assert_eq!(tree.canonical_bytes(), bytes, "another form was accepted");
            for entry in &tree.entries {
                assert!(
                    !entry.path.starts_with('/') && !entry.path.split('/').any(|part| part == "..")
                );
                check_path(&entry.path).unwrap();
            }
        },
    );
}

/// Every file below `folder` with what would show a change.
fn facts(folder: &Path) -> BTreeMap<String, (u64, u32, i64, i64)> {
    let mut facts = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let seen = fs::symlink_metadata(&path).unwrap();
        let change = (
            seen.len(),
            seen.permissions().mode(),
            seen.ctime(),
            seen.ctime_nsec(),
        );
        facts.insert(path.display().to_string(), change);
    }
    facts
}

/// Trees as anybody may have put them together: any paths, any links, any objects.
#[test]
fn fuzz_hostile_checkouts() {
    let folder = folder();
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let store = ObjectStore::open(&folder.path().join("store")).unwrap();
    // Contents, which links take for their targets.
    let contents: &[&[u8]] = &[
        b"dir",
        b"dir/sub",
        b"..",
        b"../outside",
        b"../outside/victim",
        b"/etc",
        b"../../outside",
        b"a",
        b".",
        b"./a/../../outside",
        b"",
        b"deep",
        b"\xff",
        b".git/hooks",
        b"outside",
    ];
    store
        .put_batch(contents.iter().map(|content| (id(content), content)))
        .unwrap();
    let lines: Vec<Vec<u8>> = contents
        .iter()
        .flat_map(|content| {
            ["644", "link", "755"]
                .map(|mode| format!("{mode} {} {} ", content.len(), id(content).0).into_bytes())
        })
        .collect();
    let words: Vec<&[u8]> = PATHS
        .iter()
        .copied()
        .chain(lines.iter().map(Vec::as_slice))
        .collect();
    let mut sample = listing();
    for (index, line) in lines.iter().enumerate() {
        sample.extend_from_slice(line);
        sample.extend_from_slice(format!("dir{}/f{index}\n", index % 4).as_bytes());
    }
    let (before, into) = (facts(&outside), folder.path().join("into"));
    let mut written = 0_u64;
    border(
        "checkouts of hostile trees",
        &[&sample, &listing()],
        &words,
        |bytes| {
            let entries = bytes
                .split(|byte| *byte == b'\n')
                .filter_map(|line| parse_line(line).ok());
            let mut entries: Vec<_> = entries.take(12).collect();
            entries.sort_unstable_by(|left, right| left.path.cmp(&right.path));
            entries.dedup_by(|left, right| left.path == right.path);
            // Some skip the check of the listing, as if that wall had fallen: paths with
            // `..` are left to it alone.
            let tree = match Tree::from_entries(entries.clone()) {
                Ok(tree) => tree,
                Err(_) => {
                    entries.retain(|entry| check_path(&entry.path).is_ok());
                    Tree { entries }
                }
            };
            written += u64::from(store.checkout_tree(&tree, &into).is_ok());
            if into.exists() {
                inside(&into, &into);
                fs::remove_dir_all(&into).unwrap();
            }
            assert_eq!(facts(&outside), before, "something outside was changed");
            assert_eq!(
                fs::read_dir(folder.path()).unwrap().count(),
                2,
                "something new lies beside"
            );
        },
    );
    assert!(written > 10, "only {written} trees were written");
}

/// No link below `folder` leads out of `root`.
fn inside(root: &Path, folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let seen = fs::symlink_metadata(&path).unwrap();
        if seen.is_dir() {
            inside(root, &path);
        } else if let (true, Ok(real)) = (seen.is_symlink(), path.canonicalize()) {
            assert!(
                real.starts_with(root.canonicalize().unwrap()),
                "{}",
                path.display()
            );
        }
    }
}

fn pack_files() -> [Vec<u8>; 3] {
    let contents: [&[u8]; 3] = [b"first", b"", &[9; 300]];
    let mut pack = format::PACK_MAGIC.to_vec();
    let mut entries = Vec::new();
    for content in contents {
        let location = Location {
            offset: pack.len() as u32,
            length: content.len() as u32,
        };
        entries.push((id(content), location));
        format::push_record_header(id(content), location.length, &mut pack);
        pack.extend_from_slice(content);
    }
    let mut journal = format::JOURNAL_MAGIC.to_vec();
    format::push_journal_batch(&entries[..1], &mut journal);
    format::push_journal_batch(&entries[1..], &mut journal);
    [pack, journal, format::encode_index(&mut entries)]
}

/// A store whose pack, journal or index was changed opens, gives right contents or
/// says that they are damaged, and takes new objects.
#[test]
fn fuzz_packs() {
    let folder = folder();
    let root = folder.path().join("store");
    drop(ObjectStore::open(&root).unwrap());
    let good = pack_files();
    let samples = [&good[0][..], &good[1], &good[2]];
    let words: &[&[u8]] = &[
        b"mlpack\0\x01",
        b"mljrnl\0\x01",
        b"mlindx\0\x01",
        &good[2][16..56],
    ];
    let ids = [id(b"first"), id(b""), id(&[9; 300])];
    let path = |ending: &str| root.join(format!("packs/00000001.{ending}"));
    let mut case = 0_usize;
    border("packs, journals, indexes", &samples, words, |bytes| {
        case += 1;
        // The changed file stands beside good ones; every other one with its checksum right.
        let index = match case % 3 {
            0 => signed(bytes, 32),
            1 => good[2].clone(),
            _ => bytes.to_vec(),
        };
        let journal = match case % 2 {
            0 => good[1].clone(),
            _ => signed(bytes, 16),
        };
        let pack = if case % 3 == 1 { bytes } else { &good[0] };
        format::parse_journal(bytes);
        format::parse_journal(&journal);
        format::parse_index(bytes);
        format::parse_index(&index);
        fs::write(path("pack"), pack).unwrap();
        match case % 4 {
            0 => fs::write(path("log"), &journal).unwrap(),
            _ => fs::write(path("idx"), &index).unwrap(),
        }
        let store = ObjectStore::open(&root).unwrap();
        for wanted in ids {
            if let Ok(content) = store.read(wanted, 1 << 20) {
                assert_eq!(id(&content), wanted);
            }
        }
        store.put_batch([(id(b"new"), b"new")]).unwrap();
        assert_eq!(store.read(id(b"new"), 9).unwrap(), b"new");
        drop(store);
        for file in fs::read_dir(root.join("packs")).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    });
}

/// Lists of chunks, and what is put together from them.
#[test]
fn fuzz_chunks() {
    let folder = folder();
    let store = ObjectStore::open(&folder.path().join("store")).unwrap();
    let content = [[1_u8; 40], [2; 40]].concat();
    let manifest = ChunkManifest {
        object: id(&content),
        size: 80,
        chunks: vec![(Digest::of(&[1; 40]), 40), (Digest::of(&[2; 40]), 40)],
    };
    let list = manifest.to_bytes();
    let supplied = frame(&[&[1; 40], &[2; 40]]);
    let samples = [&list[..], &supplied];
    border(
        "chunk lists and chunks",
        &samples,
        &[b"mlchnk\0\x01"],
        |bytes| {
            for bytes in [bytes, &signed(bytes, 32)] {
                let Some(manifest) = ChunkManifest::parse(bytes) else {
                    continue;
                };
                assert_eq!(manifest.to_bytes(), bytes, "another form was accepted");
                store.missing_chunks(&manifest, &[manifest.object]).unwrap();
                if let Ok(put) = store.put_from_chunks(&manifest, &[], &supplied[..]) {
                    assert_eq!(store.read(put, 1 << 20).unwrap(), content);
                }
            }
            if let Ok(put) = store.put_from_chunks(&manifest, &[], bytes) {
                assert_eq!(store.read(put, 1 << 20).unwrap(), content);
            }
        },
    );
}

#[test]
fn fuzz_stat_caches() {
    let mut cache = b"mlstat\0\x02".to_vec();
    cache.extend_from_slice(&77_i64.to_le_bytes());
    cache.extend_from_slice(&[9; 32]);
    cache.extend_from_slice(&2_u64.to_le_bytes());
    for path in ["a", "b/c"] {
        cache.extend_from_slice(&(path.len() as u16).to_le_bytes());
        cache.extend_from_slice(&[1; 1 + 4 + 8 + 8 + 8 + 8 + 32]);
        cache.extend_from_slice(path.as_bytes());
    }
    cache.extend_from_slice(&[0; 32]);
    let sample = signed(&cache, 32);
    assert_eq!(StatCache::parse(&sample).entries().count(), 2);
    border("stat caches", &[&sample], &[b"mlstat\0\x02"], |bytes| {
        assert_eq!(StatCache::parse(bytes).commit.is_some(), bytes == sample);
        let signed = signed(bytes, 32);
        let cache = StatCache::parse(&signed);
        // What is not the walk's own is not believed, whatever the checksum says.
        let mut comparison = Comparison::new(&cache);
        comparison.see(&Seen {
            path: "a",
            stat: FileStat::of_link("b"),
            target: Some("b"),
            demanded: false,
        });
        assert_eq!(comparison.same_commit(), None);
        assert_eq!(comparison.found.len(), 1);
        remembered_tree(&cache);
    });
}

#[test]
fn fuzz_ignore_files() {
    let samples: [&[u8]; 3] = [
        b"# build\n/target\n*.py[co]\n!keep.log\n**/cache/**\n\\#file\n",
        b"a?b\n[a-z]*.txt\n{x,y}/\nfoo\\ \n\r\n",
        b"\xef\xbb\xbf*\n!*/\n",
    ];
    let words: &[&[u8]] = &[
        b"*", b"**", b"/", b"!", b"[", b"]", b"[!a-", b"{", b"}", b",", b"\\", b"?", b"\n", b"#",
        b" ", b"..",
    ];
    border(".mlignore and .gitignore", &samples, words, |bytes| {
        // Compiling costs with the length; what is long is of the same sort.
        let bytes = &bytes[..bytes.len().min(400)];
        let (matcher, bad) = rules::compile(bytes);
        let lines = bytes.split(|byte| *byte == b'\n').count();
        assert!(bad.iter().all(|bad| bad.line <= lines));
        let rules = FolderRules::new(None, 0, matcher, rules::compile(b"*.log\n").0);
        for path in ["a", "target/x.pyc", "keep.log", "x/cache/y/é", "[a"] {
            rules.verdict(path, path.len() == 1);
        }
    });
}

/// A size that no content has must not be believed, and not summed up into a panic.
#[test]
fn sizes_of_a_listing_that_was_changed_on_disk_do_not_overflow() {
    let folder = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(&folder.path().join("store")).unwrap();
    store.put_batch([(id(b"x"), b"x")]).unwrap();
    let line = |path| format!("644 {} {} {path}\n", u64::MAX, id(b"x").0);
    let listing = format!("mlmesh-tree 1\n{}{}", line("a"), line("b"));
    let tree = Tree::parse(listing.as_bytes()).unwrap();
    let done = store
        .checkout_tree(&tree, &folder.path().join("into"))
        .unwrap();
    assert_eq!((done.entries, done.bytes), (2, u64::MAX));
}

/// A listing whose name is its digest, as a damaged or hostile store may hold it.
#[test]
fn a_listing_that_leaves_its_folder_is_refused_at_checkout() {
    let folder = tempfile::tempdir().unwrap();
    let store = ObjectStore::open(&folder.path().join("store")).unwrap();
    store.put_batch([(id(b"x"), b"x")]).unwrap();
    for path in ["../x", "/x", "a/../../x", "a//x", "./x"] {
        let listing = format!("mlmesh-tree 1\n644 1 {} {path}\n", id(b"x").0);
        let commit = CommitId(Digest::of(listing.as_bytes()));
        let into = folder.path().join("into");
        assert!(
            store.put_listing(commit, listing.as_bytes()).is_err(),
            "{path}"
        );
        assert!(store.checkout(commit, &into).is_err(), "{path}");
        assert!(
            !into.exists() && !folder.path().join("x").exists(),
            "{path}"
        );
    }
}
