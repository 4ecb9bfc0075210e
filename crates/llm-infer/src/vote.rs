//! Several answers to one prompt, and the most frequent one of them (self-consistency, Wang et al. 2023).

/// How often an answer occurs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Count {
    /// The answer as it was first written.
    pub(crate) answer: String,
    pub(crate) count: usize,
}

/// The answers by their number, the most frequent first; of equal numbers the one that came first. Answers are equal if they
/// differ in case, white space, a point at the end, or as numbers only in their writing.
pub(crate) fn count<'a>(answers: impl IntoIterator<Item = &'a str>) -> Vec<Count> {
    let mut counts: Vec<(String, Count)> = Vec::new();
    for answer in answers {
        let key = normalized(answer);
        match counts.iter_mut().find(|(other, _)| *other == key) {
            Some((_, known)) => known.count += 1,
            None => counts.push((key, Count { answer: answer.trim().to_owned(), count: 1 })),
        }
    }
    let mut counts: Vec<Count> = counts.into_iter().map(|(_, count)| count).collect();
    counts.sort_by_key(|count| std::cmp::Reverse(count.count)); // stable
    counts
}

/// The form in which answers are compared.
pub(crate) fn normalized(answer: &str) -> String {
    let words = answer.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let text = words.trim_end_matches(['.', '!']).trim();
    let digits: String = text.trim_start_matches('$').chars().filter(|c| *c != ',').collect();
    match digits.parse::<f64>() {
        Ok(number) if number.is_finite() => number.to_string(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_answer_wins_and_the_first_of_equals() {
        let counts = count(["7", "Paris.", "7.0", "paris", " 7 "]);
        assert_eq!(
            counts,
            [Count { answer: "7".to_owned(), count: 3 }, Count { answer: "Paris.".to_owned(), count: 2 }]
        );
        assert_eq!(count(["b", "a"])[0].answer, "b");
        assert!(count([]).is_empty());
    }

    #[test]
    fn numbers_are_equal_however_they_are_written() {
        assert_eq!(normalized("$1,200"), normalized("1200.00"));
        assert_ne!(normalized("1,2 and 3"), normalized("12 and 3"));
        assert_ne!(normalized("nan"), normalized("inf"));
    }
}
