//! Matrix products of linear layers, through cublasLt.
//!
//! One form serves them all: `out = x w^T (+ bias) (+ out)` of row-major matrices, bf16 in, sums in f32, bf16 or f32 out. For each shape the
//! library is asked once which of its kernels it deems fastest.

mod candidates;
mod product;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use half::bf16;

use crate::{Buffer, Error, Plain, Stream, View, ViewMut};
pub use candidates::{Candidate, Candidates};
use product::{Addresses, Algorithm, Context, Key, Limits, Product};

/// Scratch memory of the library: what its makers recommend on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Kernels may ask for addresses to be aligned to this much at most.
const LARGEST_ALIGNMENT: u64 = 256;

/// Kernels that split the inputs may by default add their parts up in the output's type, bf16; here in f32, or not split at all.
const F32_PARTS: sys::cublasLtReductionScheme_t =
    sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

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

/// The operands of a product: `out[r][o] = sum_i x[r][i] weight[o][i]`, plus `bias[o]` if there is one, plus what `out` held if `accumulate`.
#[derive(Debug)]
pub struct Linear<'a, T> {
    /// The sizes.
    pub shape: LinearShape,
    /// The input, `[rows, inputs]`.
    pub x: View<'a, bf16>,
    /// The weights, `[outputs, inputs]`.
    pub weight: View<'a, bf16>,
    /// A number for each output.
    pub bias: Option<View<'a, T>>,
    /// Whether the product is added to `out`.
    pub accumulate: bool,
    /// The output, `[rows, outputs]`.
    pub out: ViewMut<'a, T>,
}

impl<T: OutputElement> Linear<'_, T> {
    /// What the choice of a kernel depends on, and where the operands are; `None` where the output has no numbers.
    fn key(&self) -> Result<Option<(Key, Addresses)>, Error> {
        let Self { shape, x, weight, bias, accumulate, out } = self;
        let LinearShape { rows, inputs, outputs } = *shape;
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
            return Ok(None);
        }
        let at = Addresses {
            weight: weight.address(),
            input: x.address(),
            bias: bias.map_or(0, |bias| bias.address()),
            output: out.address(),
        };
        let alignment = |address: u64| (1 << address.trailing_zeros().min(63)).min(LARGEST_ALIGNMENT);
        let alignments = [at.weight, at.input, at.output].map(alignment);
        let key = Key { shape: *shape, output: T::TYPE, bias: bias.is_some(), accumulate: *accumulate, alignments };
        Ok(Some((key, at)))
    }
}

/// The library, with its scratch memory: products of one stream.
#[derive(Debug)]
pub struct Blas {
    handle: sys::cublasLtHandle_t,
    stream: Stream,
    state: Mutex<State>,
}

// SAFETY: the handle may be used from any thread, by several at a time; a call makes its context current first. Descriptors are used
// under the lock.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

#[derive(Debug)]
struct State {
    workspace: Buffer<u8>,
    /// Of each product its kernel.
    plans: HashMap<Key, (Product, Algorithm)>,
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
        let state = Mutex::new(State { workspace, plans: HashMap::new() });
        Ok(Self { handle, stream: stream.clone(), state })
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
        let Some((key, at)) = (Linear { shape, x, weight, bias, accumulate, out }).key()? else { return Ok(()) };
        let stream = self.stream.raw()?;
        // A plan is whole or absent: a thread that panicked left nothing half done.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { workspace, plans } = &mut *state;
        let (product, algorithm) = match plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(self.plan(key, at)?),
        };
        // SAFETY: the views were found to be as large and as aligned as the key says; the stream orders work on them; the kernel was chosen
        // for this scratch memory.
        unsafe { product.queue(self.handle, at, algorithm, workspace.view_mut(), stream.cast()) }
    }

    /// Describes a product to the library and takes the kernel it recommends.
    fn plan(&self, key: Key, at: Addresses) -> Result<(Product, Algorithm), Error> {
        let product = Product::new(key, at.bias)?;
        let limits = Limits { workspace_bytes: WORKSPACE_BYTES, reduction: F32_PARTS };
        let [algorithm] = product.algorithms(self.handle, limits, 1)?[..] else {
            return Err(Error::Size(format!("not one kernel for {key:?}")));
        };
        Ok((product, algorithm))
    }
}
