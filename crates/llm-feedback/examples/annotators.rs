//! Simulated annotators rank answers of known utility: agreement, bias, and the best accuracy that a reward model can reach.
//!
//! ```sh
//! cargo run -p llm-feedback --example annotators
//! ```

use std::error::Error;

use llm_feedback::{Annotator, agreement};

const ANSWERS: [&str; 3] =
    ["Sleep at regular hours.", "Drink coffee at night.", "Keep your room dark and cool, and read a book."];

fn main() -> Result<(), Box<dyn Error>> {
    let utilities = [1.0, -1.0, 1.5];
    let careful = Annotator { beta: 10., ..Annotator::default() };
    let noisy = Annotator { beta: 1., seed: 7, ..Annotator::default() };
    let hasty = Annotator { beta: 10., length_bias: -5., ..Annotator::default() }; // prefers short answers
    for (name, annotator) in [("careful", &careful), ("noisy", &noisy), ("hasty", &hasty)] {
        let (mut shared, questions) = (0., 200);
        for question in 0..questions {
            let id = format!("question {question}");
            let order = annotator.rank(&id, &utilities, &ANSWERS)?; // best first
            shared += agreement(&order, &[2, 0, 1])?;
        }
        let ceiling = annotator.noise_ceiling(&[(utilities.to_vec(), ANSWERS.to_vec())]);
        println!(
            "{name}: {:.0} % of the pairs are in the order of utility; a model can predict at most {:.0} %",
            100. * shared / f64::from(questions),
            100. * ceiling
        );
    }
    Ok(())
}

#[test]
fn runs() -> Result<(), Box<dyn Error>> {
    main()
}
