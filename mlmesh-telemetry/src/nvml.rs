//! GPUs through NVML, the management library of NVIDIA's driver.

use mlmesh_model::{Accelerators, Gpu};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

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
