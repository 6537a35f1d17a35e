//! Matrix products of linear layers, through cublasLt.
//!
//! One form serves them all: `out = x w^T (+ bias) (+ out)` of row-major matrices, bf16 in, sums in f32, bf16 or f32 out. For each shape the
//! library is asked once which of its kernels it deems fastest.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, result::CublasError, sys};
use half::bf16;

use crate::{Buffer, Error, Plain, Stream, View, ViewMut};

/// Scratch memory of the library: what its makers recommend on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Kernels may ask for addresses to be aligned to this much at most.
const LARGEST_ALIGNMENT: u64 = 256;

/// `CUBLAS_OP_T`, which the bindings of this library leave out.
const OPERATION_TRANSPOSE: i32 = 1;

/// Element types of a product's output, and of its bias.
pub trait OutputElement: Plain {
    #[doc(hidden)]
    const TYPE: sys::cudaDataType;
}
impl OutputElement for bf16 {
    const TYPE: sys::cudaDataType = sys::cudaDataType::CUDA_R_16BF;
}
impl OutputElement for f32 {
    const TYPE: sys::cudaDataType = sys::cudaDataType::CUDA_R_32F;
}

/// The sizes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinearShape {
    /// Rows of the input and of the output.
    pub rows: usize,
    /// Columns of the input: of the weights too.
    pub inputs: usize,
    /// Rows of the weights: columns of the output.
    pub outputs: usize,
}

/// What a choice of kernel depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    shape: LinearShape,
    f32_out: bool,
    bias: bool,
    accumulate: bool,
    /// Of weights, input and output.
    alignments: [u64; 3],
}

/// The library, with its scratch memory: products of one stream.
#[derive(Debug)]
pub struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: Stream,
    workspace: Buffer<u8>,
    plans: Mutex<HashMap<Key, Plan>>,
}

