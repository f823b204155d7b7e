//! The engine itself: who waits, who is worked on, and what the iteration under way does.
//!
//! An iteration in which nobody comes, ends or lacks memory costs the same however many
//! answers are in it: their contexts are kept as a sum, their ends as a heap of iteration
//! numbers, and the blocks that they need as a count for each place in a block.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use mlmesh_route::BlockHash;

use super::memory::Memory;
use super::profile::{Prefill, Profile, square};

/// What an engine is asked for.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it is called in [`Occurrence`]s.
    pub name: u64,
    /// Length of the prompt; at least one is worked on.
    pub prompt_tokens: u64,
    /// Length of the answer; it has at least one.
    pub output_tokens: u64,
    /// The prompt's blocks of the profile's length. Those that are full can be shared.
    pub blocks: Arc<[BlockHash]>,
}

/// A job that an engine has, until it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    place: u32,
    turn: u64,
}

/// Something that happened to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// When.
    pub at_us: u64,
    /// To whom.
    pub name: u64,
    /// What.
    pub what: What,
}

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It left the queue for the first time.
    Begun {
        /// Tokens of the prompt that were in memory already.
        cached_tokens: u64,
    },
    /// The first token of its answer.
    FirstToken,
    /// Another token; told with [`Detail::Tokens`] alone.
    Token,
    /// It was put back in the queue for want of memory.
    Preempted,
    /// Its last token was the one before this.
    Done,
}

/// How much an engine tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Every token.
    Tokens,
    /// First tokens and ends.
    Ends,
}

/// Why a job is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{tokens} tokens need {blocks} blocks; the engine has {blocks_max}")]
pub struct Refused {
    /// Prompt and answer.
    pub tokens: u64,
    /// What they need.
    pub blocks: u64,
    /// What there is.
    pub blocks_max: u64,
}

/// What an engine has done, and does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs in its queue.
    pub waiting: usize,
    /// Jobs that it works on.
    pub running: usize,
    /// Blocks that jobs use.
    pub used_blocks: u64,
    /// Iterations that have ended.
    pub iterations: u64,
    /// Jobs that were put back.
    pub preempted: u64,
    /// How long it worked.
    pub busy_us: u64,
    /// Tokens that were looked for in memory.
    pub queried_tokens: u64,
    /// Tokens that were found there.
    pub hit_tokens: u64,
    /// Tokens of prompts that were worked on.
    pub prefilled_tokens: u64,
    /// Tokens of answers behind the first one.
    pub written_tokens: u64,
    /// How long their iterations took, once for each of them.
    pub written_us: u64,
}

/// One engine.
#[derive(Debug)]
pub struct Engine {
    profile: Profile,
    detail: Detail,
    memory: Memory,
    jobs: Vec<Held>,
    vacant: Vec<u32>,
    turn: u64,
    waiting: VecDeque<u32>,
    /// In the order in which they left the queue; the last one is put back first.
    running: Vec<u32>,
    /// Those of `running` whose prompt is not done, in the same order.
    prefilling: VecDeque<u32>,
    answers: Answers,
    /// Iterations under way: mixed or of answers, and of prompts alone.
    lanes: [Option<Pass>; 2],
    /// Parts of prompts in the pass under way.
    parts: Vec<(u32, u64)>,
    /// Something has come or gone since lanes were last looked at.
    look_us: Option<u64>,
    busy_until_us: u64,
    counts: Counts,
}

