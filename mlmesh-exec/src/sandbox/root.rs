//! Builds the file system of a sandbox and moves into it.
//!
//! Everything is mounted below a fresh tmpfs while the host's files are still
//! there; then each read-only mount, with all that is mounted below it, is made
//! so; then the root is exchanged and the old one detached.

use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::SandboxSpec;
use super::doors::hosts_file;

/// Links of a merged `/usr`, or folders of their own.
const SYSTEM: [&str; 7] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
];

/// What of `/etc` a program needs and what tells nothing about people.
const ETC: [&str; 17] = [
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "ssl",
    "pki",
    "ca-certificates",
    "ca-certificates.conf",
    "localtime",
    "timezone",
    "host.conf",
    "protocols",
    "services",
    "mime.types",
    "fonts",
    "os-release",
    "debian_version",
];

/// What of `/etc` tells how names become addresses; only for an open network.
const ETC_NETWORK: [&str; 2] = ["resolv.conf", "nsswitch.conf"];

/// Without an open network there is nobody to ask: a name is in a file or unknown.
const NAMES_FROM_FILES: &str = "passwd: files\ngroup: files\nhosts: files\nservices: files\n\
     protocols: files\n";

const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Files of `/proc` that a user namespace does not fence.
const MASKED: [&str; 5] = [
    "kcore",
    "keys",
    "timer_list",
    "sysrq-trigger",
    "sched_debug",
];

const NO_DATA: Option<&CStr> = None;
const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Builds the root and moves into it. The message says which step failed.
pub(super) fn build(spec: &SandboxSpec) -> Result<(), String> {
    let mut root = Root::begin(&spec.root)?;
    for path in SYSTEM {
        root.system(Path::new(path))?;
    }
    // The numbers of processors and memory nodes.
    root.system(Path::new("/sys/devices/system"))?;
    root.etc(spec)?;
    for bind in &spec.writable {
        root.bind(&bind.from, &bind.to)?;
        root.writable.push(root.inside(&bind.to));
    }
    for path in &spec.system {
        root.system(path)?;
    }
    root.hide(&spec.hidden)?;
    for bind in &spec.read_only {
        root.bind(&bind.from, &bind.to)?;
        root.read_only.push(root.inside(&bind.to));
    }
    root.dev(&spec.devices)?;
    root.proc()?;
    root.seal()?;
    root.enter()
}

struct Root {
    path: PathBuf,
    read_only: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    /// Our own file systems, closed for writing at the end.
    tmpfs: Vec<PathBuf>,
}

impl Root {
    fn begin(path: &Path) -> Result<Self, String> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(|error| step("make mounts private", "/", error))?;
        let mut root = Self {
            path: path.to_owned(),
            read_only: Vec::new(),
            writable: Vec::new(),
            tmpfs: Vec::new(),
        };
        root.tmpfs(Path::new("/"), c"mode=0755,size=4m")?;
        Ok(root)
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A path of the system at its own place: a link as a link, a folder read-only.
    fn system(&mut self, path: &Path) -> Result<(), String> {
        let Ok(kind) = fs::symlink_metadata(path).map(|facts| facts.file_type()) else {
            return Ok(());
        };
        let inside = self.inside(path);
        if kind.is_symlink() && SYSTEM.iter().any(|known| Path::new(known) == path) {
            let target = fs::read_link(path).map_err(|error| step("read", path, error))?;
            return symlink(target, &inside).map_err(|error| step("link", path, error));
        }
        let shown = |above: &PathBuf| inside.starts_with(above);
        if self.read_only.iter().any(shown) {
            return Ok(());
        }
        self.bind(path, path)?;
        self.read_only.push(inside);
        Ok(())
    }

