//! GPUs through NVML, the management library of NVIDIA's driver: which there are, and how
//! they are, as the same signals that exporters have on their pages.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mlmesh_model::{Accelerators, Gpu};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::{Bits, NvmlError};
use nvml_wrapper::{Device, EventSet, Nvml};

use crate::adapter::{About, Figure, Form, Missing, Signal, State};

/// Names of the library: the driver's own, then the one of development packages,
/// which alone the wrapper would look for.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// The accelerators of this machine.
pub struct NvmlAccelerators {
    nvml: Result<Nvml, String>,
}

/// Whether the library is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NvmlStatus {
    /// It works; the driver's version.
    Present(String),
    /// It does not, for this reason; there are no GPUs.
    Absent(String),
}

impl NvmlAccelerators {
    /// Looks for the library once.
    pub fn new() -> Self {
        Self::with_libraries(&LIBRARIES)
    }

    fn with_libraries(libraries: &[&str]) -> Self {
        let mut nvml = Err("no library was looked for".to_owned());
        for library in libraries {
            let opened = Nvml::builder().lib_path(library.as_ref()).init();
            nvml = opened.map_err(|error| format!("`{library}`: {error}"));
            if nvml.is_ok() {
                break;
            }
        }
        if let Err(reason) = &nvml {
            tracing::info!(reason, "no NVIDIA library, so no GPUs");
        }
        Self { nvml }
    }

    /// What was found.
    pub fn status(&self) -> NvmlStatus {
        match &self.nvml {
            Ok(nvml) => {
                let version = nvml.sys_driver_version();
                NvmlStatus::Present(version.unwrap_or_else(|_| "unknown".to_owned()))
            }
            Err(reason) => NvmlStatus::Absent(reason.clone()),
        }
    }
}

impl NvmlAccelerators {
    /// Looks at all GPUs again and again, and at once when the driver notes an error,
    /// until `told` says that it is enough. Blocks.
    pub fn watch(&self, period: Duration, mut told: impl FnMut(Result<State, String>) -> bool) {
        let nvml = match &self.nvml {
            Ok(nvml) => nvml,
            Err(reason) => {
                told(Err(format!("no NVIDIA library: {reason}")));
                return;
            }
        };
        let events = errors_noted(nvml);
        let mut xids: BTreeMap<String, u64> = BTreeMap::new();
        loop {
            let read = state(nvml, &xids, events.is_some());
            if !told(read.map_err(|error| format!("NVML: {error}"))) {
                return;
            }
            let next = Instant::now() + period;
            // An error that comes meanwhile is told at once.
            let Some(events) = &events else {
                std::thread::sleep(period);
                continue;
            };
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
                match events.wait(left_ms.max(1)) {
                    Ok(event) => {
                        let uuid = event.device.uuid().unwrap_or_default();
                        let xid = match event.event_data {
                            Some(XidError::Value(xid)) => xid,
                            // What it was is not told; that it is one of the hardware's
                            // is not known.
                            Some(XidError::Unknown) | None => continue,
                        };
                        xids.insert(uuid, xid);
                        break;
                    }
                    Err(NvmlError::Timeout) => {}
                    Err(_) => {
                        // What is wrong is told by the next look.
                        std::thread::sleep(left);
                        break;
                    }
                }
            }
        }
    }
}

/// Where the driver tells of errors; none where it does not.
fn errors_noted(nvml: &Nvml) -> Option<EventSet<'_>> {
    let mut events = nvml.create_event_set().ok()?;
    for index in 0..nvml.device_count().ok()? {
        let device = nvml.device_by_index(index).ok()?;
        let registered = device.register_events(EventTypes::CRITICAL_XID_ERROR, events);
        events = registered.ok()?;
    }
    Some(events)
}

/// How all GPUs are now.
fn state(nvml: &Nvml, xids: &BTreeMap<String, u64>, knows_xids: bool) -> Result<State, NvmlError> {
    let mut state = State::default();
    for index in 0..nvml.device_count()? {
        let device = nvml.device_by_index(index)?;
        let uuid = device.uuid()?;
        let mut figures = BTreeMap::new();
        for signal in Signal::ALL {
            if signal.about() != About::Gpu {
                continue;
            }
            let value = match signal {
                // Since this process began to listen.
                Signal::GpuXid if knows_xids => Ok(xids.get(&uuid).map_or(0.0, |xid| *xid as f64)),
                Signal::GpuXid => Err(NvmlError::NotSupported),
                signal => value(&device, signal),
            };
            match value {
                Ok(value) => {
                    let figure = match signal.form() {
                        Form::Total => Figure::Total(value),
                        _ => Figure::Now(value),
                    };
                    figures.insert(signal, figure);
                }
                Err(error) => {
                    let reason = format!("GPU {index}: {error}");
                    state.missing.insert(signal, Missing::NotOffered(reason));
                }
            }
        }
        state.figures.insert(uuid, figures);
    }
    Ok(state)
}