/// Those that write, as sums.
#[derive(Debug, Default)]
struct Answers {
    count: u64,
    /// Tokens that the next iteration attends to.
    context: u64,
    /// Iterations that were started.
    started: u64,
    /// Who has its last token in which iteration; with the turn, since places are used again.
    ends: BinaryHeap<Reverse<(u64, u64, u32)>>,
    /// How many need a block in iterations with this remainder.
    growing: Vec<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Pass {
    ends_us: u64,
    /// It has a token for each answer in it.
    answers: bool,
    /// It works on prompts.
    prompts: bool,
}

#[derive(Debug)]
struct Held {
    job: Job,
    turn: u64,
    state: State,
    /// Tokens of the answer when it last joined or left the answers.
    produced: u64,
    /// Blocks from the beginning that are shared, and those of its own.
    shared: usize,
    own: u64,
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Vacant,
    Waiting,
    /// So many tokens of it are computed.
    Prefilling(u64),
    /// Since that iteration, with so many tokens in memory then.
    Answering {
        since: u64,
        context: u64,
    },
}

const MIXED: usize = 0;
const PROMPTS: usize = 1;

impl Engine {
    /// One that has nothing to do.
    #[must_use]
    pub fn new(profile: Profile, detail: Detail) -> Self {
        let cached_max = profile.cached_blocks_max.unwrap_or(profile.memory_blocks);
        Self {
            memory: Memory::new(profile.memory_blocks, cached_max),
            answers: Answers {
                growing: vec![0; profile.block_tokens as usize],
                ..Answers::default()
            },
            profile,
            detail,
            jobs: Vec::new(),
            vacant: Vec::new(),
            turn: 0,
            waiting: VecDeque::new(),
            running: Vec::new(),
            prefilling: VecDeque::new(),
            lanes: [None, None],
            parts: Vec::new(),
            look_us: None,
            busy_until_us: 0,
            counts: Counts::default(),
        }
    }

