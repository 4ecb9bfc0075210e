//! The steps after which a run is evaluated.

/// Whether a run of `last` steps is evaluated after `step` steps: at 0 and `last`, at multiples of `eval_every`, and before the
/// first multiple at 25, 50, 100, 200, …, so that the steep start of the curve has enough points.
///
/// ```
/// use llm_train::eval::is_eval_step;
///
/// let steps: Vec<u64> = (0..=1000).filter(|&step| is_eval_step(step, 400, 1000)).collect();
/// assert_eq!(steps, [0, 25, 50, 100, 200, 400, 800, 1000]);
/// ```
pub fn is_eval_step(step: u64, eval_every: u64, last: u64) -> bool {
    let early = step < eval_every && step.is_multiple_of(25) && (step / 25).is_power_of_two();
    step == 0 || step == last || step.is_multiple_of(eval_every) || early
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_evaluations_are_at_doubling_intervals() {
        let steps = |every, last| (0..=last).filter(|&step| is_eval_step(step, every, last)).collect::<Vec<_>>();
        assert_eq!(steps(400, 1000), [0, 25, 50, 100, 200, 400, 800, 1000]);
        assert_eq!(steps(60, 130), [0, 25, 50, 60, 120, 130]);
        assert_eq!(steps(10, 35), [0, 10, 20, 30, 35]);
        assert_eq!(steps(100, 3), [0, 3]);
        assert_eq!(steps(0, 60), [0, 60], "none between");
    }
}
