//! A product as the library describes it, and the kernels that it offers for one.

use std::ffi::{c_int, c_void};

use cudarc::cublaslt::{result, result::CublasError, sys};

use super::LinearShape;
use crate::{Error, ViewMut};

/// `CUBLAS_OP_T`, which the bindings of this library leave out.
const OPERATION_TRANSPOSE: i32 = 1;

pub(super) trait Context<T> {
    fn during(self, call: &'static str, details: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, CublasError> {
    fn during(self, call: &'static str, details: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|CublasError(status)| Error::Library { call, status: format!("{status:?}"), details: details() })
    }
}

/// What a choice of kernel depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub shape: LinearShape,
    pub output: sys::cudaDataType,
    pub bias: bool,
    pub accumulate: bool,
    /// Of weights, input and output.
    pub alignments: [u64; 3],
}

/// Where the operands of a product are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub weight: u64,
    pub input: u64,
    /// Zero without one.
    pub bias: u64,
    pub output: u64,
}

/// What a kernel may use and do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub workspace_bytes: usize,
    /// How kernels that split the inputs may add their parts up.
    pub reduction: sys::cublasLtReductionScheme_t,
}

/// A kernel of the library, with its parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Algorithm {
    pub algorithm: sys::cublasLtMatmulAlgo_t,
    /// Scratch memory that it takes.
    pub workspace_bytes: usize,
}

/// Descriptors of a product.
#[derive(Debug)]
pub(super) struct Product {
    key: Key,
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    input: sys::cublasLtMatrixLayout_t,
    output: sys::cublasLtMatrixLayout_t,
}

impl Drop for Product {
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

impl Product {
    /// Describes a product to the library.
    ///
    /// The library thinks in columns: a row-major matrix is its transposed. So the output, transposed, is `w x^T`, with `w` (whose
    /// columns, to the library, are the inputs of one output) transposed again.
    pub fn new(key: Key, bias: u64) -> Result<Self, Error> {
        let LinearShape { rows, inputs, outputs } = key.shape;
        let details = || format!("{key:?}");
        let null = std::ptr::null_mut;
        let no_layout = std::ptr::null_mut;
        let mut made = Self { key, product: null(), weight: no_layout(), input: no_layout(), output: no_layout() };
        let bf16 = sys::cudaDataType::CUDA_R_16BF;
        let layout = |of, rows: usize, columns: usize| {
            result::create_matrix_layout(of, rows as u64, columns as u64, rows as i64)
                .during("cublasLtMatrixLayoutCreate", details)
        };
        made.weight = layout(bf16, inputs, outputs)?;
        made.input = layout(bf16, inputs, rows)?;
        made.output = layout(key.output, outputs, rows)?;
        let (f32_sums, f32_scalars) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        made.product = result::create_matmul_desc(f32_sums, f32_scalars).during("cublasLtMatmulDescCreate", details)?;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        made.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &OPERATION_TRANSPOSE)?;
        if key.bias {
            made.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
            // The search may look at it: a bias at no address is not one that every version finds a kernel for.
            made.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(made)
    }

    /// What it was made for.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Sets an attribute, which must be of this type: the library compares sizes.
    fn set<T: Copy>(&mut self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), Error> {
        // SAFETY: the descriptor is alive, and nobody else uses it meanwhile; the value is read before the call returns.
        unsafe {
            result::set_matmul_desc_attribute(self.product, attribute, (&raw const *value).cast(), size_of::<T>())
        }
        .during("cublasLtMatmulDescSetAttribute", || format!("{attribute:?}, {:?}", self.key))
    }

    /// Up to `most` kernels within `limits`, that which the library deems fastest first; at least one.
    pub fn algorithms(
        &self,
        handle: sys::cublasLtHandle_t,
        limits: Limits,
        most: usize,
    ) -> Result<Vec<Algorithm>, Error> {
        const CALL: &str = "cublasLtMatmulAlgoGetHeuristic";
        let details = || format!("{:?}", self.key);
        let preference = Preference::new(&self.key, limits)?;
        let none = sys::cublasLtMatmulHeuristicResult_t {
            algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut found = vec![none; most];
        let (asked, mut count) = (c_int::try_from(most).unwrap_or(c_int::MAX), 0);
        // SAFETY: descriptors and preference are alive; there is room for as many results as are asked for.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                self.product,
                self.weight,
                self.input,
                self.output,
                self.output,
                preference.0,
                asked,
                found.as_mut_ptr(),
                &raw mut count,
            )
        }
        .result()
        .during(CALL, details)?;
        found.truncate(usize::try_from(count).unwrap_or(0));
        let works =
            |one: &&sys::cublasLtMatmulHeuristicResult_t| one.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        let algorithms: Vec<Algorithm> = found
            .iter()
            .filter(works)
            .map(|one| Algorithm { algorithm: one.algo, workspace_bytes: one.workspaceSize })
            .collect();
        if algorithms.is_empty() {
            return Err(CublasError(found.first().unwrap_or(&none).state)).during(CALL, details);
        }
        Ok(algorithms)
    }

    /// Queues the product.
    ///
    /// # Safety
    /// At the addresses, aligned as the key says, are matrices of its sizes, of which no other work of the device writes any; the algorithm
    /// is one of [`algorithms`](Self::algorithms), for which the scratch memory is large enough.
    pub unsafe fn queue(
        &mut self,
        handle: sys::cublasLtHandle_t,
        at: Addresses,
        algorithm: &Algorithm,
        workspace: ViewMut<'_, u8>,
        stream: sys::cudaStream_t,
    ) -> Result<(), Error> {
        if self.key.bias {
            self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.bias)?;
        }
        let (alpha, beta) = (1f32, if self.key.accumulate { 1f32 } else { 0.0 });
        // SAFETY: the matrices are the caller's; descriptors are alive; scalars are read before the call returns.
        unsafe {
            result::matmul(
                handle,
                self.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at.weight as *const c_void,
                self.weight,
                at.input as *const c_void,
                self.input,
                at.output as *const c_void,
                self.output,
                at.output as *mut c_void,
                self.output,
                &algorithm.algorithm,
                workspace.address() as *mut c_void,
                workspace.len(),
                stream,
            )
        }
        .during("cublasLtMatmul", || format!("{:?}", self.key))
    }
}

/// What a kernel is chosen by.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(key: &Key, limits: Limits) -> Result<Self, Error> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let [weight, input, output] = key.alignments.map(|bytes| bytes as u32);
        let made = Self(result::create_matmul_pref().during("cublasLtMatmulPreferenceCreate", String::new)?);
        made.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &limits.workspace_bytes)?;
        made.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &(limits.reduction as u32))?;
        made.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &weight)?;
        made.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &input)?;
        made.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &output)?;
        made.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &output)?;
        Ok(made)
    }

    /// Sets an attribute, which must be of this type: the library compares sizes.
    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), Error> {
        // SAFETY: the preference is alive; the value is read before the call returns.
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
