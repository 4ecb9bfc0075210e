//! Keys and values in pages give the results of the contiguous cache.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::PathBuf;

use candle_core::{D, Tensor};
use llm_model::{Batch, KvCache, KvDtype, KvPool, Model, PagedRows};

/// The golden models of all families, by name.
fn models() -> Vec<(String, Model)> {
    let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden/families"].iter().collect();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let model = |path: &PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), Model::load(path).unwrap());
    folders.iter().map(model).collect()
}

/// The ids of a prompt; row i of a test has its own.
fn prompt(model: &Model, row: usize, len: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    (0..len).map(|i| ((i * i * 7 + 13 * i + 5 * row + 3) % vocab) as u32).collect()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    numbers(x).into_iter().map(f32::to_bits).collect()
}

/// The most likely token after the last hidden state of `hidden` `(1, n, hidden)`.
fn next_token(model: &Model, hidden: &Tensor) -> u32 {
    let last = hidden.narrow(1, hidden.dim(1).unwrap() - 1, 1).unwrap();
    model.output(&last).unwrap().argmax(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap()[0]
}

/// Pages of a pool that was filled with NaN, given out in a scrambled order.
struct Pages {
    pool: KvPool,
    free: Vec<u32>,
}

impl Pages {
    fn new(model: &Model, pages: usize, dtype: KvDtype) -> Self {
        let pool = KvPool::new(model.config(), pages, dtype, &model.device()).unwrap();
        // Embeddings of NaN give keys and values of NaN.
        let mut batch = Batch::ragged(&vec![vec![0; KvPool::PAGE]; pages], &vec![0; pages]).unwrap();
        let shape = (pages * KvPool::PAGE, model.config().hidden_size);
        batch.embedding_noise = Some(Tensor::full(f32::NAN, shape, &model.device()).unwrap());
        let tables: Vec<Vec<u32>> = (0..pages as u32).map(|page| vec![page]).collect();
        let rows = PagedRows { pool: &pool, tables: &tables, past: &vec![0; pages] };
        assert!(numbers(&model.hidden_paged(&batch, &rows).unwrap()).iter().all(|x| x.is_nan()));
        let free = (0..pages).map(|i| ((i * 5 + 3) % pages) as u32).collect(); // 5 and the number of pages are coprime
        Self { pool, free }
    }

    /// Gives a row the pages for `tokens` tokens.
    fn reserve(&mut self, table: &mut Vec<u32>, tokens: usize) {
        while table.len() * KvPool::PAGE < tokens {
            table.push(self.free.pop().unwrap());
        }
    }

    /// The hidden states after one row's next tokens.
    fn forward(&mut self, model: &Model, table: &mut Vec<u32>, past: usize, ids: &[u32]) -> Tensor {
        self.reserve(table, past + ids.len());
        let batch = Batch::ragged(&[ids], &[past]).unwrap();
        let (tables, past) = (std::slice::from_ref(table), &[past]);
        model.hidden_paged(&batch, &PagedRows { pool: &self.pool, tables, past }).unwrap()
    }
}

/// Prefill in chunks and greedy decoding of one row, with `forward(past, ids)`: all hidden states and ids.
fn generate(
    model: &Model,
    prompt: &[u32],
    chunks: &[usize],
    new_tokens: usize,
    mut forward: impl FnMut(usize, &[u32]) -> Tensor,
) -> (Vec<u32>, Vec<u32>) {
    let (mut ids, mut hidden_bits, mut past) = (prompt.to_vec(), Vec::new(), 0);
    let decoding = std::iter::repeat_n(&1, new_tokens);
    for &len in chunks.iter().chain(decoding) {
        let hidden = forward(past, &ids[past..past + len]);
        hidden_bits.extend(bits(&hidden));
        past += len;
        if past == ids.len() {
            ids.push(next_token(model, &hidden));
        }
    }
    (ids, hidden_bits)
}

#[test]
fn pages_give_the_bits_of_the_contiguous_cache_in_every_family() {
    for (name, model) in models() {
        let context = model.config().max_position_embeddings.min(200);
        let prompt = prompt(&model, 0, context - 12);
        let half = prompt.len() / 2;
        // At once, cut in the middle, cut at any place.
        for chunks in [vec![prompt.len()], vec![half, prompt.len() - half], vec![1, 3, 20, prompt.len() - 24]] {
            let mut cache = KvCache::new(model.config(), 1, context, &model.device()).unwrap();
            let expected = generate(&model, &prompt, &chunks, 10, |past, ids| {
                model.hidden(&Batch::ragged(&[ids], &[past]).unwrap(), Some(&mut cache)).unwrap()
            });
            let (mut pages, mut table) = (Pages::new(&model, 7, KvDtype::F32), Vec::new());
            let ours = generate(&model, &prompt, &chunks, 10, |past, ids| pages.forward(&model, &mut table, past, ids));
            assert_eq!(ours.0, expected.0, "{name}: {chunks:?}");
            assert!(ours.1 == expected.1, "{name}: the hidden states differ, {chunks:?}");
        }
    }
}

#[test]
fn bf16_pages_give_nearly_the_same_hidden_states() {
    for (name, model) in models() {
        let prompt = prompt(&model, 1, 40);
        let whole = model.forward(&Batch::new(std::slice::from_ref(&prompt)).unwrap()).unwrap();
        let (mut pages, mut table) = (Pages::new(&model, 3, KvDtype::Bf16), Vec::new());
        let parts = [(0, 30), (30, 31), (31, 40)];
        let parts = parts.map(|(past, end)| pages.forward(&model, &mut table, past, &prompt[past..end]));
        let logits = model.output(&Tensor::cat(&parts, 1).unwrap()).unwrap();
        let (ours, exact) = (numbers(&logits), numbers(&whole));
        let error: f32 = ours.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
        let scale: f32 = exact.iter().map(|x| x.powi(2)).sum();
        let relative = (error / scale).sqrt();
        // bf16 rounds keys and values by up to 1/256; and they are rounded.
        assert!(relative < 0.02 && relative > 1e-6, "{name}: {relative}");
    }
}

#[test]
fn rows_that_join_and_leave_get_what_they_get_alone() {
    for (name, model) in models() {
        let rows: Vec<Vec<u32>> = [40, 9, 70].iter().enumerate().map(|(i, &len)| prompt(&model, i, len)).collect();
        // The new tokens of each row in each step; a row is in a batch from its first to its last tokens.
        let steps: [[usize; 3]; 6] = [[30, 0, 0], [8, 5, 0], [1, 1, 64], [1, 1, 1], [0, 1, 4], [0, 1, 1]];
        let mut together = Pages::new(&model, 8, KvDtype::F32);
        let mut alone = Pages::new(&model, 8, KvDtype::F32);
        let (mut tables, mut tables_alone, mut past) = (vec![Vec::new(); 3], vec![Vec::new(); 3], [0; 3]);
        for lens in steps {
            let members: Vec<usize> = (0..3).filter(|&row| lens[row] > 0).rev().collect(); // in any order
            let ids: Vec<&[u32]> = members.iter().map(|&row| &rows[row][past[row]..past[row] + lens[row]]).collect();
            members.iter().for_each(|&row| together.reserve(&mut tables[row], past[row] + lens[row]));
            let pasts: Vec<usize> = members.iter().map(|&row| past[row]).collect();
            let batch = Batch::ragged(&ids, &pasts).unwrap();
            let member_tables: Vec<Vec<u32>> = members.iter().map(|&row| tables[row].clone()).collect();
            let paged = PagedRows { pool: &together.pool, tables: &member_tables, past: &pasts };
            let hidden = model.hidden_paged(&batch, &paged).unwrap();
            let mut first = 0;
            for (&row, ids) in members.iter().zip(&ids) {
                let expected = alone.forward(&model, &mut tables_alone[row], past[row], ids);
                let ours = hidden.narrow(1, first, ids.len()).unwrap();
                let pairs = numbers(&ours).into_iter().zip(numbers(&expected));
                let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                // The matmuls with few rows add in another order than those with many.
                assert!(difference < 1e-4, "{name}, row {row} after {}: {difference}", past[row]);
                first += ids.len();
                past[row] += ids.len();
            }
        }
        assert_eq!(past, [40, 9, 70]);
    }
}

#[test]
fn a_copied_page_continues_two_rows() {
    let (_, model) = models().into_iter().find(|(name, _)| name == "llama").unwrap();
    let ids = prompt(&model, 0, 80);
    let (mut pages, mut table) = (Pages::new(&model, 8, KvDtype::F32), Vec::new());
    pages.forward(&model, &mut table, 0, &ids[..70]);
    // The first page is shared, the second one is copied.
    let copy = pages.free.pop().unwrap();
    pages.pool.copy_page(table[1], copy).unwrap();
    let mut fork = vec![table[0], copy];
    let first = pages.forward(&model, &mut table, 70, &ids[70..]);
    let other = pages.forward(&model, &mut fork, 70, &[1, 2, 3]);
    let (mut fresh, mut expected) = (Pages::new(&model, 8, KvDtype::F32), Vec::new());
    fresh.forward(&model, &mut expected, 0, &ids[..70]);
    assert_eq!(bits(&first), bits(&fresh.forward(&model, &mut expected, 70, &ids[70..])));
    assert_eq!(bits(&other), bits(&fresh.forward(&model, &mut expected, 70, &[1, 2, 3])));
    assert!(pages.pool.copy_page(8, 0).is_err() && pages.pool.copy_page(0, 8).is_err());
}

#[test]
fn rows_that_do_not_match_the_pages_are_errors() {
    let (_, model) = models().swap_remove(0);
    let pool = KvPool::new(model.config(), 3, KvDtype::F32, &model.device()).unwrap();
    let run = |batch: &Batch, tables: &[Vec<u32>], past: &[usize]| {
        model.hidden_paged(batch, &PagedRows { pool: &pool, tables, past }).map_err(|error| error.to_string())
    };
    let ragged = |lens: &[usize], past: &[usize]| {
        let rows: Vec<Vec<u32>> = lens.iter().map(|&len| vec![1; len]).collect();
        Batch::ragged(&rows, past).unwrap()
    };
    assert!(run(&ragged(&[3, 2], &[0, 0]), &[vec![2], vec![0]], &[0, 0]).is_ok());
    let cases = [
        (Batch::new(&[vec![1, 2]]).unwrap(), vec![vec![0]], vec![0], "need a ragged batch"),
        (ragged(&[1, 1], &[0, 0]), vec![vec![0]], vec![0, 0], "there are 1 page tables and 2 lengths"),
        (ragged(&[1], &[0]), vec![vec![3]], vec![0], "row 0: page 3 is outside the pool of 3 pages"),
        (ragged(&[2], &[63]), vec![vec![1]], vec![63], "row 0: 1 pages are too few for 63 and 2 tokens"),
        (ragged(&[2], &[0]), vec![vec![1]], vec![5], "row 0: the batch does not continue after 5 tokens"),
        (ragged(&[2, 1], &[0, 0]), vec![vec![1], vec![1]], vec![0, 0], "two rows append to page 1"),
    ];
    for (batch, tables, past, expected) in cases {
        let message = run(&batch, &tables, &past).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}
