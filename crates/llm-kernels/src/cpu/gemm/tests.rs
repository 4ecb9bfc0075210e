use super::*;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    crate::testing::random(&[n], seed, 1.).unwrap().to_vec1().unwrap()
}

/// `Σ_k a[i][k] b[k][j]` in f64, of elements rounded to `precision`.
fn f64_dot<A: Element, B: Element>(a: Matrix<A>, b: Matrix<B>, i: usize, j: usize, precision: Precision) -> f64 {
    fn at<T: Element>(m: Matrix<T>, i: usize, j: usize, precision: Precision) -> f64 {
        let x = m.data[i * m.row_stride + j * m.col_stride];
        f64::from(if precision == Precision::F32 { x.widen() } else { bf16::from_f32(x.widen()).to_f32() })
    }
    (0..a.cols).map(|k| at(a, i, k, precision) * at(b, k, j, precision)).sum()
}

/// One of the matmul implementations.
type Path<A, B> = unsafe fn(Matrix<A>, Matrix<B>, OutputView, GemmOptions);

/// Compares every implementation that this machine has with f64, for a result that is a part of wider rows and is then
/// accumulated.
fn check<A: Element, B: Element>(a: Matrix<A>, b: Matrix<B>) {
    let (m, n, stride) = (a.rows, b.cols, b.cols + 3);
    let paths: [Path<A, B>; 2] = [run, fallback::matmul];
    for (path, precision) in paths.into_iter().flat_map(|p| [(p, Precision::F32), (p, Precision::Bf16)]) {
        for threads in [Threads::One, Threads::All] {
            let mut out = vec![1f32; m * stride];
            let [first, more] =
                [false, true].map(|add| OutputView { data: out.as_mut_ptr(), stride, accumulate: add, scale: 0.5 });
            // SAFETY: the output has `m` rows, `stride` apart, and each has more than `n` elements.
            #[allow(unsafe_code)]
            unsafe {
                path(a, b, first, GemmOptions { precision, threads });
                path(a, b, more, GemmOptions { precision, threads });
            }
            let scale = (a.cols as f64).sqrt().max(1.);
            for (at, &x) in out.iter().enumerate() {
                let (i, j) = (at / stride, at % stride);
                let expected = if j < n { f64_dot(a, b, i, j, precision) } else { 1. };
                let size = format!("{m} {} {n}", a.cols);
                assert!((f64::from(x) - expected).abs() < 2e-6 * scale, "{size}: {x} is not {expected}");
            }
        }
    }
}

#[test]
fn matmuls_of_all_layouts_equal_the_f64_sums() {
    let sizes = [(1, 1, 1), (7, 5, 3), (33, 70, 65), (64, 1, 9), (12, 32, 32), (13, 31, 33), (100, 33, 150)];
    // The last two sizes need two passes along the contraction, or two parts of `b`.
    for (m, k, n) in sizes.into_iter().chain([(3, 2500, 40), (2, 4200, 1050)]) {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let (at, bt) = (Matrix::new(&a, k, m).t(), Matrix::new(&b, n, k).t());
        check(Matrix::new(&a, m, k), Matrix::new(&b, k, n));
        check(at, Matrix::new(&b, k, n));
        check(Matrix::new(&a, m, k), bt);
        let b_bf16: Vec<bf16> = b.iter().map(|&b| bf16::from_f32(b)).collect();
        check(Matrix::new(&a, m, k), Matrix::new(&b_bf16, n, k).t());
        check(at, Matrix::new(&b_bf16, k, n));
    }
}

