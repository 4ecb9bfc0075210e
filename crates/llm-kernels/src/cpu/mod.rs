//! What the fast paths on the CPU are built from: matmuls, vectorised loops, threads and uninitialised output.

pub(crate) mod columns;
pub(crate) mod gemm;
pub(crate) mod node;
pub(crate) mod prefetch;
pub(crate) mod rounding;
pub(crate) mod rows;
pub(crate) mod simd;
pub(crate) mod softmax;
pub(crate) mod storage;
pub(crate) mod threads;
pub(crate) mod uninit;
pub(crate) mod unit;

pub(crate) use storage::{contiguous, cpu_slice};
