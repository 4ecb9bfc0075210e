//! The linear layer on the CPU in f32, with weights in f32, bf16 or f16.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::cpu::gemm::{AnyMatrix, Element, GemmOptions, Matrix, Precision, matmul, matmul_into};
use crate::cpu::{contiguous, cpu_slice};
use crate::ops::few_rows::{FEW_ROWS, FewRowsWeight, few_rows};

/// The fused linear layer, also with a residual.
pub(super) struct Linear {
    dx: bool,
    dw: bool,
    shape: Vec<usize>,
    precision: Precision,
}

impl Linear {
    /// `None` if the reference implementation must run.
    pub fn new(x: &Tensor, w: &Tensor, shape: &[usize], precision: Precision) -> Option<Self> {
        let w_is_bf16 = w.dtype() == DType::BF16 && w.device().is_cpu();
        if !crate::is_fused(x) || !(w_is_bf16 || crate::is_fused(w)) {
            return None;
        }
        let precision = if w_is_bf16 { Precision::for_bf16_weights() } else { precision };
        Some(Self { dx: x.track_op(), dw: w.track_op(), shape: shape.to_vec(), precision })
    }

    fn forward(&self, x: &[f32], w: WeightSlice, (m, k): (usize, usize), residual: Option<&[f32]>) -> Vec<f32> {
        let n = self.shape.iter().product::<usize>().checked_div(m).unwrap_or_default();
        w.forward(x, [n, k, m], residual, GemmOptions::all_threads(self.precision))
    }

    // dx = dy · w,  dw = dyᵀ · x.
    fn backward(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((xs, xl), (ws, wl), (ds, dl)) = (x.storage_and_layout(), w.storage_and_layout(), dy.storage_and_layout());
        let (m, k) = w.dims2()?;
        let n = dy.elem_count().checked_div(m).unwrap_or_default();
        let x_rows = Matrix::new(cpu_slice(&xs, xl)?, n, k);
        let dy_rows = Matrix::new(cpu_slice(&ds, dl)?, n, m);
        let Storage::Cpu(ws) = &*ws else { bail!("linear: the weight is not in CPU memory") };
        let options = GemmOptions::all_threads(self.precision);
        let tensor = |data: Vec<f32>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        let dx = match self.dx {
            true => Some(tensor(weight_slice(ws, wl)?.grad_input(dy_rows, k, options), x)?),
            false => None,
        };
        let dw = self.dw.then(|| tensor(matmul(dy_rows.t(), x_rows, options), w)).transpose()?;
        Ok((dx, dw))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, xl: &Layout, ws: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(contiguous(xs, xl)?, weight_slice(ws, wl)?, wl.shape().dims2()?, None);
        Ok((CpuStorage::F32(y), Shape::from(self.shape.as_slice())))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, dy)
    }
}

/// With a residual.
impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear_residual"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xl: &Layout,
        ws: &CpuStorage,
        wl: &Layout,
        rs: &CpuStorage,
        rl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let residual = contiguous(rs, rl)?;
        let y = self.forward(contiguous(xs, xl)?, weight_slice(ws, wl)?, wl.shape().dims2()?, Some(residual));
        Ok((CpuStorage::F32(y), Shape::from(self.shape.as_slice())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _residual: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, dy)?;
        Ok((dx, dw, Some(dy.clone())))
    }
}

/// The elements of a weight `(m, k)`.
#[derive(Clone, Copy)]
pub(crate) enum WeightSlice<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> WeightSlice<'a> {
    /// The weight as a matrix `(m, k)`.
    pub fn matrix(self, m: usize, k: usize) -> AnyMatrix<'a> {
        match self {
            Self::F32(w) => AnyMatrix::F32(Matrix::new(w, m, k)),
            Self::Bf16(w) => AnyMatrix::Bf16(Matrix::new(w, m, k)),
            Self::F16(w) => AnyMatrix::F16(Matrix::new(w, m, k)),
        }
    }

    /// `x · wᵀ` for `x` `(n, k)`, plus `residual` if given.
    ///
    /// Up to [`FEW_ROWS`] rows are not rounded, whatever the precision.
    pub fn forward(self, x: &[f32], sizes: [usize; 3], residual: Option<&[f32]>, options: GemmOptions) -> Vec<f32> {
        let [n, k, m] = sizes;
        if n <= FEW_ROWS && n * k * m > 0 {
            let mut y = few_rows(x, &[FewRowsWeight::Dense(self.matrix(m, k))]).pop().unwrap_or_default();
            y.iter_mut().zip(residual.unwrap_or_default()).for_each(|(y, residual)| *y += residual);
            return y;
        }
        match self {
            Self::F32(w) => matmul_residual(residual, Matrix::new(x, n, k), Matrix::new(w, m, k).t(), options),
            Self::Bf16(w) => matmul_residual(residual, Matrix::new(x, n, k), Matrix::new(w, m, k).t(), options),
            Self::F16(w) => matmul_residual(residual, Matrix::new(x, n, k), Matrix::new(w, m, k).t(), options),
        }
    }

    /// The gradient of the input: `dy · w` for `dy` `(n, m)`.
    pub fn grad_input(self, dy: Matrix, k: usize, options: GemmOptions) -> Vec<f32> {
        match self {
            Self::F32(w) => matmul(dy, Matrix::new(w, dy.cols(), k), options),
            Self::Bf16(w) => matmul(dy, Matrix::new(w, dy.cols(), k), options),
            Self::F16(w) => matmul(dy, Matrix::new(w, dy.cols(), k), options),
        }
    }
}

/// Elements of the residual that one task copies.
const COPY_CHUNK: usize = 1 << 16;

/// `residual + a · b`, or `a · b`.
fn matmul_residual<A: Element, B: Element>(
    residual: Option<&[f32]>,
    a: Matrix<A>,
    b: Matrix<B>,
    options: GemmOptions,
) -> Vec<f32> {
    let Some(residual) = residual else { return matmul(a, b, options) };
    let mut y: Vec<f32> = residual.par_iter().copied().with_min_len(COPY_CHUNK).collect();
    matmul_into(a, b, &mut y, b.cols(), true, 1., options);
    y
}

/// The elements of a weight in CPU memory. Errors: another dtype than f32 or bf16, or strides.
pub(crate) fn weight_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<WeightSlice<'a>> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(WeightSlice::F32(&data[start..end])),
        (CpuStorage::BF16(data), Some((start, end))) => Ok(WeightSlice::Bf16(&data[start..end])),
        _ => bail!("linear: the weight must be contiguous, in f32 or bf16"),
    }
}