    /// What it is like.
    #[must_use]
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What it has done, and does.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            waiting: self.waiting.len(),
            running: self.running.len(),
            used_blocks: self.memory.used(),
            ..self.counts
        }
    }

    /// Puts a job in the queue. Everything before `now_us` has been stepped through;
    /// what comes in the same microsecond as a step may come before it.
    pub fn submit(&mut self, now_us: u64, mut job: Job) -> Result<Ticket, Refused> {
        job.prompt_tokens = job.prompt_tokens.max(1);
        job.output_tokens = job.output_tokens.max(1);
        let tokens = job.prompt_tokens.saturating_add(job.output_tokens);
        let blocks = tokens.div_ceil(self.profile.block_tokens);
        if blocks > self.profile.memory_blocks {
            return Err(Refused {
                tokens,
                blocks,
                blocks_max: self.profile.memory_blocks,
            });
        }
        self.turn += 1;
        let held = Held {
            job,
            turn: self.turn,
            state: State::Waiting,
            produced: 0,
            shared: 0,
            own: 0,
            begun: false,
        };
        let place = match self.vacant.pop() {
            Some(place) => {
                self.jobs[place as usize] = held;
                place
            }
            None => {
                self.jobs.push(held);
                (self.jobs.len() - 1) as u32
            }
        };
        self.waiting.push_back(place);
        self.look(now_us);
        Ok(Ticket {
            place,
            turn: self.turn,
        })
    }

    /// Takes a job away, whatever became of it; whether it was still there.
    pub fn cancel(&mut self, now_us: u64, ticket: Ticket) -> bool {
        let place = ticket.place;
        let there = self
            .jobs
            .get(place as usize)
            .is_some_and(|held| held.turn == ticket.turn && held.state != State::Vacant);
        if !there {
            return false;
        }
        if self.jobs[place as usize].state == State::Waiting {
            self.waiting.retain(|other| *other != place);
        } else {
            self.parts.retain(|(other, _)| *other != place);
            self.stop(place);
        }
        self.vacate(place);
        self.look(now_us);
        true
    }

    /// When something happens next, if nothing comes before.
    #[must_use]
    pub fn next_us(&self) -> Option<u64> {
        let ends = self.lanes.iter().flatten().map(|pass| pass.ends_us);
        ends.chain(self.look_us).min()
    }

    /// Lets happen what happens at [`Engine::next_us`], and adds what is to be told.
    pub fn step(&mut self, told: &mut Vec<Occurrence>) {
        let Some(now_us) = self.next_us() else {
            return;
        };
        self.look_us = None;
        for lane in [MIXED, PROMPTS] {
            let Some(pass) = self.lanes[lane].filter(|pass| pass.ends_us == now_us) else {
                continue;
            };
            self.lanes[lane] = None;
            self.counts.iterations += 1;
            if pass.answers {
                self.end_answers(now_us, told);
            }
            if pass.prompts {
                self.end_prompts(now_us, told);
            }
        }
        self.start(now_us, told);
    }

    fn look(&mut self, now_us: u64) {
        self.look_us = Some(self.look_us.map_or(now_us, |at_us| at_us.min(now_us)));
    }

    /// Starts what can be started.
    fn start(&mut self, now_us: u64, told: &mut Vec<Occurrence>) {
        match self.profile.prefill {
            Prefill::Mixed => {
                if self.lanes[MIXED].is_none() {
                    self.start_mixed(now_us, told);
                }
            }
            Prefill::Separate => {
                if self.lanes[PROMPTS].is_none() {
                    let room = self.profile.batched_tokens_max;
                    let before = self.counts.preempted;
                    let pairs = self.take_parts(now_us, room, 1, before, told);
                    let cost = &self.profile.cost;
                    let us = cost.prefill_us + self.parts_us(pairs);
                    self.pass(PROMPTS, now_us, us, false);
                }
                if self.lanes[MIXED].is_none() && self.answers.count > 0 {
                    let us = self.start_answers(now_us, told);
                    self.pass(MIXED, now_us, us, true);
                }
            }
        }
    }

    fn start_mixed(&mut self, now_us: u64, told: &mut Vec<Occurrence>) {
        let preempted = self.counts.preempted;
        let answers_us = self.start_answers(now_us, told);
        let answers = self.answers.count;
        let room = self.profile.batched_tokens_max - answers;
        let pairs = self.take_parts(now_us, room, usize::MAX, preempted, told);
        let mut us = answers_us + self.parts_us(pairs);
        if !self.parts.is_empty() {
            us += self.profile.cost.prefill_us;
            if answers == 0 {
                us += self.profile.cost.iteration_us;
            }
        }
        self.pass(MIXED, now_us, us, answers > 0);
    }

    /// An iteration begins, if there is anything in it.
    fn pass(&mut self, lane: usize, now_us: u64, us: f64, answers: bool) {
        let prompts =
            !self.parts.is_empty() && (lane == PROMPTS || self.profile.prefill == Prefill::Mixed);
        if !answers && !prompts {
            return;
        }
        let ends_us = now_us + (us.round() as u64).max(1);
        self.lanes[lane] = Some(Pass {
            ends_us,
            answers,
            prompts,
        });
        if answers {
            self.counts.written_tokens += self.answers.count;
            self.counts.written_us += self.answers.count * (ends_us - now_us);
        }
        // Time in which both lanes work counts once.
        self.counts.busy_us += ends_us.saturating_sub(self.busy_until_us.max(now_us));
        self.busy_until_us = self.busy_until_us.max(ends_us);
    }

    /// Gives each answer room for its next token, puts back whom there is no room for,
    /// and says what the iteration costs.
    fn start_answers(&mut self, now_us: u64, told: &mut Vec<Occurrence>) -> f64 {
        loop {
            let phase = self.answers.started % self.profile.block_tokens;
            let blocks = self.answers.growing[phase as usize];
            if self.memory.has(blocks) {
                self.memory.take(blocks);
                break;
            }
            self.preempt(now_us, told);
        }
        let answers = &mut self.answers;
        if answers.count == 0 {
            return 0.0;
        }
        answers.started += 1;
        answers.context += answers.count;
        let cost = &self.profile.cost;
        cost.iteration_us + cost.answers_us(answers.count, answers.context)
    }

    /// Puts the one that came last back to the front of the queue, but none that a pass
    /// under way works on.
    fn preempt(&mut self, now_us: u64, told: &mut Vec<Occurrence>) {
        let mut others = self.running.iter().rev();
        let idle = |place: &&u32| self.parts.iter().all(|(other, _)| other != *place);
        let last = others.find(idle).copied();
        let place = last.expect("whoever needs memory can be put back");
        self.stop(place);
        self.jobs[place as usize].state = State::Waiting;
        self.waiting.push_front(place);
        self.counts.preempted += 1;
        self.tell(now_us, place, What::Preempted, told);
    }

    /// Gives parts of prompts room, up to so many tokens and so many parts; the pairs
    /// that attention makes of these. Nobody leaves the queue once more jobs than
    /// `preempted` were put back: they would only come in again.
    fn take_parts(
        &mut self,
        now_us: u64,
        mut room: u64,
        parts_max: usize,
        preempted: u64,
        told: &mut Vec<Occurrence>,
    ) -> f64 {
        let mut pairs = 0.0;
        let mut next = 0;
        while room > 0 && next < self.prefilling.len() && self.parts.len() < parts_max {
            let place = self.prefilling[next];
            match self.take_part(place, room) {
                Some((tokens, more)) => {
                    room -= tokens;
                    pairs += more;
                    next += 1;
                }
                None => {
                    // The newest goes; when that was this one, nobody is left behind it.
                    self.preempt(now_us, told);
                    room = if next < self.prefilling.len() {
                        room
                    } else {
                        0
                    };
                }
            }
        }
        let slots = self.profile.slots as usize;
        while room > 0
            && self.parts.len() < parts_max
            && self.running.len() < slots
            && self.counts.preempted == preempted
        {
            let Some(place) = self.waiting.front().copied() else {
                break;
            };
            if !self.admit(now_us, place, room, told) {
                break;
            }
            self.waiting.pop_front();
            if let Some((tokens, more)) = self.take_part(place, room) {
                room -= tokens;
                pairs += more;
            }
        }
        pairs
    }

    /// Takes the first of the queue in, if its first part finds room.
    fn admit(&mut self, now_us: u64, place: u32, room: u64, told: &mut Vec<Occurrence>) -> bool {
        let block_tokens = self.profile.block_tokens;
        let held = &mut self.jobs[place as usize];
        let target = held.job.prompt_tokens + held.produced;
        // The last token of a prompt is always worked on: the first of the answer is
        // made of it.
        let full = (target.min(held.job.prompt_tokens + 1) - 1) / block_tokens;
        let full = (full as usize).min(held.job.blocks.len());
        let hit = self.memory.held(&held.job.blocks[..full]);
        self.memory.share(&held.job.blocks[..hit]);
        let cached = hit as u64 * block_tokens;
        let part = room.min(target - cached);
        let blocks = (cached + part).div_ceil(block_tokens) - hit as u64;
        if !self.memory.has(blocks) {
            self.memory.leave(&held.job.blocks[..hit]);
            return false;
        }
        held.shared = hit;
        held.state = State::Prefilling(cached);
        self.counts.queried_tokens += target;
        self.counts.hit_tokens += cached;
        self.running.push(place);
        self.prefilling.push_back(place);
        if !std::mem::replace(&mut held.begun, true) {
            let begun = What::Begun {
                cached_tokens: cached,
            };
            self.tell(now_us, place, begun, told);
        }
        true
    }

    /// Puts as much of a prompt into the pass as there is room for; `None` where there
    /// is no memory for it.
    fn take_part(&mut self, place: u32, room: u64) -> Option<(u64, f64)> {
        let held = &mut self.jobs[place as usize];
        let State::Prefilling(computed) = held.state else {
            unreachable!("only prompts that are not done are asked for parts");
        };
        let target = held.job.prompt_tokens + held.produced;
        let tokens = room.min(target - computed);
        let blocks = (computed + tokens).div_ceil(self.profile.block_tokens);
        let more = blocks - held.shared as u64 - held.own;
        if !self.memory.has(more) {
            return None;
        }
        self.memory.take(more);
        held.own += more;
        self.parts.push((place, tokens));
        Some((tokens, square(computed + tokens) - square(computed)))
    }

    fn parts_us(&mut self, pairs: f64) -> f64 {
        let tokens = self.parts.iter().map(|(_, tokens)| tokens).sum();
        self.counts.prefilled_tokens += tokens;
        self.profile.cost.prompt_us(tokens, pairs)
    }

    /// Every answer in the iteration has one token more.
    fn end_answers(&mut self, now_us: u64, told: &mut Vec<Occurrence>) {
        let last = self.answers.started - 1;
        if self.detail == Detail::Tokens {
            for place in &self.running {
                let held = &self.jobs[*place as usize];
                if matches!(held.state, State::Answering { since, .. } if since <= last) {
                    told.push(Occurrence {
                        at_us: now_us,
                        name: held.job.name,
                        what: What::Token,
                    });
                }
            }
        }
        while let Some(Reverse((iteration, turn, place))) = self.answers.ends.peek().copied() {
            if iteration > last {
                break;
            }
            self.answers.ends.pop();
            let held = &self.jobs[place as usize];
            // One that was put back has another end now, or none.
            let ends = matches!(held.state, State::Answering { since, .. }
                if held.turn == turn && since + held.job.output_tokens - held.produced == iteration + 1);
            if ends {
                self.finish(now_us, place, told);
            }
        }
    }

    /// Parts of prompts are computed; whose prompt is done has a token.
    fn end_prompts(&mut self, now_us: u64, told: &mut Vec<Occurrence>) {
        let mut parts = std::mem::take(&mut self.parts);
        for (place, tokens) in parts.drain(..) {
            let held = &mut self.jobs[place as usize];
            let State::Prefilling(computed) = &mut held.state else {
                unreachable!("whoever is in a pass is not put back");
            };
            *computed += tokens;
            let computed = *computed;
            self.publish(place, computed);
            let held = &mut self.jobs[place as usize];
            if computed < held.job.prompt_tokens + held.produced {
                continue;
            }
            self.prefilling.retain(|other| *other != place);
            held.produced += 1;
            let what = match held.produced {
                1 => What::FirstToken,
                _ => What::Token,
            };
            if what == What::FirstToken || self.detail == Detail::Tokens {
                self.tell(now_us, place, what, told);
            }
            let held = &self.jobs[place as usize];
            if held.produced == held.job.output_tokens {
                self.finish(now_us, place, told);
            } else {
                self.join(place, computed);
            }
        }
        self.parts = parts;
    }

    /// Whose prompt is done writes from the next iteration on.
    fn join(&mut self, place: u32, context: u64) {
        let held = &mut self.jobs[place as usize];
        let answers = &mut self.answers;
        let since = answers.started;
        held.state = State::Answering { since, context };
        let last = since + held.job.output_tokens - held.produced - 1;
        answers.ends.push(Reverse((last, held.turn, place)));
        answers.count += 1;
        answers.context += context;
        answers.growing[phase(since, context, self.profile.block_tokens)] += 1;
    }

    /// Full blocks of the prompt can be shared from now on.
    fn publish(&mut self, place: u32, computed: u64) {
        let held = &mut self.jobs[place as usize];
        let full = computed.min(held.job.prompt_tokens) / self.profile.block_tokens;
        let full = (full as usize).min(held.job.blocks.len());
        while held.shared < full && self.memory.publish(held.job.blocks[held.shared]) {
            held.shared += 1;
            held.own -= 1;
        }
    }

    fn finish(&mut self, now_us: u64, place: u32, told: &mut Vec<Occurrence>) {
        self.tell(now_us, place, What::Done, told);
        self.stop(place);
        self.vacate(place);
    }

    /// Takes a job out of whatever works on it, and gives its memory back.
    fn stop(&mut self, place: u32) {
        let held = &mut self.jobs[place as usize];
        match held.state {
            State::Answering { since, context } => {
                let answers = &mut self.answers;
                let more = answers.started - since;
                answers.count -= 1;
                answers.context -= context + more;
                let block_tokens = self.profile.block_tokens;
                answers.growing[phase(since, context, block_tokens)] -= 1;
                held.own = (context + more).div_ceil(block_tokens) - held.shared as u64;
                held.produced += more;
            }
            State::Prefilling(_) => self.prefilling.retain(|other| *other != place),
            State::Vacant | State::Waiting => {}
        }
        self.memory.give(held.own);
        self.memory.leave(&held.job.blocks[..held.shared]);
        (held.own, held.shared) = (0, 0);
        self.running.retain(|other| *other != place);
    }

    fn vacate(&mut self, place: u32) {
        self.jobs[place as usize].state = State::Vacant;
        self.jobs[place as usize].job.blocks = Arc::default();
        self.vacant.push(place);
    }

    fn tell(&self, at_us: u64, place: u32, what: What, told: &mut Vec<Occurrence>) {
        told.push(Occurrence {
            at_us,
            name: self.jobs[place as usize].job.name,
            what,
        });
    }
}

/// In which iterations, by remainder, somebody needs a block who joined then with so
/// many tokens.
fn phase(since: u64, context: u64, block_tokens: u64) -> usize {
    let offset = block_tokens - context % block_tokens;
    ((since + offset) % block_tokens) as usize
}
