#!/usr/bin/env python3
"""Dense causal attention of other libraries on a GPU: FlashAttention-3 (the wheel fa3-fwd, on PYTHONPATH), and torch's kernels of cuDNN and of
FlashAttention-2.

A server for compare.py. The first line it prints says which libraries there are, of which version, and why others are not. Then for every line

    {"library": NAME, "n": TOKENS, "dim": HEAD_DIM, "heads": QUERY_HEADS, "kv_heads": KEY_HEADS, "warm_up": SECONDS, "runs": RUNS}

on its input it prints {"ms": [device time of each run]} or {"error": WHY}.
"""
import importlib.metadata
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def sdpa(backend):
    def make(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))

        def call():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return call
    return make


def libraries():
    found, missing = {}, {}
    try:
        import fa3_fwd_interface
        found["FlashAttention-3"] = lambda q, k, v: lambda: fa3_fwd_interface.flash_attn_func(q, k, v, causal=True)
    except ImportError as error:
        missing["FlashAttention-3"] = f"{error}; pip install fa3-fwd==0.0.3"
    found["cuDNN"] = sdpa(SDPBackend.CUDNN_ATTENTION)
    found["FlashAttention-2"] = sdpa(SDPBackend.FLASH_ATTENTION)
    return found, missing


def versions():
    """Versions of the packages that the libraries come in; of those that say it."""
    found = {}
    for package in ("fa3-fwd", "torch", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def timed(call, runs):
    times = []
    for _ in range(runs):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return times


def answer(found, request):
    n, dim = request["n"], request["dim"]
    torch.manual_seed(n)
    q, k, v = (torch.randn(1, n, heads, dim, device="cuda", dtype=torch.bfloat16)
               for heads in (request["heads"], request["kv_heads"], request["kv_heads"]))
    try:
        call = found[request["library"]](q, k, v)
        # Clocks rise, and fall again where power is limited.
        until = time.monotonic() + request["warm_up"]
        while time.monotonic() < until:
            timed(call, 1)
        return {"ms": timed(call, request["runs"])}
    except RuntimeError as error:
        # Not every library takes every shape.
        return {"error": str(error).splitlines()[0]}
    finally:
        del q, k, v
        # Others need the memory.
        torch.cuda.empty_cache()


def main():
    if not torch.cuda.is_available():
        sys.exit("libraries.py: torch finds no CUDA device")
    found, missing = libraries()
    print(json.dumps({"libraries": list(found), "missing": missing, "versions": versions(), "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(found, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
