//! Requests that wait for the router's word, and how it comes to them across threads.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use mlmesh_route::{Booking, Later, RequestId};
use tokio::sync::oneshot;

use super::{Bound, Brain, Memo, Word};
use crate::refusal::Refusal;

/// A request that waits, as those see it who may have word for it.
#[derive(Debug)]
pub(super) enum Place {
    Waiting(oneshot::Sender<Word>),
    /// The word came before the request had a place.
    Told(Word),
    /// The request has gone, and a word is on its way to it.
    Left,
}

/// A request that waits for a target; dropped, it waits no more.
pub(crate) struct Waits {
    brain: Arc<Brain>,
    request: RequestId,
    since_us: u64,
    word: oneshot::Receiver<Word>,
    is_told: bool,
}

impl Brain {
    /// Hands a request its word; gives a booking back that nobody waits for any more.
    pub(super) fn tell(&self, request: RequestId, word: Word) -> Option<Booking<Memo>> {
        let mut waiting = self.lock();
        match waiting.remove(&request) {
            Some(Place::Waiting(sender)) => sender.send(word).err()?.ok(),
            Some(Place::Left) => word.ok(),
            Some(Place::Told(_)) | None => {
                waiting.insert(request, Place::Told(word));
                None
            }
        }
    }

    pub(super) fn wait(self: &Arc<Brain>, request: RequestId, since_us: u64) -> Waits {
        let (sender, word) = oneshot::channel();
        let mut waiting = self.lock();
        match waiting.remove(&request) {
            // Whoever sends it finds the channel open, since its other end is here.
            Some(Place::Told(told)) => drop(sender.send(told)),
            _ => drop(waiting.insert(request, Place::Waiting(sender))),
        }
        drop(waiting);
        Waits {
            brain: Arc::clone(self),
            request,
            since_us,
            word,
            is_told: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Place>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waits {
    /// Ready when the router has bound the request, or refused it after all.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bound, Refusal>> {
        let Poll::Ready(word) = Pin::new(&mut self.word).poll(cx) else {
            return Poll::Pending;
        };
        self.is_told = true;
        Poll::Ready(match word {
            Ok(Ok(booking)) => {
                self.brain.later(self.request, Later::Bound(booking.terms));
                Ok(self.brain.bound(booking, self.since_us))
            }
            Ok(Err(refusal)) => {
                self.brain.later(self.request, Later::Refused(refusal));
                Err(self.brain.refused(refusal))
            }
            Err(_) => Err(Refusal::NoTarget { retry_after_s: 1 }),
        })
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        if self.brain.router.leave(self.request) {
            self.brain.lock().remove(&self.request);
            return;
        }
        // A word was said: it is here, or on its way.
        let here = {
            let mut waiting = self.brain.lock();
            let here = self.word.try_recv().ok();
            if here.is_none() {
                waiting.insert(self.request, Place::Left);
            }
            here
        };
        if let Some(Ok(booking)) = here {
            // Given back with all that comes of it.
            drop(self.brain.bound(booking, self.since_us));
        }
    }
}
