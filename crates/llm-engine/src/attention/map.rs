//! Attention weights in a byte each, for files: all of them, or the largest of each query.

/// Which weights of a map are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All: query i has i + 1 bytes, one for each token up to its own.
    All,
    /// The k largest of each query, 3 bytes each: the token as a 16-bit little-endian number, then the weight; 65535: no token.
    Largest(usize),
}

impl Keep {
    /// What of `maps` maps of `t` tokens fits into `bytes`: all weights, else as many of each query as fit, at least one.
    pub fn within(bytes: usize, maps: usize, t: usize) -> Self {
        if maps * (t * (t + 1) / 2) <= bytes {
            return Self::All;
        }
        Self::Largest((bytes / (maps * t * ENTRY).max(1)).max(1))
    }
}

/// The bytes of an entry of [`Keep::Largest`].
const ENTRY: usize = 3;
/// The token of an unused entry.
const NONE: u16 = u16::MAX;

/// The weights of a causal attention map, `(t, t)`.
///
/// A weight w is the byte `round(255 · sqrt(w))`: off by at most 0.004, and weights from 4e-6 on are not 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionMap {
    /// Which weights it has.
    pub keep: Keep,
    /// The weights, query by query.
    pub bytes: Vec<u8>,
}

impl AttentionMap {
    /// The map of the weights `rows`, `(t, t)` in row-major order.
    pub fn new(rows: &[f32], t: usize, keep: Keep) -> Self {
        let mut bytes = Vec::new();
        for (query, row) in rows.chunks(t.max(1)).enumerate() {
            let row = &row[..=query];
            match keep {
                Keep::All => bytes.extend(row.iter().map(|&weight| code(weight))),
                Keep::Largest(k) => {
                    let mut order: Vec<usize> = (0..row.len()).collect();
                    let larger = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
                    if k < order.len() {
                        order.select_nth_unstable_by(k, larger);
                        order.truncate(k);
                    }
                    order.sort_unstable_by(larger);
                    for at in 0..k {
                        let (token, weight) = order.get(at).map_or((NONE, 0), |&key| (key as u16, code(row[key])));
                        bytes.extend(token.to_le_bytes());
                        bytes.push(weight);
                    }
                }
            }
        }
        Self { keep, bytes }
    }

    /// The kept weights of a query as pairs of token and weight.
    pub fn row(&self, query: usize) -> Vec<(usize, f32)> {
        let weight = |code: u8| (f32::from(code) / 255.).powi(2);
        match self.keep {
            Keep::All => {
                let start = query * (query + 1) / 2;
                self.bytes[start..=start + query].iter().map(|&code| weight(code)).enumerate().collect()
            }
            Keep::Largest(k) => {
                let entries = self.bytes[query * k * ENTRY..(query + 1) * k * ENTRY].chunks(ENTRY);
                let entry = |entry: &[u8]| (u16::from_le_bytes([entry[0], entry[1]]), weight(entry[2]));
                entries.map(entry).filter(|(key, _)| *key != NONE).map(|(key, weight)| (key as usize, weight)).collect()
            }
        }
    }
}

/// The byte of a weight.
fn code(weight: f32) -> u8 {
    (weight.clamp(0., 1.).sqrt() * 255.).round() as u8
}
