//! All kernels that the library offers for a product, to be run and timed one by one.

use cudarc::cublaslt::sys::cublasLtReductionScheme_t as Reduction;

use super::product::{Algorithm, Limits, Product};
use super::{Blas, F32_PARTS, Linear, OutputElement};
use crate::{Buffer, Error};

/// Kernels asked for: more than the library is known to have for a product.
const MOST: usize = 512;

/// A kernel that the library offers for a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    algorithm: Algorithm,
    /// Whether sums stay in f32 until they are complete, as those of [`Blas::linear`] do. Other kernels split the inputs and round each
    /// part's sum to the type of the output.
    pub f32_sums: bool,
}

impl Candidate {
    /// Bytes of scratch memory that it takes.
    pub fn workspace_bytes(&self) -> usize {
        self.algorithm.workspace_bytes
    }
}

/// The kernels that the library offers for one product, with memory to run each.
#[derive(Debug)]
pub struct Candidates<'b> {
    blas: &'b Blas,
    product: Product,
    list: Vec<Candidate>,
    workspace: Buffer<u8>,
}

impl Blas {
    /// All kernels that the library offers for a product of these sizes, types and alignments, with up to `workspace_bytes` bytes of scratch
    /// memory: first those with sums in f32, then others, of either that which it deems fastest first.
    ///
    /// # Errors
    /// [`Error::Size`] when the operands do not fit the shape or have no numbers, [`Error::Library`], [`Error::Driver`] when memory runs out.
    pub fn candidates<T: OutputElement>(
        &self,
        linear: &Linear<'_, T>,
        workspace_bytes: usize,
    ) -> Result<Candidates<'_>, Error> {
        let Some((key, at)) = linear.key()? else {
            return Err(Error::Size(format!("no kernels for a product without numbers: {:?}", linear.shape)));
        };
        self.stream.raw()?;
        let product = Product::new(key, at.bias)?;
        let find = |reduction| product.algorithms(self.handle, Limits { workspace_bytes, reduction }, MOST);
        let exact = find(F32_PARTS)?;
        let all = find(Reduction::CUBLASLT_REDUCTION_SCHEME_MASK)?;
        let mut list: Vec<_> = exact.iter().map(|&algorithm| Candidate { algorithm, f32_sums: true }).collect();
        let others = all.into_iter().filter(|algorithm| !exact.contains(algorithm));
        list.extend(others.map(|algorithm| Candidate { algorithm, f32_sums: false }));
        let most = list.iter().map(Candidate::workspace_bytes).max().unwrap_or(0);
        Ok(Candidates { blas: self, product, list, workspace: self.stream.alloc(most)? })
    }
}

impl Candidates<'_> {
    /// The kernels.
    pub fn list(&self) -> &[Candidate] {
        &self.list
    }

    /// Queues a product, as [`Blas::linear`] does, with kernel `n` of the list.
    ///
    /// # Errors
    /// [`Error::Size`] when it is not the product that the kernels are for or there is no such kernel; [`Error::Library`] also for a kernel
    /// that the library offered and then refuses to run.
    pub fn linear<T: OutputElement>(&mut self, n: usize, linear: Linear<'_, T>) -> Result<(), Error> {
        let known = linear.key()?.filter(|(key, _)| key == self.product.key());
        let (Some((_, at)), Some(candidate)) = (known, self.list.get(n)) else {
            return Err(Error::Size(format!(
                "kernel {n} of {}, which are for {:?}, cannot run a product of {:?}",
                self.list.len(),
                self.product.key(),
                linear.shape
            )));
        };
        let stream = self.blas.stream.raw()?;
        // SAFETY: the views were found to be as large and as aligned as the key says; the stream orders work on them; the scratch memory is
        // that of the most demanding kernel.
        unsafe {
            self.product.queue(self.blas.handle, at, &candidate.algorithm, self.workspace.view_mut(), stream.cast())
        }
    }
}
