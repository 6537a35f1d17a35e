//! Damaged, hostile and random model files: each must end in an error that says what is wrong, without a panic and
//! without allocating more than a small multiple of the file's length. `hostile/make.py` made the files.
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use speedread_engine::Result;
use speedread_engine::gguf::GgufFile;
use speedread_engine::weights::Weights;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile")
}

/// Opens whatever `path` is, as the engine does.
fn open(path: &Path) -> Result<Weights> {
    if path.is_dir() { Weights::open_safetensors(path) } else { Ok(Weights::open_gguf(&GgufFile::open(path)?)) }
}

#[test]
fn every_file_is_refused_for_its_reason() {
    let expected = std::fs::read_to_string(folder().join("expected.tsv")).unwrap();
    let mut count = 0;
    for line in expected.lines() {
        let (name, reason) = line.split_once('\t').unwrap();
        let message = match open(&folder().join(name)) {
            Ok(_) => panic!("{name} was opened"),
            Err(e) => e.to_string(),
        };
        assert!(message.contains(reason), "{name}: expected `{reason}` in `{message}`");
        assert!(message.contains(name), "the error names the file: {message}");
        count += 1;
    }
    let files = std::fs::read_dir(folder()).unwrap().count();
    assert_eq!(count, files - 3, "every file is listed, beside make.py, expected.tsv and valid.gguf");
}

