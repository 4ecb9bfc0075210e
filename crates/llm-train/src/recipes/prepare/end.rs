//! The end of a text as its validation split.

use crate::{Error, Result};

/// Removes the last characters of the only document and returns them: `int(n * (1 - share))` of n characters stay, as in nanoGPT.
pub(super) fn exact_end(documents: &mut [String], share: f64) -> Result<Vec<String>> {
    let [document] = documents else {
        return Err(Error::BadRequest(format!("--exact-share cuts one document, but there are {}", documents.len())));
    };
    let characters = document.chars().count();
    let kept = (characters as f64 * (1. - share)) as usize;
    let cut = document.char_indices().nth(kept).map_or(document.len(), |(at, _)| at);
    let end = document.split_off(cut);
    if document.is_empty() || end.is_empty() {
        let message = format!("{characters} characters are too few for a validation share of {share}; give more text");
        return Err(Error::BadRequest(message));
    }
    Ok(vec![end])
}

/// Removes about `share` of the bytes from the end of the documents and returns them: whole documents, and the end of one.
pub(super) fn take_end(documents: &mut Vec<String>, share: f64) -> Result<Vec<String>> {
    if !(share > 0. && share < 1.) {
        return Err(Error::BadRequest(format!("--validation-share is {share}; it must be above 0 and below 1")));
    }
    let all: usize = documents.iter().map(String::len).sum();
    let mut wanted = (all as f64 * share).ceil() as usize;
    let mut taken = Vec::new();
    while let Some(document) = documents.pop() {
        if document.len() <= wanted && !documents.is_empty() {
            wanted -= document.len();
            taken.push(document);
            continue;
        }
        let (head, tail) = document.split_at(boundary(&document, wanted));
        if !head.is_empty() {
            documents.push(head.to_owned());
        }
        if !tail.is_empty() {
            taken.push(tail.to_owned());
        }
        break;
    }
    taken.reverse();
    let blank = |documents: &[String]| documents.iter().all(|document| document.trim().is_empty());
    if blank(documents) || blank(&taken) {
        let message = format!(
            "{all} bytes of text are too few for a validation share of {share}; give --validation or more text"
        );
        return Err(Error::BadRequest(message));
    }
    Ok(taken)
}

/// The index where about the last `wanted` bytes of a text begin: moved by at most half of `wanted` to the next, else to the
/// previous, start of a line, else of a sentence, else of a word.
fn boundary(text: &str, wanted: usize) -> usize {
    let char_boundary = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at += 1;
        }
        at
    };
    let cut = char_boundary(text.len().saturating_sub(wanted));
    let last = char_boundary((cut + wanted / 2).min(text.len()));
    let first = char_boundary(cut.saturating_sub(wanted / 2)).min(cut);
    let (before, after) = (&text[first..cut], &text[cut..last]);
    let starts = |mark: &str| {
        let next = after.find(mark).map(|at| cut + at + mark.len()).filter(|&at| at < text.len());
        next.or_else(|| before.rfind(mark).map(|at| first + at + mark.len()))
    };
    ["\n", ". ", " "].into_iter().find_map(starts).unwrap_or(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_validation_text_is_the_end_of_the_text() {
        let texts = ["one\ntwo\n", "three\nfour\nfive\nsix\nseven\neight\n"].map(str::to_owned);
        let mut train = texts.to_vec();
        let validation = take_end(&mut train, 0.2).unwrap();
        assert_eq!(validation, ["eight\n"]);
        assert_eq!(train.concat() + &validation.concat(), texts.concat());
        let mut train = texts.to_vec();
        let validation = take_end(&mut train, 0.9).unwrap();
        assert_eq!(train.concat() + &validation.concat(), texts.concat());
        assert!(take_end(&mut vec![String::new()], 0.1).is_err());
        assert!(take_end(&mut vec!["\n\n\n\n".to_owned()], 0.5).is_err());
        assert!(take_end(&mut texts.to_vec(), 1.5).is_err());
    }

    #[test]
    fn a_long_line_is_split_at_a_sentence_a_word_or_a_character() {
        for (unit, last) in [("Some words are here. ", ". "), ("word ", " "), ("é", "é")] {
            for end in ["", "\n"] {
                let text = unit.repeat(2000) + end;
                let mut train = vec![text.clone()];
                let validation = take_end(&mut train, 0.05).unwrap();
                assert_eq!(train.concat() + &validation.concat(), text);
                assert!(train[0].ends_with(last), "{unit:?}: {:?}", &validation[0][..20]);
                let share = validation[0].len() as f64 / text.len() as f64;
                assert!((0.04..0.06).contains(&share), "{unit:?}: {share}");
            }
        }
        // The start of a line is preferred to the start of a sentence, even a previous one.
        let text = format!("{}\n{}\nend\n", "a b. ".repeat(100), "c d. ".repeat(100));
        let mut train = vec![text.clone()];
        assert_eq!(take_end(&mut train, 0.45).unwrap(), [format!("{}\nend\n", "c d. ".repeat(100))]);
    }

    #[test]
    fn an_exact_share_is_cut_at_the_character_of_nanogpt() {
        // Characters of one to four bytes; int(n * 0.9) in Python.
        for (characters, kept) in [(10, 9), (11, 9), (19, 17), (20, 18), (1_115_394, 1_003_854)] {
            let text: String = "aé€𝄞\n".chars().cycle().take(characters).collect();
            let mut train = vec![text.clone()];
            let end = exact_end(&mut train, 0.1).unwrap();
            assert_eq!(train[0].chars().count(), kept);
            assert_eq!(train.concat() + &end.concat(), text);
        }
        assert!(exact_end(&mut ["one".to_owned(), "two".to_owned()], 0.1).is_err());
        assert!(exact_end(&mut ["a".to_owned()], 0.1).is_err());
    }
}