    fn etc(&mut self, spec: &SandboxSpec) -> Result<(), String> {
        let etc = Path::new("/etc");
        let mut names: Vec<String> = ETC.iter().map(|name| (*name).to_owned()).collect();
        // Debian keeps start-up files of its Pythons here.
        let pythons = fs::read_dir(etc).into_iter().flatten().flatten();
        names.extend(
            pythons
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with("python")),
        );
        if !spec.network_none {
            names.extend(ETC_NETWORK.map(str::to_owned));
        }
        for name in names {
            let path = etc.join(name);
            if path.exists() {
                self.bind(&path, &path)?;
                self.read_only.push(self.inside(&path));
            }
        }
        let id = crate::namespace::INSIDE_ID;
        let mut texts = vec![
            (
                "passwd",
                format!("job:x:{id}:{id}::{}:/bin/sh\n", super::HOME),
            ),
            ("group", format!("job:x:{id}:\n")),
            ("hosts", hosts_file(&spec.doors)),
            ("hostname", "mlmesh\n".to_owned()),
        ];
        if spec.network_none {
            texts.push(("nsswitch.conf", NAMES_FROM_FILES.to_owned()));
        }
        fs::create_dir_all(self.inside(etc)).map_err(|error| step("create", etc, error))?;
        for (name, text) in texts {
            let path = etc.join(name);
            fs::write(self.inside(&path), text).map_err(|error| step("write", path, error))?;
        }
        Ok(())
    }

    /// Lays an empty folder over the data directory where a mount shows it.
    fn hide(&mut self, path: &Path) -> Result<(), String> {
        if self.inside(path).is_dir() {
            self.tmpfs(path, c"mode=0755,size=1m")?;
        }
        Ok(())
    }

    fn dev(&mut self, extra: &[PathBuf]) -> Result<(), String> {
        let dev = Path::new("/dev");
        self.tmpfs(dev, c"mode=0755,size=1m")?;
        for name in DEVICES {
            self.bind(&dev.join(name), &dev.join(name))?;
        }
        for device in extra {
            self.bind(device, device)?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            symlink(target, self.inside(&dev.join(name)))
                .map_err(|error| step("link", dev.join(name), error))?;
        }
        let shared = dev.join("shm");
        self.mount_at(&shared, c"tmpfs", Some(c"mode=1777"))
    }

    fn proc(&mut self) -> Result<(), String> {
        let proc = Path::new("/proc");
        self.mount_at(proc, c"proc", NO_DATA)?;
        let nested = self.inside(Path::new("/proc/sys/user/max_user_namespaces"));
        fs::write(&nested, "0").map_err(|error| step("write", &nested, error))?;
        let null = Path::new("/dev/null");
        for name in MASKED {
            let path = proc.join(name);
            if self.inside(&path).exists() {
                self.bind(null, &path)?;
            }
        }
        self.read_only.push(self.inside(proc));
        Ok(())
    }

    /// Makes all mounts what they are meant to be.
    fn seal(&self) -> Result<(), String> {
        let mounts = fs::read("/proc/self/mountinfo")
            .map_err(|error| step("read", "/proc/self/mountinfo", error))?;
        let below = |list: &[PathBuf], path: &Path| list.iter().any(|top| path.starts_with(top));
        // A mount may be listed below a read-only and a writable one, as a dataset
        // in the working directory is: the longest of those above decides.
        for (path, flags) in parse_mounts(&mounts) {
            let depth = |list: &[PathBuf]| {
                let above = list.iter().filter(|top| path.starts_with(top));
                above.map(|top| top.components().count()).max()
            };
            let wanted = match (depth(&self.read_only), depth(&self.writable)) {
                (None, None) => continue,
                (read_only, writable) if read_only > writable => flags | MountFlags::RDONLY,
                _ => flags,
            };
            let wanted = MountFlags::BIND | PLAIN | wanted;
            mount_remount(&path, wanted, c"").map_err(|error| step("restrict", &path, error))?;
        }
        for path in self.tmpfs.iter().rev() {
            if !below(&self.writable, path) {
                let flags = MountFlags::BIND | MountFlags::RDONLY | PLAIN;
                mount_remount(path, flags, c"").map_err(|error| step("close", path, error))?;
            }
        }
        Ok(())
    }

    /// The old root is stacked below the new one and then detached
    /// (pivot_root(2), "pivot_root(".", ".")").
    fn enter(&self) -> Result<(), String> {
        let enter = || -> rustix::io::Result<()> {
            rustix::process::chdir(&self.path)?;
            rustix::process::pivot_root(".", ".")?;
            unmount(".", UnmountFlags::DETACH)?;
            rustix::process::chdir("/")
        };
        enter().map_err(|error| step("enter", &self.path, error))
    }

    fn tmpfs(&mut self, path: &Path, options: &CStr) -> Result<(), String> {
        self.mount_at(path, c"tmpfs", Some(options))?;
        self.tmpfs.push(self.inside(path));
        Ok(())
    }

    fn mount_at(&self, path: &Path, kind: &CStr, options: Option<&CStr>) -> Result<(), String> {
        let inside = self.inside(path);
        fs::create_dir_all(&inside).map_err(|error| step("create", path, error))?;
        mount(kind, &inside, kind, PLAIN, options).map_err(|error| step("mount", path, error))
    }

    fn bind(&self, from: &Path, to: &Path) -> Result<(), String> {
        let inside = self.inside(to);
        let directory = fs::metadata(from)
            .map_err(|error| step("find", from, error))?
            .is_dir();
        make_place(&inside, directory).map_err(|error| step("make a place for", to, error))?;
        mount_bind_recursive(from, &inside).map_err(|error| step("show", from, error))
    }
}

/// Makes the file or folder on which something is mounted.
fn make_place(path: &Path, directory: bool) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if directory {
        return fs::create_dir_all(path);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map(drop)
}

fn step(what: &str, path: impl AsRef<Path>, error: impl Into<io::Error>) -> String {
    let error = error.into();
    format!("sandbox: {what} `{}`: {error}", path.as_ref().display())
}

/// Mount points and the flags that a remount in a user namespace must keep.
fn parse_mounts(mountinfo: &[u8]) -> Vec<(PathBuf, MountFlags)> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(4);
            let path = unescape(fields.next()?);
            let options = std::str::from_utf8(fields.next()?).ok()?;
            let flags = options.split(',').map(|option| match option {
                "ro" => MountFlags::RDONLY,
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                _ => MountFlags::empty(),
            });
            Some((path, flags.collect()))
        })
        .collect()
}

/// Undoes the kernel's `\040` for blanks, tabs, line ends and backslashes.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        };
        match after.get(..3).and_then(octal) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_gives_places_and_flags() {
        let text =
            b"36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime,nosuid master:1 - ext3 /dev/root rw\n";
        assert_eq!(
            parse_mounts(text),
            [(PathBuf::from("/mnt 2\\x"), MountFlags::NOSUID)]
        );
    }
}
