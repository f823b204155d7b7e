//! Where a request goes: the router is asked, and waited for if it says so.

use std::future::poll_fn;
use std::task::{Context, Poll};

use mlmesh_route::Ask;

use crate::brain::{Bound, Offered};
use crate::refusal::Refusal;
use crate::thread::Thread;

/// A request's target.
pub(crate) enum Placed {
    /// Nothing is booked for what is no work.
    Turn(usize),
    Booked(Box<Bound>),
}

/// Why a request has no target.
#[derive(Debug)]
pub(crate) enum Unplaced {
    ClientGone,
    Refused(Refusal),
}

impl Placed {
    /// Finds a target that is none of those `tried`, which took no connection. While the
    /// request waits, `is_gone` says whether its client still does.
    pub(crate) async fn find(
        thread: &Thread,
        ask: Option<&Ask>,
        tried: &[usize],
        mut is_gone: impl FnMut(&mut Context<'_>) -> bool,
    ) -> Result<Placed, Unplaced> {
        let brain = &thread.shared.brain;
        let none = Unplaced::Refused(match tried {
            [] => Refusal::NoTarget { retry_after_s: 1 },
            _ => Refusal::TargetUnreachable,
        });
        let Some(ask) = ask else {
            return brain.turn(tried).map(Placed::Turn).ok_or(none);
        };
        let offered = brain.offer(&mut thread.work.borrow_mut(), ask, tried);
        let mut waits = match offered {
            Offered::Bound(bound) => return Ok(Placed::Booked(Box::new(bound))),
            Offered::Refused(Refusal::NoTarget { .. }) => return Err(none),
            Offered::Refused(refusal) => return Err(Unplaced::Refused(refusal)),
            Offered::Waits(waits) => waits,
        };
        let word = poll_fn(|cx| match waits.poll(cx) {
            Poll::Ready(word) => Poll::Ready(word.map_err(Unplaced::Refused)),
            Poll::Pending if is_gone(cx) => Poll::Ready(Err(Unplaced::ClientGone)),
            Poll::Pending => Poll::Pending,
        });
        Ok(Placed::Booked(Box::new(word.await?)))
    }

    pub(crate) fn target(&self) -> usize {
        match self {
            Placed::Turn(target) => *target,
            Placed::Booked(bound) => bound.target(),
        }
    }

    pub(crate) fn bound(&mut self) -> Option<&mut Bound> {
        match self {
            Placed::Turn(_) => None,
            Placed::Booked(bound) => Some(bound),
        }
    }

    pub(crate) fn into_bound(self) -> Option<Bound> {
        match self {
            Placed::Turn(_) => None,
            Placed::Booked(bound) => Some(*bound),
        }
    }
}
