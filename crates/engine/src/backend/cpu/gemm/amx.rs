//! Blocks of 32 x 32 outputs on AMX tiles (bf16 in, f32 out).
//!
//! What a tile is, and how a thread gets its own, is said at [`Tiles`]. Of the eight tiles four hold a 32 x 32 block of sums, two its rows of
//! x and two its weights, so that each step of four multiplications loads four tiles. The first cache keeps up with that, the second
//! does not; hence one operand is kept in the first ([`blocks`](super::blocks)).

use std::arch::asm;

use speedread_attention::cpu::tiles::Tiles;

use super::pack::{Line, STEP_LINES, Sums};

/// Adds the product of a strip and a panel, over `steps` steps along k, to `sums`, or starts `sums` with it if `fresh`.
///
/// `ahead` is the address and row stride of the part of the output where the sums will go: its lines are brought into the second
/// cache meanwhile, one row each step. It may be any address, as prefetching never faults.
///
/// The weights are loaded with a hint that they are not needed soon: they stream past, while `x` stays for the next panel.
///
/// # Safety
///
/// `x` and `w` point to `steps * STEP_LINES` lines.
pub(super) unsafe fn multiply(
    _tiles: &Tiles,
    x: *const Line,
    w: *const Line,
    steps: usize,
    sums: &mut Sums,
    fresh: bool,
    ahead: (*const f32, usize),
) {
    const { assert!(STEP_LINES * size_of::<Line>() == 2048 && size_of::<Sums>() == 4096) };
    // SAFETY: tiles are configured on this thread as `_tiles` exists; the lines read are the caller's promise, and `sums` holds
    // four tiles; every register written is an operand or declared.
    unsafe {
        asm!(
            "test {fresh:e}, {fresh:e}",
            "jnz 2f",
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{sums} + {line} + 1024]",
            "tileloadd tmm2, [{sums} + {line} + 2048]",
            "tileloadd tmm3, [{sums} + {line} + 3072]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "test {steps}, {steps}",
            "jz 5f",
            ".p2align 5",
            "4:",
            "tileloadd tmm4, [{x} + {line}]",
            "tileloaddt1 tmm6, [{w} + {line}]",
            "tileloadd tmm5, [{x} + {line} + 1024]",
            "tileloaddt1 tmm7, [{w} + {line} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{ahead}]",
            "prefetcht1 [{ahead} + 64]",
            "add {ahead}, {ahead_bytes}",
            "add {x}, 2048",
            "add {w}, 2048",
            "dec {steps}",
            "jnz 4b",
            "5:",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            x = inout(reg) x => _,
            w = inout(reg) w => _,
            steps = inout(reg) steps => _,
            ahead = inout(reg) ahead.0 => _,
            ahead_bytes = in(reg) 4 * ahead.1,
            line = in(reg) 64usize,
            sums = in(reg) sums,
            fresh = in(reg) u32::from(fresh),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
