//! Namespaces and capabilities of the calling process.

use std::fs;
use std::io;
use std::net::IpAddr;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// User and group of a job inside its user namespace: anybody but root.
pub(crate) const INSIDE_ID: u32 = 1000;

/// Leaves the namespaces named by `flags`, of which one is the user namespace,
/// and becomes user and group `inside` in it. Outside nothing changes: whoever
/// starts the daemon owns the job's files.
pub(crate) fn enter_as(flags: UnshareFlags, inside: u32) -> io::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    if user == 0 {
        // Supplementary groups would go on giving access to files outside.
        rustix::thread::set_thread_groups(&[])?;
    }
    unshare(flags | UnshareFlags::NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{inside} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{inside} {group} 1"))
}

/// Moves into a network namespace that has nothing but its own loopback. Root
/// needs no user namespace for that and stays who it is; others stay, too.
pub(crate) fn enter_empty_network() -> io::Result<()> {
    if geteuid().is_root() && unshare(UnshareFlags::NEWNET).is_ok() {
        return loopback_up();
    }
    enter_as(UnshareFlags::NEWNET, geteuid().as_raw())?;
    loopback_up()
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for the sake of UnshareFlags::FILES, which is never used here"
)]
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    Ok(rustix::thread::unshare(flags)?)
}

/// Index of the loopback device, which is a namespace's first.
const LOOPBACK_INDEX: u32 = 1;

/// Sets the flag `IFF_UP` on the loopback device (rtnetlink(7), `RTM_NEWLINK`).
pub(crate) fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const IFF_UP: u32 = 1;
    // Family, padding and type, which the index makes needless.
    let mut body = vec![0; 4];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    netlink(RTM_NEWLINK, 0, &body)
}

/// Gives the loopback device one more address (rtnetlink(7), `RTM_NEWADDR`).
pub(crate) fn add_loopback_address(address: IpAddr) -> io::Result<()> {
    const RTM_NEWADDR: u16 = 20;
    const NLM_F_EXCL_CREATE: u16 = 0x200 | 0x400;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_F_NODAD: u8 = 2;
    const RT_SCOPE_HOST: u8 = 254;
    let (family, bytes) = match address {
        IpAddr::V4(address) => (AddressFamily::INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AddressFamily::INET6, address.octets().to_vec()),
    };
    let family = u8::try_from(family.as_raw()).map_err(io::Error::other)?;
    let prefix_bits = 8 * bytes.len() as u8;
    let mut body = vec![family, prefix_bits, IFA_F_NODAD, RT_SCOPE_HOST];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    for attribute in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend((4 + bytes.len() as u16).to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(&bytes);
    }
    netlink(RTM_NEWADDR, NLM_F_EXCL_CREATE, &body)
}

/// Sends one request of rtnetlink(7) and reads whether it was followed.
fn netlink(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const HEADER_BYTES: usize = 16;
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 of netlink is rtnetlink.
        None,
    )?;
    let length = HEADER_BYTES + body.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST_ACK).to_ne_bytes());
    // Sequence and port.
    message.extend([0; 8]);
    message.extend(body);
    rustix::io::write(&socket, &message)?;
    let mut answer = [0_u8; 256];
    let length = rustix::io::read(&socket, &mut answer)?;
    let code = answer
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .filter(|_| length >= HEADER_BYTES + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// Hands all capabilities of the user namespace on to the next program, which a
/// user other than root would otherwise lose on execution.
pub(crate) fn keep_capabilities() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.inheritable = sets.permitted;
    set_capabilities(None, sets)?;
    for capability in each(sets.permitted) {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Gives up every capability for good, for this process and all that follow.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    clear_ambient_capability_set()?;
    let held = capabilities(None)?;
    for capability in each(held.permitted) {
        remove_capability_from_bounding_set(capability)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(set_no_new_privs(true)?)
}

fn each(sets: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..64)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .filter(move |capability| sets.contains(*capability))
}
