//! A request on its way: what the router was told of it, where it goes, and what its
//! answer tells.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mlmesh_route::{Ask, Later, Progress, Repeatable, TenantId, stalled_after_us};

use crate::bill::Bill;
use crate::brain::{Bound, Offered};
use crate::call::Call;
use crate::keys::Tenant;
use crate::refusal::Refusal;
use crate::thread::Thread;

/// A request with its target.
pub(crate) struct Errand {
    call: Call,
    /// Its answer comes piece by piece.
    is_stream: bool,
    /// Nothing for what is no work.
    ask: Option<Ask>,
    prompt_bytes: u64,
    place: Place,
    /// Targets at which an attempt failed.
    tried: Vec<usize>,
    /// Nothing where there are no tenants.
    bill: Option<Bill>,
}

/// A request without a target so far.
pub(crate) struct Told {
    call: Call,
    is_stream: bool,
    ask: Option<Ask>,
    prompt_bytes: u64,
    bill: Option<Bill>,
}

/// Why a request has no target.
#[derive(Debug)]
pub(crate) enum Unplaced {
    ClientGone,
    Refused(Refusal),
}

impl Unplaced {
    /// What a client is told that nobody has seen leave.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Unplaced::Refused(refusal) => refusal,
            Unplaced::ClientGone => Refusal::RequestTimeout,
        }
    }
}

enum Place {
    /// Nothing is booked for what is no work.
    Turn(usize),
    Booked(Box<Bound>),
}

impl Errand {
    /// Finds out what is asked for by a body, if it is read, or by so many bytes of one,
    /// and takes it from the tenant's limits.
    pub(crate) fn tell(
        thread: &Thread,
        call: Call,
        body: Option<&[u8]>,
        bytes: u64,
        tenant: Option<&Arc<Tenant>>,
    ) -> Result<Told, Refusal> {
        let shared = &thread.shared;
        if call == Call::Other {
            return Ok(Told {
                call,
                is_stream: false,
                ask: None,
                prompt_bytes: 0,
                bill: None,
            });
        }
        let mut wish = shared
            .brain
            .wish(&mut thread.work.borrow_mut(), body, bytes);
        wish.ask.is_silent = call == Call::Generation && !wish.is_stream;
        wish.ask.tenant = tenant.map_or(TenantId::default(), |tenant| tenant.id);
        let open = |tenant| Bill::open(tenant, &shared.ledger, shared.brain.clock(), &wish);
        let bill = tenant.map(open).transpose()?;
        Ok(Told {
            call,
            is_stream: wish.is_stream,
            ask: Some(wish.ask),
            prompt_bytes: wish.prompt_bytes,
            bill,
        })
    }

    /// Whether the attempt, which came so far, may be made again at another target.
    pub(crate) fn may_move(
        &self,
        thread: &Thread,
        repeatable: Repeatable,
        progress: Progress,
    ) -> bool {
        let brain = &thread.shared.brain;
        let mut tried = self.tried.clone();
        tried.push(self.target());
        brain.has_other(&tried) && brain.may_retry(repeatable, progress)
    }

    /// After so long without a token the target of a stream has stalled; `has_token` says
    /// whether the first one has come.
    pub(crate) fn stalled_after(&self, has_token: bool) -> Option<Duration> {
        let predicted_us = match &self.place {
            Place::Booked(bound) if self.is_stream => bound.predicted_us(),
            Place::Booked(_) | Place::Turn(_) => return None,
        };
        let predicted_us = if has_token { 0 } else { predicted_us };
        Some(Duration::from_micros(stalled_after_us(predicted_us)))
    }

