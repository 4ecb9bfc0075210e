//! How many threads a process computes with: one pool for everything.

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
    #[test]
    fn the_number_of_threads_is_set_once() {
        assert!(super::with_threads(0, || ()).unwrap_err().to_string().contains("at least 1"));
        let now = rayon::current_num_threads();
        assert!(super::with_threads(now, || rayon::current_thread_index().is_some()).unwrap());
        assert!(super::with_threads(now + 1, || ()).unwrap_err().to_string().contains("at work already"));
        assert!(super::default_threads() >= 1);
    }
}
