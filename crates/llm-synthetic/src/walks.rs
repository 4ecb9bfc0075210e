//! Random walks on a directed graph, a task for reinforcement learning with a known optimum: from a start node, reach the goal in as
//! few steps as possible. The task is that of the decision transformer (Chen et al. 2021, arXiv 2106.01345, section 3), with a graph
//! drawn from a seed.
//!
//! A model that imitates random walks reaches the goal late or not at all. Reinforcement learning has to find the shortest paths.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The settings of a [`WalkGraph`].
#[derive(Debug, Clone, PartialEq)]
pub struct WalkConfig {
    /// The same seed gives the same graph.
    pub seed: u64,
    /// Number of nodes, at least 2; node 0 is the goal.
    pub nodes: usize,
    /// Number of nodes of the longest walk, with start and goal.
    pub max_length: usize,
    /// Probability of an edge between two nodes, above 0 and at most 1.
    pub edge_probability: f64,
}

impl Default for WalkConfig {
    fn default() -> Self {
        Self { seed: 42, nodes: 21, max_length: 10, edge_probability: 0.1 }
    }
}

/// A directed graph. From every node there is a walk to the goal that is shorter than `max_length`.
#[derive(Debug, Clone, PartialEq)]
pub struct WalkGraph {
    next: Vec<Vec<usize>>,
    max_length: usize,
    /// Number of nodes of the shortest walk from each node to the goal.
    shortest: Vec<usize>,
}

impl WalkGraph {
    /// The goal of all walks.
    pub const GOAL: usize = 0;

    /// Draws graphs until one has a walk to the goal from every node. None: the settings are out of range, or none of 100,000 graphs
    /// has such walks.
    pub fn new(config: &WalkConfig) -> Option<Self> {
        let &WalkConfig { seed, nodes, max_length, edge_probability } = config;
        if nodes < 2 || !(edge_probability > 0. && edge_probability <= 1.) {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..100_000).find_map(|_| {
            let mut draw = |from: usize| {
                (0..nodes).filter(|&to| from != to && rng.random::<f64>() < edge_probability).collect::<Vec<_>>()
            };
            let next: Vec<Vec<usize>> = (0..nodes).map(&mut draw).collect();
            let shortest = shortest_walks(&next, max_length)?;
            Some(Self { next, max_length, shortest })
        })
    }

    /// The nodes that a walk can go to from `node`.
    pub fn next(&self, node: usize) -> &[usize] {
        &self.next[node]
    }

    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        self.next.len()
    }

    /// All nodes but the goal.
    pub fn starts(&self) -> std::ops::Range<usize> {
        1..self.nodes()
    }

    /// `count` walks from random starts, each to a random next node until it is at the goal or has `max_length` nodes. `seed` selects
    /// the random stream.
    pub fn random_walks(&self, count: usize, seed: u64) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut walk = || {
            let mut walk = vec![rng.random_range(self.starts())];
            let mut node = walk[0];
            while walk.len() < self.max_length && node != Self::GOAL {
                node = self.next[node][rng.random_range(0..self.next[node].len())];
                walk.push(node);
            }
            walk
        };
        (0..count).map(|_| walk()).collect()
    }

    /// The reward of a walk with its start, from 0 to 1: `(max_length - n) / (max_length - shortest)` for a walk of n nodes that ends at
    /// the goal, 0 for one that does not, or that has a step without an edge, or goes on after the goal.
    pub fn optimality(&self, walk: &[usize]) -> f64 {
        let is_edge = |step: &[usize]| self.next.get(step[0]).is_some_and(|next| next.contains(&step[1]));
        let (Some(&start), Some((&end, before))) = (walk.first(), walk.split_last()) else { return 0. };
        let ends = end == Self::GOAL && !before.contains(&Self::GOAL) && walk.len() <= self.max_length;
        match ends && walk.len() > 1 && walk.windows(2).all(is_edge) {
            true => self.reward(start, walk.len()),
            false => 0.,
        }
    }

    fn reward(&self, start: usize, length: usize) -> f64 {
        (self.max_length - length) as f64 / (self.max_length - self.shortest[start]) as f64
    }

    /// The mean reward over all starts of the best policy, by dynamic programming.
    pub fn optimum(&self) -> f64 {
        self.value(|rewards| rewards.fold(0., f64::max))
    }

    /// The mean reward over all starts of the policy that goes to a random next node, by dynamic programming.
    pub fn random(&self) -> f64 {
        self.value(|rewards| {
            let (mut sum, mut count) = (0., 0.);
            for reward in rewards {
                sum += reward;
                count += 1.;
            }
            sum / f64::max(count, 1.)
        })
    }

    /// The mean over all starts of the expected reward; `choose` gives the value of a node from those of the next nodes.
    fn value(&self, choose: impl Fn(&mut dyn Iterator<Item = f64>) -> f64) -> f64 {
        let of_start = |start: usize| {
            // values[node]: the expected reward of a walk that is at `node` after `length` nodes.
            let at_goal = |length: usize, node: usize| if node == Self::GOAL { self.reward(start, length) } else { 0. };
            let mut values: Vec<f64> = (0..self.nodes()).map(|node| at_goal(self.max_length, node)).collect();
            for length in (1..self.max_length).rev() {
                let before = |node: usize| match node {
                    Self::GOAL => at_goal(length, node),
                    _ => choose(&mut self.next[node].iter().map(|&next| values[next])),
                };
                values = (0..self.nodes()).map(before).collect();
            }
            values[start]
        };
        self.starts().map(of_start).sum::<f64>() / self.starts().len() as f64
    }
}

