#!/usr/bin/env python3
"""Dense causal attention of other libraries, timed on the shapes of the example bench_attention: a JSON object a line.

FlashAttention-3 comes from the wheel fa3-fwd (on PYTHONPATH), cuDNN's and FlashAttention-2's kernels from torch. TFLOPS count
4 * n * n / 2 * dim * heads. Times are medians of device time; the libraries take turns, so that the clock drifts for all alike. A library
after one that draws less power finds a higher clock: to compare two, run each alone (--library), in turns.
"""
import argparse, json, statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def sdpa(backend, q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))

    def call():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return call


def candidates(q, k, v):
    found = {}
    try:
        import fa3_fwd_interface
        found["FlashAttention-3 (fa3-fwd)"] = lambda: fa3_fwd_interface.flash_attn_func(q, k, v, causal=True)
    except ImportError as error:
        print(json.dumps({"skipped": f"fa3-fwd: {error}"}))
    found["cuDNN (torch)"] = sdpa(SDPBackend.CUDNN_ATTENTION, q, k, v)
    found["FlashAttention-2 (torch)"] = sdpa(SDPBackend.FLASH_ATTENTION, q, k, v)
    return found


def timed(call, repeats):
    times = []
    for _ in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", default="8192,32768,131072")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--library", default="", help="only libraries whose name starts so")
    a = parser.parse_args()
    for n in map(int, a.n.split(",")):
        torch.manual_seed(n)
        q, k, v = (torch.randn(1, n, heads, a.dim, device="cuda", dtype=torch.bfloat16) for heads in (a.heads, a.kv_heads, a.kv_heads))
        calls = {name: call for name, call in candidates(q, k, v).items() if name.startswith(a.library)}
        times = {name: [] for name in calls}
        repeats = 20
        for call in calls.values():
            timed(call, 1)
            repeats = max(2, min(repeats, int(60 / timed(call, 1)[0])))
        for _ in range(a.rounds):
            for name, call in calls.items():
                times[name] += timed(call, repeats)
        for name, each in times.items():
            ms = statistics.median(each)
            print(json.dumps({
                "device": torch.cuda.get_device_name(), "element": "bf16", "n": n, "heads": a.heads, "kv_heads": a.kv_heads, "dim": a.dim,
                "case": "dense", "library": name, "ms": ms, "least_ms": min(each),
                "causal_tflops": 4 * n * n / 2 * a.dim * a.heads / ms / 1e9,
            }), flush=True)


if __name__ == "__main__":
    main()
