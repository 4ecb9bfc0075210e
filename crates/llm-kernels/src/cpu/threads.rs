//! The number of threads of a process: one pool for all computation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use candle_core::{Result, bail};

/// Sets the number of threads of every parallel loop in this process and runs `program` on one of them, so that a
/// small loop starts without waking a thread. Call it first in `main`, before any computation.
///
/// The loops of this crate and the matmuls share rayon's pool. candle's element-wise loops have a second pool whose
/// threads spin while they wait and so slow down the first one; this function makes them serial, because large tensors
/// go through this crate. candle reads that setting from the environment, which may be changed only while the process
/// has a single thread. Where that is unknown (outside Linux), candle keeps its own pool. The same number of threads
/// always gives the same bits.
pub fn with_threads<T: Send>(threads: usize, program: impl FnOnce() -> T + Send) -> Result<T> {
    if threads == 0 {
        bail!("the number of threads is 0; it must be at least 1");
    }
    if is_single_threaded() {
        for (name, value) in [("CANDLE_NUM_THREADS", 1), ("RAYON_NUM_THREADS", threads)] {
            // SAFETY: the process has no other thread that could read the environment at the same time.
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
        bail!("{now} threads are already running; set their number before the first computation");
    }
    Ok(rayon::scope(|_| program()))
}

/// Runs `program` while the other threads of the pool spin instead of sleeping, so that its parallel loops start at
/// once: decoding a token takes about two hundred loops, each shorter than the time to wake a thread.
///
/// Call it from one thread only, the one that decodes. A spinning worker runs nested in the rayon job it was in
/// before. If that job holds a lock across a parallel loop and `program` takes the same lock, both wait forever. So
/// never hold a lock across a call of this crate while another thread may be in `spin_workers`.
///
/// Outside the pool, or while another thread is in this function, it only runs `program`. It does not wait for workers
/// that are busy with other jobs; they do not spin.
pub fn spin_workers<T>(program: impl FnOnce() -> T) -> T {
    static ACTIVE: AtomicBool = AtomicBool::new(false);
    let Some(here) = rayon::current_thread_index() else { return program() };
    if ACTIVE.swap(true, SeqCst) {
        return program();
    }
    scopeguard::defer! { ACTIVE.store(false, SeqCst) }
    let spinners = Arc::new(Spinners::default());
    scopeguard::defer! { spinners.done.store(true, SeqCst) }
    let shared = Arc::clone(&spinners);
    rayon::spawn_broadcast(move |thread| {
        if thread.index() != here {
            shared.spin();
        }
    });
    spinners.close(rayon::current_num_threads() - 1);
    program()
}

/// The workers that spin. Each one runs nested in the rayon job it was in, so none may join after `program` starts: it
/// could then wait for a loop of `program` on its own stack (deadlock).
#[derive(Default)]
struct Spinners {
    spinning: AtomicUsize,
    done: AtomicBool,
}

impl Spinners {
    /// Added to `spinning` when no more workers may join.
    const CLOSED: usize = 1 << (usize::BITS - 1);
    /// Attempts to find work, about 100 ns each, before the worker yields its core.
    const SPIN_ROUNDS: usize = 1000;
    /// The longest wait for workers that sleep or run other jobs.
    const MAX_WAIT: Duration = Duration::from_micros(200);

    fn close(&self, others: usize) {
        let begin = Instant::now();
        while self.spinning.load(SeqCst) < others && begin.elapsed() < Self::MAX_WAIT {
            std::hint::spin_loop();
        }
        self.spinning.fetch_add(Self::CLOSED, SeqCst);
    }

    fn spin(&self) {
        if self.spinning.fetch_add(1, SeqCst) >= Self::CLOSED {
            return;
        }
        let mut idle = 0;
        while !self.done.load(SeqCst) {
            if rayon::yield_now() == Some(rayon::Yield::Executed) {
                idle = 0;
            } else {
                idle += 1;
                std::hint::spin_loop();
            }
            if idle > Self::SPIN_ROUNDS {
                std::thread::yield_now(); // there may be fewer cores than threads
            }
        }
    }
}

/// mimalloc returns memory to the system one second after it was freed. A training step that takes longer would get
/// all its memory anew, zeroed page by page. A delay of one minute avoids that.
#[cfg(feature = "mimalloc")]
fn keep_freed_memory() {
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15; // mi_option_purge_delay, in milliseconds
    // SAFETY: it stores a number while no other thread runs that could read it.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, 60_000);
    }
}

/// One thread per physical core, or per logical core where the system does not report physical ones.
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

    /// Nested loops, with several threads in `spin_workers` at the same time.
    #[test]
    fn nested_spin_workers_terminate() {
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
        // A thread of the pool waits for a result that the other one computes in `spin_workers`.
        let (done, wait) = std::sync::mpsc::channel();
        pool.install(move || {
            rayon::spawn(move || done.send(spin_workers(sum)).unwrap());
            assert_eq!(wait.recv().unwrap(), expected);
        });
        let caught = pool.install(|| std::panic::catch_unwind(|| spin_workers(|| panic!("a panic of the program"))));
        assert!(caught.is_err() && pool.install(|| spin_workers(sum)) == expected);
    }

    #[test]
    fn the_number_of_threads_can_be_set_once() {
        assert!(super::with_threads(0, || ()).unwrap_err().to_string().contains("at least 1"));
        let now = rayon::current_num_threads();
        assert!(super::with_threads(now, || rayon::current_thread_index().is_some()).unwrap());
        assert!(super::with_threads(now + 1, || ()).unwrap_err().to_string().contains("already running"));
        assert!(super::default_threads() >= 1);
    }
}
