//! Two domains with their own vocabulary, for domain fine-tuning.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::pick;

/// A domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// Diagnoses and treatments.
    Medical,
    /// Contracts and courts.
    Legal,
}

const AILMENTS: [(&str, &str, &str); 8] = [
    ("bronchitis", "a persistent cough", "an inhaler"),
    ("anaemia", "chronic fatigue", "an iron supplement"),
    ("migraine", "a throbbing headache", "an analgesic"),
    ("tonsillitis", "a swollen throat", "an antibiotic"),
    ("eczema", "an itching rash", "a cortisone ointment"),
    ("hypertension", "high blood pressure", "a diuretic"),
    ("gastritis", "abdominal pain", "an antacid"),
    ("arthritis", "stiff joints", "physiotherapy"),
];

const CLAIMS: [(&str, &str, &str); 8] = [
    ("negligence", "failed to take reasonable care", "compensatory damages"),
    ("breach of contract", "did not deliver the goods", "a refund with interest"),
    ("defamation", "published a false statement", "a retraction"),
    ("trespass", "entered the property without consent", "an injunction"),
    ("fraud", "concealed a material fact", "rescission of the contract"),
    ("infringement", "copied the protected design", "a licence fee"),
    ("unfair dismissal", "terminated the employment without notice", "reinstatement"),
    ("nuisance", "caused unreasonable noise", "an abatement order"),
];

impl Domain {
    pub(super) fn sentence(self, rng: &mut ChaCha8Rng) -> String {
        match self {
            Self::Medical => medical(rng),
            Self::Legal => legal(rng),
        }
    }
}

fn medical(rng: &mut ChaCha8Rng) -> String {
    let (disease, symptom, therapy) = pick(rng, &AILMENTS);
    let physician = pick(rng, &["physician", "specialist", "surgeon", "paediatrician", "resident", "nurse"]);
    let ward = pick(rng, &["clinic", "ward", "surgery", "hospital", "emergency unit"]);
    let when = pick(rng, &["on admission", "at the second visit", "after the examination", "in the morning round"]);
    let duration = pick(rng, &["for one week", "for ten days", "twice daily", "until the symptoms subside"]);
    match pick(rng, &[0, 1, 2]) {
        0 => format!("The patient presented {symptom} {when}, and the {physician} of the {ward} diagnosed {disease}."),
        1 => format!("For {disease} the {physician} of the {ward} prescribed {therapy} {duration}."),
        _ => format!(
            "Because of {symptom}, the {physician} suspected {disease} {when} and ordered {therapy} {duration}."
        ),
    }
}

fn legal(rng: &mut ChaCha8Rng) -> String {
    let (claim, conduct, remedy) = pick(rng, &CLAIMS);
    let party = pick(rng, &["defendant", "respondent", "contractor", "landlord", "employer", "licensee"]);
    let court = pick(rng, &["district court", "court of appeal", "tribunal", "arbitrator", "supreme court"]);
    let basis = pick(rng, &["under the statute", "pursuant to the agreement", "on the evidence", "by precedent"]);
    let clause = pick(rng, &["clause two", "clause five", "section seven", "the preamble", "schedule three"]);
    match pick(rng, &[0, 1, 2]) {
        0 => format!("The {court} held {basis} that the {party} {conduct} and is liable for {claim}."),
        1 => format!("For {claim} the plaintiff seeks {remedy} from the {party} {basis}, citing {clause}."),
        _ => format!("Where the {party} {conduct}, {clause} entitles the plaintiff to {remedy} before the {court}."),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Split, World, WorldConfig};
    use super::*;

    #[test]
    fn each_domain_has_words_that_the_other_and_the_corpus_lack() {
        let world = World::new(WorldConfig { corpus_bytes: 500_000, ..WorldConfig::default() });
        let corpus = world.corpus(Split::Train).join(" ");
        let medical = world.domain(Domain::Medical, Split::Train, 500).join(" ");
        let legal = world.domain(Domain::Legal, Split::Train, 500).join(" ");
        for word in ["diagnosed", "migraine", "antibiotic"] {
            assert!(medical.contains(word) && !legal.contains(word) && !corpus.contains(word), "{word}");
        }
        for word in ["plaintiff", "tribunal", "negligence"] {
            assert!(legal.contains(word) && !medical.contains(word) && !corpus.contains(word), "{word}");
        }
    }

    #[test]
    fn held_out_domain_texts_are_new() {
        let world = World::new(WorldConfig::default());
        let train = world.domain(Domain::Medical, Split::Train, 3000).join(" ");
        for document in world.domain(Domain::Medical, Split::HeldOut, 50) {
            let first = document.split_inclusive('.').next().unwrap();
            assert!(!train.contains(first), "{first}");
        }
    }
}
