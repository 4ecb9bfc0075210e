//! The thread of the engine: it takes requests from the queue, runs steps, and ends requests.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::shared::{Pooling, Shared};
use super::steps::Worker;
use super::work::{Job, Task, Work};
use crate::{Error, Result};

/// How long the thread waits if all requests wait for their readers.
const STALLED: Duration = Duration::from_millis(2);

/// What the handles send to the thread.
#[derive(Debug)]
pub(super) enum Command {
    Generate(Box<Job>),
    Embed {
        ids: Vec<u32>,
        pooling: Pooling,
        reply: oneshot::Sender<Result<Vec<f32>>>,
    },
    Score {
        ids: Vec<u32>,
        reply: oneshot::Sender<Result<f32>>,
    },
    /// Look at the state again.
    Wake,
}

/// Starts the thread. It has a pool of threads of its own with as many threads as the caller's, so that a caller that waits in a
/// thread of a pool does not hold up the model.
pub(super) fn start(shared: Arc<Shared>, commands: Receiver<(Command, Instant)>) -> Result<JoinHandle<()>> {
    let failed = |error: &dyn std::fmt::Display| Error::Engine(format!("the thread of the engine: {error}"));
    let threads = rayon::current_num_threads();
    let name = |thread| format!("engine-{thread}");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build();
    let pool = pool.map_err(|error| failed(&error))?;
    let mut state = super::steps::State::new(&shared)?;
    let run = move || pool.install(move || run(&mut Worker::new(&shared, &mut state), &commands));
    std::thread::Builder::new().name("engine".to_owned()).spawn(run).map_err(|error| failed(&error))
}

/// Works until the engine is shut down, or its handles and its work are gone.
fn run(worker: &mut Worker, commands: &Receiver<(Command, Instant)>) {
    loop {
        let (closing, aborting) = worker.ending();
        let mut open = !closing;
        loop {
            match commands.try_recv() {
                Ok(command) => add(worker, command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        if aborting {
            worker.fail_all();
        }
        worker.remove_cancelled();
        worker.report();
        if worker.is_idle() {
            if !open {
                return;
            }
            if let Ok(command) = commands.recv() {
                add(worker, command);
            }
            continue;
        }
        // A panic of the model must not end the thread.
        let stepped = std::panic::catch_unwind(AssertUnwindSafe(|| worker.step()));
        let stepped = stepped.unwrap_or_else(|_| Err(Error::Engine("a step panicked; the log says where".to_owned())));
        match stepped {
            Ok(true) => (),
            Ok(false) => {
                if let Ok(command) = commands.recv_timeout(STALLED) {
                    add(worker, command);
                }
            }
            Err(error) => worker.fail_step(&error),
        }
    }
}

fn add(worker: &mut Worker, (command, submitted): (Command, Instant)) {
    let (task, ids) = match command {
        Command::Wake => return,
        Command::Generate(job) => return worker.add_generate(*job, submitted),
        Command::Embed { ids, pooling, reply } => (Task::Embed { pooling, sum: None, reply: Some(reply) }, ids),
        Command::Score { ids, reply } => (Task::Score { reply: Some(reply) }, ids),
    };
    let work = Work { task, prompt_tokens: ids.len(), submitted, started: None, stalled: None };
    worker.add_text(work, ids);
}
