//! A report as text.

use std::fmt::{Display, Formatter, Result};

use super::{Report, Share};

/// The tables of a report.
impl Display for Report {
    fn fmt(&self, f: &mut Formatter) -> Result {
        let (items, judged, judgements) = (self.items, self.judged_items, self.judgements);
        writeln!(f, "{items} items, {judged} of them ranked, {judgements} judgements\n")?;
        for (name, share, note) in [
            ("pairwise agreement", self.agreement, "items with two judges or more"),
            ("self-agreement", self.self_agreement, "items shown again"),
            ("gold accuracy", self.gold_accuracy, ""),
            ("first shown wins", self.first_shown_wins, "50 % without bias"),
            ("longer wins", self.longer_wins, ""),
            ("ties", self.ties, ""),
            ("too fast", self.too_fast, "of the judgements"),
        ] {
            match share {
                None => writeln!(f, "{name:<22}      -"),
                Some(Share { share, low, high, count }) => {
                    let (share, low, high) = (100. * share, 100. * low, 100. * high);
                    let line = format!("{name:<22}{share:>7.1} %  [{low:.1}, {high:.1}] of {count}  {note}");
                    writeln!(f, "{}", line.trim_end())
                }
            }?;
        }
        writeln!(f, "{:<22}{}", "Krippendorff's alpha", number(self.krippendorff_alpha))?;
        for kappa in &self.kappas {
            let [one, other] = &kappa.judges;
            writeln!(f, "{:<22}{}  {one}, {other}: {} pairs", "Cohen's kappa", number(kappa.kappa), kappa.pairs)?;
        }
        let percent =
            |share: &Option<Share>| share.map_or("-".to_owned(), |share| format!("{:.1} %", 100. * share.share));
        if !self.annotators.is_empty() {
            let width = self.annotators.iter().map(|one| one.name.chars().count()).max().unwrap_or(0).max(9);
            writeln!(f, "\n{:width$}  judgements  median s     gold     self  too fast", "annotator")?;
            for one in &self.annotators {
                let seconds = one.median_seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1}"));
                let (gold, own, fast) =
                    (percent(&one.gold_accuracy), percent(&one.self_agreement), percent(&one.too_fast));
                let (name, judgements) = (&one.name, one.judgements);
                writeln!(f, "{name:width$}  {judgements:>10}  {seconds:>8}  {gold:>7}  {own:>7}  {fast:>8}")?;
            }
        }
        if !self.strengths.checkpoints.is_empty() {
            let names = self.strengths.checkpoints.iter().map(|one| one.checkpoint.chars().count());
            let width = names.max().unwrap_or(0).max(10);
            writeln!(f, "\n{:width$}   wins  losses   ties     Elo  95 % interval", "checkpoint")?;
            for one in &self.strengths.checkpoints {
                let elo = one.elo.map_or("-".to_owned(), |elo| format!("{elo:.0}"));
                let interval = one.interval.map_or(String::new(), |(low, high)| format!("{low:.0} to {high:.0}"));
                let line = format!(
                    "{:width$}  {:>5}  {:>6}  {:>5}  {elo:>6}  {interval}",
                    one.checkpoint, one.wins, one.losses, one.ties
                );
                writeln!(f, "{}", line.trim_end())?;
            }
            if self.strengths.checkpoints.iter().any(|one| one.elo.is_none()) {
                writeln!(f, "no finite strengths: some checkpoints never lost, never won or never met the others")?;
            }
            if self.strengths.without_estimate > 0 {
                let (without, samples) = (self.strengths.without_estimate, self.strengths.samples);
                writeln!(
                    f,
                    "{without} of {samples} bootstrap samples have no finite strengths and are not in the intervals"
                )?;
            }
        }
        if !self.excluded.is_empty() {
            writeln!(f, "\nnot counted:")?;
            for (reason, count) in &self.excluded {
                writeln!(f, "{count:>7}  {reason}")?;
            }
        }
        Ok(())
    }
}

/// A coefficient in the width of the shares.
fn number(value: Option<f64>) -> String {
    value.map_or("      -".to_owned(), |value| format!("{value:>7.3}"))
}
