//! Adapter from operations on plain f32 slices to candle's `CustomOp3`.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use crate::cpu::{contiguous, cpu_slice};

/// A differentiable operation on three tensors; the result has the shape of the first one.
pub(crate) trait SliceOp: Send + Sync {
    const NAME: &'static str;

    /// Computes the result.
    fn forward(&self, tensors: [&[f32]; 3]) -> Result<Vec<f32>>;

    /// Computes the gradients of the tensors that need one, from the gradient `dy` of the result.
    fn backward(&self, tensors: [&[f32]; 3], dy: &[f32]) -> Result<[Option<Vec<f32>>; 3]>;
}

pub(crate) struct SliceCustomOp<T>(pub T);

impl<T: SliceOp> CustomOp3 for SliceCustomOp<T> {
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
        let [d1, d2, d3] =
            self.0.backward([cpu_slice(&s1, l1)?, cpu_slice(&s2, l2)?, cpu_slice(&s3, l3)?], cpu_slice(&ds, dl)?)?;
        let tensor = |data: Option<Vec<f32>>, like: &Tensor| {
            data.map(|data| Tensor::from_vec(data, like.shape(), like.device())).transpose()
        };
        Ok((tensor(d1, t1)?, tensor(d2, t2)?, tensor(d3, t3)?))
    }
}
