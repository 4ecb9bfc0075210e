//! Activations of an MLP, also multiplied by a second branch (SwiGLU and `GeGLU`: Shazeer 2020, arXiv 2002.05202;
//! GELU: Hendrycks and Gimpel 2016, arXiv 1606.08415).

mod cpu;
mod reference;

use candle_core::{Result, Tensor, bail};

use cpu::{Gated, Plain};
pub(crate) use cpu::{gated_backward, gated_forward};
use reference::reference;

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

/// The activation of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, Φ being the normal distribution function.
    Gelu,
    /// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`: used by GPT-2 and Gemma.
    GeluTanh,
}

/// `activation(x)`, element by element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if crate::is_fused(x) { x.contiguous()?.apply_op1(Plain(activation)) } else { reference(x, activation) }
}

/// `activation(gate) · up`, element by element. Both have the same shape, as does the result.
pub fn gated_activation(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        bail!("gated_activation: gate is {:?}, up is {:?}; their shapes must be equal", gate.dims(), up.dims());
    }
    if crate::is_fused(gate) && crate::is_fused(up) {
        gate.contiguous()?.apply_op2(&up.contiguous()?, Gated(activation))
    } else {
        reference(gate, activation)? * up
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_matches_reference, assert_matches_reference_within, random};

    const ALL: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

    #[test]
    fn fused_gated_activations_equal_the_f64_reference() -> Result<()> {
        for activation in ALL {
            for (shape, scale) in
                [([1, 1], 1.), ([3, 17], 1.), ([40, 512], 1.), ([3, 5], 60.), ([3, 5], 1e-4), ([0, 4], 1.)]
            {
                let (gate, up) = (random(&shape, 1, scale)?, random(&shape, 2, 1.)?);
                assert_matches_reference(&[&gate, &up], 1e-5, |t| gated_activation(&t[0], &t[1], activation))?;
            }
            let (gate, up) = (random(&[5, 7], 1, 1.)?, random(&[7, 5], 2, 1.)?);
            assert_matches_reference(&[&gate, &up], 1e-5, |t| gated_activation(&t[0].t()?, &t[1], activation))?;
        }
        Ok(())
    }

    #[test]
    fn fused_activations_equal_the_f64_reference() -> Result<()> {
        for activation in ALL {
            for (shape, scale) in [([1, 1], 1.), ([3, 17], 4.), ([40, 512], 8.), ([3, 5], 60.), ([0, 4], 1.)] {
                // The approximation of the error function has an absolute error: 3e-7 of x.
                let x = random(&shape, 1, scale)?;
                assert_matches_reference_within(&[&x], 2e-6, 2e-6, |t| activate(&t[0], activation))?;
            }
            let x = random(&[5, 7], 1, 1.)?;
            assert_matches_reference(&[&x], 1e-5, |t| activate(&t[0].t()?, activation))?;
        }
        Ok(())
    }

    #[test]
    fn values_and_derivatives_are_correct_for_large_inputs() -> Result<()> {
        if crate::skip_on_reference_path("candle's derivatives of inputs over 1e7 are inexact, those of infinity NaN") {
            return Ok(());
        }
        let device = candle_core::Device::Cpu;
        let numbers = [20f32, 90., 1e4, 1e20, 3e38, f32::INFINITY];
        for activation in ALL {
            for x in numbers.into_iter().flat_map(|x| [x, -x]) {
                let var = candle_core::Var::new(&[x], &device)?;
                let y = activate(&var, activation)?;
                let slope = y.backward()?.get(&var).unwrap().to_vec1::<f32>()?[0];
                let y = y.to_vec1::<f32>()?[0];
                let (value, straight) = if x > 0. { (x, 1.) } else { (0., 0.) };
                assert!(y == value || (y - value).abs() < 1e-6, "{activation:?}({x}) is {y}");
                assert!((slope - straight).abs() < 1e-6, "{activation:?} at {x} has the derivative {slope}");
                let (gate, up) = (candle_core::Var::new(&[x], &device)?, candle_core::Var::new(&[2f32], &device)?);
                let grads = gated_activation(&gate, &up, activation)?.backward()?;
                let [d_gate, d_up] = [&gate, &up].map(|var| grads.get(var).unwrap().to_vec1::<f32>().unwrap()[0]);
                assert!(
                    (d_gate - 2. * slope).abs() < 1e-6 && (d_up == y || (d_up - y).abs() < 1e-6),
                    "{d_gate} {d_up}"
                );
            }
            let var = candle_core::Var::new(&[f32::NAN], &device)?;
            let y = activate(&var, activation)?;
            assert!(y.to_vec1::<f32>()?[0].is_nan(), "{activation:?} hides NaN");
            assert!(y.backward()?.get(&var).unwrap().to_vec1::<f32>()?[0].is_nan(), "{activation:?} hides NaN");
        }
        Ok(())
    }

    #[test]
    fn mismatched_shapes_are_an_error() -> Result<()> {
        let (gate, up) = (random(&[2, 3], 1, 1.)?, random(&[3, 2], 1, 1.)?);
        assert!(gated_activation(&gate, &up, Activation::Silu).is_err());
        Ok(())
    }
}
