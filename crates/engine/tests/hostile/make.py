"""Makes the files of this folder: damaged and hostile models, and `valid.gguf`, from which tests make more.

    pip install gguf==0.19.0 numpy==2.4.6
    python crates/engine/tests/hostile/make.py

`expected.tsv` says of each what the error has to say. Everything but `valid.gguf`, which gguf-py writes, is put together
byte by byte here.
"""

import json
import pathlib
import shutil
import struct

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
U64_MAX = (1 << 64) - 1
expected = {}


def u32(v):
    return struct.pack("<I", v)


def u64(v):
    return struct.pack("<Q", v)


def text(v):
    raw = v if isinstance(v, bytes) else v.encode()
    return u64(len(raw)) + raw


def entry(key, kind, value):
    return text(key) + u32(kind) + value


def tensor(name="w", dims=(32, 2), kind=0, offset=0):
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def model(entries=(), tensors=(), data=256, version=3, entry_count=None, tensor_count=None, alignment=32):
    head = b"GGUF" + u32(version)
    head += u64(len(tensors) if tensor_count is None else tensor_count)
    head += u64(len(entries) if entry_count is None else entry_count)
    head += b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment + data)


def bad_gguf(name, content, error):
    (HERE / f"{name}.gguf").write_bytes(content)
    expected[f"{name}.gguf"] = error


def bad_folder(name, error, **files):
    folder = HERE / name
    folder.mkdir()
    for file, content in files.items():
        file = {
            "single": "model.safetensors",
            "index": "model.safetensors.index.json",
            "shard": "model-00001-of-00001.safetensors",
            "pickle": "pytorch_model.bin",
        }[file]
        (folder / file).write_bytes(content)
    expected[name] = error


