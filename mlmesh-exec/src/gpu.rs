//! What a job needs to use the GPUs it was granted, and only those: the variable
//! that CUDA reads, and the device files for the sandbox.

use std::fs;
use std::path::{Path, PathBuf};

/// Files that every CUDA program opens beside those of its GPUs.
const SHARED: [&str; 4] = [
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
];

/// The value of `CUDA_VISIBLE_DEVICES`; empty hides the GPUs of a machine that has
/// some, and a machine without any needs no variable.
pub(crate) fn visible_devices(granted: &[String]) -> Option<String> {
    let some = !granted.is_empty() || Path::new("/dev/nvidiactl").exists();
    some.then(|| granted.join(","))
}

/// Device files of the granted GPUs; none when none is granted.
pub(crate) fn device_files(granted: &[String]) -> Vec<PathBuf> {
    if granted.is_empty() {
        return Vec::new();
    }
    let own = fs::read_dir("/proc/driver/nvidia/gpus")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("information")).ok())
        .filter_map(|text| minor_of(&text, granted))
        .map(|minor| PathBuf::from(format!("/dev/nvidia{minor}")));
    let shared = SHARED.into_iter().map(PathBuf::from);
    shared.chain(own).filter(|path| path.exists()).collect()
}

/// The device number in the driver's description of a GPU, if that is granted.
fn minor_of(information: &str, granted: &[String]) -> Option<u32> {
    let field = |name: &str| {
        information.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let uuid = field("GPU UUID")?;
    granted.iter().any(|one| one == uuid).then_some(())?;
    field("Device Minor")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_granted_gpu_has_its_device() {
        let text = "Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-1\nDevice Minor: \t 3\n";
        assert_eq!(minor_of(text, &["GPU-1".to_owned()]), Some(3));
        assert_eq!(minor_of(text, &["GPU-2".to_owned()]), None);
        assert!(device_files(&[]).is_empty());
    }
}
