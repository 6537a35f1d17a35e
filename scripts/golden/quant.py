"""Makes crates/engine/tests/golden/quant.safetensors: random blocks of every block format and their values by gguf-py.

    pip install gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
    python scripts/golden/quant.py

Of each format two tensors: `Q4_K.blocks` (bytes) and `Q4_K.values` (f32), three tiles of 256 elements.
"""
import importlib.metadata
import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).parents[2] / "crates/engine/tests/golden/quant.safetensors"
ELEMENTS = 768

# Where a block holds floats of 16 bits: random bytes there would be NaN or infinity now and then.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip

rng = np.random.default_rng(2407)
tensors = {}
for name, halves in HALVES.items():
    kind = gguf.GGMLQuantizationType[name]
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ELEMENTS // block_len, block_bytes), dtype=np.uint8)
    for at in halves:
        # Both signs, from subnormal (usual for K formats) to large.
        scale = rng.normal(size=len(blocks)) * 10.0 ** rng.uniform(-7, 1, len(blocks))
        blocks[:, at : at + 2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    tensors[f"{name}.blocks"] = blocks.reshape(-1)
    tensors[f"{name}.values"] = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(-1)

# Every kind of 16-bit float, infinities and NaN apart.
bits = np.concatenate([rng.integers(0, 1 << 16, 250, dtype=np.uint16), [0, 1, 0x03FF, 0x0400, 0x8001, 0x8000]])
bits = bits.astype(np.uint16)
for name, exponent in ("F16", 0x7C00), ("BF16", 0x7F80):
    finite = bits[(bits & exponent) != exponent]
    tensors[f"{name}.blocks"] = finite.view(np.uint8)
    values = gguf.quants.dequantize(finite.view(np.uint8), gguf.GGMLQuantizationType[name])
    tensors[f"{name}.values"] = values.astype(np.float32)

# One entry: with several, the library's order changes from run to run.
versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("gguf", "numpy", "safetensors"))
OUT.parent.mkdir(parents=True, exist_ok=True)
save_file(tensors, OUT, metadata={"versions": versions})
print(OUT, OUT.stat().st_size, "bytes", versions)