def safetensors(header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return u64(len(raw)) + raw + data


def info(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


for old in HERE.iterdir():
    if old.is_dir():
        shutil.rmtree(old)
    elif old.suffix == ".gguf":
        old.unlink()

# GGUF: the header
bad_gguf("empty", b"", "not a GGUF file")
bad_gguf("magic-wrong", b"GGML" + bytes(60), "not a GGUF file")
bad_gguf("magic-only", b"GGUF", "truncated")
bad_gguf("version-1", b"GGUF" + u32(1) + bytes(16), "version 1 is obsolete")
bad_gguf("version-4", model(version=4), "version 4 is not supported")
bad_gguf("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian")
bad_gguf("counts-missing", b"GGUF" + u32(3) + u64(1), "truncated")

# GGUF: metadata
bad_gguf("entries-too-many", model(entry_count=U64_MAX), "metadata")
bad_gguf("key-too-long", model([u64(1 << 40) + b"key"]), "metadata entry 1 of 1: 1099511627776 bytes are needed")
bad_gguf("key-longest", model([u64(U64_MAX) + b"key"]), "metadata entry 1 of 1")
bad_gguf("key-not-utf8", model([entry(b"\xff\xfe", 4, u32(1))]), "not UTF-8")
bad_gguf("key-with-escapes", model([entry("\x1b[2J", 7, b"\x02")]), "key `\\u{1b}[2J`")
bad_gguf("key-long", model([entry("k" * 9999, 7, b"\x02")]), "key `" + "k" * 100 + "...`")
bad_gguf("key-twice", model([entry("a", 4, u32(1)), entry("a", 4, u32(2))]), "`a` occurs twice")
bad_gguf("value-type-unknown", model([entry("a", 13, bytes(16))]), "`a`: value type 13 does not exist")
bad_gguf("value-missing", model([entry("a", 12, b"")], data=0, alignment=1), "`a`")
bad_gguf("string-too-long", model([entry("a", 8, u64(1 << 62))]), "`a`: 4611686018427387904 bytes are needed")
bad_gguf("string-not-utf8", model([entry("a", 8, text(b"\x80"))]), "`a`: the string at offset")
bad_gguf("bool-2", model([entry("a", 7, b"\x02")]), "a boolean holds 2")
bad_gguf("array-too-long", model([entry("a", 9, u32(4) + u64(1 << 60))]), "`a`: 4611686018427387904 bytes")
bad_gguf("array-overflow", model([entry("a", 9, u32(10) + u64(1 << 61))]), "overflows")
bad_gguf("array-of-strings-too-long", model([entry("a", 9, u32(8) + u64(1 << 61))]), "does not fit")
bad_gguf("array-of-arrays", model([entry("a", 9, u32(9) + u64(1) + u32(9) + u64(1))]), "arrays of arrays")
bad_gguf("array-type-unknown", model([entry("a", 9, u32(99) + u64(1))]), "array element type 99")
bad_gguf("alignment-0", model([entry("general.alignment", 4, u32(0))]), "power of two, but is 0")
bad_gguf("alignment-3", model([entry("general.alignment", 4, u32(3))]), "power of two, but is 3")
bad_gguf("alignment-text", model([entry("general.alignment", 8, text("32"))]), "power of two, but is a string")
bad_gguf("alignment-huge", model([entry("general.alignment", 10, u64(1 << 63))], [tensor()]), "`w`: its 256 bytes")
bad_gguf("split", model([entry("split.count", 2, struct.pack("<H", 3))]), "split into 3 files")

# GGUF: the tensor table
bad_gguf("tensors-too-many", model(tensor_count=U64_MAX, data=0, alignment=1), "entry 1 of")
bad_gguf("tensor-twice", model([], [tensor(), tensor()]), "tensor `w` occurs twice")
bad_gguf("tensor-name-too-long", model([], [u64(1 << 50)]), "entry 1 of 1 of the tensor table")
bad_gguf("dimensions-0", model([], [tensor(dims=())]), "`w`: 0 dimensions")
bad_gguf("dimensions-5", model([], [tensor(dims=(1, 1, 1, 1, 1))]), "`w`: 5 dimensions")
bad_gguf("dimensions-max", model([], [text("w") + u32(0xFFFFFFFF)]), "`w`: 4294967295 dimensions")
bad_gguf("dimension-zero", model([], [tensor(dims=(32, 0))]), "is zero")
bad_gguf("dimensions-overflow", model([], [tensor(dims=(1 << 32, 1 << 31, 1 << 31, 32))]), "overflow")
bad_gguf("row-overflow", model([], [tensor(dims=(1 << 63,))]), "overflow")
bad_gguf("row-not-whole-blocks", model([], [tensor(dims=(100, 2), kind=12)]), "not whole Q4_K blocks of 256")
bad_gguf("type-unknown", model([], [tensor(kind=4_000_000)]), "type 4000000 (unknown) is not supported")
bad_gguf("type-unsupported", model([], [tensor(kind=23)]), "type 23 (IQ4_XS) is not supported")
bad_gguf("offset-unaligned", model([], [tensor(offset=8)]), "not a multiple of the file's alignment 32")
bad_gguf("offset-past-the-end", model([], [tensor(offset=1 << 20)]), "lie outside the file")
bad_gguf("offset-overflow", model([], [tensor(offset=U64_MAX - 31)]), "lie outside the file")
bad_gguf("data-truncated", model([], [tensor()], data=255), "truncated")
bad_gguf("data-missing", model([], [tensor()], data=0)[:-8], "truncated")

# safetensors
good = info()
bad_folder("st-empty", "too few", single=b"")
bad_folder("st-short", "too few", single=bytes(7))
bad_folder("st-header-truncated", "truncated", single=safetensors({"w": good})[:30])
bad_folder("st-header-huge", "not plausible", single=u64(U64_MAX) + b"{}")
bad_folder("st-header-not-json", "the header of the file is wrong", single=safetensors(b"{nope"))
bad_folder("st-header-not-utf8", "the header of the file is wrong", single=safetensors(b'{"\xff": 1}'))
bad_folder("st-header-nested", "the header of the file is wrong", single=safetensors(b'{"a":' * 2000))
bad_folder("st-header-array", "the header of the file is wrong", single=safetensors(b"[]"))
bad_folder("st-dtype-unknown", "the header of the file is wrong", single=safetensors({"w": info("Q4")}, bytes(16)))
bad_folder("st-shape-negative", "the header of the file is wrong", single=safetensors({"w": info(shape=(-2, 2))}, bytes(16)))
bad_folder("st-shape-wrong", "the header of the file is wrong", single=safetensors({"w": info(shape=(2, 3))}, bytes(16)))
bad_folder(
    "st-shape-overflow",
    "the header of the file is wrong",
    single=safetensors({"w": info(shape=(1 << 33, 1 << 33))}, bytes(16)),
)
bad_folder("st-offsets-reversed", "the header of the file is wrong", single=safetensors({"w": info(offsets=(16, 0))}, bytes(16)))
bad_folder(
    "st-offsets-overlap",
    "the header of the file is wrong",
    single=safetensors({"v": good, "w": info(offsets=(8, 24))}, bytes(24)),
)
bad_folder("st-offsets-gap", "the header of the file is wrong", single=safetensors({"w": info(offsets=(8, 24))}, bytes(24)))
# Together 2^64 - 8 bytes: adding the length of the header overflows.
step = (1 << 61) - 1
huge = {str(i): info("U8", (step,), (i * step, (i + 1) * step)) for i in range(8)}
bad_folder("st-offsets-huge", "bytes of data, but the file has 0", single=safetensors(huge))
bad_folder("st-data-truncated", "asks for 16 bytes of data, but the file has 15", single=safetensors({"w": good}, bytes(15)))
bad_folder("st-data-trailing", "asks for 16 bytes of data, but the file has 17", single=safetensors({"w": good}, bytes(17)))

# safetensors in several files
shard = safetensors({"w": good}, bytes(16))
SHARD = "model-00001-of-00001.safetensors"


def index(weight_map):
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


bad_folder("index-empty", "not an index", index=b"")
bad_folder("index-not-json", "not an index", index=b"\x00\x01\x02")
bad_folder("index-truncated", "not an index", index=index({"w": SHARD})[:-9])
bad_folder("index-no-map", "not an index", index=b'{"metadata": {}}')
bad_folder("index-map-of-numbers", "not an index", index=b'{"weight_map": {"w": 1}}')
bad_folder("index-parent", "which is not a file name", index=index({"w": "../secret.safetensors"}))
bad_folder("index-absolute", "which is not a file name", index=index({"w": "/etc/passwd"}))
bad_folder("index-nothing", "which is not a file name", index=index({"w": ""}))
bad_folder("index-folder", "which is not a file name", index=index({"w": "."}))
bad_folder("index-file-missing", "model-00002", index=index({"w": "model-00002-of-00002.safetensors"}), shard=shard)
bad_folder("index-tensor-missing", f"tensor `v` is not in `{SHARD}`", index=index({"v": SHARD}), shard=shard)
bad_folder("index-shard-damaged", "truncated", index=index({"w": SHARD}), shard=shard[:-1])
bad_folder("weights-pickled", "convert them to safetensors", pickle=b"\x80\x02")

lines = [f"{name}\t{error}\n" for name, error in sorted(expected.items())]
(HERE / "expected.tsv").write_text("".join(lines))

# A valid file with every type of value, and tensors of one, two and three dimensions.
writer = gguf.GGUFWriter(HERE / "valid.gguf", "llama")
writer.add_uint8("u8", 200)
writer.add_int8("i8", -100)
writer.add_uint16("u16", 60000)
writer.add_int16("i16", -30000)
writer.add_uint32("u32", 4_000_000_000)
writer.add_int32("i32", -2_000_000_000)
writer.add_uint64("u64", 1 << 63)
writer.add_int64("i64", -(1 << 62))
writer.add_float32("f32", 0.25)
writer.add_float64("f64", -1e100)
writer.add_bool("yes", True)
writer.add_bool("no", False)
writer.add_string("text", "naïve ☃")
writer.add_array("strings", ["", "a", "ĠĊ"])
writer.add_array("integers", [1, -2, 3])
writer.add_array("floats", [0.5, -1.5])
writer.add_array("bools", [True, False])
rng = np.random.default_rng(1)
writer.add_tensor("vector", np.arange(3, dtype=np.float32))
writer.add_tensor("matrix", np.arange(6, dtype=np.float16).reshape(2, 3))
writer.add_tensor("cube", np.zeros((2, 2, 2), np.float32))
values = rng.normal(size=(2, 64)).astype(np.float32)
writer.add_tensor("quantised", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1), raw_dtype=gguf.GGMLQuantizationType.Q4_1)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
print(len(expected), "bad models;", (HERE / "valid.gguf").stat().st_size, "bytes of valid.gguf")
