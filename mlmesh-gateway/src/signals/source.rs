//! Who is asked, as it is typed.

use std::str::FromStr;

use mlmesh_telemetry::adapter::{Adapter, adapter, adapters};
use thiserror::Error;

use crate::target::{Target, TargetError};

/// What a gateway asks, beside the requests of its clients.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// What the engines are.
    pub runtime: Runtime,
    /// Pages beside the engines' own, and NVML.
    pub sources: Vec<SignalSource>,
}

/// What the engines are.
#[derive(Debug, Clone, Copy, Default)]
pub enum Runtime {
    /// Found out by their pages of metrics.
    #[default]
    Found,
    /// All of them this one.
    Known(&'static Adapter),
    /// They are asked for no page.
    Unasked,
}

/// A page of metrics, or NVML, and the targets that it is about.
#[derive(Debug, Clone)]
pub struct SignalSource {
    /// A target's host and port; without it all targets on the page's machine.
    pub(crate) target: Option<String>,
    pub(crate) from: From,
    /// Ids of the GPUs that count; none stands for all.
    pub(crate) gpus: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) enum From {
    Page { at: Target, path: String },
    Nvml,
}

/// Why a text names nobody who can be asked.
#[derive(Debug, Error)]
pub enum SignalError {
    #[error("`{seen}` is no runtime; known are `auto`, `none`, {known}")]
    Runtime {
        /// What was typed.
        seen: String,
        /// What may be.
        known: String,
    },
    #[error("`{0}` is no source of signals: `[TARGET=]http://HOST:PORT/PATH[#GPU,…]`, or `nvml`")]
    Source(String, #[source] TargetError),
    #[error("`{0}` is the source of a target that is none\nhint: write it as in `--target`")]
    Target(String),
    #[error(
        "`{0}` is on a machine on which no target is\nhint: say of which target it is, `TARGET={0}`"
    )]
    NoTarget(String),
}

impl FromStr for Runtime {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<Runtime, SignalError> {
        match text {
            "auto" => Ok(Runtime::Found),
            "none" => Ok(Runtime::Unasked),
            name => adapter(name)
                .map(Runtime::Known)
                .ok_or_else(|| SignalError::Runtime {
                    seen: name.chars().take(80).collect(),
                    known: adapters()
                        .iter()
                        .map(|known| format!("`{}`", known.runtime))
                        .collect::<Vec<_>>()
                        .join(", "),
                }),
        }
    }
}

impl FromStr for SignalSource {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<SignalSource, SignalError> {
        let cut = text.find("=http://").or_else(|| text.find("=nvml"));
        let (target, rest) = match cut {
            Some(cut) => (Some(&text[..cut]), &text[cut + 1..]),
            None => (None, text),
        };
        let target = target.map(|target| target.trim_start_matches("http://").to_owned());
        let (rest, gpus) = rest.split_once('#').unwrap_or((rest, ""));
        let gpus = gpus.split(',').filter(|gpu| !gpu.is_empty());
        let from = match rest {
            "nvml" => From::Nvml,
            url => {
                let host_from = "http://".len().min(url.len());
                let slash = url[host_from..].find('/').map(|place| place + host_from);
                let (base, path) = url.split_at(slash.unwrap_or(url.len()));
                let shown = || text.chars().take(200).collect();
                let at = base
                    .parse()
                    .map_err(|error| SignalError::Source(shown(), error))?;
                let path = if path.is_empty() { "/metrics" } else { path };
                From::Page {
                    at,
                    path: path.to_owned(),
                }
            }
        };
        Ok(SignalSource {
            target,
            from,
            gpus: gpus.map(str::to_owned).collect(),
        })
    }
}

impl SignalSource {
    /// As it is shown.
    pub(crate) fn name(&self) -> String {
        match &self.from {
            From::Page { at, path } => format!("http://{}{path}", at.host()),
            From::Nvml => "nvml".to_owned(),
        }
    }

    /// Places of the targets that it is about.
    pub(crate) fn of(&self, targets: &[Target]) -> Result<Vec<usize>, SignalError> {
        let places = targets.iter().enumerate();
        if let Some(named) = &self.target {
            let found = places.filter(|(_, target)| target.host() == named);
            let found: Vec<usize> = found.map(|(place, _)| place).collect();
            return match found.is_empty() {
                true => Err(SignalError::Target(named.clone())),
                false => Ok(found),
            };
        }
        let is_on_it = |target: &Target| {
            let mut addresses = target.addresses().iter().map(|address| address.ip());
            match &self.from {
                From::Page { at, .. } => {
                    addresses.any(|ip| at.addresses().iter().any(|page| page.ip() == ip))
                }
                From::Nvml => addresses.any(|ip| ip.to_canonical().is_loopback()),
            }
        };
        let found = places.filter(|(_, target)| is_on_it(target));
        let found: Vec<usize> = found.map(|(place, _)| place).collect();
        match found.is_empty() {
            true => Err(SignalError::NoTarget(self.name())),
            false => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_pages_or_nvml_of_all_targets_there_or_of_one() {
        let targets: Vec<Target> = ["http://127.0.0.1:81", "http://127.0.0.2:82"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        for (text, name, of, gpus) in [
            (
                "http://127.0.0.1:9400",
                "http://127.0.0.1:9400/metrics",
                vec![0],
                0,
            ),
            (
                "http://127.0.0.2:1/a/b#G1,G2",
                "http://127.0.0.2:1/a/b",
                vec![1],
                2,
            ),
            (
                "http://127.0.0.2:82=http://127.0.0.1:2/m",
                "http://127.0.0.1:2/m",
                vec![1],
                0,
            ),
            ("127.0.0.2:82=nvml#GPU-0a", "nvml", vec![1], 1),
            ("nvml", "nvml", vec![0, 1], 0),
        ] {
            let source: SignalSource = text.parse().unwrap();
            assert_eq!(source.name(), name, "{text}");
            assert_eq!(source.of(&targets).unwrap(), of, "{text}");
            assert_eq!(source.gpus.len(), gpus, "{text}");
        }
        for text in ["", "nvm", "https://a/m", "http://", "a=b"] {
            assert!(text.parse::<SignalSource>().is_err(), "{text}");
        }
        for text in ["http://127.0.0.3:1/m", "127.0.0.1:83=nvml"] {
            let source: SignalSource = text.parse().unwrap();
            assert!(source.of(&targets).is_err(), "{text}");
        }
        assert!(matches!("auto".parse(), Ok(Runtime::Found)));
        assert!(matches!("vllm".parse(), Ok(Runtime::Known(_))));
        let error = "vlm".parse::<Runtime>().unwrap_err().to_string();
        assert!(
            error.contains("`vlm`") && error.contains("`vllm`"),
            "{error}"
        );
    }
}
