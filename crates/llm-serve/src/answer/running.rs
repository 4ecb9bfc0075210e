//! The generations of a request, whose events come in any order.

use std::future::poll_fn;
use std::task::{Context, Poll};

use llm_engine::{Error, Event, Generation};

/// The generations of the prompts of a request. Dropping it cancels them.
#[derive(Debug)]
pub(crate) struct Running {
    generations: Vec<Option<Generation>>,
    /// Where the next search for an event begins, so that each generation has its turn.
    turn: usize,
}

impl Running {
    pub(crate) fn new(generations: Vec<Generation>) -> Self {
        Self { generations: generations.into_iter().map(Some).collect(), turn: 0 }
    }

    /// The next event with the index of its prompt; none when all generations have ended.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let count = self.generations.len();
        for offset in 0..count {
            let prompt = (self.turn + offset) % count;
            let Some(generation) = &mut self.generations[prompt] else { continue };
            if let Poll::Ready(event) = generation.events.poll_recv(context) {
                // The last event is missing only if the engine has ended.
                let event = event.unwrap_or(Event::Failed(Error::ShutDown));
                if matches!(event, Event::Done(_) | Event::Failed(_)) {
                    self.generations[prompt] = None;
                }
                self.turn = prompt + 1;
                return Poll::Ready(Some((prompt, event)));
            }
        }
        match self.generations.iter().all(Option::is_none) {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }

    /// [`Self::poll_next`] as a future.
    pub(crate) async fn next(&mut self) -> Option<(usize, Event)> {
        poll_fn(|context| self.poll_next(context)).await
    }
}
