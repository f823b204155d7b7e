//! The loop: sockets that are ready, and iterations that end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mlmesh_sim::engine::{Detail, Engine, Occurrence, Profile, Ticket, What};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use super::client::{Client, Gone, Inbox, Request, Work};
use super::figures::Figures;
use super::wish::{Call, Usage, Wish, models, refusal};

/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;
/// Sockets that one look at the kernel brings.
const EVENTS_MAX: usize = 256;
/// Connections to all engines together; who comes beyond is not let in.
const CLIENTS_MAX: usize = 16 * 1024;
const TIMER: u64 = u64::MAX;
/// Tokens of the poll from here on are listeners.
const LISTENERS: u64 = u64::MAX - 1_024;
const READABLE: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP);
const JSON: &str = "application/json";

/// What is served where.
pub(crate) struct Plan {
    /// One engine each.
    pub(crate) engines: Vec<Profile>,
    /// Where the first one listens, the next one at the next port. With port zero each
    /// has one that is free.
    pub(crate) listen: SocketAddr,
}

/// Serves until the process ends. `ready` is told the addresses in the engines' order.
pub(crate) fn serve(
    plan: Plan,
    ready: impl FnOnce(&[SocketAddr]) -> io::Result<()>,
) -> io::Result<()> {
    let mut server = Server::new(plan)?;
    let addresses: io::Result<Vec<SocketAddr>> = server
        .served
        .iter()
        .map(|one| one.listener.local_addr())
        .collect();
    ready(&addresses?)?;
    loop {
        server.turn()?;
    }
}

struct Server {
    start: Instant,
    poll: OwnedFd,
    timer: OwnedFd,
    timer_us: Option<u64>,
    served: Vec<Served>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    requests: u64,
    told: Vec<Occurrence>,
    /// Whose next request may be looked at, once nothing is left to be told.
    answered: Vec<u64>,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
}

/// One engine and what is told about it.
struct Served {
    listener: TcpListener,
    engine: Engine,
    figures: Figures,
}

#[derive(Default)]
struct Slot {
    /// Told apart from earlier ones, to whom an event may still belong.
    generation: u32,
    client: Option<Box<Client>>,
}

