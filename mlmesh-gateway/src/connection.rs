//! One client's connection: its requests, one after the other.
//!
//! ```text
//!   wait for a head ─► refuse ───────────────────────────► close
//!        ▲         ├─► a page of the gateway ─┐
//!        │         └─► exchange with a target ┤
//!        └───────────── keep ◄────────────────┴─► close
//! ```

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::body::Body;
use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::exchange::{self, End};
use crate::limits::{BODY_READ_MAX, GROWN_BYTES};
use crate::linger::{linger, receive};
use crate::pages::{self, Answer};
use crate::refusal::Refusal;
use crate::request::{self, Head, Page, Request};
use crate::telling::Trip;
use crate::thread::Thread;

/// What a listener's callers find behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Targets, and under `/-/` the gateway's pages for callers of this machine.
    TargetsAndPages,
    Targets,
    /// The gateway's pages and nothing else.
    Pages,
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A client's connection and what came over it.
pub(crate) struct Connection {
    pub(crate) thread: Rc<Thread>,
    pub(crate) client: TcpStream,
    /// From the client, not yet passed on.
    pub(crate) input: Buffer,
    /// Bytes at the start of the input that are the body's of the request under way. They
    /// stay until a response has begun, so that they can be sent again.
    pub(crate) kept: usize,
    /// A request's head for a target.
    pub(crate) head: Buffer,
    /// From the target, not yet passed on.
    pub(crate) answer: Buffer,
    /// A response's head for the client, with the first bytes of its body.
    pub(crate) reply: Buffer,
    pub(crate) deadline: Deadline,
    door: Door,
    /// Of the request under way, by which its decision is found.
    pub(crate) number: Option<u64>,
    /// A request whose head was read, while its body is.
    begun: Option<Request>,
    /// What will be told of the request under way.
    pub(crate) trip: Option<Trip>,
}

/// What a complete head asks for.
enum Asked {
    Page(Page, Request),
    /// To be told that it may send its body.
    Continue,
    Target(Request),
}

impl Door {
    pub(crate) fn for_caller(self, caller: IpAddr) -> Door {
        match self {
            Door::TargetsAndPages if !caller.to_canonical().is_loopback() => Door::Targets,
            door => door,
        }
    }
}

