//! A projection inside a fused block: the parts of its forward and backward that the block puts together.
//!
//! `x` is `(n, in)`, `y = x · wᵀ + Σ low · bᵀ + bias` is `(n, out)`, with `low = scale · x · aᵀ` `(n, r)` of each `LoRA`
//! adapter.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::few_rows::FEW_ROWS;
use super::linear_mapped::MappedWeight;
use super::projection::{LoraWeights, Projection, ProjectionWeight};
use crate::QuantizedWeight;
use crate::cpu::cpu_slice;
use crate::cpu::gemm::{AnyMatrix, Element, GemmElement, GemmOptions, Matrix, Precision, matmul, matmul_into};
use crate::cpu::node::ParamGradients;
use crate::cpu::rows::{rows_per_task, zeros};

/// The smallest number of rows of a fused block: with fewer rows, a model in training has the bits of a frozen one.
pub(crate) const MIN_ROWS: usize = FEW_ROWS + 1;

/// A projection inside a fused block.
pub(crate) struct FusedProjection {
    weight: Weight,
    bias: Option<Tensor>, // (out,)
    lora: Vec<Lora>,
    /// Output and input features.
    shape: (usize, usize),
}

enum Weight {
    Tensor(Tensor),
    Mapped(MappedWeight),
    Quantized(QuantizedWeight),
}

struct Lora {
    a: Tensor, // (r, in)
    b: Tensor, // (out, r)
    scale: f32,
}

impl FusedProjection {
    /// The projection, if it can be part of a fused operation: a weight in CPU memory, parameters in f32,
    /// adapters without `DoRA` and dropout.
    pub fn of(projection: &Projection) -> Option<Self> {
        let weight = match projection.weight {
            ProjectionWeight::Dense(w, _) => {
                let frozen_bf16 = w.dtype() == DType::BF16 && w.device().is_cpu() && !w.track_op();
                (crate::is_fused(w) || frozen_bf16).then(|| w.contiguous().ok().map(Weight::Tensor))??
            }
            ProjectionWeight::Mapped(w) => Weight::Mapped(w.clone()),
            ProjectionWeight::Quantized(w) => Weight::Quantized(w.clone()),
        };
        let tensor = |x: &Tensor| crate::is_fused(x).then(|| x.contiguous().ok())?;
        let bias = match projection.bias {
            Some(bias) => Some(tensor(bias)?),
            None => None,
        };
        let lora = |lora: &LoraWeights| {
            let simple = lora.dora_scale.is_none() && lora.dropout.is_none();
            simple.then(|| Some(Lora { a: tensor(&lora.a)?, b: tensor(&lora.b)?, scale: lora.scale as f32 }))?
        };
        let lora = projection.lora.iter().map(lora).collect::<Option<_>>()?;
        Some(Self { weight, bias, lora, shape: projection.shape().ok()? })
    }

    /// Output and input features.
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Whether bias and adapter have the sizes that the weight needs.
    pub fn is_consistent(&self) -> bool {
        let (out, input) = self.shape;
        self.bias.as_ref().is_none_or(|bias| bias.dims() == [out])
            && self.lora.iter().all(|Lora { a, b, .. }| {
                a.rank() == 2 && b.rank() == 2 && a.dims()[1] == input && b.dims() == [out, a.dims()[0]]
            })
    }

    /// The tensors that may be trained.
    pub fn params(&self) -> impl Iterator<Item = &Tensor> {
        let weight = match &self.weight {
            Weight::Tensor(w) => Some(w),
            Weight::Mapped(_) | Weight::Quantized(_) => None,
        };
        weight.into_iter().chain(&self.bias).chain(self.lora.iter().flat_map(|lora| [&lora.a, &lora.b]))
    }

    /// The low-rank activations, and what is added to each row of `x · wᵀ`.
    pub fn additions<T: GemmElement>(&self, x: Matrix<T>) -> Result<(LowRank, Additions)> {
        let low = self.low::<T, T>(x)?;
        let update = self.sum_of_products(&low, x.rows(), |[_, b]| b.t(), self.shape.0, options::<T>())?;
        Ok((low, Additions { width: self.shape.0, update, bias: self.bias_values()? }))
    }

    /// `scale · x · aᵀ` of each adapter.
    fn low<T: GemmElement, A: Element>(&self, x: Matrix<A>) -> Result<LowRank> {
        let low = |lora: &Lora| {
            lora.with_matrices(|[a, _]| {
                let mut low = zeros(x.rows() * a.rows());
                matmul_into(x, a.t(), &mut low, a.rows(), false, lora.scale, options::<T>());
                low
            })
        };
        self.lora.iter().map(low).collect()
    }

