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

use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::exchange::{self, End};
use crate::limits::{BUFFER_BYTES, HOST_BYTES_MAX};
use crate::linger::{linger, receive};
use crate::pages::{self, Answer};
use crate::refusal::Refusal;
use crate::request::{self, Head, Page, Request};
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

/// A client's connection and what came over it.
pub(crate) struct Connection {
    pub(crate) thread: Rc<Thread>,
    pub(crate) client: TcpStream,
    /// From the client, not yet passed on.
    pub(crate) input: Buffer,
    /// A request's head for a target, with the first bytes of its body.
    pub(crate) head: Buffer,
    /// From the target, not yet passed on.
    pub(crate) answer: Buffer,
    /// A response's head for the client, with the first bytes of its body.
    pub(crate) reply: Buffer,
    pub(crate) deadline: Deadline,
    door: Door,
}

/// What a complete head asks for.
enum Asked {
    Page(Page, Request),
    Target(usize, Request),
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
        head: Buffer::default(),
        answer: Buffer::default(),
        reply: Buffer::default(),
        deadline,
        door,
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
                Ok(Some(Asked::Target(target, request))) => {
                    exchange::carry(self, target, request).await
                }
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
                    let keep = keep && !self.thread.is_draining.get();
                    self.say(&Answer::from(refusal), is_head, keep).await
                }
                End::Told(bytes) => self.tell(&bytes, false).await,
                end => end,
            };
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
        for buffer in [&mut self.head, &mut self.answer, &mut self.reply] {
            buffer.clear(&self.thread.spare);
        }
    }

    /// The next request. `None` when the connection has ended or nothing came for long.
    async fn next(&mut self) -> Result<Option<Asked>, Refusal> {
        let waits = self.thread.shared.waits;
        let mut has_begun = !self.input.is_empty();
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
                } else if self.thread.is_draining.get() && !is_draining {
                    is_draining = true;
                    self.deadline.restart(waits.drain_idle);
                }
                // Memory is taken when there is something to read, not before.
                if self.input.is_empty() && self.client.poll_read_ready(cx).is_pending() {
                    break;
                }
                match receive(&mut self.client, &mut self.input, &self.thread.spare, cx) {
                    Poll::Ready(Ok(bytes)) if bytes > 0 => {}
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

    /// Takes a complete head out of the input and writes it for the target whose turn it is.
    fn read(&mut self) -> Result<Option<Asked>, Refusal> {
        let thread = &*self.thread;
        let mut slots = request::slots();
        let Some(head) = Head::read(self.input.filled(), &mut slots)? else {
            return Ok(None);
        };
        let page = match self.door {
            Door::TargetsAndPages => head.page(),
            Door::Targets => None,
            Door::Pages => Some(head.page().unwrap_or(Page::Unknown)),
        };
        let bytes = head.bytes();
        let Some(page) = page else {
            let target = thread.shared.next_target();
            let host = thread.shared.targets[target].host().as_bytes();
            let mut request = head.write(host, &mut self.head, &thread.spare);
            self.input.passed(bytes);
            let known = request.body.advance(self.input.filled());
            let known = known.map_err(Refusal::Malformed)?;
            // What of the body is here already travels with the head. Another target's
            // name may have to stand in it yet.
            let room = (BUFFER_BYTES - HOST_BYTES_MAX).saturating_sub(self.head.filled().len());
            let first = &self.input.filled()[..known.min(room)];
            let fits = self.head.append(first, &thread.spare);
            self.input.passed(fits);
            request.forward = known - fits;
            return Ok(Some(Asked::Target(target, request)));
        };
        let request = head.request();
        self.input.passed(bytes);
        Ok(Some(Asked::Page(page, request)))
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