#[test]
fn an_empty_contraction_gives_zeros_or_keeps_the_output() {
    assert_eq!(matmul::<f32, f32>(Matrix::new(&[], 3, 0), Matrix::new(&[], 0, 2), GemmOptions::SINGLE_THREAD), [0.; 6]);
    assert!(
        matmul::<f32, f32>(Matrix::new(&[], 0, 3), Matrix::new(&[0.; 6], 3, 2), GemmOptions::SINGLE_THREAD).is_empty()
    );
    let mut out = [7.; 4];
    matmul_into::<f32, f32>(
        Matrix::new(&[], 2, 0),
        Matrix::new(&[], 0, 1),
        &mut out,
        2,
        true,
        1.,
        GemmOptions::SINGLE_THREAD,
    );
    assert_eq!(out, [7.; 4]);
    matmul_into::<f32, f32>(
        Matrix::new(&[], 2, 0),
        Matrix::new(&[], 0, 1),
        &mut out,
        2,
        false,
        1.,
        GemmOptions::SINGLE_THREAD,
    );
    assert_eq!(out, [0., 7., 0., 7.]);
}

#[test]
fn bf16_rounding_is_to_nearest_even() {
    let odd = [0., -0., 1., 1.003_906_3, 1.011_718_8, -3.3e38, 1e-40, f32::INFINITY, f32::NEG_INFINITY, f32::MAX];
    for x in odd.into_iter().chain(numbers(10_000, 3)) {
        assert_eq!(x.to_bf16_bits(), bf16::from_f32(x).to_bits(), "{x}");
    }
    assert!(bf16::from_bits(f32::from_bits(0x7fff_ffff).to_bf16_bits()).is_nan());
    assert!(bf16::from_bits(f32::from_bits(0xff80_0001).to_bf16_bits()).is_nan());
}

#[test]
#[should_panic(expected = "out of bounds")]
fn an_out_of_bounds_matrix_panics() {
    Matrix::new(&[0.; 5], 2, 3);
}

#[test]
#[should_panic(expected = "no contiguous rows")]
fn rows_of_a_transposed_view_panic() {
    Matrix::new(&[0.; 6], 2, 3).t().row(0);
}

#[test]
fn rows_after_the_last_are_empty() {
    let wide = Matrix::with_stride(&[0.; 5], 1, 5, usize::MAX);
    assert_eq!((wide.rows_from(2, 3).rows, wide.rows_from(0, 3).rows), (0, 1));
    assert!(wide.rows_from(usize::MAX, 1).data.is_empty());
}

#[test]
#[should_panic(expected = "out of bounds")]
fn a_size_that_overflows_panics() {
    Matrix::with_stride(&[0.; 5], 3, 1, 1 << 63);
}

/// B of several matrices whose columns are not a multiple of a panel, with an epilogue that changes its row.
#[test]
fn the_epilogue_gets_the_columns_of_all_matrices() {
    let (m, k, sizes) = (101, 70, [33usize, 7, 64]);
    let a = numbers(m * k, 1);
    let parts: Vec<Vec<f32>> = (0..3).map(|i| numbers(sizes[i] * k, 2 + i as u64)).collect();
    let second: Vec<bf16> = parts[1].iter().map(|&x| bf16::from_f32(x)).collect();
    let third: Vec<f16> = parts[2].iter().map(|&x| f16::from_f32(x)).collect();
    let (first, second) = (Matrix::new(&parts[0], sizes[0], k), Matrix::new(&second, sizes[1], k));
    let third = Matrix::new(&third, sizes[2], k);
    let (a, cols) = (Matrix::new(&a, m, k), sizes.iter().sum::<usize>());
    let bts = [AnyMatrix::F32(first), AnyMatrix::Bf16(second), AnyMatrix::F16(third)];
    let found: Vec<f32> = matmul_epilogue(a, &bts, [cols, cols], |row, values, out| {
        values[0] += row as f32;
        out.copy_from_slice(values);
    });
    for (at, &x) in found.iter().enumerate() {
        let (i, j) = (at / cols, at % cols);
        let expected = match j {
            0..33 => f64_dot(a, first.t(), i, j, Precision::F32) + if j == 0 { i as f64 } else { 0. },
            33..40 => f64_dot(a, second.t(), i, j - 33, Precision::F32),
            _ => f64_dot(a, third.t(), i, j - 40, Precision::F32),
        };
        assert!((f64::from(x) - expected).abs() < 2e-5, "{i} {j}: {x} is not {expected}");
    }
}
