//! The command `feedback rank`: judging in the terminal, line by line.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use llm_feedback::store::{AnnotatorId, Grades, Judgement, Kind, Policy, Ranks, Store, Task, digest, now};

use super::policy::PolicyOptions;
use crate::Error;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llm-train feedback rank --db votes.sqlite --annotator ann\n\nEach line is a judgement: 213, 2=13, T, B, S \
                        REASON, F REASON; Z undoes, ? helps, Q ends."
)]
pub(in crate::cli) struct Rank {
    /// File of the database
    #[arg(long, value_name = "FILE")]
    db: PathBuf,
    /// Your name
    #[arg(long, value_name = "NAME")]
    annotator: String,
    #[command(flatten)]
    policy: PolicyOptions,
}

/// Judges on standard input and output.
pub(super) fn run_rank(args: &Rank) -> Result<String, Error> {
    let policy = args.policy.policy()?;
    let store = Store::open_existing(&args.db)?;
    let annotator = store.annotator(&args.annotator)?;
    let (input, mut output) = (std::io::stdin(), std::io::stdout());
    let mut session = Session { store: &store, annotator, policy: &policy, prompts: input.is_terminal(), judged: 0 };
    session.run(&mut input.lock(), &mut output)?;
    Ok(format!("{} judgements. Next: llm-train feedback report --db {}\n", session.judged, args.db.display()))
}

const HELP: &str = "  213    the best first: 2, then 1, then 3; the last one may be left out
  2=13   2 and 1 tie, then 3
  T      all equal            B      all bad
  S ...  skip, with a reason  F ...  flag (identity, unsafe, broken), with a reason
  Z      undo the last judgement, any number back
  ?      this help            Q      end (also Ctrl-D); nothing is lost
";

struct Session<'a> {
    store: &'a Store,
    annotator: AnnotatorId,
    policy: &'a Policy,
    /// Whether a person is asked for each line.
    prompts: bool,
    judged: usize,
}

/// What a line says.
#[derive(Debug, PartialEq)]
enum Line {
    Judge(Kind, Option<String>),
    Undo,
    Help,
    Quit,
}

impl Session<'_> {
    fn run(&mut self, input: &mut impl BufRead, output: &mut impl Write) -> Result<(), Error> {
        let written = |error: std::io::Error| Error::io("standard output")(error);
        if !self.policy.guideline.is_empty() {
            writeln!(output, "{}", plain(&self.policy.guideline)).map_err(written)?;
        }
        while let Some(task) = self.store.next(self.annotator, self.policy, now())? {
            let started = now();
            write!(output, "{}", screen(&task)).map_err(written)?;
            loop {
                if self.prompts {
                    write!(output, "order, T, B, S, F, Z, ? > ").map_err(written)?;
                }
                output.flush().map_err(written)?;
                let mut line = String::new();
                if input.read_line(&mut line).map_err(Error::io("standard input"))? == 0 {
                    return Ok(());
                }
                match parse(&line, &task) {
                    Err(problem) => writeln!(output, "{problem}; ? shows the keys").map_err(written)?,
                    Ok(Line::Help) => {
                        let guideline = plain(&self.policy.guideline);
                        write!(output, "{HELP}{guideline}{}", if guideline.is_empty() { "" } else { "\n" })
                            .map_err(written)?;
                    }
                    Ok(Line::Quit) => return Ok(()),
                    Ok(Line::Undo) => {
                        let id = digest(&[
                            "undo",
                            &self.annotator.0.to_string(),
                            &now().to_string(),
                            &self.judged.to_string(),
                        ]);
                        match self.store.undo(self.annotator, &id, self.policy, now())? {
                            None => writeln!(output, "there is nothing to undo").map_err(written)?,
                            Some(_) => {
                                self.judged = self.judged.saturating_sub(1);
                                writeln!(output, "undone").map_err(written)?;
                                break;
                            }
                        }
                    }
                    Ok(Line::Judge(kind, reason)) => {
                        self.judge(&task, kind, reason, started)?;
                        break;
                    }
                }
            }
        }
        writeln!(output, "nothing is left to judge").map_err(written)
    }

    fn judge(&mut self, task: &Task, kind: Kind, reason: Option<String>, started: i64) -> Result<(), Error> {
        let submitted = now();
        let judgement = Judgement {
            id: digest(&[
                "rank",
                &self.annotator.0.to_string(),
                &task.item,
                &started.to_string(),
                &submitted.to_string(),
            ]),
            item: task.item.clone(),
            annotator: self.annotator,
            kind,
            shown: task.answers.iter().map(|answer| answer.id.clone()).collect(),
            grades: Grades::new(),
            reason,
            started,
            ms_visible: submitted - started,
            repeat_of: task.repeat_of.clone(),
            guideline_version: self.policy.guideline_version(),
        };
        self.store.judge(&judgement, submitted)?;
        self.judged += 1;
        Ok(())
    }
}