// SAFETY: the handle may be used from any thread, by several at a time; a call makes its context current first. Descriptors are only read
// after they were made.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// Descriptors of a product and the kernel chosen for it.
#[derive(Debug)]
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    input: sys::cublasLtMatrixLayout_t,
    output: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made once and is destroyed once, or was not made. A drop cannot report.
        unsafe {
            if !self.product.is_null() {
                let _ = result::destroy_matmul_desc(self.product);
            }
            for layout in [self.weight, self.input, self.output].into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // A drop cannot report.
        if self.stream.raw().is_ok() {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

trait Context<T> {
    fn during(self, call: &'static str, details: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, CublasError> {
    fn during(self, call: &'static str, details: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|CublasError(status)| Error::Library { call, status: format!("{status:?}"), details: details() })
    }
}

impl Blas {
    /// Opens the library for products in `stream`.
    ///
    /// # Errors
    /// [`Error::NoLibrary`] when cublasLt is not installed, [`Error::Library`], [`Error::Driver`].
    pub fn new(stream: &Stream) -> Result<Self, Error> {
        // SAFETY: only tries to load the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoLibrary { library: "cublasLt", major: 13 });
        }
        let workspace = stream.alloc(WORKSPACE_BYTES)?;
        let handle = result::create_handle().during("cublasLtCreate", String::new)?;
        Ok(Self { handle, stream: stream.clone(), workspace, plans: Mutex::default() })
    }

    /// Queues `out[r][o] = sum_i x[r][i] w[o][i]`, plus `bias[o]` if there is one, plus what `out` held if `accumulate`.
    ///
    /// # Errors
    /// [`Error::Size`] when the views do not fit the shape, [`Error::Library`].
    pub fn linear<T: OutputElement>(
        &self,
        shape: LinearShape,
        x: View<'_, bf16>,
        weight: View<'_, bf16>,
        bias: Option<View<'_, T>>,
        accumulate: bool,
        out: ViewMut<'_, T>,
    ) -> Result<(), Error> {
        let LinearShape { rows, inputs, outputs } = shape;
        let fits = |len: usize, a: usize, b: usize| a.checked_mul(b) == Some(len);
        if !(fits(x.len(), rows, inputs) && fits(weight.len(), outputs, inputs) && fits(out.len(), rows, outputs))
            || bias.is_some_and(|bias| bias.len() != outputs)
        {
            return Err(Error::Size(format!(
                "a product of {shape:?} with an input of {}, weights of {}, a bias of {:?} and an output of {}",
                x.len(),
                weight.len(),
                bias.map(|bias| bias.len()),
                out.len()
            )));
        }
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        let alignment = |address: u64| (1 << address.trailing_zeros().min(63)).min(LARGEST_ALIGNMENT);
        let key = Key {
            shape,
            f32_out: T::TYPE == sys::cudaDataType::CUDA_R_32F,
            bias: bias.is_some(),
            accumulate,
            alignments: [weight.address(), x.address(), out.address()].map(alignment),
        };
        let bias_address = bias.map_or(0, |bias| bias.address());
        let stream = self.stream.raw()?;
        // A plan is whole or absent: a thread that panicked left nothing half done.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(self.plan(&key, T::TYPE, bias_address)?),
        };
        let details = || format!("{shape:?}, bias {}, accumulate {accumulate}", bias.is_some());
        if key.bias {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            // SAFETY: the descriptor is alive, and nobody else uses it while the plans are locked; the attribute is an address.
            unsafe { set(plan.product, attribute, &bias_address) }.during("cublasLtMatmulDescSetAttribute", details)?;
        }
        let (alpha, beta) = (1f32, if accumulate { 1f32 } else { 0.0 });
        // SAFETY: the descriptors say how large the matrices are, and the views were found to be so; the kernel was chosen for at least these
        // alignments; scalars are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                weight.address() as *const c_void,
                plan.weight,
                x.address() as *const c_void,
                plan.input,
                out.address() as *const c_void,
                plan.output,
                out.address() as *mut c_void,
                plan.output,
                &plan.algorithm,
                self.workspace.view().address() as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        }
        .during("cublasLtMatmul", details)
    }

    /// Describes a product to the library and takes the kernel it recommends.
    ///
    /// The library thinks in columns: a row-major matrix is its transposed. So the output, transposed, is `w x^T`, with `w` (whose
    /// columns, to the library, are the inputs of one output) transposed again.
    fn plan(&self, key: &Key, output: sys::cudaDataType, bias: u64) -> Result<Plan, Error> {
        let LinearShape { rows, inputs, outputs } = key.shape;
        let details = || format!("{key:?}");
        let null = std::ptr::null_mut;
        let no_layout = std::ptr::null_mut;
        // SAFETY: an array of numbers that the library fills.
        let algorithm = unsafe { std::mem::zeroed() };
        let mut plan =
            Plan { product: null(), weight: no_layout(), input: no_layout(), output: no_layout(), algorithm };
        let bf16 = sys::cudaDataType::CUDA_R_16BF;
        let layout = |of, rows: usize, columns: usize| {
            result::create_matrix_layout(of, rows as u64, columns as u64, rows as i64)
                .during("cublasLtMatrixLayoutCreate", details)
        };
        plan.weight = layout(bf16, inputs, outputs)?;
        plan.input = layout(bf16, inputs, rows)?;
        plan.output = layout(output, outputs, rows)?;
        let (f32_sums, f32_scalars) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        plan.product = result::create_matmul_desc(f32_sums, f32_scalars).during("cublasLtMatmulDescCreate", details)?;
        let transposed = OPERATION_TRANSPOSE;
        let transpose = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the descriptor was just made; the attributes have these types.
        unsafe {
            set(plan.product, transpose, &transposed).during("cublasLtMatmulDescSetAttribute", details)?;
            if key.bias {
                let with_bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                let epilogue = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE;
                set(plan.product, epilogue, &with_bias).during("cublasLtMatmulDescSetAttribute", details)?;
                // The search may look at it: a bias at no address is not one that every version finds a kernel for.
                let address = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                set(plan.product, address, &bias).during("cublasLtMatmulDescSetAttribute", details)?;
            }
        }
        let preference = Preference(result::create_matmul_pref().during("cublasLtMatmulPreferenceCreate", details)?);
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let alignments = [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.alignments[0]),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.alignments[1]),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.alignments[2]),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.alignments[2]),
        ];
        // SAFETY: the preference and the descriptors are alive; the attributes have these types.
        let found = unsafe {
            preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
            // Kernels that split the inputs may by default add their parts up in the output's type, bf16; here in f32, or not split at all.
            let parts_in_f32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
            preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &parts_in_f32)?;
            for (attribute, bytes) in alignments {
                preference.set(attribute, &(bytes as u32))?;
            }
            result::get_matmul_algo_heuristic(
                self.handle,
                plan.product,
                plan.weight,
                plan.input,
                plan.output,
                plan.output,
                preference.0,
            )
        }
        .during("cublasLtMatmulAlgoGetHeuristic", details)?;
        plan.algorithm = found.algo;
        Ok(plan)
    }
}

/// # Safety
/// The descriptor is alive and not in use elsewhere; the attribute is of this type.
unsafe fn set<T>(
    product: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<(), CublasError> {
    // SAFETY: the caller's.
    unsafe { result::set_matmul_desc_attribute(product, attribute, (&raw const *value).cast(), size_of::<T>()) }
}

/// What a kernel is chosen by.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// # Safety
    /// The attribute is of this type.
    unsafe fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), Error> {
        // SAFETY: the preference is alive; the type is the caller's.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, (&raw const *value).cast(), size_of::<T>()) }
            .during("cublasLtMatmulPreferenceSetAttribute", || format!("{attribute:?}"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. A drop cannot report.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