    /// The same after its attempt failed.
    pub(crate) async fn elsewhere(
        mut self,
        thread: &Thread,
        is_gone: impl FnMut(&mut Context<'_>) -> bool,
    ) -> Result<Errand, Unplaced> {
        let target = self.target();
        self.tried.push(target);
        // Its booking ends before the next begins.
        self.place = Place::Turn(target);
        self.place = Place::find(thread, self.ask.as_ref(), &self.tried, is_gone).await?;
        self.place.knows(self.ask.as_ref(), self.prompt_bytes);
        Ok(self)
    }

    /// The request's number, if it is work.
    pub(crate) fn request(&self) -> Option<u64> {
        self.ask.as_ref().map(|ask| ask.request.0)
    }

    pub(crate) fn target(&self) -> usize {
        match &self.place {
            Place::Turn(target) => *target,
            Place::Booked(bound) => bound.target(),
        }
    }

    /// Its attempt failed.
    pub(crate) fn failed(&self, thread: &Thread) {
        if let (Some(ask), Place::Booked(bound)) = (&self.ask, &self.place) {
            let failed = Later::Failed(bound.id());
            thread.shared.brain.later(ask.request, failed);
        }
    }

    /// Learns what a piece of the response's body says.
    pub(crate) fn follow(&mut self, status: u16, is_events: bool, piece: &[u8]) {
        if piece.is_empty() {
            return;
        }
        if let Place::Booked(bound) = &mut self.place
            && (200..300).contains(&status)
        {
            bound.follow(self.call, is_events, piece);
        }
        if let Some(bill) = &mut self.bill {
            bill.follow(status, piece);
        }
    }
}

impl Told {
    /// The request's number, if it is work.
    pub(crate) fn request(&self) -> Option<u64> {
        self.ask.as_ref().map(|ask| ask.request.0)
    }

    /// Waits for the router's word. Meanwhile `is_gone` says whether the client does not
    /// wait any more.
    pub(crate) async fn place(
        self,
        thread: &Thread,
        is_gone: impl FnMut(&mut Context<'_>) -> bool,
    ) -> Result<Errand, Unplaced> {
        let Told {
            call,
            is_stream,
            ask,
            prompt_bytes,
            bill,
        } = self;
        let mut place = Place::find(thread, ask.as_ref(), &[], is_gone).await?;
        place.knows(ask.as_ref(), prompt_bytes);
        Ok(Errand {
            call,
            is_stream,
            place,
            ask,
            prompt_bytes,
            tried: Vec::new(),
            bill,
        })
    }
}

impl Place {
    /// So many bytes became the tokens that the engine will tell, and whose they are.
    fn knows(&mut self, ask: Option<&Ask>, prompt_bytes: u64) {
        if let (Place::Booked(bound), Some(ask)) = (self, ask) {
            bound.prompt_bytes = prompt_bytes;
            bound.tenant = ask.tenant;
        }
    }

    /// Finds a target that is none of those `tried`.
    async fn find(
        thread: &Thread,
        ask: Option<&Ask>,
        tried: &[usize],
        mut is_gone: impl FnMut(&mut Context<'_>) -> bool,
    ) -> Result<Place, Unplaced> {
        let brain = &thread.shared.brain;
        let none = Unplaced::Refused(match tried {
            [] => Refusal::NoTarget { retry_after_s: 1 },
            _ => Refusal::TargetUnreachable,
        });
        let Some(ask) = ask else {
            return brain.turn(tried).map(Place::Turn).ok_or(none);
        };
        let offered = brain.offer(&mut thread.work.borrow_mut(), ask, tried);
        let mut waits = match offered {
            Offered::Bound(bound) => return Ok(Place::Booked(Box::new(bound))),
            Offered::Refused(Refusal::NoTarget { .. }) => return Err(none),
            Offered::Refused(refusal) => return Err(Unplaced::Refused(refusal)),
            Offered::Waits(waits) => waits,
        };
        let word = poll_fn(|cx| match waits.poll(cx) {
            Poll::Ready(word) => Poll::Ready(word.map_err(Unplaced::Refused)),
            Poll::Pending if is_gone(cx) => Poll::Ready(Err(Unplaced::ClientGone)),
            Poll::Pending => Poll::Pending,
        });
        Ok(Place::Booked(Box::new(word.await?)))
    }
}