/// A text without control characters, which could change the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The prompt and the answers, without a word on the models.
fn screen(task: &Task) -> String {
    let mut text = format!("\n[{} done, {} left]\n", task.progress.done, task.progress.left);
    for message in &task.prompt {
        text += &format!("{}: {}\n", plain(message.role()), plain(&message.text()));
    }
    for (number, answer) in task.answers.iter().enumerate() {
        text += &format!("--- {} ---\n{}\n", number + 1, plain(&answer.text));
    }
    text
}

fn parse(line: &str, task: &Task) -> Result<Line, String> {
    let line = line.trim();
    let (key, rest) = line.split_at(line.chars().next().map_or(0, char::len_utf8));
    let (rest, given) = (rest.trim(), Some(rest.trim().to_owned()).filter(|reason| !reason.is_empty()));
    let alone = |line: Line| if rest.is_empty() { Ok(line) } else { Err(format!("\"{line:?}\" takes no text")) };
    let ids = || task.answers.iter().map(|answer| answer.id.clone());
    match key.to_ascii_uppercase().as_str() {
        "T" if rest.is_empty() => Ok(Line::Judge(Kind::Rank { ranks: ids().map(|id| (id, 1)).collect() }, None)),
        "B" if rest.is_empty() => Ok(Line::Judge(Kind::AllBad, None)),
        "S" => Ok(Line::Judge(Kind::Skip, given)),
        "F" if given.is_none() => Err("a flag needs a reason, such as: F unsafe".to_owned()),
        "F" => Ok(Line::Judge(Kind::Flag, given)),
        "Z" => alone(Line::Undo),
        "?" => alone(Line::Help),
        "Q" => alone(Line::Quit),
        _ => Ok(Line::Judge(Kind::Rank { ranks: ranks(line, task)? }, None)),
    }
}

/// The ranks of an order such as `2=13`.
fn ranks(line: &str, task: &Task) -> Result<Ranks, String> {
    let count = task.answers.len();
    let (mut ranks, mut rank, mut tied) = (Ranks::new(), 0, false);
    for c in line.chars().filter(|c| !c.is_whitespace()) {
        if c == '=' {
            if tied || ranks.is_empty() {
                return Err("= must be between two answers".to_owned());
            }
            tied = true;
            continue;
        }
        let number = c.to_digit(10).and_then(|digit| usize::try_from(digit).ok());
        let Some(answer) =
            number.filter(|&number| (1..=count).contains(&number)).map(|number| &task.answers[number - 1])
        else {
            return Err(format!("\"{c}\" is no answer; the answers are 1 to {count}"));
        };
        rank += u32::from(!tied);
        tied = false;
        if ranks.insert(answer.id.clone(), rank).is_some() {
            return Err(format!("{c} is named twice"));
        }
    }
    if tied || ranks.len() + 1 < count {
        return Err(format!("the order must name the answers 1 to {count}"));
    }
    // The last one.
    if let Some(answer) = task.answers.iter().find(|answer| !ranks.contains_key(&answer.id)) {
        ranks.insert(answer.id.clone(), rank + 1);
    }
    Ok(ranks)
}

#[cfg(test)]
mod tests {
    use llm_data::ChatMessage;
    use llm_feedback::store::{NewAnswer, NewItem};

    use super::*;