impl Server {
    fn new(plan: Plan) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let data = epoll::EventData::new_u64(TIMER);
        epoll::add(&poll, &timer, data, epoll::EventFlags::IN)?;
        let mut served = Vec::new();
        for (place, profile) in plan.engines.into_iter().enumerate() {
            let mut address = plan.listen;
            if address.port() > 0 {
                let port = usize::from(address.port()) + place;
                let port = u16::try_from(port).map_err(|_| {
                    io::Error::other(format!("port {port} of engine {place} is above 65535"))
                })?;
                address.set_port(port);
            }
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(LISTENERS + place as u64);
            epoll::add(&poll, &listener, data, epoll::EventFlags::IN)?;
            served.push(Served {
                listener,
                engine: Engine::new(profile, Detail::Tokens),
                figures: Figures::default(),
            });
        }
        Ok(Self {
            start: Instant::now(),
            poll,
            timer,
            timer_us: None,
            served,
            slots: Vec::new(),
            free: Vec::new(),
            requests: 0,
            told: Vec::new(),
            answered: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Sleeps until something happens, and does it.
    fn turn(&mut self) -> io::Result<()> {
        self.set_timer()?;
        self.events.clear();
        match epoll::wait(&self.poll, spare_capacity(&mut self.events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for place in 0..self.served.len() {
            self.advance(place);
        }
        let events = std::mem::take(&mut self.events);
        for event in &events {
            match event.data.u64() {
                TIMER => {}
                token if token >= LISTENERS => self.accept((token - LISTENERS) as usize)?,
                token => self.client_is_ready(token, event.flags),
            }
        }
        self.events = events;
        while let Some(name) = self.answered.pop() {
            self.next_request(name);
        }
        Ok(())
    }

    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// The timer goes off when the next iteration of any engine ends.
    fn set_timer(&mut self) -> io::Result<()> {
        let next_us = self
            .served
            .iter()
            .filter_map(|one| one.engine.next_us())
            .min();
        if next_us == self.timer_us {
            return Ok(());
        }
        self.timer_us = next_us;
        let delay = next_us.map_or(Duration::ZERO, |at_us| {
            // Zero would mean never.
            let at = Duration::from_micros(at_us);
            at.saturating_sub(self.start.elapsed())
                .max(Duration::from_nanos(1))
        });
        let value = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: delay.as_secs() as i64,
                tv_nsec: i64::from(delay.subsec_nanos()),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    /// Lets everything happen in an engine that should have happened by now.
    fn advance(&mut self, place: usize) {
        loop {
            let now_us = self.now_us();
            let served = &mut self.served[place];
            let Some(at_us) = served.engine.next_us().filter(|at_us| *at_us <= now_us) else {
                return;
            };
            let before = served.engine.counts().iterations;
            self.told.clear();
            served.engine.step(&mut self.told);
            if served.engine.counts().iterations > before {
                served.figures.late.add(now_us - at_us);
            }
            let told = std::mem::take(&mut self.told);
            for one in &told {
                self.tell(place, *one);
            }
            self.told = told;
        }
    }

    /// Passes on what happened to a request. Who has gone meanwhile is not told.
    fn tell(&mut self, place: usize, one: Occurrence) {
        let figures = &mut self.served[place].figures;
        let Some(client) = client_of(&mut self.slots, one.name) else {
            return;
        };
        let Some(work) = &mut client.work else {
            return;
        };
        let put = match one.what {
            What::Begun { cached_tokens } => {
                work.begun_us = one.at_us;
                work.usage.cached_tokens = cached_tokens;
                figures.queued.add(one.at_us - work.came_us);
                figures.cached_tokens += cached_tokens;
                Ok(())
            }
            What::FirstToken | What::Token => {
                work.usage.output_tokens += 1;
                figures.output_tokens += 1;
                let took_us = one.at_us - work.token_us;
                if one.what == What::FirstToken {
                    figures.first_token.add(took_us);
                    figures.prefill.add(one.at_us - work.begun_us);
                } else {
                    figures.between_tokens.add(took_us);
                }
                work.token_us = one.at_us;
                let is_last = work.usage.output_tokens == work.wanted_tokens;
                client.token(is_last)
            }
            What::Preempted => Ok(()),
            What::Done => {
                figures.done += 1;
                figures.end_to_end.add(one.at_us - work.came_us);
                let whole = (!work.answer.is_stream).then(|| work.answer.whole(work.usage));
                client.work = None;
                whole.map_or(Ok(()), |body| client.answer(200, JSON, &body))
            }
        };
        let is_done = one.what == What::Done;
        match put {
            Ok(()) if is_done => self.answered.push(one.name),
            Ok(()) => self.watch_room(one.name),
            Err(Gone) => self.drop_client(one.name),
        }
    }

    fn accept(&mut self, place: usize) -> io::Result<()> {
        loop {
            let stream = match self.served[place].listener.accept() {
                Ok((stream, _)) => stream,
                // Whoever knocks while there is no room for it will knock again.
                Err(_) => return Ok(()),
            };
            if self.slots.len() - self.free.len() >= CLIENTS_MAX {
                continue;
            }
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or(self.slots.len() as u32);
            if index as usize == self.slots.len() {
                self.slots.push(Slot::default());
            }
            let slot = &mut self.slots[index as usize];
            let name = u64::from(slot.generation) << 32 | u64::from(index);
            let data = epoll::EventData::new_u64(name);
            epoll::add(&self.poll, &stream, data, READABLE)?;
            slot.client = Some(Box::new(Client::new(stream, place)));
        }
    }

    fn client_is_ready(&mut self, name: u64, flags: epoll::EventFlags) {
        let Some(client) = client_of(&mut self.slots, name) else {
            return;
        };
        let mut put = Ok(());
        if flags.contains(epoll::EventFlags::OUT) {
            put = client.flush();
        }
        if put.is_ok() && flags != epoll::EventFlags::OUT {
            put = client.read(&mut self.buffer);
        }
        match put {
            Ok(()) => self.next_request(name),
            Err(Gone) => self.drop_client(name),
        }
    }

    /// Takes on what a client asks for, once what it asked before is answered.
    fn next_request(&mut self, name: u64) {
        loop {
            let Some(client) = client_of(&mut self.slots, name) else {
                return;
            };
            if client.work.is_some() {
                break;
            }
            if client.is_last && client.has_left() {
                break;
            }
            if client.is_last {
                return self.drop_client(name);
            }
            let put = match client.next() {
                Inbox::Part => break,
                Inbox::Bad(status, reason) => {
                    client.is_last = true;
                    client.answer(status, JSON, &refusal(reason))
                }
                Inbox::Whole(request) => self.answer(name, &request),
            };
            if put.is_err() {
                return self.drop_client(name);
            }
        }
        self.watch_room(name);
    }

    fn answer(&mut self, name: u64, request: &Request) -> Result<(), Gone> {
        let client = client_of(&mut self.slots, name).ok_or(Gone)?;
        let path = request.path.split('?').next().unwrap_or_default();
        let place = client.engine;
        let call = match (request.method.as_str(), path) {
            ("POST", "/v1/chat/completions") => Call::Chat,
            ("POST", "/v1/completions") => Call::Completion,
            ("GET", "/health") => return client.answer(200, "text/plain", ""),
            ("GET", "/v1/models") => return client.answer(200, JSON, &models(wall_s())),
            ("GET", "/metrics") => {
                let served = &self.served[place];
                let memory_blocks = served.engine.profile().memory_blocks;
                let page = served
                    .figures
                    .page(place, served.engine.counts(), memory_blocks);
                return client.answer(200, "text/plain; version=0.0.4", &page);
            }
            (
                _,
                "/v1/chat/completions" | "/v1/completions" | "/health" | "/v1/models" | "/metrics",
            ) => {
                return client.answer(405, JSON, &refusal("another method is needed here"));
            }
            _ => return client.answer(404, JSON, &refusal("there is no such path")),
        };
        match Wish::read(call, &request.body) {
            Ok(wish) => self.submit(name, place, &wish),
            Err((status, reason)) => client.answer(status, JSON, &refusal(&reason)),
        }
    }

    fn submit(&mut self, name: u64, place: usize, wish: &Wish) -> Result<(), Gone> {
        self.advance(place);
        let now_us = self.now_us();
        let engine = &mut self.served[place].engine;
        let job = wish.job(name, engine.profile());
        let (prompt_tokens, wanted_tokens) = (job.prompt_tokens, job.output_tokens);
        let client = client_of(&mut self.slots, name).ok_or(Gone)?;
        let ticket = match engine.submit(now_us, job) {
            Ok(ticket) => ticket,
            Err(refused) => return client.answer(400, JSON, &refusal(&refused.to_string())),
        };
        self.requests += 1;
        self.served[place].figures.prompt_tokens += prompt_tokens;
        client.work = Some(Work {
            ticket,
            answer: wish.answer(self.requests, wall_s()),
            usage: Usage {
                prompt_tokens,
                ..Usage::default()
            },
            wanted_tokens,
            came_us: now_us,
            begun_us: now_us,
            token_us: now_us,
        });
        Ok(())
    }

    /// Has the poll tell when there is room again, while something is left to send.
    fn watch_room(&mut self, name: u64) {
        let Some(client) = client_of(&mut self.slots, name) else {
            return;
        };
        let awaits_room = client.has_left();
        if awaits_room == client.awaits_room {
            return;
        }
        client.awaits_room = awaits_room;
        let mut flags = READABLE;
        flags.set(epoll::EventFlags::OUT, awaits_room);
        let data = epoll::EventData::new_u64(name);
        if epoll::modify(&self.poll, &client.stream, data, flags).is_err() {
            self.drop_client(name);
        }
    }

    /// Closes a connection; its request ends where it is.
    fn drop_client(&mut self, name: u64) {
        let Some(client) = client_of(&mut self.slots, name) else {
            return;
        };
        let (place, work) = (client.engine, client.work.take());
        let slot = &mut self.slots[index_of(name)];
        slot.client = None;
        slot.generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(index_of(name) as u32);
        if let Some(Work { ticket, .. }) = work {
            self.cancel(place, ticket);
        }
    }

    fn cancel(&mut self, place: usize, ticket: Ticket) {
        let now_us = self.now_us();
        let served = &mut self.served[place];
        if served.engine.cancel(now_us, ticket) {
            served.figures.aborted += 1;
        }
    }
}

/// Keeps names below the tokens of listeners.
const GENERATION_MASK: u32 = u32::MAX >> 1;

const fn index_of(name: u64) -> usize {
    (name & 0xffff_ffff) as usize
}

/// The client of that name, if it is still there.
fn client_of(slots: &mut [Slot], name: u64) -> Option<&mut Client> {
    let slot = slots.get_mut(index_of(name))?;
    if u64::from(slot.generation) != name >> 32 {
        return None;
    }
    slot.client.as_deref_mut()
}

/// Seconds since 1970, for `created` alone.
fn wall_s() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec
}
