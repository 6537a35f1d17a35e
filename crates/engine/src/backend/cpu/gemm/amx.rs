//! Blocks of 32 x 32 outputs on AMX tiles (bf16 in, f32 out).
//!
//! A tile is 16 rows of 64 bytes. `TDPBF16PS c, a, b` adds to the 16 x 16 f32 tile `c` the product of `a`, 16 rows of 32 bf16, and `b`,
//! whose row p holds, for each of 16 columns, the bf16 values 2p and 2p + 1 (Intel 64 and IA-32 Architectures Software Developer's
//! Manual, volume 1, chapter 18). Of the eight tiles four hold a 32 x 32 block of sums, two its rows of x and two its weights, so
//! that each step of four multiplications loads four tiles. The first cache keeps up with that, the second does not; hence one operand
//! is kept in the first ([`blocks`](super::blocks)).
//!
//! Stable Rust has no intrinsics for tiles, so the loop over k is one block of assembly. The unit has to be asked for: once per
//! process from the kernel ([`request`]), then a tile configuration per thread ([`Tiles`]).

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

use super::pack::{Line, STEP_LINES, Sums};

/// `arch_prctl` codes of Linux 5.16 (`asm/prctl.h`), which libc does not name.
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
/// Component number of tile data in the extended state.
const XFEATURE_XTILE_DATA: libc::c_long = 18;
/// Tile configuration and tile data, components 17 and 18.
const XCR0_TILES: u64 = 0b11 << 17;

/// Whether the processor has bf16 tiles and the system grants them to this process, which this asks for.
///
/// The permission holds for all threads, including later ones. The system refuses when a thread already runs on an alternate signal
/// stack too small for tile data; the answer is then no, and another kernel serves.
pub(super) fn request() -> bool {
    if __cpuid(0).eax < 7 {
        return false;
    }
    let leaf1_ecx = __cpuid(1).ecx;
    let leaf7_edx = __cpuid_count(7, 0).edx;
    let (osxsave, amx_bf16, amx_tile) = (leaf1_ecx >> 27 & 1, leaf7_edx >> 22 & 1, leaf7_edx >> 24 & 1);
    if osxsave & amx_bf16 & amx_tile == 0 {
        return false;
    }
    // SAFETY: OSXSAVE is set, so XGETBV exists.
    if unsafe { extended_control_register() } & XCR0_TILES != XCR0_TILES {
        return false;
    }
    // SAFETY: this system call takes two integers and changes only what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) == 0 }
}

/// # Safety
///
/// The processor has XGETBV.
#[target_feature(enable = "xsave")]
unsafe fn extended_control_register() -> u64 {
    // SAFETY: register 0 always exists where XGETBV does.
    unsafe { _xgetbv(0) }
}

/// Memory operand of `LDTILECFG`.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles at full size.
static FULL_TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The tile configuration of the current thread, while this lives. It belongs to the thread, so this can not move to another, and
/// nothing that may run foreign code (a rayon call, for one) belongs between its making and its end. Released tiles cost the system
/// no time at a context switch.
pub(super) struct Tiles {
    _not_send: std::marker::PhantomData<*mut ()>,
}

impl Tiles {
    /// # Safety
    ///
    /// [`request`] has answered yes, and no other `Tiles` lives on this thread.
    pub(super) unsafe fn configure() -> Self {
        // SAFETY: tiles are permitted, and the configuration is valid for palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const FULL_TILES, options(nostack, preserves_flags, readonly)) };
        Self { _not_send: std::marker::PhantomData }
    }

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
        &self,
        x: *const Line,
        w: *const Line,
        steps: usize,
        sums: &mut Sums,
        fresh: bool,
        ahead: (*const f32, usize),
    ) {
        const { assert!(STEP_LINES * size_of::<Line>() == 2048 && size_of::<Sums>() == 4096) };
        // SAFETY: tiles are configured on this thread as `self` exists here; the lines read are the caller's promise, and `sums` holds
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
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles are permitted, as `self` was made.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }
}