#[test]
fn missing_files_are_named() {
    for name in ["absent.gguf", "absent/absent.gguf"] {
        let error = GgufFile::open(&folder().join(name)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let error = GgufFile::open(&folder()).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    let error = Weights::open_safetensors(&folder()).unwrap_err().to_string();
    assert!(error.contains("neither `model.safetensors` nor `model.safetensors.index.json`"), "{error}");
}

/// Notes the largest allocation of the thread.
struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no cell left; its allocations are not of interest.
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Opens a GGUF file, uses all of it, and checks what it allocates.
fn exercise_gguf(bytes: Vec<u8>) {
    let limit = 64 * bytes.len() + 64 * 1024;
    LARGEST.set(0);
    let opened = GgufFile::from_bytes(bytes);
    assert!(LARGEST.get() <= limit, "allocated {} bytes to open it", LARGEST.get());
    let Ok(file) = opened else { return };
    for (key, _) in file.metadata.iter() {
        // Any outcome but a panic will do.
        let _ = (file.metadata.string(key), file.metadata.usize(key), file.metadata.f32(key), file.metadata.bool(key));
        let _ = (file.metadata.strings(key), file.metadata.f32s(key), file.metadata.i32s(key));
    }
    exercise_weights(&Weights::open_gguf(&file));
    assert!(LARGEST.get() <= limit, "allocated {} bytes to use it", LARGEST.get());
}

fn exercise_weights(weights: &Weights) {
    for name in weights.names() {
        let _ = weights.vector(name);
        if let Ok(matrix) = weights.matrix(name) {
            let mut row = vec![0.0; matrix.cols()];
            matrix.dequantize_rows(matrix.rows() - 1..matrix.rows(), &mut row);
            matrix.matvec(&row, &mut vec![0.0; matrix.rows()]);
        }
    }
}

fn valid_gguf() -> Vec<u8> {
    std::fs::read(folder().join("valid.gguf")).unwrap()
}

/// A change of a file: bytes overwritten, inserted or removed. Values that mean something to a parser come often.
#[derive(Debug, Clone)]
enum Mutation {
    Overwrite(usize, Vec<u8>),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Truncate(usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let number = prop_oneof![
        any::<u8>().prop_map(|v| vec![v]),
        any::<u32>().prop_map(|v| v.to_le_bytes().to_vec()),
        (0u32..20).prop_map(|v| v.to_le_bytes().to_vec()),
        any::<u64>().prop_map(|v| v.to_le_bytes().to_vec()),
        (0u32..64, 0u64..3).prop_map(|(bit, less)| (1u64 << bit).wrapping_sub(less).to_le_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..20),
    ];
    let number = number.boxed();
    prop_oneof![
        6 => (any::<usize>(), number.clone()).prop_map(|(at, v)| Mutation::Overwrite(at, v)),
        1 => (any::<usize>(), number).prop_map(|(at, v)| Mutation::Insert(at, v)),
        1 => (any::<usize>(), 1usize..40).prop_map(|(at, len)| Mutation::Remove(at, len)),
        1 => any::<usize>().prop_map(Mutation::Truncate),
    ]
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let len = bytes.len();
        match mutation {
            Mutation::Overwrite(at, new) => {
                let at = at % (len + 1);
                let end = (at + new.len()).min(len);
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            Mutation::Insert(at, new) => {
                bytes.splice(at % (len + 1)..at % (len + 1), new.iter().copied());
            }
            Mutation::Remove(at, count) => {
                let at = at % (len + 1);
                bytes.drain(at..(at + count).min(len));
            }
            Mutation::Truncate(to) => bytes.truncate(to % (len + 1)),
        }
    }
    bytes
}

/// A safetensors file, written by the library.
fn valid_safetensors() -> Vec<u8> {
    use safetensors::{Dtype, tensor::TensorView};
    let data: Vec<u8> = (0..48).collect();
    let view = |dtype, shape: &[usize], len| TensorView::new(dtype, shape.to_vec(), &data[..len]).unwrap();
    let tensors = [
        ("matrix", view(Dtype::F32, &[3, 4], 48)),
        ("half", view(Dtype::F16, &[2, 3], 12)),
        ("brain", view(Dtype::BF16, &[5], 10)),
        ("ids", view(Dtype::I64, &[2], 16)),
        ("nothing", view(Dtype::F32, &[0, 4], 0)),
    ];
    safetensors::serialize(tensors, None).unwrap()
}

fn safetensors_folder(file: &str, bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(file), bytes).unwrap();
    folder
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_mutated_gguf_never_panics(mutations in prop::collection::vec(mutation(), 1..6)) {
        exercise_gguf(mutate(valid_gguf(), &mutations));
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), headed: bool) {
        let header = if headed { &b"GGUF\x03\0\0\0"[..] } else { &[] };
        exercise_gguf([header, &bytes].concat());
    }

    #[test]
    fn a_mutated_safetensors_never_panics(mutations in prop::collection::vec(mutation(), 1..6)) {
        let folder = safetensors_folder("model.safetensors", &mutate(valid_safetensors(), &mutations));
        if let Ok(weights) = Weights::open_safetensors(folder.path()) {
            exercise_weights(&weights);
        }
    }

    #[test]
    fn a_mutated_index_never_panics(mutations in prop::collection::vec(mutation(), 1..6)) {
        let index = br#"{"metadata": {"total_size": 48}, "weight_map": {"matrix": "a.safetensors", "half": "a.safetensors"}}"#;
        let folder = safetensors_folder("a.safetensors", &valid_safetensors());
        std::fs::write(folder.path().join("model.safetensors.index.json"), mutate(index.to_vec(), &mutations)).unwrap();
        if let Ok(weights) = Weights::open_safetensors(folder.path()) {
            exercise_weights(&weights);
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let whole = valid_gguf();
    for len in 0..whole.len() {
        // gguf-py pads the data of the last tensor to the alignment; nothing is lost with the padding.
        let opened = GgufFile::from_bytes(whole[..len].to_vec());
        assert!(opened.is_err() || whole.len() - len < 32, "the first {len} of {} bytes were opened", whole.len());
    }
    let whole = valid_safetensors();
    for len in 0..whole.len() {
        let folder = safetensors_folder("model.safetensors", &whole[..len]);
        assert!(Weights::open_safetensors(folder.path()).is_err(), "the first {len} bytes were opened");
    }
}

#[test]
fn the_files_they_are_made_of_are_sound() {
    exercise_gguf(valid_gguf());
    assert!(GgufFile::from_bytes(valid_gguf()).is_ok());
    let folder = safetensors_folder("model.safetensors", &valid_safetensors());
    exercise_weights(&Weights::open_safetensors(folder.path()).unwrap());
}
