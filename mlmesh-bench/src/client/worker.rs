//! The loop of one thread: sends what is due, reads what has come, and sleeps until
//! either happens.
//!
//! ```text
//!   send what is due ─▶ set the timer ─▶ epoll_wait ─▶ for each ready socket:
//!        ▲                                              read, stamp, scan,
//!        └──────────────────────────────────────────── send what became due
//! ```
//!
//! What is due is looked at after every socket, so that an instant is late by the
//! work on one socket at most and not by that on all that are ready.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::connection::{Connection, Exchange, Phase, Progress};
use super::pacer::Pacer;
use super::request::Template;
use super::timer::Timer;
use super::{Route, Watch};
use crate::delta::Reader;
use crate::error::BenchError;
use crate::plan::{Call, Plan};
use crate::prompt::Prompts;
use crate::sample::{Chunk, Fault, Run, Sample};

/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;
/// Sockets that one look at the kernel brings.
const EVENTS_MAX: usize = 256;
/// How often time limits and the wish to stop are looked at, at least.
const LOOK_US: u64 = 50_000;
/// Told once each time something changes; what ends the other side's half stands in
/// the same word, so that an end behind the last bytes is not missed.
const WATCHED: epoll::EventFlags = epoll::EventFlags::IN
    .union(epoll::EventFlags::OUT)
    .union(epoll::EventFlags::RDHUP)
    .union(epoll::EventFlags::ET);
const ENDED: epoll::EventFlags = epoll::EventFlags::RDHUP
    .union(epoll::EventFlags::HUP)
    .union(epoll::EventFlags::ERR);
const READABLE: epoll::EventFlags = ENDED.union(epoll::EventFlags::IN);
/// Token of the timer; connections have their place and their generation.
const TIMER: u64 = u64::MAX;

