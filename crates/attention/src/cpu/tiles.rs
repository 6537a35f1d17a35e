//! AMX tiles: blocks of 32 x 32 products, bf16 in, f32 out. Shared by the attention kernel and the engine's linear layers.
//!
//! A tile is 16 rows of 64 bytes. `TDPBF16PS c, a, b` adds to the 16 x 16 f32 tile `c` the product of `a`, 16 rows of 32 bf16, and `b`,
//! whose row p holds, for each of 16 columns, the bf16 values 2p and 2p + 1 (Intel 64 and IA-32 Architectures Software Developer's
//! Manual, volume 1, chapter 18). Of the eight tiles four hold a 32 x 32 block of sums, two its rows of x and two its weights, so
//! that each step of four multiplications loads four tiles, which two loads per cycle keep up with from the first cache.
//!
//! Stable Rust has no intrinsics for tiles, so the loop over k is one block of assembly. The unit has to be asked for: once per
//! process from the kernel ([`available`]), then a tile configuration per thread ([`Tiles`]).

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Values along the inner dimension of one step, and bf16 values of a line.
pub const STEP: usize = 32;
/// Lines of one step of an operand: two tiles of 16.
pub const STEP_LINES: usize = 32;

/// One row of a tile: 32 bf16 values as bits.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u16; STEP]);

impl Line {
    /// All zero.
    pub const ZERO: Line = Line([0; STEP]);
}

/// `arch_prctl` codes of Linux 5.16 (`asm/prctl.h`), which libc does not name.
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
/// Component number of tile data in the extended state.
const XFEATURE_XTILE_DATA: libc::c_long = 18;
/// Tile configuration and tile data, components 17 and 18.
const XCR0_TILES: u64 = 0b11 << 17;

/// Whether this process may use bf16 tiles, and the AVX-512 instructions that feed them. Asks the system on the first call.
pub fn available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
            && request()
    })
}

/// Whether the processor has bf16 tiles and the system grants them to this process, which this asks for.
///
/// The permission holds for all threads, including later ones. The system refuses when a thread already runs on an alternate signal
/// stack too small for tile data; the answer is then no, and another kernel serves.
fn request() -> bool {
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
#[derive(Debug)]
pub struct Tiles {
    _not_send: std::marker::PhantomData<*mut ()>,
}

impl Tiles {
    /// Configures this thread's tiles.
    ///
    /// # Safety
    ///
    /// [`available`] has answered yes, and no other `Tiles` lives on this thread.
    pub unsafe fn configure() -> Self {
        // SAFETY: tiles are permitted, and the configuration is valid for palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const FULL_TILES, options(nostack, preserves_flags, readonly)) };
        Self { _not_send: std::marker::PhantomData }
    }

    /// `out[32, 32] = start[32, 32] + x Wᵀ` over `steps` steps of 32 along the inner dimension.
    ///
    /// Line `r` of a step of `x` holds 32 values of row `r`; `x` says how far apart rows and steps are. Lines `p` and `16 + p` of a step of
    /// `w`, which is packed, hold the values `2p` and `2p + 1` of each of 16 columns. Strides of `start` and `out` are in values;
    /// stride 0 repeats one row.
    ///
    /// # Safety
    ///
    /// `x` and `w` are valid for `steps` steps, `start` and `out` point to 32 rows of 32 values at their strides; `out` is not
    /// read or written by another thread meanwhile. `start` may equal `out`.
    #[expect(clippy::too_many_arguments)]
    pub unsafe fn block(
        &self,
        x: Operand,
        w: *const Line,
        steps: usize,
        start: *const f32,
        start_stride: usize,
        out: *mut f32,
        out_stride: usize,
    ) {
        const { assert!(STEP_LINES * size_of::<Line>() == 2048) };
        // SAFETY: tiles are configured on this thread as `self` exists here; the addresses touched are the caller's promise; every
        // register written is an operand or declared.
        unsafe {
            asm!(
                // Sums: tmm0 tmm1 are rows 0..16, tmm2 tmm3 rows 16..32.
                "tileloadd tmm0, [{start} + {start_bytes}]",
                "tileloadd tmm1, [{start} + {start_bytes} + 64]",
                "tileloadd tmm2, [{start_low} + {start_bytes}]",
                "tileloadd tmm3, [{start_low} + {start_bytes} + 64]",
                "test {steps}, {steps}",
                "jz 3f",
                ".p2align 5",
                "2:",
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm7, [{w} + {line} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x_low} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {x}, {step}",
                "add {x_low}, {step}",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {w}, 2048",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                "3:",
                "tilestored [{out} + {out_bytes}], tmm0",
                "tilestored [{out} + {out_bytes} + 64], tmm1",
                "tilestored [{out_low} + {out_bytes}], tmm2",
                "tilestored [{out_low} + {out_bytes} + 64], tmm3",
                x = inout(reg) x.first => _,
                x_low = inout(reg) x.first.add(16 * x.row) => _,
                row = in(reg) 2 * x.row,
                step = in(reg) 2 * x.step,
                w = inout(reg) w => _,
                steps = inout(reg) steps => _,
                line = in(reg) 64usize,
                start = in(reg) start,
                start_low = in(reg) start.add(16 * start_stride),
                start_bytes = in(reg) 4 * start_stride,
                out = in(reg) out,
                out_low = in(reg) out.add(16 * out_stride),
                out_bytes = in(reg) 4 * out_stride,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// A left operand: 32 rows of bf16 values, in steps of 32 values.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// First value of row 0.
    pub first: *const u16,
    /// Values from a row to the next.
    pub row: usize,
    /// Values from a step to the next.
    pub step: usize,
}

impl Operand {
    /// Rows in packed lines, a step's 32 lines after another's.
    pub fn packed(lines: *const Line) -> Self {
        Operand { first: lines.cast(), row: STEP, step: STEP * STEP_LINES }
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
