//! What candle asks of an operation on three tensors in f32, for operations that work on plain slices.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use crate::rms_norm::cpu;
use crate::simd::contiguous;

/// An operation whose result has the shape of its first tensor.
pub(crate) trait OnSlices: Send + Sync {
    const NAME: &'static str;

    /// The result.
    fn forward(&self, tensors: [&[f32]; 3]) -> Result<Vec<f32>>;

    /// The gradients of the tensors that want one, from that of the result.
    fn backward(&self, tensors: [&[f32]; 3], dy: &[f32]) -> Result<[Option<Vec<f32>>; 3]>;
}

pub(crate) struct Operation<T>(pub T);

impl<T: OnSlices> CustomOp3 for Operation<T> {
    fn name(&self) -> &'static str {
        T::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.0.forward([contiguous(s1, l1)?, contiguous(s2, l2)?, contiguous(s3, l3)?])?;
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        t1: &Tensor,
        t2: &Tensor,
        t3: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let ((s1, l1), (s2, l2)) = (t1.storage_and_layout(), t2.storage_and_layout());
        let ((s3, l3), (ds, dl)) = (t3.storage_and_layout(), dy.storage_and_layout());
        let [d1, d2, d3] = self.0.backward([cpu(&s1, l1)?, cpu(&s2, l2)?, cpu(&s3, l3)?], cpu(&ds, dl)?)?;
        let tensor = |data: Option<Vec<f32>>, like: &Tensor| {
            data.map(|data| Tensor::from_vec(data, like.shape(), like.device())).transpose()
        };
        Ok((tensor(d1, t1)?, tensor(d2, t2)?, tensor(d3, t3)?))
    }
}