pub(super) struct Worker<'a> {
    plan: &'a Plan,
    prompts: &'a Prompts,
    template: Template,
    route: &'a Route,
    start: Instant,
    connections_max: usize,
    epoll: std::os::fd::OwnedFd,
    timer: Timer,
    pacer: Pacer,
    reader: Reader,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Places of idle connections; the one that was used last is taken first.
    idle: Vec<usize>,
    /// Due, and all connections are taken.
    waiting: VecDeque<(Call<'a>, u64)>,
    in_flight: usize,
    /// Requests that were told as begun, and as over.
    told: (usize, usize),
    buffer: Vec<u8>,
    body: Vec<u8>,
    run: Run,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        prompts: &'a Prompts,
        route: &'a Route,
        start: Instant,
        thread: usize,
        connections_max: usize,
    ) -> Result<Self, BenchError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(BenchError::system("make an epoll"))?;
        let timer = Timer::new()?;
        epoll::add(
            &epoll,
            &timer,
            epoll::EventData::new_u64(TIMER),
            epoll::EventFlags::IN,
        )
        .map_err(BenchError::system("watch a timer"))?;
        Ok(Self {
            plan,
            prompts,
            template: Template::new(plan),
            route,
            start,
            connections_max,
            epoll,
            timer,
            pacer: Pacer::new(plan, thread),
            reader: Reader::default(),
            slots: Vec::new(),
            free: Vec::new(),
            idle: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
            told: (0, 0),
            buffer: vec![0; READ_BYTES],
            body: Vec::new(),
            run: Run::default(),
        })
    }

    /// Runs to the end of the load, or until it is stopped.
    pub(super) fn run(mut self, watch: &Watch) -> Result<Run, BenchError> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut looked_us = 0;
        loop {
            let mut now_us = self.now_us();
            self.send_due(now_us);
            if now_us >= looked_us + LOOK_US {
                looked_us = now_us;
                self.end_overdue(now_us);
                self.tell(watch);
                if watch.stop.load(Ordering::Relaxed) {
                    self.interrupt(now_us);
                    break;
                }
            }
            let next = self.pacer.next();
            if next.is_none() && self.in_flight == 0 && self.waiting.is_empty() {
                break;
            }
            self.timer.set(next.map(|(_, at_us)| at_us), now_us)?;
            events.clear();
            let look = Timespec {
                tv_sec: 0,
                tv_nsec: LOOK_US as i64 * 1000,
            };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&look)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(BenchError::system("wait for sockets")(errno)),
            }
            for event in events.drain(..) {
                // The kernel packs its events, so that fields are copied out.
                let (token, flags) = (event.data.u64(), event.flags);
                if token != TIMER {
                    now_us = self.ready(token, flags);
                    self.send_due(now_us);
                }
            }
        }
        self.run.wall_us = self.now_us();
        Ok(self.run)
    }

    /// Adds what has happened since the last time.
    fn tell(&mut self, watch: &Watch) {
        let ended = self.run.samples.len();
        let told = (ended + self.in_flight, ended);
        let more = |now: usize, before: usize| now.saturating_sub(before) as u64;
        watch
            .started
            .fetch_add(more(told.0, self.told.0), Ordering::Relaxed);
        watch
            .ended
            .fetch_add(more(told.1, self.told.1), Ordering::Relaxed);
        self.told = told;
    }

    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn send_due(&mut self, now_us: u64) {
        while let Some((index, at_us)) = self.pacer.next() {
            if at_us > now_us {
                break;
            }
            self.pacer.advance();
            let call = self.plan.call(index, self.prompts);
            self.start_call(call, at_us);
        }
    }

    /// Sends a request on an idle connection, a new one, or later.
    fn start_call(&mut self, call: Call<'a>, intended_us: u64) {
        if let Some(place) = self.idle.pop() {
            self.begin(place, call, intended_us);
            return;
        }
        if !self.has_room() {
            self.run.waited += 1;
            self.waiting.push_back((call, intended_us));
            return;
        }
        match self.connect() {
            Ok(place) => self.begin(place, call, intended_us),
            Err(_) => {
                let now_us = self.now_us();
                let mut sample = sample(&call, intended_us, now_us, false);
                sample.fault = Some(Fault::Connect);
                self.keep(sample, &[]);
            }
        }
    }

    /// The place of a new connection, which may still be on its way.
    fn connect(&mut self) -> io::Result<usize> {
        let connection = Connection::open(self.route.address, self.route.trust.as_ref())?;
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        let slot = &mut self.slots[place];
        let watched = epoll::add(
            &self.epoll,
            &connection,
            token(place, slot.generation),
            WATCHED,
        );
        if let Err(errno) = watched {
            self.free.push(place);
            return Err(errno.into());
        }
        slot.connection = Some(Box::new(connection));
        self.run.connections += 1;
        Ok(place)
    }

    fn begin(&mut self, place: usize, call: Call<'a>, intended_us: u64) {
        let started_us = self.now_us();
        let Some(connection) = &mut self.slots[place].connection else {
            return;
        };
        let mut sample = sample(&call, intended_us, started_us, connection.served > 0);
        let request = &mut connection.request;
        sample.prompt_chars = self
            .template
            .write(&call, self.prompts, &mut self.body, request);
        connection.begin(Exchange::new(sample, self.plan.stream));
        self.in_flight += 1;
        if connection.phase == Phase::Idle {
            connection.phase = Phase::Writing;
            self.write(place);
        }
    }

    /// A socket is ready. Returns the time at the end of it.
    fn ready(&mut self, token: u64, flags: epoll::EventFlags) -> u64 {
        let (place, generation) = (token as u32 as usize, (token >> 32) as u32);
        let current = self
            .slots
            .get(place)
            .is_some_and(|slot| slot.generation == generation);
        if !current {
            return self.now_us();
        }
        if let Some(connection) = &mut self.slots[place].connection
            && connection.phase == Phase::Connecting
        {
            if connection.connected().is_err() {
                return self.fail(place, Fault::Connect);
            }
            connection.phase = Phase::Writing;
        }
        if self.phase(place) == Some(Phase::Writing) {
            self.write(place);
        }
        match flags.intersects(READABLE) {
            true => self.read(place, flags.intersects(ENDED)),
            false => self.now_us(),
        }
    }

    fn phase(&self, place: usize) -> Option<Phase> {
        let connection = self.slots[place].connection.as_ref();
        connection.map(|connection| connection.phase)
    }

    fn write(&mut self, place: usize) {
        let Some(connection) = &mut self.slots[place].connection else {
            return;
        };
        match connection.write() {
            Ok(true) => {
                connection.phase = Phase::Reading;
                let sent_us = self.start.elapsed().as_micros() as u64;
                if let Some(exchange) = &mut connection.exchange {
                    exchange.sample.sent_us = Some(sent_us);
                }
            }
            Ok(false) => {}
            Err(_) => {
                // An answer may have come before the connection went; reading says so.
                connection.phase = Phase::Reading;
            }
        }
    }

    /// Reads what is there, to the end of the stream when it has `ended`. Returns the
    /// time at the end of it.
    fn read(&mut self, place: usize, ended: bool) -> u64 {
        loop {
            let Some(connection) = &mut self.slots[place].connection else {
                return self.start.elapsed().as_micros() as u64;
            };
            let read = connection.read(&mut self.buffer);
            let now_us = self.start.elapsed().as_micros() as u64;
            let count = match read {
                Ok(None) if connection.phase == Phase::Writing => {
                    // A handshake may have come to its end, and then the request goes.
                    self.write(place);
                    if self.phase(place) != Some(Phase::Reading) {
                        return now_us;
                    }
                    continue;
                }
                Ok(None) => return now_us,
                Ok(Some(0)) => return self.hung_up(place, now_us),
                Ok(Some(count)) => count,
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidData
                        || connection.is_handshaking() =>
                {
                    return self.fail(place, Fault::Tls);
                }
                Err(_) => {
                    let fault = match connection.exchange.as_ref() {
                        Some(exchange) if exchange.sample.first_byte_us.is_some() => {
                            Fault::Truncated
                        }
                        _ => Fault::Closed,
                    };
                    return self.fail(place, fault);
                }
            };
            let connection_drained = connection.is_drained(count, self.buffer.len());
            match connection.take(&self.buffer[..count], now_us, &self.reader) {
                Ok(Progress::Going) => {}
                Ok(Progress::Whole { reusable }) => {
                    self.finish(place, reusable && !ended);
                    return now_us;
                }
                Err(_) => return self.fail(place, Fault::Http),
            }
            if connection_drained && !ended {
                return now_us;
            }
        }
    }

    /// The other side has closed.
    fn hung_up(&mut self, place: usize, now_us: u64) -> u64 {
        let Some(connection) = &mut self.slots[place].connection else {
            return now_us;
        };
        if connection.exchange.is_none() {
            self.close(place);
            return now_us;
        }
        match connection.closed(now_us, &self.reader) {
            Ok(()) => {
                self.finish(place, false);
                now_us
            }
            Err(fault) => self.fail(place, fault),
        }
    }

    /// A request is over and has its answer.
    fn finish(&mut self, place: usize, reusable: bool) {
        let Some(connection) = &mut self.slots[place].connection else {
            return;
        };
        // An answer before the whole request was sent leaves the rest of it unread.
        let reusable = reusable && connection.phase == Phase::Reading;
        connection.served += 1;
        if let Some(exchange) = connection.exchange.take() {
            self.in_flight -= 1;
            let sample = self.run.stamps.keep(exchange.sample, &connection.chunks);
            if let Some(fault) = sample.fault {
                let said = connection.said();
                self.run
                    .said
                    .entry(fault)
                    .or_insert_with(|| said.to_owned());
            }
            self.pacer
                .ended(sample.index, self.now_us(), sample.fault.is_some());
            self.run.samples.push(sample);
        }
        if reusable {
            if let Some(connection) = &mut self.slots[place].connection {
                connection.phase = Phase::Idle;
            }
            self.idle.push(place);
        } else {
            self.close(place);
        }
        self.start_waiting();
    }

    /// A request is over without an answer. On a connection that had served before and
    /// was closed meanwhile, it goes once more on a new one, as every client does.
    fn fail(&mut self, place: usize, fault: Fault) -> u64 {
        let now_us = self.now_us();
        let closed = self.close(place);
        if let Some((exchange, chunks)) =
            closed.and_then(|closed| Some((closed.exchange?, closed.chunks)))
        {
            self.in_flight -= 1;
            let mut sample = exchange.sample;
            if fault == Fault::Closed && sample.reused {
                let call = self.plan.call(sample.index, self.prompts);
                self.begin_anew(call, sample);
            } else {
                sample.fault = Some(fault);
                sample.last_byte_us = None;
                self.keep(sample, &chunks);
            }
        }
        self.start_waiting();
        self.now_us().max(now_us)
    }

    fn begin_anew(&mut self, call: Call<'a>, earlier: Sample) {
        match self.connect() {
            Ok(place) => {
                self.begin(place, call, earlier.intended_us);
                let connection = self.slots[place].connection.as_mut();
                if let Some(exchange) = connection.and_then(|c| c.exchange.as_mut()) {
                    exchange.sample.started_us = earlier.started_us;
                }
            }
            Err(_) => {
                let fault = Some(Fault::Connect);
                self.keep(Sample { fault, ..earlier }, &[]);
            }
        }
    }

    fn start_waiting(&mut self) {
        while self.has_room() || !self.idle.is_empty() {
            let Some((call, intended_us)) = self.waiting.pop_front() else {
                break;
            };
            self.start_call(call, intended_us);
        }
    }

    /// Whether one more connection may be opened.
    fn has_room(&self) -> bool {
        self.slots.len() - self.free.len() < self.connections_max
    }

    fn end_overdue(&mut self, now_us: u64) {
        // They wait in the order of their instants.
        let overdue = |due_us: u64| now_us > due_us.saturating_add(self.plan.timeout_us);
        let count = self.waiting.partition_point(|(_, due_us)| overdue(*due_us));
        for (call, due_us) in self.waiting.drain(..count).collect::<Vec<_>>() {
            let mut sample = sample(&call, due_us, now_us, false);
            sample.fault = Some(Fault::Timeout);
            self.keep(sample, &[]);
        }
        for place in 0..self.slots.len() {
            let connection = self.slots[place].connection.as_ref();
            let exchange = connection.and_then(|connection| connection.exchange.as_ref());
            let overdue = exchange
                .is_some_and(|exchange| now_us > exchange.sample.started_us + self.plan.timeout_us);
            if overdue {
                self.fail(place, Fault::Timeout);
            }
        }
    }

    /// Ends what is under way, and says so of each.
    fn interrupt(&mut self, now_us: u64) {
        self.run.interrupted = true;
        for (call, intended_us) in std::mem::take(&mut self.waiting) {
            let mut sample = sample(&call, intended_us, now_us, false);
            sample.fault = Some(Fault::Interrupted);
            self.keep(sample, &[]);
        }
        for place in 0..self.slots.len() {
            self.fail(place, Fault::Interrupted);
        }
    }

    fn close(&mut self, place: usize) -> Option<Box<Connection>> {
        let slot = &mut self.slots[place];
        let connection = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(place);
        if connection.phase == Phase::Idle {
            self.idle.retain(|idle| *idle != place);
        }
        Some(connection)
    }

    fn keep(&mut self, sample: Sample, chunks: &[Chunk]) {
        let sample = self.run.stamps.keep(sample, chunks);
        self.pacer
            .ended(sample.index, self.now_us(), sample.fault.is_some());
        self.run.samples.push(sample);
    }
}

fn token(place: usize, generation: u32) -> epoll::EventData {
    epoll::EventData::new_u64(u64::from(generation) << 32 | place as u64)
}

fn sample(call: &Call<'_>, intended_us: u64, started_us: u64, reused: bool) -> Sample {
    Sample {
        index: call.index,
        intended_us,
        started_us,
        sent_us: None,
        first_byte_us: None,
        last_byte_us: None,
        chunks: 0..0,
        usage: None,
        fault: None,
        status: None,
        retry_after_s: None,
        prompt_chars: call.prompt_chars,
        output_tokens_max: call.output_tokens,
        group: call.group,
        reused,
    }
}
