//! A request as a strategy sees it.

use std::sync::Arc;

/// A target of one router, by its place in the router's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u16);

impl TargetId {
    /// The place as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A request of one router; whoever asks gives it, and it is given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Whose request it is, by its place in the router's tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u16);

impl TenantId {
    /// The place as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// How urgent a request is. Of those that wait, all of a higher class go before all of a
/// lower one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Before the others.
    High,
    /// What nothing was said of.
    #[default]
    Normal,
    /// When nobody else waits.
    Low,
}

/// One stretch of a prompt together with all that comes before it: two prompts have
/// the same hash at a depth when they are the same up to the end of that block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(pub u64);

/// What is known of a request before it is sent.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Whose answer the router's later words are about.
    pub request: RequestId,
    /// Length of the prompt in tokens, as well as it is known.
    pub prompt_tokens: u64,
    /// The prompt's blocks from its beginning.
    pub blocks: Arc<[BlockHash]>,
    /// How many tokens a block stands for, as well as it is known.
    pub block_tokens: u64,
    /// What one conversation has in common, if the client says so.
    pub session: Option<u64>,
    /// Until when the first token has to be there, in the router's time.
    pub deadline_us: u64,
    /// Chance, for strategies that use some.
    pub chance: u64,
    /// Its answer comes as a whole, so that nothing says when its first token was there.
    pub is_silent: bool,
    /// Whose it is.
    pub tenant: TenantId,
    /// How urgent it is.
    pub class: Class,
}

impl Default for Ask {
    /// An empty prompt, without a deadline.
    fn default() -> Self {
        Self {
            request: RequestId(0),
            prompt_tokens: 0,
            blocks: [].into(),
            block_tokens: 1,
            session: None,
            deadline_us: u64::MAX,
            chance: 0,
            is_silent: false,
            tenant: TenantId::default(),
            class: Class::default(),
        }
    }
}
