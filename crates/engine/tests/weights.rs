//! Reading what other libraries wrote: gguf-py (`hostile/valid.gguf`, made by `hostile/make.py`) and safetensors.
use std::path::Path;

use safetensors::{Dtype, tensor::TensorView};
use speedread_engine::gguf::{Array, GgufFile, Value};
use speedread_engine::quant::DType;
use speedread_engine::weights::{Matrix, Weights};

fn gguf() -> GgufFile {
    GgufFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/valid.gguf")).unwrap()
}

fn message<T>(result: speedread_engine::Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn metadata_of_every_type() {
    let file = gguf();
    let m = &file.metadata;
    assert_eq!(file.version(), 3);
    assert_eq!(m.require_string("general.architecture").unwrap(), "llama");
    assert_eq!(m.get("u8"), Some(&Value::U8(200)));
    assert_eq!(m.get("i8"), Some(&Value::I8(-100)));
    assert_eq!(m.get("u16"), Some(&Value::U16(60000)));
    assert_eq!(m.get("i16"), Some(&Value::I16(-30000)));
    assert_eq!(m.get("u32"), Some(&Value::U32(4_000_000_000)));
    assert_eq!(m.get("i32"), Some(&Value::I32(-2_000_000_000)));
    assert_eq!(m.get("u64"), Some(&Value::U64(1 << 63)));
    assert_eq!(m.get("i64"), Some(&Value::I64(-(1 << 62))));
    assert_eq!(m.get("f32"), Some(&Value::F32(0.25)));
    assert_eq!(m.get("f64"), Some(&Value::F64(-1e100)));
    assert_eq!((m.bool("yes").unwrap(), m.bool("no").unwrap()), (Some(true), Some(false)));
    assert_eq!(m.require_string("text").unwrap(), "naïve ☃");
    assert_eq!(m.require_strings("strings").unwrap(), ["", "a", "ĠĊ"]);
    assert_eq!(m.require_i32s("integers").unwrap()[..], [1, -2, 3]);
    assert_eq!(m.require_f32s("floats").unwrap(), [0.5, -1.5]);
    assert_eq!(m.get("bools"), Some(&Value::Array(Array::Bool(vec![true, false]))));
    let first: Vec<_> = m.iter().map(|(key, _)| key).take(3).collect();
    assert_eq!(first, ["general.architecture", "u8", "i8"], "in file order");
}

#[test]
fn getters_convert_integers_and_refuse_other_types() {
    let file = gguf();
    let m = &file.metadata;
    assert_eq!(m.usize("u8").unwrap(), Some(200));
    assert_eq!(m.usize("u32").unwrap(), Some(4_000_000_000));
    assert_eq!(m.usize("absent").unwrap(), None);
    assert!(message(m.usize("i8")).ends_with("metadata key `i8` should be a non-negative integer, but is -100 (i8)"));
    assert!(message(m.string("u8")).contains("should be a string, but is 200 (u8)"));
    assert!(message(m.strings("integers")).contains("should be an array of strings, but is an array of i32"));
    let missing = message(m.require_usize("llama.block_count"));
    assert!(missing.contains("`llama.block_count` is missing") && missing.contains("valid.gguf"), "{missing}");
}

#[test]
fn tensors_of_a_gguf_file() {
    let file = gguf();
    let weights = Weights::open_gguf(&file);
    assert_eq!(weights.names().collect::<Vec<_>>(), ["cube", "matrix", "quantised", "vector"]);
    assert_eq!(weights.vector("vector").unwrap(), [0.0, 1.0, 2.0]);
    let matrix = weights.matrix("matrix").unwrap();
    assert_eq!((matrix.rows(), matrix.cols(), matrix.dtype()), (2, 3, DType::F16));
    let mut values = [0.0; 6];
    matrix.dequantize_rows(0..2, &mut values);
    assert_eq!(values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(weights.shape("cube").unwrap(), [2, 2, 2]);
    assert_eq!(file.tensor("quantised").unwrap().dtype, DType::Q4_1);
    assert_eq!(weights.matrix("quantised").unwrap().bytes_len(), 4 * 20);
}

#[test]
fn errors_name_file_tensor_and_shape() {
    let weights = Weights::open_gguf(&gguf());
    for (error, parts) in [
        (message(weights.matrix("absent")), ["valid.gguf", "tensor `absent` is missing"]),
        (
            message(weights.matrix("vector")),
            ["valid.gguf", "tensor `vector` should be a matrix, but has the shape [3]"],
        ),
        (message(weights.matrix("cube")), ["valid.gguf", "has the shape [2, 2, 2]"]),
        (message(weights.vector("matrix")), ["valid.gguf", "should be a vector, but has the shape [2, 3]"]),
        (message(weights.matrix_of("matrix", 3, 2)), ["valid.gguf", "of shape [3, 2], but has the shape [2, 3]"]),
        (message(weights.vector_of("vector", 4)), ["valid.gguf", "of shape [4], but has the shape [3]"]),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

/// Writes a safetensors file of f32 tensors `(name, shape)`; all elements count up from 0.
fn write_safetensors(path: &Path, tensors: &[(&str, &[usize])]) {
    let data: Vec<u8> = (0..64).flat_map(|v| (v as f32).to_le_bytes()).collect();
    let views = tensors.iter().map(|(name, shape)| {
        let len = 4 * shape.iter().product::<usize>();
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), &data[..len]).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_folder_with_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let data = [0x00, 0x3c, 0x00, 0xc0, 0x80, 0x3f, 0x00, 0xc0];
    let tensors = [
        ("half", TensorView::new(Dtype::F16, vec![2], &data[..4]).unwrap()),
        ("brain", TensorView::new(Dtype::BF16, vec![1, 2], &data[4..]).unwrap()),
        ("ids", TensorView::new(Dtype::I64, vec![1], &data).unwrap()),
        ("nothing", TensorView::new(Dtype::F32, vec![0, 5], &[]).unwrap()),
    ];
    std::fs::write(folder.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    let weights = Weights::open_safetensors(folder.path()).unwrap();
    assert_eq!(weights.vector("half").unwrap(), [1.0, -2.0]);
    let mut brain = [0.0; 2];
    weights.matrix("brain").unwrap().dequantize_rows(0..1, &mut brain);
    assert_eq!(brain, [1.0, -2.0]);
    assert!(message(weights.vector("ids")).contains("model.safetensors: tensor `ids` holds I64"));
    assert!(message(weights.matrix("nothing")).contains("tensor `nothing` is empty"));
    assert!(message(weights.vector("absent")).contains("tensor `absent` is missing"));
}

#[test]
fn a_folder_with_several_files() {
    let folder = tempfile::tempdir().unwrap();
    write_safetensors(&folder.path().join("model-00001-of-00002.safetensors"), &[("a", &[2, 3]), ("unlisted", &[1])]);
    write_safetensors(&folder.path().join("model-00002-of-00002.safetensors"), &[("b", &[4])]);
    let index = r#"{"metadata": {"total_size": 40}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let weights = Weights::open_safetensors(folder.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"], "the index decides");
    assert_eq!(weights.vector("b").unwrap(), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(weights.matrix_of("a", 2, 3).unwrap().rows(), 2);
    assert!(message(weights.vector("a")).contains("model-00001-of-00002.safetensors: tensor `a`"));
}

#[test]
fn slices_and_permutations_of_rows() {
    let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
    let matrix = Matrix::from_f32(4, 3, values);
    let slice = matrix.slice_rows(1..3);
    assert_eq!((slice.rows(), slice.cols(), slice.bytes_len()), (2, 3, 24));
    let mut out = [0.0; 2];
    slice.matvec(&[1.0, 0.0, 2.0], &mut out);
    assert_eq!(out, [13.0, 22.0]);
    slice.slice_rows(1..2).matvec(&[1.0, 0.0, 0.0], &mut out[..1]);
    assert_eq!(out[0], 6.0);
    let mut reversed = [0.0; 6];
    matrix.permute_rows(|row| 3 - row).dequantize_rows(0..2, &mut reversed);
    assert_eq!(reversed, [9.0, 10.0, 11.0, 6.0, 7.0, 8.0]);
}

/// Enough rows for several tasks: each is multiplied once and lands in its place.
#[test]
fn large_products_are_shared_out_by_rows() {
    let (rows, columns) = (1000, 70);
    let values = (0..rows * columns).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<_>>();
    let x: Vec<f32> = (0..columns).map(|i| (i % 5) as f32).collect();
    let expected: Vec<f32> = values.chunks(columns).map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum()).collect();
    let mut out = vec![f32::NAN; rows];
    Matrix::from_f32(rows, columns, values).matvec(&x, &mut out);
    assert_eq!(out, expected, "small integers are exact in any order");
}