/// The number of nodes of the shortest walk from each node to the goal; none if one has no walk shorter than `max_length`.
fn shortest_walks(next: &[Vec<usize>], max_length: usize) -> Option<Vec<usize>> {
    let mut lengths: Vec<Option<usize>> = vec![None; next.len()];
    lengths[WalkGraph::GOAL] = Some(1);
    for _ in 2..max_length {
        let before = lengths.clone();
        for (node, next) in next.iter().enumerate() {
            let nearest = next.iter().filter_map(|&to| before[to]).min();
            lengths[node] = lengths[node].or(nearest.map(|length| length + 1));
        }
    }
    lengths.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_has_a_walk_and_the_best_policy_gets_the_whole_reward() {
        for seed in 0..10 {
            let graph = WalkGraph::new(&WalkConfig { seed, ..WalkConfig::default() }).unwrap();
            assert_eq!((graph.nodes(), graph.starts()), (21, 1..21));
            assert!(graph.starts().all(|node| !graph.next(node).is_empty() && !graph.next(node).contains(&node)));
            assert!((graph.optimum() - 1.).abs() < 1e-12, "{}", graph.optimum());
            let random = graph.random();
            assert!((0.05..0.8).contains(&random), "seed {seed}: {random}");
            // The mean reward of walks that are drawn: 20,000 rewards in [0, 1], so a standard error of at most 0.0036.
            let walks = graph.random_walks(20_000, seed + 1);
            let mean = walks.iter().map(|walk| graph.optimality(walk)).sum::<f64>() / 20_000.;
            assert!((mean - random).abs() < 0.015, "{mean} is not {random}");
        }
        assert_ne!(
            WalkGraph::new(&WalkConfig::default()),
            WalkGraph::new(&WalkConfig { seed: 1, ..WalkConfig::default() })
        );
        assert_eq!(WalkGraph::new(&WalkConfig { nodes: 1, ..WalkConfig::default() }), None);
        assert_eq!(WalkGraph::new(&WalkConfig { max_length: 1, ..WalkConfig::default() }), None);
    }

    /// 3 → 2 → 1 → 0 and 3 → 0, with walks of at most 5 nodes: from 3 the shortest has 2 nodes.
    #[test]
    fn the_reward_of_a_walk_is_its_share_of_the_best_one() {
        let next = vec![vec![], vec![0], vec![1], vec![2, 0]];
        let shortest = shortest_walks(&next, 5).unwrap();
        assert_eq!(shortest, [1, 2, 3, 2]);
        let graph = WalkGraph { next, max_length: 5, shortest };
        for (walk, expected) in [
            (&[3, 0][..], 1.),
            (&[3, 2, 1, 0], 1. / 3.),
            (&[2, 1, 0], 1.),
            (&[3, 1, 0], 0.), // no edge
            (&[3, 2, 1], 0.), // not at the goal
            (&[3, 0, 0], 0.), // goes on after the goal
            (&[3, 9, 0], 0.), // no such node
            (&[0], 0.),
            (&[], 0.),
        ] {
            assert!((graph.optimality(walk) - expected).abs() < 1e-12, "{walk:?}: {}", graph.optimality(walk));
        }
        assert!((graph.optimum() - 1.).abs() < 1e-12);
        // From 1 and 2 there is one walk; from 3 there are two: (1 + 1 + (1 + 1/3) / 2) / 3.
        assert!((graph.random() - 8. / 9.).abs() < 1e-12, "{}", graph.random());
        assert_eq!(shortest_walks(&[vec![], vec![]], 5), None);
        assert_eq!(shortest_walks(&graph.next, 3), None, "from 2 it takes 3 nodes, which is not shorter than 3");
    }
}