/// In the unit of the signal.
fn value(device: &Device<'_>, signal: Signal) -> Result<f64, NvmlError> {
    Ok(match signal {
        Signal::GpuUsage => f64::from(device.utilization_rates()?.gpu) / 100.0,
        Signal::GpuMemoryUsed => device.memory_info()?.used as f64,
        Signal::GpuMemoryFree => device.memory_info()?.free as f64,
        Signal::GpuTemperature => f64::from(device.temperature(TemperatureSensor::Gpu)?),
        Signal::GpuThermalSlowdown => f64::from(slowed(device, BY_HEAT)?),
        Signal::GpuPowerBrake => f64::from(slowed(device, BY_BRAKE)?),
        Signal::GpuPower => f64::from(device.power_usage()?) / 1e3,
        Signal::GpuEnergy => device.total_energy_consumption()? as f64 / 1e3,
        Signal::GpuUncorrectable => {
            device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)? as f64
        }
        Signal::GpuReplays => f64::from(device.pcie_replay_counter()?),
        _ => return Err(NvmlError::NotSupported),
    })
}

/// Reasons for slower clocks in nvml.h: software's and hardware's, for heat.
const BY_HEAT: u64 = 0x20 | 0x40;
/// The power brake, which comes from outside of the GPU.
const BY_BRAKE: u64 = 0x80;

fn slowed(device: &Device<'_>, by: u64) -> Result<bool, NvmlError> {
    let reasons = match device.current_throttle_reasons_strict() {
        Ok(reasons) => ThrottleReasons::bits(&reasons),
        // The wrapper has no names for some of them.
        Err(NvmlError::IncorrectBits(Bits::U64(bits))) => bits,
        Err(error) => return Err(error),
    };
    Ok(reasons & by != 0)
}

impl Default for NvmlAccelerators {
    fn default() -> Self {
        Self::new()
    }
}

impl Accelerators for NvmlAccelerators {
    fn gpus(&self) -> Result<Vec<Gpu>, String> {
        let Ok(nvml) = &self.nvml else {
            return Ok(Vec::new());
        };
        let count = nvml
            .device_count()
            .map_err(|error| format!("count the GPUs: {error}"))?;
        (0..count)
            .map(|index| gpu(nvml, index).map_err(|error| format!("ask GPU {index}: {error}")))
            .collect()
    }

    fn driver(&self) -> Result<String, String> {
        match self.status() {
            NvmlStatus::Present(version) => Ok(version),
            NvmlStatus::Absent(reason) => Err(reason),
        }
    }
}

fn gpu(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    Ok(Gpu {
        uuid: device.uuid()?,
        name: device.name()?,
        memory_bytes: device.memory_info()?.total,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_there_are_no_gpus_and_a_reason() {
        let none = NvmlAccelerators::with_libraries(&["libno-such-library.so"]);
        assert_eq!(none.gpus(), Ok(vec![]));
        let NvmlStatus::Absent(reason) = none.status() else {
            panic!("there is no such library");
        };
        assert!(reason.contains("libno-such-library.so"), "{reason}");
        let mut told = Vec::new();
        none.watch(Duration::ZERO, |state| {
            told.push(state);
            true
        });
        assert!(matches!(&told[..], [Err(reason)] if reason.contains("libno-such-library.so")));
    }

    #[test]
    fn each_signal_of_a_gpu_is_read_or_is_missing_with_a_reason() {
        let here = NvmlAccelerators::new();
        let gpus = here.gpus().unwrap();
        let mut told = Vec::new();
        here.watch(Duration::from_millis(10), |state| {
            told.push(state);
            told.len() < 2
        });
        for state in told {
            let Ok(state) = state else {
                assert!(gpus.is_empty());
                continue;
            };
            assert_eq!(state.figures.len(), gpus.len());
            for signal in Signal::ALL {
                let is_there = |figures: &BTreeMap<_, _>| figures.contains_key(&signal);
                let all = state.figures.values().all(is_there);
                let of_gpu = signal.about() == About::Gpu && !gpus.is_empty();
                assert_eq!(all && of_gpu || state.missing.contains_key(&signal), of_gpu);
            }
        }
    }

    #[test]
    fn what_the_machine_says_is_consistent() {
        let here = NvmlAccelerators::new();
        let gpus = here.gpus().unwrap();
        println!("{:?}: {gpus:?}", here.status());
        match here.status() {
            NvmlStatus::Absent(_) => assert!(gpus.is_empty()),
            NvmlStatus::Present(_) => {
                for gpu in gpus {
                    assert!(gpu.uuid.starts_with("GPU-"), "{}", gpu.uuid);
                    assert!(gpu.memory_bytes > 0 && !gpu.name.is_empty());
                }
            }
        }
    }
}
