//! The evaluations of a run so far: which was the best, whether to stop early, and whether the model over-fits. All of it is a function
//! of the metrics, so that a resumed run decides as an uninterrupted one.

use std::path::Path;

use serde_json::{Map, Value};

/// What a stage does with its evaluations. The default only measures.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Selection {
    /// Which evaluation is the best.
    pub best: Best,
    /// Evaluations without a better result after which the run ends; 0: never.
    pub early_stop_patience: u64,
    /// Whether to keep the checkpoint of the best evaluation and make its model the result.
    pub keep_best: bool,
}

/// The measure of the best evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Best {
    /// The lowest `eval_loss`.
    #[default]
    EvalLoss,
    /// The highest `exact_match`; of equal ones the first.
    ExactMatch,
}

/// An evaluation.
#[derive(Debug, Clone, Copy)]
struct Evaluated {
    step: u64,
    loss: Option<f64>,
    exact_match: Option<f64>,
    /// The mean training loss since the evaluation before.
    train_loss: Option<f64>,
}

/// A validation loss that rises while the training loss falls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Overfitting {
    /// The step of the lowest validation loss, and the last step.
    pub steps: [u64; 2],
    /// The validation loss at these steps.
    pub eval_loss: [f64; 2],
    /// The mean training loss before these steps, since the evaluation before.
    pub train_loss: [f64; 2],
}

impl Overfitting {
    /// Warns of it, for the run in `dir`.
    pub fn warn(&self, dir: &Path) {
        let ([lowest, last], [eval_low, eval], [train_before, train]) = (self.steps, self.eval_loss, self.train_loss);
        tracing::warn!(
            "{}: the model over-fits: from step {lowest} to {last} the validation loss rises from {eval_low:.4} to {eval:.4}, \
             while the training loss falls from {train_before:.4} to {train:.4}; train less or on more data, or set `keep_best` or \
             `early_stop_patience`",
            dir.display()
        );
    }
}

/// The evaluations of a run so far.
#[derive(Debug)]
pub(super) struct History {
    /// `None`: the training and the validation loss of the stage are not comparable, or it has none; nothing is concluded from them.
    selection: Option<Selection>,
    evaluations: Vec<Evaluated>,
    /// Sum and number of training losses since the last evaluation.
    train: (f64, u64),
    has_overfitted: bool,
}

/// The validation loss rises if it is this much above the lowest one, relative to it.
const RISE: f64 = 0.01;

impl History {
    /// The history of the lines of a run's metrics.
    pub fn of(selection: Option<Selection>, lines: &[Map<String, Value>]) -> Self {
        let mut history = Self { selection, evaluations: Vec::new(), train: (0., 0), has_overfitted: false };
        for line in lines {
            history.push(line);
        }
        history
    }

    /// Adds a line of the metrics. Returns over-fitting when it is seen for the first time.
    pub fn push(&mut self, line: &Map<String, Value>) -> Option<Overfitting> {
        self.selection?;
        let number = |name: &str| line.get(name).and_then(Value::as_f64);
        if let Some(loss) = number("loss") {
            self.train = (self.train.0 + loss, self.train.1 + 1);
        }
        let (loss, exact_match) = (number("eval_loss"), number("exact_match"));
        if loss.is_none() && exact_match.is_none() {
            return None;
        }
        let (sum, count) = std::mem::take(&mut self.train);
        let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
        let train_loss = (count > 0).then(|| sum / count as f64);
        self.evaluations.push(Evaluated { step, loss, exact_match, train_loss });
        let found = if self.has_overfitted { None } else { self.overfitting() };
        self.has_overfitted |= found.is_some();
        found
    }

    /// The step of the best evaluation after the start, if its checkpoint must be kept.
    pub fn kept(&self) -> Option<u64> {
        self.best().filter(|_| self.selection.is_some_and(|s| s.keep_best)).map(|(_, best)| best.step)
    }

    /// The best and the last evaluation, if there was no better one for as long as the stage waits: (step, value).
    pub fn stop(&self) -> Option<(u64, f64)> {
        let (i, best) = self.best()?;
        let patience = self.selection?.early_stop_patience;
        let since = (self.evaluations.len() - 1 - i) as u64;
        (patience > 0 && since >= patience).then(|| (best.step, self.value(best).unwrap_or(f64::NAN)))
    }

    /// The measure of the best evaluation; higher or lower is better.
    fn value(&self, evaluated: &Evaluated) -> Option<f64> {
        match self.selection?.best {
            Best::EvalLoss => evaluated.loss,
            Best::ExactMatch => evaluated.exact_match,
        }
    }

