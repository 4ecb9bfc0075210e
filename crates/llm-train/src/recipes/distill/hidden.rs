//! The hidden states of student and teacher: the mean squared error after a learned projection (Romero et al. 2015, arXiv 1412.6550; Jiao et
//! al. 2020, arXiv 1909.10351, equation 7). The projections are trained with the student and are not part of it.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use llm_model::ModelConfig;
use rand::RngExt;

use super::DistillRecipe;
use crate::run::rng;
use crate::{Error, Result, loss};

/// The random stream of the projections.
const INIT: u16 = 22;

/// Pairs of layers, counted from 0, whose outputs are compared, with a projection for each.
pub(super) struct HiddenStates {
    /// (layer of the student, layer of the teacher).
    pairs: Vec<(usize, usize)>,
    /// `(student hidden, teacher hidden)` of each pair, by name.
    projections: BTreeMap<String, Var>,
}

impl HiddenStates {
    /// The pairs of the recipe with initial projections, if the loss has a weight.
    pub fn of(
        recipe: &DistillRecipe,
        student: &ModelConfig,
        teacher: &ModelConfig,
        device: &Device,
    ) -> Result<Option<Self>> {
        if recipe.hidden_weight == 0. {
            return Ok(None);
        }
        let (ours, theirs) = (student.num_hidden_layers, teacher.num_hidden_layers);
        let pairs = match recipe.hidden_layers.as_slice() {
            [] => uniform(ours, theirs),
            pairs => pairs.iter().map(|&[student, teacher]| (student, teacher)).collect(),
        };
        if let Some((a, b)) = pairs.iter().find(|(a, b)| *a >= ours || *b >= theirs) {
            return Err(Error::BadRequest(format!(
                "hidden_layers has [{a}, {b}]; the student has layers 0 to {}, the teacher 0 to {}",
                ours - 1,
                theirs - 1
            )));
        }
        let projection = |at: usize| {
            let init = projection(recipe.seed, at as u64, student.hidden_size, teacher.hidden_size)?;
            Ok((format!("projection.{at}"), Var::from_tensor(&init.to_device(device)?)?))
        };
        let projections = (0..pairs.len()).map(projection).collect::<Result<_>>()?;
        Ok(Some(Self { pairs, projections }))
    }

    pub fn student_layers(&self) -> Vec<usize> {
        self.pairs.iter().map(|pair| pair.0).collect()
    }

    pub fn teacher_layers(&self) -> Vec<usize> {
        self.pairs.iter().map(|pair| pair.1).collect()
    }

    /// The projections, to train with the student.
    pub fn projections(&self) -> &BTreeMap<String, Var> {
        &self.projections
    }

    /// The mean over the pairs of the mean squared error of hidden states `(n, hidden)`; the teacher's get no gradient.
    pub fn loss(&self, ours: &[Tensor], theirs: &[Tensor]) -> Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for ((ours, theirs), at) in ours.iter().zip(theirs).zip(0..) {
            let projection = &self.projections[&format!("projection.{at}")];
            let projected = ours.to_dtype(DType::F32)?.matmul(projection)?; // (n, teacher hidden)
            let error = loss::mse(&projected, &theirs.detach().to_dtype(DType::F32)?)?;
            sum = Some(sum.map_or(Ok(error.clone()), |sum| sum + &error)?);
        }
        let sum = sum.ok_or_else(|| Error::Internal("hidden states without a pair of layers".to_owned()))?;
        Ok((sum / self.pairs.len() as f64)?)
    }
}

/// A layer of the teacher for each layer of the student: the last of each of as many equal parts.
fn uniform(ours: usize, theirs: usize) -> Vec<(usize, usize)> {
    (0..ours).map(|layer| (layer, ((layer + 1) * theirs).div_ceil(ours) - 1)).collect()
}

/// The identity if the sizes are equal, else uniform values with the variance of `1 / student`.
fn projection(seed: u64, at: u64, student: usize, teacher: usize) -> Result<Tensor> {
    if student == teacher {
        return Ok(Tensor::eye(student, DType::F32, &Device::Cpu)?);
    }
    let (mut rng, bound) = (rng(seed, INIT, at), (3. / student as f32).sqrt());
    let values: Vec<f32> = (0..student * teacher).map(|_| (rng.random::<f32>() * 2. - 1.) * bound).collect();
    Ok(Tensor::from_vec(values, (student, teacher), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_of_the_student_are_spread_over_those_of_the_teacher() {
        assert_eq!(uniform(2, 4), [(0, 1), (1, 3)]);
        assert_eq!(uniform(3, 4), [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(uniform(4, 4), [(0, 0), (1, 1), (2, 2), (3, 3)]);
        assert_eq!(uniform(1, 12), [(0, 11)]);
        assert_eq!(uniform(3, 1), [(0, 0), (1, 0), (2, 0)]);
    }

    #[test]
    fn a_layer_that_is_not_there_is_refused_and_equal_states_have_no_loss() {
        let (student, teacher) =
            (ModelConfig { hidden_size: 4, num_hidden_layers: 2, ..ModelConfig::default() }, ModelConfig::default());
        let recipe = |pairs| DistillRecipe { hidden_weight: 1., hidden_layers: pairs, ..DistillRecipe::default() };
        let of = |recipe: &DistillRecipe, teacher| HiddenStates::of(recipe, &student, teacher, &Device::Cpu);
        let message = of(&recipe(vec![[0, 9]]), &teacher).err().unwrap().to_string();
        assert_eq!(message, "hidden_layers has [0, 9]; the student has layers 0 to 1, the teacher 0 to 3");
        assert!(of(&DistillRecipe::default(), &teacher).unwrap().is_none());
        let states = of(&recipe(vec![[1, 0]]), &student).unwrap().unwrap();
        let x = Tensor::new(&[[1f32, 2., 3., 4.], [0., -1., 5., 2.]], &Device::Cpu).unwrap();
        let zero = states.loss(std::slice::from_ref(&x), std::slice::from_ref(&x)).unwrap();
        assert_eq!(zero.to_scalar::<f32>().unwrap(), 0.);
        // By hand: two of eight values differ by 2 and by 4.
        let other = Tensor::new(&[[1f32, 4., 3., 4.], [0., -1., 1., 2.]], &Device::Cpu).unwrap();
        assert!((states.loss(&[x], &[other]).unwrap().to_scalar::<f32>().unwrap() - 20. / 8.).abs() < 1e-6);
    }
}
