//! What a node has, what a run takes of it, and the account between the two.

use std::collections::BTreeSet;

use mlmesh_model::{Refusal, Resources};
use serde::{Deserialize, Serialize};

/// What a node offers to attempts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// UUIDs of its GPUs.
    pub gpus: Vec<String>,
}

impl Capacity {
    /// What of `resources` this node could never give, one refusal each.
    pub fn never_fits(&self, resources: &Resources) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let mut refuse = |what: &str, asked: String, has: String, key: &str| {
            refusals.push(Refusal::new(
                "resources_never_fit",
                format!("the run asks for {asked} {what}, the node has {has}"),
                format!("lower `resources: {{{key}: …}}` to at most {has}"),
            ));
        };
        if resources.cpu_milli > self.cpu_milli {
            let (asked, has) = (milli(resources.cpu_milli), milli(self.cpu_milli));
            refuse("CPUs", asked, has, "cpus");
        }
        if let Some(bytes) = resources.memory_bytes
            && bytes > self.memory_bytes
        {
            let (asked, has) = (bytes.to_string(), self.memory_bytes.to_string());
            refuse("bytes of memory", asked, has, "memory");
        }
        if resources.gpus as usize > self.gpus.len() {
            let (asked, has) = (resources.gpus.to_string(), self.gpus.len().to_string());
            refuse("GPUs", asked, has, "gpus");
        }
        refusals
    }
}

/// Thousandths as people write them: `1`, `0.5`.
fn milli(value: u64) -> String {
    let text = format!("{}.{:03}", value / 1000, value % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The account of a node: what live attempts hold. It never gives what is not
/// there; attempts found at a restart may hold more than is there by now.
#[derive(Debug, Clone, Default)]
pub struct Account {
    capacity: Capacity,
    cpu_milli: u64,
    memory_bytes: u64,
    gpus_held: BTreeSet<String>,
}

impl Account {
    /// An account in which everything is free.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            ..Self::default()
        }
    }

    /// What the node has.
    pub fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Sets what the node has; what is held stays held.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// What is held now: CPU thousandths, bytes of memory, GPUs.
    pub fn held(&self) -> (u64, u64, usize) {
        (self.cpu_milli, self.memory_bytes, self.gpus_held.len())
    }

    /// Whether `resources` are free now.
    pub fn fits(&self, resources: &Resources) -> bool {
        let cpu = self.cpu_milli.saturating_add(resources.cpu_milli);
        let memory = self
            .memory_bytes
            .saturating_add(resources.memory_bytes.unwrap_or(0));
        cpu <= self.capacity.cpu_milli
            && memory <= self.capacity.memory_bytes
            && (resources.gpus == 0 || self.free_gpus().count() >= resources.gpus as usize)
    }

    /// Takes `resources` and names the GPUs given; `None` when they are not free.
    pub fn take(&mut self, resources: &Resources) -> Option<Vec<String>> {
        if !self.fits(resources) {
            return None;
        }
        let gpus: Vec<String> = self
            .free_gpus()
            .take(resources.gpus as usize)
            .cloned()
            .collect();
        self.hold(resources, &gpus);
        Some(gpus)
    }

    /// Books what an attempt holds already, found alive at a restart.
    pub fn hold(&mut self, resources: &Resources, gpus: &[String]) {
        self.cpu_milli = self.cpu_milli.saturating_add(resources.cpu_milli);
        self.memory_bytes = self
            .memory_bytes
            .saturating_add(resources.memory_bytes.unwrap_or(0));
        self.gpus_held.extend(gpus.iter().cloned());
    }

    /// Gives back what [`Account::take`] or [`Account::hold`] booked.
    pub fn release(&mut self, resources: &Resources, gpus: &[String]) {
        self.cpu_milli = self.cpu_milli.saturating_sub(resources.cpu_milli);
        self.memory_bytes = self
            .memory_bytes
            .saturating_sub(resources.memory_bytes.unwrap_or(0));
        for gpu in gpus {
            self.gpus_held.remove(gpu);
        }
    }

    fn free_gpus(&self) -> impl Iterator<Item = &String> {
        self.capacity
            .gpus
            .iter()
            .filter(|gpu| !self.gpus_held.contains(*gpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity() -> Capacity {
        Capacity {
            cpu_milli: 2000,
            memory_bytes: 100,
            gpus: vec!["GPU-a".into(), "GPU-b".into()],
        }
    }

    fn asks(cpu_milli: u64, memory_bytes: u64, gpus: u32) -> Resources {
        Resources {
            cpu_milli,
            memory_bytes: Some(memory_bytes),
            gpus,
            time_s: None,
        }
    }

    #[test]
    fn gives_what_is_free_and_nothing_else() {
        let mut account = Account::new(capacity());
        assert_eq!(account.take(&asks(500, 60, 1)), Some(vec!["GPU-a".into()]));
        assert_eq!(account.take(&asks(500, 60, 0)), None, "memory");
        assert_eq!(account.take(&asks(1501, 0, 0)), None, "cpu");
        assert_eq!(account.take(&asks(0, 0, 2)), None, "gpu");
        assert_eq!(account.take(&asks(500, 40, 1)), Some(vec!["GPU-b".into()]));
        account.release(&asks(500, 60, 1), &["GPU-a".into()]);
        assert_eq!(account.held(), (500, 40, 1));
        assert_eq!(account.take(&asks(0, 0, 1)), Some(vec!["GPU-a".into()]));
    }

    #[test]
    fn what_could_never_fit_names_each_shortage() {
        assert!(capacity().never_fits(&asks(2000, 100, 2)).is_empty());
        let refusals = capacity().never_fits(&asks(2500, 101, 3));
        assert_eq!(refusals.len(), 3);
        assert_eq!(
            refusals[0].message,
            "the run asks for 2.5 CPUs, the node has 2"
        );
    }
}