    /// The best evaluation after the start of the training: the first of equal ones.
    fn best(&self) -> Option<(usize, &Evaluated)> {
        let sign = if self.selection?.best == Best::EvalLoss { 1. } else { -1. };
        let trained = self.evaluations.iter().enumerate().filter(|(_, evaluated)| evaluated.step > 0);
        let key = |evaluated: &Evaluated| self.value(evaluated).map(|value| value * sign);
        trained
            .filter(|(_, e)| key(e).is_some())
            .reduce(|best, next| if key(next.1) < key(best.1) { next } else { best })
    }

    fn overfitting(&self) -> Option<Overfitting> {
        let last = self.evaluations.last()?;
        let lowest =
            self.evaluations.iter().filter(|e| e.loss.is_some()).reduce(|a, b| if b.loss < a.loss { b } else { a })?;
        let (eval_loss, train_loss) = ([lowest.loss?, last.loss?], [lowest.train_loss?, last.train_loss?]);
        let rises = eval_loss[1] > eval_loss[0] * (1. + RISE) && train_loss[1] < train_loss[0];
        rises.then_some(Overfitting { steps: [lowest.step, last.step], eval_loss, train_loss })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A run with an evaluation after every second step: (training loss, validation loss).
    fn history(selection: Selection, losses: &[(f64, f64)]) -> (History, Vec<Overfitting>) {
        let mut history = History::of(Some(selection), &[]);
        let mut found = Vec::new();
        for (i, &(train, eval)) in losses.iter().enumerate() {
            let steps = [2 * i as u64 + 1, 2 * i as u64 + 2];
            for (step, loss) in steps.into_iter().zip([train + 0.5, train - 0.5]) {
                found.extend(history.push(json!({"step": step, "loss": loss}).as_object().unwrap()));
            }
            let line = json!({"step": steps[1], "eval_loss": eval, "exact_match": -eval});
            found.extend(history.push(line.as_object().unwrap()));
        }
        (history, found)
    }

    const SELECTION: Selection = Selection { best: Best::EvalLoss, early_stop_patience: 2, keep_best: true };

    #[test]
    fn the_best_evaluation_is_kept_and_a_run_without_a_better_one_stops() {
        let losses = [(5., 4.), (4., 3.), (3., 3.5), (3., 3.)];
        for best in [Best::EvalLoss, Best::ExactMatch] {
            let selection = Selection { best, ..SELECTION };
            let (three, _) = history(selection, &losses[..3]);
            assert_eq!((three.kept(), three.stop()), (Some(4), None));
            let (four, _) = history(selection, &losses);
            assert_eq!(four.kept(), Some(4), "the first of equal ones");
            assert_eq!(four.stop().map(|(step, _)| step), Some(4));
        }
        let (measured, _) = history(Selection::default(), &losses);
        assert_eq!((measured.kept(), measured.stop()), (None, None));
    }

    #[test]
    fn the_evaluation_before_the_training_is_not_the_best() {
        let mut history = History::of(Some(SELECTION), &[]);
        history.push(json!({"step": 0, "eval_loss": 1.}).as_object().unwrap());
        assert_eq!(history.kept(), None);
        history.push(json!({"step": 5, "eval_loss": 2.}).as_object().unwrap());
        assert_eq!(history.kept(), Some(5));
    }

    #[test]
    fn over_fitting_is_reported_once_with_its_figures() {
        let (_, found) = history(SELECTION, &[(5., 4.), (4., 3.), (3., 3.02), (2., 3.3), (1., 4.)]);
        let expected = Overfitting { steps: [4, 8], eval_loss: [3., 3.3], train_loss: [4., 2.] };
        assert_eq!(found, [expected]);
        // Both rise: the training diverges. Both fall: it learns.
        let over_fits = |selection| {
            let mut history = History::of(selection, &[]);
            let lines = [json!({"loss": 2., "eval_loss": 1.}), json!({"loss": 1., "eval_loss": 2.})];
            lines.iter().filter_map(|line| history.push(line.as_object().unwrap())).count()
        };
        assert_eq!((over_fits(Some(SELECTION)), over_fits(None)), (1, 0), "a stage whose losses are not comparable");
        assert_eq!(history(SELECTION, &[(5., 4.), (6., 5.), (7., 6.)]).1, []);
        assert_eq!(history(SELECTION, &[(5., 4.), (4., 3.5), (3., 3.)]).1, []);
    }

    #[test]
    fn a_resumed_run_has_the_history_of_an_uninterrupted_one() {
        let (whole, _) = history(SELECTION, &[(5., 4.), (4., 3.), (3., 3.5), (3., 3.4)]);
        let lines: Vec<_> = [(2, 4.), (4, 3.), (6, 3.5), (8, 3.4)]
            .map(|(step, loss)| json!({"step": step, "eval_loss": loss}).as_object().unwrap().clone())
            .into();
        let resumed = History::of(Some(SELECTION), &lines);
        assert_eq!((resumed.kept(), resumed.stop()), (whole.kept(), whole.stop()));
    }
}
