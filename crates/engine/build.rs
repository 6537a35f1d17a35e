//! Compiles the CUDA kernels.

fn main() {
    speedread_cuda_build::compile("kernels");
}
