//! Requests to the kernel about its network interfaces, rtnetlink(7): a message for each change, answered with an error
//! number or none.
//!
//! The numbers are those of linux/netlink.h, linux/rtnetlink.h and linux/if_addr.h; the byte order is the machine's.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;

/// Length, type, flags, sequence number, port.
const HEADER: usize = 16;

pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A request in the making.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | ACKNOWLEDGE | flags).to_ne_bytes());
        bytes.extend_from_slice(body);
        Message(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        // Our values are addresses and numbers: their lengths are multiples of four, so nothing needs to be filled up.
        let length = 4 + value.len() as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self
    }

    fn address(self, kind: u16, address: IpAddr) -> Message {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

impl Netlink {
    pub fn open() -> io::Result<Netlink> {
        // Without a protocol it is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sets an interface up.
    pub fn set_up(&mut self, interface: u32) -> io::Result<()> {
        const UP: u32 = libc::IFF_UP as u32;
        // struct ifinfomsg: family, padding, type, index, flags, the flags to change.
        let mut body = vec![0; 4];
        for word in [interface, UP, UP] {
            body.extend_from_slice(&word.to_ne_bytes());
        }
        self.request(Message::new(NEW_LINK, 0, &body))
    }

    /// Adds an address, which can be used at once: nobody is asked whether it has the same one (IFA_F_NODAD).
    pub fn add_address(&mut self, interface: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        const NO_DETECTION: u8 = 0x02;
        // struct ifaddrmsg: family, prefix, flags, scope (the whole world), index.
        let mut body = vec![family(address), prefix, NO_DETECTION, 0];
        body.extend_from_slice(&interface.to_ne_bytes());
        let message = Message::new(NEW_ADDRESS, CREATE | EXCLUSIVE, &body);
        self.request(message.address(LOCAL, address).address(ADDRESS, address))
    }

    /// Sends everything that no other route is for to `gateway`.
    pub fn add_default_route(&mut self, interface: u32, gateway: IpAddr) -> io::Result<()> {
        const OUT_INTERFACE: u16 = 4;
        const GATEWAY: u16 = 5;
        const TABLE_MAIN: u8 = 254;
        const BY_BOOT: u8 = 3;
        const UNICAST: u8 = 1;
        // struct rtmsg: family, lengths of destination and source, type of service, table, protocol, scope (the whole
        // world), type, flags.
        let body = [family(gateway), 0, 0, 0, TABLE_MAIN, BY_BOOT, 0, UNICAST, 0, 0, 0, 0];
        let message = Message::new(NEW_ROUTE, CREATE | EXCLUSIVE, &body);
        let message = message.address(GATEWAY, gateway);
        self.request(message.attribute(OUT_INTERFACE, &interface.to_ne_bytes()))
    }

    /// Sends a request and waits for its answer, which the kernel gives before `send` returns.
    fn request(&mut self, message: Message) -> io::Result<()> {
        self.sequence += 1;
        send(&self.socket, &message.finish(self.sequence), SendFlags::empty())?;
        let mut answer = [0; 1024];
        let (len, _) = rustix::io::retry_on_intr(|| recv(&self.socket, &mut answer[..], RecvFlags::empty()))?;
        outcome(&answer[..len], self.sequence)
    }
}

/// What the kernel says about the request with this number.
fn outcome(answer: &[u8], sequence: u32) -> io::Result<()> {
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let kind = answer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    match (kind, word(8), word(HEADER)) {
        (Some(ERROR), Some(number), Some(0)) if number == sequence => Ok(()),
        // A negative error number.
        (Some(ERROR), Some(number), Some(code)) if number == sequence => {
            Err(io::Error::from_raw_os_error((code as i32).saturating_neg()))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is of another request")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = 36u32.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[0; 16]);
        bytes
    }

    #[test]
    fn an_answer_counts_for_its_own_request_and_only_whole() {
        assert!(outcome(&answer(ERROR, 7, 0), 7).is_ok());
        let refused = outcome(&answer(ERROR, 7, -libc::EEXIST), 7).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
        for wrong in [answer(ERROR, 6, 0), answer(NEW_LINK, 7, 0), answer(ERROR, 7, 0)[..19].to_vec(), vec![]]
        {
            assert_eq!(outcome(&wrong, 7).unwrap_err().kind(), io::ErrorKind::InvalidData, "{wrong:?}");
        }
        // No number has this as its opposite.
        assert!(outcome(&answer(ERROR, 7, i32::MIN), 7).is_err());
    }

    #[test]
    fn the_kernel_refuses_what_does_not_exist_by_its_number() {
        let mut netlink = Netlink::open().unwrap();
        let refused = netlink.set_up(0x7fff_fffe).unwrap_err();
        assert!([libc::ENODEV, libc::EPERM].contains(&refused.raw_os_error().unwrap()), "{refused}");
    }
}
