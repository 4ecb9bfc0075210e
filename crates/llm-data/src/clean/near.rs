//! Near duplicates: documents whose sets of word n-grams are similar. `MinHash` finds candidates, their true similarity is computed,
//! and all but the first of each cluster are removed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::minhash::{jaccard, shingles};
use super::store::Store;
use crate::Result;

/// How near duplicates are found. The probability that two documents with the similarity s are candidates is 1 - (1 - s^rows)^bands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NearDuplicates {
    /// Words of an n-gram, default 5.
    pub ngram: usize,
    /// Number of bands, default 40.
    pub bands: usize,
    /// Values in a band, default 5.
    pub rows: usize,
    /// Least true similarity (Jaccard, from 0 to 1) of two duplicates, default 0.5. 0: candidates are not compared, as in `FineWeb`.
    pub min_jaccard: f64,
    /// Largest share of the documents that may be removed, from 0 to 1, default 0.5; more is an error, because it is often a wrong
    /// setting.
    pub max_removed: f64,
}

impl Default for NearDuplicates {
    fn default() -> Self {
        Self { ngram: 5, bands: 40, rows: 5, min_jaccard: 0.5, max_removed: 0.5 }
    }
}

/// In a band, a document is compared with at most this number of earlier documents of the same key that are not in its cluster.
const MAX_COMPARED: usize = 256;

/// The clusters of near duplicates.
pub(super) struct Clusters {
    /// For each document the first of its cluster: itself if it is kept.
    pub first: Vec<u32>,
    /// The size of the largest group of documents that are candidates of each other, directly or through others.
    pub largest_candidates: usize,
    /// How often a document was not compared with all candidates of a band, because of [`MAX_COMPARED`].
    pub not_compared: u64,
}

impl Clusters {
    /// Finds the clusters of the documents of a store. They do not depend on the number of threads.
    pub fn find(store: &Store, options: &NearDuplicates) -> Result<Self> {
        let (mut clusters, mut candidates) = (Forest::new(store.len()), Forest::new(store.len()));
        let mut not_compared = 0;
        for band in 0..store.bands {
            let mut keys = store.band(band)?;
            keys.par_sort_unstable();
            let groups: Vec<&[(u64, u32)]> = keys.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1).collect();
            for group in &groups {
                group.windows(2).for_each(|pair| candidates.unite(pair[0].1, pair[1].1));
            }
            candidates.flatten();
            if options.min_jaccard <= 0. {
                continue;
            }
            let compared: Vec<Result<Compared>> =
                groups.par_iter().map(|group| Compared::of(store, group, &clusters, options)).collect();
            for compared in compared {
                let compared = compared?;
                not_compared += compared.left_out;
                compared.edges.into_iter().for_each(|(a, b)| clusters.unite(a, b));
            }
            clusters.flatten();
        }
        let all = 0..store.len() as u32;
        let largest = |forest: &Forest| {
            let mut sizes: HashMap<u32, usize> = HashMap::new();
            all.clone().for_each(|document| *sizes.entry(forest.root(document)).or_default() += 1);
            sizes.into_values().filter(|size| *size > 1).max().unwrap_or_default()
        };
        let largest_candidates = largest(&candidates);
        let clusters = if options.min_jaccard > 0. { clusters } else { candidates };
        Ok(Self {
            first: all.clone().map(|document| clusters.root(document)).collect(),
            largest_candidates,
            not_compared,
        })
    }
}

impl Clusters {
    /// Number of documents that are not the first of their cluster.
    pub fn removed(&self) -> usize {
        self.first.iter().enumerate().filter(|(index, first)| **first != *index as u32).count()
    }

    /// The documents of each cluster of two and more, the largest cluster first, then the one with the earliest document.
    pub fn groups(&self) -> Vec<Vec<u32>> {
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (index, &first) in self.first.iter().enumerate() {
            if first != index as u32 {
                groups.entry(first).or_insert_with(|| vec![first]).push(index as u32);
            }
        }
        let mut groups: Vec<Vec<u32>> = groups.into_values().collect();
        groups.sort_by_key(|group| Reverse(group.len()));
        groups
    }
}