    /// The sum over the adapters of `low`, `(n, r)`, times a matrix `(r, width)`; `None` without adapters.
    fn sum_of_products(
        &self,
        low: &[Vec<f32>],
        n: usize,
        matrix: impl for<'m> Fn([Matrix<'m>; 2]) -> Matrix<'m>,
        width: usize,
        options: GemmOptions,
    ) -> Result<Option<Vec<f32>>> {
        let mut sum = None;
        for (lora, low) in self.lora.iter().zip(low) {
            lora.with_matrices(|matrices| {
                let add = sum.is_some();
                let (b, sum) = (matrix(matrices), sum.get_or_insert_with(|| zeros(n * width)));
                matmul_into(Matrix::new(low, n, b.rows()), b, sum, width, add, 1., options);
            })?;
        }
        Ok(sum)
    }

    fn bias_values(&self) -> Result<Option<Vec<f32>>> {
        let values = |bias: &Tensor| -> Result<_> {
            let (storage, layout) = bias.storage_and_layout();
            Ok(cpu_slice(&storage, layout)?.to_vec())
        };
        self.bias.as_ref().map(values).transpose()
    }

    /// `residual + y`, or `y`; and the low-rank activations.
    pub fn forward<T: GemmElement, A: Element>(
        &self,
        x: Matrix<A>,
        residual: Option<&[f32]>,
    ) -> Result<(Vec<f32>, LowRank)> {
        let (out, _) = self.shape;
        let mut y = match residual {
            Some(residual) => residual.par_iter().copied().with_min_len(1 << 16).collect(),
            None => zeros(x.rows() * out),
        };
        let add = residual.is_some();
        with_weights::<T, 1, _>([self], |[w]| {
            w.t().matmul_into(x, &mut y, out, add, options::<T>());
            Ok(())
        })?;
        let low = self.low::<T, A>(x)?;
        for (lora, low) in self.lora.iter().zip(&low) {
            lora.with_matrices(|[_, b]| {
                matmul_into(Matrix::new(low, x.rows(), b.cols()), b.t(), &mut y, out, true, 1., options::<T>());
            })?;
        }
        if let Some(bias) = self.bias_values()? {
            y.par_chunks_mut(out.max(1)).with_min_len(rows_per_task(out)).for_each(|row| add_to(row, &bias));
        }
        Ok((y, low))
    }

    /// Adds the gradients of the parameters to `gradients`; returns those of `x · aᵀ` of each adapter, `(n, r)`.
    pub fn backward_params<T: GemmElement, A: Element, D: Element>(
        &self,
        x: Matrix<A>,
        dy: Matrix<D>,
        low: &[Vec<f32>],
        gradients: &ParamGradients,
    ) -> Result<LowRank> {
        if let Weight::Tensor(w) = &self.weight {
            gradients.add(w, || matmul(dy.t(), x, options::<T>()))?;
        }
        if let Some(bias) = &self.bias {
            gradients.add(bias, || column_sums(dy))?;
        }
        let (n, mut all) = (dy.rows(), Vec::new());
        for (lora, low) in self.lora.iter().zip(low) {
            let d_low = lora.with_matrices(|[_, b]| {
                let mut d_low = zeros(low.len());
                matmul_into(dy, b, &mut d_low, b.cols(), false, lora.scale, options::<T>());
                d_low
            })?;
            let r = low.len() / n.max(1);
            gradients.add(&lora.a, || matmul(Matrix::new(&d_low, n, r).t(), x, options::<T>()))?;
            gradients.add(&lora.b, || matmul(dy.t(), Matrix::new(low, n, r), options::<T>()))?;
            all.push(d_low);
        }
        Ok(all)
    }

    /// `dx = dy · w + Σ d_low · a`, or `dx += …` if `add`, for `d_low` of [`Self::backward_params`].
    pub fn backward_input<T: GemmElement, D: Element>(
        &self,
        dy: Matrix<D>,
        d_low: &[Vec<f32>],
        dx: &mut [f32],
        add: bool,
    ) -> Result<()> {
        let (_, input) = self.shape;
        with_weights::<T, 1, _>([self], |[w]| {
            w.matmul_into(dy, dx, input, add, options::<T>());
            Ok(())
        })?;
        for (lora, d_low) in self.lora.iter().zip(d_low) {
            lora.with_matrices(|[a, _]| {
                let d_low = Matrix::new(d_low, dy.rows(), a.rows());
                matmul_into(d_low, a, dx, input, true, 1., options::<T>());
            })?;
        }
        Ok(())
    }

    /// What is added to each row of `dy · w`: `Σ d_low · a`.
    pub fn backward_additions<T: GemmElement>(&self, d_low: &[Vec<f32>], n: usize) -> Result<Additions> {
        let update = self.sum_of_products(d_low, n, |[a, _]| a, self.shape.1, options::<T>())?;
        Ok(Additions { width: self.shape.1, update, bias: None })
    }
}

/// The low-rank activations `(n, r)` of each adapter of a projection, or their gradients.
pub(crate) type LowRank = Vec<Vec<f32>>;

