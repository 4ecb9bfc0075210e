//! How many threads a process computes with: one pool for everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use candle_core::{Result, bail};

/// Gives every parallel loop of this process `threads` threads and runs `program` on one of them, so that a small loop
/// begins without waking anybody. Call it first in `main`, before anything is computed.
///
/// Our loops and the matrix products share rayon's pool. candle's element-wise loops have a second pool whose threads
/// wait by spinning, which starves the first one; they are made serial, as what is large goes through this crate.
/// candle takes that from the environment, which may be changed only while the process has a single thread: where
/// that cannot be told (outside Linux) candle keeps its own pool. The same number of threads gives the same bits.
pub fn with_threads<T: Send>(threads: usize, program: impl FnOnce() -> T + Send) -> Result<T> {
    if threads == 0 {
        bail!("the number of threads is 0; it must be at least 1");
    }
    if is_single_threaded() {
        for (name, value) in [("CANDLE_NUM_THREADS", 1), ("RAYON_NUM_THREADS", threads)] {
            // SAFETY: no other thread runs that could read the environment at the same time.
            #[allow(unsafe_code)]
            unsafe {
                std::env::set_var(name, value.to_string());
            }
        }
        #[cfg(feature = "mimalloc")]
        keep_freed_memory();
    }
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let now = rayon::current_num_threads();
    if built.is_err() && now != threads {
        bail!("{now} threads are at work already; set their number before the first computation");
    }
    Ok(rayon::scope(|_| program()))
}

/// Runs `program` while the other threads of the pool look for work without sleeping, so that its loops begin at once:
/// a token of decoding is some two hundred of them, each shorter than waking a thread takes.
///
/// Call it from one thread only, the one that decodes. A waiting thread lies on top of whatever it had begun: if that holds a
/// lock over a parallel loop, and `program` asks for the lock, neither goes on. So never hold a lock over a call of this crate
/// while another thread may be in `spin_workers`.
///
/// Outside the pool, or while another thread does the same, it only runs `program`. It waits for nobody's end: a thread that
/// is at something else stays there.
pub fn spin_workers<T>(program: impl FnOnce() -> T) -> T {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let Some(here) = rayon::current_thread_index() else { return program() };
    if TAKEN.swap(true, SeqCst) {
        return program();
    }
    scopeguard::defer! { TAKEN.store(false, SeqCst) }
    let watch = Arc::new(Watch::default());
    scopeguard::defer! { watch.over.store(true, SeqCst) }
    let theirs = Arc::clone(&watch);
    rayon::spawn_broadcast(move |thread| {
        if thread.index() != here {
            theirs.stand();
        }
    });
    watch.close(rayon::current_num_threads() - 1);
    program()
}

/// Runs both programs, next to each other if `rows` rows are so few that a product with a weight is a loop of microseconds,
/// as in decoding; larger loops keep all threads busy one after the other.
pub fn join<A: Send, B: Send>(
    rows: usize,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    if rows <= crate::matmul::FEW_ROWS { rayon::join(first, second) } else { (first(), second()) }
}

/// Threads that look for work. They stand on top of whatever they had begun, so nobody may join once the program runs: it
/// could wait for a loop of the program that lies below on the same thread.
#[derive(Default)]
struct Watch {
    standing: AtomicUsize,
    over: AtomicBool,
}

impl Watch {
    /// Added to `standing` once nobody may join.
    const CLOSED: usize = 1 << (usize::BITS - 1);
    /// Looks for work, each of some hundred nanoseconds, before the core is offered to others.
    const ROUNDS: usize = 1000;
    /// What is waited for threads that sleep or work on something else.
    const PATIENCE: Duration = Duration::from_micros(200);

    fn close(&self, others: usize) {
        let begin = Instant::now();
        while self.standing.load(SeqCst) < others && begin.elapsed() < Self::PATIENCE {
            std::hint::spin_loop();
        }
        self.standing.fetch_add(Self::CLOSED, SeqCst);
    }

    fn stand(&self) {
        if self.standing.fetch_add(1, SeqCst) >= Self::CLOSED {
            return;
        }
        let mut idle = 0;
        while !self.over.load(SeqCst) {
            if rayon::yield_now() == Some(rayon::Yield::Executed) {
                idle = 0;
            } else {
                idle += 1;
                std::hint::spin_loop();
            }
            if idle > Self::ROUNDS {
                std::thread::yield_now(); // there may be fewer cores than threads
            }
        }
    }
}

/// mimalloc gives memory back to the system a second after it was freed, and a step that takes longer gets all of it anew,
/// cleared page by page. A minute spares that.
#[cfg(feature = "mimalloc")]
fn keep_freed_memory() {
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15; // mi_option_purge_delay, in milliseconds
    // SAFETY: it stores a number, while no other thread runs that could read it.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, 60_000);
    }
}

/// One thread for each physical core, or for each logical one where the system does not tell them apart.
pub fn default_threads() -> usize {
    let physical = candle_core::utils::get_num_threads();
    std::thread::available_parallelism().map_or(physical, |available| physical.min(available.get()))
}

fn is_single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::spin_workers;

    /// Loops within loops, which several threads keep spin_workers at the same time.
    #[test]
    fn programs_end_however_they_keep_threads_awake() {
        let sum = || (0..100u64).into_par_iter().map(|i| (0..i).into_par_iter().sum::<u64>()).sum::<u64>();
        let expected = 161_700;
        assert_eq!(spin_workers(sum), expected); // outside the pool
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for _ in 0..200 {
                assert_eq!(pool.install(|| spin_workers(sum)), expected);
                assert_eq!(pool.install(|| spin_workers(|| spin_workers(sum) + sum())), 2 * expected);
                let sums: Vec<u64> =
                    pool.install(|| (0..8).into_par_iter().map(|_| spin_workers(sum) + spin_workers(sum)).collect());
                assert_eq!(sums, [2 * expected; 8]);
            }
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        // A thread of the pool that waits for what the other one keeps spin_workers.
        let (done, wait) = std::sync::mpsc::channel();
        pool.install(move || {
            rayon::spawn(move || done.send(spin_workers(sum)).unwrap());
            assert_eq!(wait.recv().unwrap(), expected);
        });
        let caught = pool.install(|| std::panic::catch_unwind(|| spin_workers(|| panic!("the program's own"))));
        assert!(caught.is_err() && pool.install(|| spin_workers(sum)) == expected);
    }

    #[test]
    fn the_number_of_threads_is_set_once() {
        assert!(super::with_threads(0, || ()).unwrap_err().to_string().contains("at least 1"));
        let now = rayon::current_num_threads();
        assert!(super::with_threads(now, || rayon::current_thread_index().is_some()).unwrap());
        assert!(super::with_threads(now + 1, || ()).unwrap_err().to_string().contains("at work already"));
        assert!(super::default_threads() >= 1);
    }
}
