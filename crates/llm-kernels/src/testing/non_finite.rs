//! Tests: infinite and NaN values show in every result that depends on them, for every weight format and number of
//! rows.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::testing::{quantized, random};
use crate::{
    BlockFormat, MappedWeight, Precision, QuantizedWeight, linear_mapped, linear_quantized, linear_with_precision,
};
use llm_files::Bytes;

const BROKEN: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
const ROWS: [usize; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 16, 65];
const OUT: usize = 9;
const IN: usize = 512;

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

type Matmul = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

/// The matmul with one weight `(OUT, IN)`, in each weight format.
fn matmuls() -> Result<Vec<(String, Matmul)>> {
    let w = random(&[OUT, IN], 1, 1.)?;
    let mut all: Vec<(String, Matmul)> = Vec::new();
    for format in BlockFormat::ALL {
        let w = quantized(OUT, IN, 1, 1., format)?;
        all.push((format!("{format:?}"), Box::new(move |x| linear_quantized(x, &w))));
    }
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let bytes: Vec<u8> = match dtype {
            DType::F32 => flat(&w).iter().flat_map(|x| x.to_le_bytes()).collect(),
            DType::BF16 => flat(&w).iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            _ => flat(&w).iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        };
        let w = MappedWeight::new(Bytes::from(bytes), (OUT, IN), dtype)?;
        all.push((format!("mapped {dtype:?}"), Box::new(move |x| linear_mapped(x, &w))));
    }
    for precision in [Precision::F32, Precision::Bf16] {
        let w = w.clone();
        all.push((format!("{precision:?}"), Box::new(move |x| linear_with_precision(x, &w, precision))));
    }
    let w = w.to_dtype(DType::BF16)?;
    all.push(("a weight in bf16".to_owned(), Box::new(move |x| linear_with_precision(x, &w, Precision::F32))));
    Ok(all)
}

#[test]
fn a_non_finite_activation_affects_only_its_row() -> Result<()> {
    for (name, matmul) in matmuls()? {
        for n in ROWS {
            let numbers = flat(&random(&[n * IN], 2, 3.)?);
            let tensor = |numbers: &[f32]| Tensor::from_slice(numbers, (n, IN), &Device::Cpu);
            let plain = flat(&matmul(&tensor(&numbers)?)?);
            assert!(plain.iter().all(|x| x.is_finite()));
            for (by, row, col) in BROKEN.into_iter().flat_map(|by| [(by, 0, 0), (by, n - 1, 37), (by, n / 2, IN - 1)]) {
                let mut numbers = numbers.clone();
                numbers[row * IN + col] = by;
                for (at, y) in flat(&matmul(&tensor(&numbers)?)?).into_iter().enumerate() {
                    let what = format!("{name}: {by} at {row}, {col} of {n} rows");
                    match at / OUT == row {
                        true => assert!(!y.is_finite(), "{what} becomes {y}"),
                        false => assert_eq!(y, plain[at], "{what} changes another row"),
                    }
                }
            }
        }
    }
    Ok(())
}

/// The byte offsets of the f16 scales (and minima) of a block.
fn scales(format: BlockFormat) -> &'static [usize] {
    match format {
        BlockFormat::Q8_0 | BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::IQ4_NL => &[0],
        BlockFormat::Q4_K | BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q5_K => &[0, 2],
        BlockFormat::Q6_K => &[208],
        BlockFormat::Q2_K => &[80, 82],
        BlockFormat::Q3_K => &[108],
    }
}

#[test]
fn a_non_finite_block_scale_affects_every_result_of_its_block() -> Result<()> {
    let bits = [0x7c00u16, 0xfc00, 0x7e00, 0x7c01, 0xffff];
    for format in BlockFormat::ALL {
        let blocks = quantized(OUT, IN, 1, 1., format)?.blocks().to_vec();
        let (in_row, size) = (IN / format.elements(), format.elements());
        for (bits, &scale) in bits.into_iter().flat_map(|bits| scales(format).iter().map(move |scale| (bits, scale))) {
            for (row, block) in [(0, 0), (4, in_row - 1)] {
                let mut blocks = blocks.clone();
                let at = (row * in_row + block) * format.bytes() + scale;
                blocks[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                let w = QuantizedWeight::from_blocks(blocks, (OUT, IN), format)?;
                let what = format!("{format:?}: {bits:x} at byte {scale} of block {block} of row {row}");
                let wide = flat(&w.dequantize()?);
                for (i, x) in wide.iter().enumerate() {
                    let inside = i / IN == row && i % IN / size == block;
                    assert_eq!(x.is_finite(), !inside, "{what}: number {i} is {x}");
                }
                let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan();
                let picked = flat(&w.gather_rows(&[row as u32])?);
                assert!(picked.iter().zip(&wide[row * IN..]).all(|(&a, &b)| same(a, b)), "{what}");
                for n in ROWS {
                    let x = Var::from_tensor(&random(&[n, IN], 2, 3.)?)?;
                    let y = linear_quantized(&x, &w)?;
                    for (i, y) in flat(&y).into_iter().enumerate() {
                        assert_eq!(y.is_finite(), i % OUT != row, "{what}: result {i} of {n} rows is {y}");
                    }
                    let grads = y.sum_all()?.backward()?;
                    for (i, dx) in flat(grads.get(&x).unwrap()).into_iter().enumerate() {
                        assert_eq!(dx.is_finite(), i % IN / size != block, "{what}: gradient {i} of {n} rows is {dx}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_non_finite_weight_affects_its_column() -> Result<()> {
    for by in BROKEN {
        let mut numbers = flat(&random(&[OUT * IN], 1, 1.)?);
        numbers[4 * IN + 100] = by;
        let w = Tensor::from_slice(&numbers, (OUT, IN), &Device::Cpu)?;
        for format in BlockFormat::ALL {
            let error = QuantizedWeight::quantize(&w, format).unwrap_err().to_string();
            assert!(error.contains("not finite"), "{error}");
        }
        for n in ROWS {
            let x = random(&[n, IN], 2, 3.)?;
            for (w, precision) in
                [(w.clone(), Precision::F32), (w.clone(), Precision::Bf16), (w.to_dtype(DType::BF16)?, Precision::F32)]
            {
                for (i, y) in flat(&linear_with_precision(&x, &w, precision)?).into_iter().enumerate() {
                    assert_eq!(y.is_finite(), i % OUT != 4, "{by} {n} {precision:?}: result {i} is {y}");
                }
            }
        }
    }
    Ok(())
}