const fn options<T: GemmElement>() -> GemmOptions {
    GemmOptions::all_threads(T::PRECISION)
}

impl Lora {
    /// Runs `f` with `a` and `b`.
    fn with_matrices<R>(&self, f: impl FnOnce([Matrix; 2]) -> R) -> Result<R> {
        let ((a_rows, a_cols), (b_rows, b_cols)) = (self.a.dims2()?, self.b.dims2()?);
        let ((a, al), (b, bl)) = (self.a.storage_and_layout(), self.b.storage_and_layout());
        Ok(f([Matrix::new(cpu_slice(&a, al)?, a_rows, a_cols), Matrix::new(cpu_slice(&b, bl)?, b_rows, b_cols)]))
    }
}

/// What an epilogue adds to the rows of a matmul.
pub(crate) struct Additions {
    /// Elements per row.
    width: usize,
    update: Option<Vec<f32>>, // (n, width)
    bias: Option<Vec<f32>>,   // (width,)
}

impl Additions {
    /// Adds to the row of a token.
    pub fn apply(&self, token: usize, row: &mut [f32]) {
        if let Some(update) = &self.update {
            add_to(row, &update[token * self.width..][..self.width]);
        }
        if let Some(bias) = &self.bias {
            add_to(row, bias);
        }
    }
}

fn add_to(row: &mut [f32], values: &[f32]) {
    row.iter_mut().zip(values).for_each(|(x, value)| *x += value);
}

/// Runs `f` with the weights `(out, in)` of some projections. Those in blocks are dequantised, rounded to `T`.
pub(crate) fn with_weights<T: GemmElement, const N: usize, R>(
    projections: [&FusedProjection; N],
    f: impl FnOnce([AnyMatrix; N]) -> Result<R>,
) -> Result<R> {
    let values = projections.map(|projection| Values::<T>::of(&projection.weight));
    let mut matrices = [AnyMatrix::F32(Matrix::new(&[], 0, 0)); N];
    for ((matrix, values), projection) in matrices.iter_mut().zip(&values).zip(projections) {
        *matrix = values.matrix(projection.shape)?;
    }
    f(matrices)
}

/// The values of a weight, borrowed or dequantised.
enum Values<'a, T> {
    Tensor(Box<dyn Deref<Target = Storage> + 'a>, &'a Layout),
    Mapped(&'a MappedWeight),
    Dequantized(Vec<T>),
}

impl<'a, T: GemmElement> Values<'a, T> {
    fn of(weight: &'a Weight) -> Self {
        match weight {
            Weight::Tensor(w) => {
                let (storage, layout) = w.storage_and_layout();
                Self::Tensor(Box::new(storage), layout)
            }
            Weight::Mapped(w) => Self::Mapped(w),
            Weight::Quantized(w) => Self::Dequantized(w.dequantize_to()),
        }
    }

    fn matrix(&self, (rows, cols): (usize, usize)) -> Result<AnyMatrix<'_>> {
        match self {
            Self::Tensor(storage, layout) => match (&***storage, layout.contiguous_offsets()) {
                (Storage::Cpu(CpuStorage::BF16(data)), Some((start, end))) => {
                    Ok(AnyMatrix::Bf16(Matrix::<bf16>::new(&data[start..end], rows, cols)))
                }
                (storage, Some(_)) => Ok(Matrix::new(cpu_slice(storage, layout)?, rows, cols).into()),
                _ => bail!("a weight of a fused block must be contiguous"),
            },
            Self::Mapped(w) => w.matrix(),
            Self::Dequantized(values) => Ok(T::any_matrix(Matrix::new(values, rows, cols))),
        }
    }
}

/// The sum of each column, in the same order for any number of threads.
fn column_sums<D: Element>(x: Matrix<D>) -> Vec<f32> {
    const ROWS: usize = 128;
    let (row, mut sums) = (x.row_reader(), vec![0f32; x.cols()]);
    let part = |start: usize| {
        let mut sums = vec![0f32; x.cols()];
        for i in start..(start + ROWS).min(x.rows()) {
            sums.iter_mut().zip(row(i)).for_each(|(sum, x)| *sum += x.widen());
        }
        sums
    };
    let starts: Vec<usize> = (0..x.rows()).step_by(ROWS).collect();
    let parts: Vec<Vec<f32>> = starts.into_par_iter().map(part).collect();
    parts.iter().for_each(|part| add_to(&mut sums, part));
    sums
}

/// The precision of the matmuls of a fused block with this projection.
pub(crate) fn precision_of(projection: &Projection) -> Precision {
    match projection.weight {
        ProjectionWeight::Dense(w, _) if w.dtype() == DType::BF16 => Precision::for_bf16_weights(),
        ProjectionWeight::Dense(_, precision) => precision,
        ProjectionWeight::Mapped(w) => w.precision(),
        ProjectionWeight::Quantized(w) => w.precision(),
    }
}
