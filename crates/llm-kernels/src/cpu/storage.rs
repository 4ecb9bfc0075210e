//! candle's memory as slices.

use candle_core::{CpuStorage, Layout, Result, Storage, bail};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// The elements of a contiguous f32 tensor. Errors: another dtype, or strides.
pub fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("fused kernels need f32 tensors") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("fused kernels need contiguous tensors") };
    Ok(&data[start..end])
}

/// The elements of a contiguous f32 CPU tensor whose storage is locked. Errors: another device, dtype or layout.
pub fn cpu_slice<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => contiguous(storage, layout),
        _ => bail!("fused kernels need tensors in CPU memory"),
    }
}

/// Converts half-precision values to f32, into `wide`.
pub fn widen_to_f32<T: Send + Sync>(values: &[T], wide: &mut Vec<f32>)
where
    [T]: HalfFloatSliceExt,
{
    const CHUNK: usize = 1 << 14;
    wide.resize(values.len(), 0.);
    wide.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(wide, w)| w.convert_to_f32_slice(wide));
}
