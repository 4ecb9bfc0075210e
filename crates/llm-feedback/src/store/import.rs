//! Adds items with their judgements at once.

use super::types::{Imported, Judged, Judgement, NewItem};
use super::{Store, items, judgements, now};
use crate::Result;

impl Store {
    /// Adds items and judgements with the times at which they arrived, all or none. Unlike in [`Self::judge`], the order in which the
    /// answers were shown may be unknown (`shown` is empty).
    pub fn import(&self, items: &[NewItem], judgements: &[(Judgement, i64)]) -> Result<Imported> {
        let created = now();
        self.write(|transaction| {
            let mut done = Imported { items: items::add(transaction, items, created)?, ..Imported::default() };
            for (judgement, submitted) in judgements {
                match judgements::store(transaction, judgement, *submitted, false)? {
                    Judged::Accepted => done.judgements += 1,
                    Judged::Repeated => done.present += 1,
                }
            }
            Ok(done)
        })
    }
}