/// Disjoint sets of documents; the root of a set is its least document.
struct Forest(Vec<u32>);

impl Forest {
    fn new(length: usize) -> Self {
        Self((0..length as u32).collect())
    }

    fn root(&self, mut document: u32) -> u32 {
        while self.0[document as usize] != document {
            document = self.0[document as usize];
        }
        document
    }

    fn unite(&mut self, a: u32, b: u32) {
        let (a_root, b_root) = (self.root(a), self.root(b));
        let root = a_root.min(b_root);
        for document in [a, b, a_root, b_root] {
            self.0[document as usize] = root;
        }
    }

    /// Makes every document point to its root. A parent is less than its children, so one pass is enough.
    fn flatten(&mut self) {
        for document in 0..self.0.len() {
            self.0[document] = self.0[self.0[document] as usize];
        }
    }
}

/// The result of comparing the documents of a group, which have the same key in a band.
struct Compared {
    /// Pairs of similar documents.
    edges: Vec<(u32, u32)>,
    left_out: u64,
}

impl Compared {
    fn of(store: &Store, group: &[(u64, u32)], forest: &Forest, options: &NearDuplicates) -> Result<Self> {
        let mut sets = Sets { store, options, loaded: HashMap::new(), size: 0 };
        let mut compared = Self { edges: Vec::new(), left_out: 0 };
        // The documents of the group so far, by cluster; clusters in the order of their first documents.
        let mut clusters: Vec<Vec<u32>> = Vec::new();
        let mut by_root: HashMap<u32, usize> = HashMap::new();
        for &(_, document) in group {
            let own = *by_root.entry(forest.root(document)).or_insert_with(|| {
                clusters.push(Vec::new());
                clusters.len() - 1
            });
            let mut budget = MAX_COMPARED;
            // A new cluster is merged into the first one with a similar document; the search goes on, as there may be several.
            for other in 0..clusters.len() {
                if other == own || clusters[other].is_empty() {
                    continue;
                }
                if budget == 0 {
                    compared.left_out += 1;
                    break;
                }
                let tried = &clusters[other][..clusters[other].len().min(budget)];
                budget -= tried.len();
                let mut similar = None;
                for &earlier in tried {
                    if sets.are_similar(earlier, document)? {
                        similar = Some(earlier);
                        break;
                    }
                }
                if let Some(earlier) = similar {
                    compared.edges.push((earlier, document));
                    let moved = std::mem::take(&mut clusters[other]);
                    clusters[own].extend(moved);
                }
            }
            clusters[own].push(document);
        }
        Ok(compared)
    }
}

/// The sets of n-grams of documents, read from disk when they are needed.
struct Sets<'a> {
    store: &'a Store,
    options: &'a NearDuplicates,
    loaded: HashMap<u32, Arc<Vec<u64>>>,
    /// Number of elements of the loaded sets.
    size: usize,
}

impl Sets<'_> {
    /// Loaded sets have at most this number of elements (16 MB), or are two.
    const MAX_SIZE: usize = 2 << 20;

    fn are_similar(&mut self, a: u32, b: u32) -> Result<bool> {
        let (a, b) = (self.get(a)?, self.get(b)?);
        // The similarity is at most the ratio of the sizes.
        let (small, large) = (a.len().min(b.len()) as f64, a.len().max(b.len()) as f64);
        Ok(small >= self.options.min_jaccard * large && jaccard(&a, &b) >= self.options.min_jaccard)
    }

    fn get(&mut self, document: u32) -> Result<Arc<Vec<u64>>> {
        if let Some(set) = self.loaded.get(&document) {
            return Ok(Arc::clone(set));
        }
        let set = Arc::new(shingles(&self.store.get(document)?.text, self.options.ngram));
        if self.size + set.len() > Self::MAX_SIZE {
            self.loaded.clear();
            self.size = 0;
        }
        self.size += set.len();
        self.loaded.insert(document, Arc::clone(&set));
        Ok(set)
    }
}