/// Serves a client until one side closes.
pub(crate) async fn serve(thread: Rc<Thread>, client: TcpStream, door: Door) {
    let deadline = Deadline::after(thread.shared.waits.idle);
    let mut connection = Connection {
        thread: Rc::clone(&thread),
        client,
        input: Buffer::default(),
        kept: 0,
        head: Buffer::default(),
        answer: Buffer::default(),
        reply: Buffer::default(),
        deadline,
        door,
        number: None,
        begun: None,
        trip: None,
    };
    // Registered once: when the drain begins, whatever the task waits for is looked at again.
    let mut drain = pin!(thread.drain.notified());
    drain.as_mut().enable();
    poll_fn(|cx| {
        let _ = drain.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
    connection.run().await;
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.input.clear(&self.thread.spare);
        self.forget();
    }
}

impl Connection {
    async fn run(&mut self) {
        loop {
            let end = match self.next().await {
                Ok(Some(Asked::Target(request))) => exchange::carry(self, request).await,
                Ok(Some(Asked::Continue)) => match self.tell(CONTINUE, true).await {
                    End::Keep => continue,
                    end => end,
                },
                Ok(Some(Asked::Page(page, request))) => self.show(page, &request).await,
                Ok(None) => End::Cut,
                Err(refusal) => End::Refused {
                    refusal,
                    is_head: false,
                    keep: false,
                },
            };
            self.forget();
            let end = match end {
                End::Refused {
                    refusal,
                    is_head,
                    keep,
                } => {
                    self.thread.counters.refused.fetch_add(1, Ordering::Relaxed);
                    if let Some(trip) = &mut self.trip {
                        trip.status = refusal.code_of_status();
                    }
                    let keep = keep && !self.thread.is_draining.get();
                    let request = self.number;
                    let answer = Answer {
                        request,
                        ..Answer::from(refusal)
                    };
                    self.say(&answer, is_head, keep).await
                }
                End::Told(bytes) => self.tell(&bytes, false).await,
                end => end,
            };
            self.trip = None;
            match end {
                End::Keep => {}
                End::Linger => {
                    let thread = Rc::clone(&self.thread);
                    let wait = thread.shared.waits.linger;
                    let (client, input) = (&mut self.client, &mut self.input);
                    linger(client, input, &mut self.deadline, wait, &thread.spare).await;
                    return;
                }
                End::Close | End::Cut | End::Told(_) | End::Refused { .. } => return,
            }
        }
    }

    /// Gives back what the last exchange held.
    fn forget(&mut self) {
        self.input.passed(std::mem::take(&mut self.kept));
        self.input.rest(&self.thread.spare);
        self.begun = None;
        for buffer in [&mut self.head, &mut self.answer, &mut self.reply] {
            buffer.clear(&self.thread.spare);
        }
    }

    /// The next request. `None` when the connection has ended or nothing came for long.
    async fn next(&mut self) -> Result<Option<Asked>, Refusal> {
        let waits = self.thread.shared.waits;
        let mut has_begun = !self.input.is_empty() || self.begun.is_some();
        let mut is_draining = false;
        self.deadline
            .restart(if has_begun { waits.head } else { waits.idle });
        poll_fn(|cx| {
            loop {
                if !self.input.is_empty() {
                    if let Some(asked) = self.read()? {
                        return Poll::Ready(Ok(Some(asked)));
                    }
                    if !has_begun {
                        has_begun = true;
                        self.deadline.restart(waits.head);
                    }
                } else if self.thread.is_draining.get() && !is_draining && !has_begun {
                    is_draining = true;
                    self.deadline.restart(waits.drain_idle);
                }
                // Memory is taken when there is something to read, not before.
                if self.input.is_empty() && self.client.poll_read_ready(cx).is_pending() {
                    break;
                }
                match receive(&mut self.client, &mut self.input, &self.thread.spare, cx) {
                    Poll::Ready(Ok(bytes)) if bytes > 0 => {
                        if self.begun.is_some() {
                            self.deadline.restart(waits.request_body);
                        }
                    }
                    Poll::Ready(_) => return Poll::Ready(Ok(None)),
                    Poll::Pending => break,
                }
            }
            self.input.rest(&self.thread.spare);
            ready!(self.deadline.poll_passed(cx));
            Poll::Ready(match has_begun {
                true => Err(Refusal::RequestTimeout),
                false => Ok(None),
            })
        })
        .await
    }

    /// Takes a complete head out of the input, and waits for as much of the body as has to
    /// be there before a target is chosen.
    fn read(&mut self) -> Result<Option<Asked>, Refusal> {
        if self.begun.is_none() {
            let thread = &*self.thread;
            let mut slots = request::slots();
            let Some(head) = Head::read(self.input.filled(), &mut slots)? else {
                return Ok(None);
            };
            let bytes = head.bytes();
            let page = match self.door {
                Door::TargetsAndPages => head.page(),
                Door::Targets => None,
                Door::Pages => Some(head.page().unwrap_or(Page::Unknown)),
            };
            if let Some(page) = page {
                let request = head.request();
                self.input.passed(bytes);
                return Ok(Some(Asked::Page(page, request)));
            }
            let tenant = thread.shared.tenant(head.key())?;
            let reads_bodies = thread.shared.reads_bodies();
            let keeps_key = tenant.is_some();
            let trip = thread
                .shared
                .teller
                .as_ref()
                .map(|teller| head.trip(teller));
            let mut request = head.write(
                reads_bodies,
                keeps_key,
                trip.as_ref(),
                &mut self.head,
                &thread.spare,
            );
            self.trip = trip;
            request.tenant = tenant;
            request.repeatable.hedgeable &= thread.shared.repeats_generation;
            self.input.passed(bytes);
            let is_awaited = request.expects && request.reads_body(reads_bodies);
            self.begun = Some(request);
            self.number = None;
            if is_awaited && self.input.is_empty() {
                return Ok(Some(Asked::Continue));
            }
        }
        match self.has_enough()? {
            true => Ok(self.begun.take().map(Asked::Target)),
            false => Ok(None),
        }
    }

    /// Whether of a request's body is here what has to be; makes room for more if not.
    fn has_enough(&mut self) -> Result<bool, Refusal> {
        let thread = &*self.thread;
        let Some(request) = &mut self.begun else {
            return Ok(true);
        };
        let new = &self.input.filled()[self.kept..];
        let known = request.body.advance(new).map_err(Refusal::Malformed)?;
        self.kept += known;
        let is_read = request.reads_body(thread.shared.reads_bodies());
        if !is_read || request.body.is_done() || self.kept >= BODY_READ_MAX {
            return Ok(true);
        }
        // What is announced is made room for as it comes, not at once.
        let next = (2 * self.kept).max(GROWN_BYTES - 1);
        let wanted = match request.body {
            Body::Length(left) => usize::try_from(left).map_or(next, |left| self.kept + left),
            _ if self.input.is_full() => next,
            _ => self.kept,
        };
        let has_room = self.input.grow(wanted.min(next), &thread.spare);
        Ok(!has_room && self.input.is_full())
    }

    async fn show(&mut self, page: Page, request: &Request) -> End {
        let is_draining = self.thread.is_draining.get();
        let answer = pages::answer(page, &self.thread.shared, is_draining);
        // A body is not waited for; it would be read as the next request.
        let keep = request.body.is_done() && !request.close && !is_draining;
        self.say(&answer, request.is_head, keep).await
    }

    /// Sends an answer of the gateway's own.
    async fn say(&mut self, answer: &Answer, is_head: bool, keep: bool) -> End {
        self.tell(&answer.bytes(is_head, !keep), keep).await
    }

    /// Sends bytes of the gateway's own.
    async fn tell(&mut self, bytes: &[u8], keep: bool) -> End {
        let mut left = bytes;
        self.deadline.restart(self.thread.shared.waits.client_write);
        let sent = poll_fn(|cx| self.poll_say(&mut left, cx)).await;
        match (sent, keep) {
            (false, _) => End::Cut,
            (true, true) => End::Keep,
            (true, false) => End::Linger,
        }
    }

    /// Whether the client took it all.
    fn poll_say(&mut self, left: &mut &[u8], cx: &mut Context<'_>) -> Poll<bool> {
        while !left.is_empty() {
            match Pin::new(&mut self.client).poll_write(cx, left) {
                Poll::Ready(Ok(bytes)) if bytes > 0 => *left = &left[bytes..],
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => {
                    ready!(self.deadline.poll_passed(cx));
                    return Poll::Ready(false);
                }
            }
        }
        Poll::Ready(true)
    }
}