    fn item(id: usize) -> NewItem {
        let answer = |name: &str| NewAnswer {
            checkpoint: Some("runs/secret-model".to_owned()),
            ..NewAnswer::text(name, format!("text {name}\u{1b}[2J"))
        };
        NewItem {
            id: format!("item {id}"),
            prompt: vec![ChatMessage::user("Which?")],
            source: "test".to_owned(),
            gold_order: None,
            answers: ["a", "b", "c"].map(answer).to_vec(),
        }
    }

    fn session(items: usize, input: &str) -> (tempfile::TempDir, Store, String) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("votes.sqlite")).unwrap();
        store.add_items(&(0..items).map(item).collect::<Vec<_>>()).unwrap();
        let (annotator, policy) =
            (store.annotator("ann").unwrap(), Policy { guideline: "Be fair.".into(), ..Policy::default() });
        let mut output = Vec::new();
        let mut session = Session { store: &store, annotator, policy: &policy, prompts: true, judged: 0 };
        session.run(&mut input.as_bytes(), &mut output).unwrap();
        (dir, store, String::from_utf8(output).unwrap())
    }

    /// The places on the screen of the ranked answers, by rank.
    fn orders(store: &Store) -> Vec<Vec<Vec<usize>>> {
        let mut rows: Vec<_> = store.current().unwrap().into_iter().filter_map(|row| row.judgement).collect();
        rows.sort_by_key(|judgement| judgement.item.clone());
        let order = |judgement: Judgement| match judgement.kind {
            Kind::Rank { ranks } => (1..=3)
                .map(|rank| {
                    (1..).zip(&judgement.shown).filter(|(_, id)| ranks[*id] == rank).map(|(place, _)| place).collect()
                })
                .filter(|group: &Vec<usize>| !group.is_empty())
                .collect(),
            _ => vec![],
        };
        rows.into_iter().map(order).collect()
    }

    #[test]
    fn each_key_does_what_it_does_on_the_page() {
        let input = "213\n2=13\n 3 1 \nT\nB\nS too long\nF unsafe\nQ\n";
        let (_dir, store, output) = session(9, input);
        let expected: Vec<Vec<Vec<usize>>> = vec![
            vec![vec![2], vec![1], vec![3]],
            vec![vec![1, 2], vec![3]],
            vec![vec![3], vec![1], vec![2]],
            vec![vec![1, 2, 3]],
            vec![],
            vec![],
            vec![],
        ];
        assert_eq!(orders(&store), expected);
        let rows = store.current().unwrap();
        let kinds: Vec<_> =
            rows[4..].iter().map(|row| row.judgement.clone().unwrap()).map(|one| (one.kind, one.reason)).collect();
        let reason = |text: &str| Some(text.to_owned());
        assert_eq!(kinds, [(Kind::AllBad, None), (Kind::Skip, reason("too long")), (Kind::Flag, reason("unsafe"))]);
        assert!(output.starts_with("Be fair.\n\n[0 done, 9 left]\nuser: Which?\n--- 1 ---\ntext "), "{output}");
        assert!(!output.contains("secret") && !output.contains('\u{1b}'), "blind, and no control characters");
    }

    #[test]
    fn undo_goes_back_and_the_end_of_the_input_loses_nothing() {
        let (_dir, store, output) = session(3, "123\n321\nZ\nz\n?\n231\n");
        assert_eq!(orders(&store), [[vec![2], vec![3], vec![1]]]);
        assert_eq!(store.history().unwrap().len(), 5);
        assert!(
            output.contains("undone") && output.contains("the best first") && output.matches("Be fair.").count() == 2
        );
        let (_dir, store, output) = session(1, "Z\n123\n");
        assert!(
            output.contains("there is nothing to undo") && output.ends_with("nothing is left to judge\n"),
            "{output}"
        );
        assert_eq!(store.current().unwrap().len(), 1);
    }

    #[test]
    fn a_line_that_is_no_judgement_is_explained_and_asked_again() {
        let (_dir, store, output) = session(1, "12=\n11\n4\n1\n=12\nx\nF\n\nT T\n123\n");
        for part in
            ["the order must name", "1 is named twice", "\"4\" is no answer", "= must be between", "needs a reason"]
        {
            assert!(output.contains(part), "{part}: {output}");
        }
        assert_eq!(store.current().unwrap().len(), 1);
    }
}
