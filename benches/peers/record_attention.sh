#!/bin/sh
# Times dense attention of ours and of FlashAttention-3 each alone and in turns, then every case of ours, then cuDNN: one JSON object a
# line. Needs a Hopper GPU, torch, and the wheel fa3-fwd==0.0.3 on PYTHONPATH.
#   cargo build --release -p speedread-attention --example bench_attention
#   benches/peers/record_attention.sh target/release/examples/bench_attention > attention.jsonl
set -eu
bench=$1
peers="python3 $(dirname "$0")/attention.py"
for shape in "8192 128" "32768 128" "131072 128" "32768 64" "32768 96"; do
    n=${shape% *} dim=${shape#* }
    for turn in 1 2 3; do
        "$bench" --n "$n" --dim "$dim" --case dense --rounds 2
        $peers --n "$n" --dim "$dim" --library FlashAttention-3 --rounds 2
    done
done
"$bench" --rounds 2
"$bench" --n 32768 --dim 64 --rounds 2
"$bench" --n 32768 --dim 96 --rounds 2
$peers --library cuDNN --rounds 2
