//! The files of /etc that a builder sees: the same in every kind of sandbox, independent of the host's.
//!
//! Contents as in Nix (src/libstore/linux/build/linux-derivation-builder.cc), for the user 1000, group 100. For a builder
//! with a network Nix shows the host's /etc/services and /etc/resolv.conf; here they are the box's own.

use std::net::IpAddr;

/// File name and contents.
pub const FILES: [(&str, &str); 3] = [
    (
        "passwd",
        "root:x:0:0:Nix build user:/build:/noshell\n\
         nixbld:x:1000:100:Nix build user:/build:/noshell\n\
         nobody:x:65534:65534:Nobody:/:/noshell\n",
    ),
    ("group", "root:x:0:\nnixbld:!:100:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
];

/// Further files, for a builder with a network. Beside them there is `resolv.conf`.
pub const NETWORK_FILES: [(&str, &str); 2] = [
    ("nsswitch.conf", "hosts: files dns\nservices: files\n"),
    // Those that programs look up by name. The numbers are IANA's.
    (
        "services",
        "ftp-data 20/tcp\n\
         ftp 21/tcp\n\
         ssh 22/tcp\n\
         telnet 23/tcp\n\
         smtp 25/tcp mail\n\
         domain 53/tcp\n\
         domain 53/udp\n\
         tftp 69/udp\n\
         gopher 70/tcp\n\
         http 80/tcp www\n\
         pop3 110/tcp\n\
         ntp 123/udp\n\
         imap2 143/tcp imap\n\
         ldap 389/tcp\n\
         https 443/tcp\n\
         https 443/udp\n\
         submissions 465/tcp\n\
         submission 587/tcp\n\
         ldaps 636/tcp\n\
         rsync 873/tcp\n\
         ftps 990/tcp\n\
         imaps 993/tcp\n\
         pop3s 995/tcp\n\
         socks 1080/tcp\n\
         cvspserver 2401/tcp\n\
         svn 3690/tcp subversion\n\
         git 9418/tcp\n",
    ),
];

/// The folders below /etc in which the host may put files.
pub const FOLDERS: [&str; 1] = ["ssl/certs"];

/// Where Nix shows certificates to a builder with a network; a name for [`Job::etc`](crate::protocol::Job::etc).
pub const CERTIFICATES: &str = "ssl/certs/ca-certificates.crt";

/// The contents of /etc/resolv.conf. There is no DNS over TCP, so programs have to ask for long answers over UDP.
pub fn resolv_conf(nameservers: &[IpAddr]) -> String {
    let lines = nameservers.iter().map(|address| format!("nameserver {address}\n"));
    lines.chain(["options edns0\n".to_owned()]).collect()
}

/// The folder, if any, and the file of a name in [`Job::etc`](crate::protocol::Job::etc). `None`: there must be no such file.
pub fn place(name: &str) -> Option<(Option<&str>, &str)> {
    let (folder, file) = match name.rsplit_once('/') {
        Some((folder, file)) => (Some(folder), file),
        None => (None, name),
    };
    let is_known = folder.is_none_or(|folder| FOLDERS.contains(&folder));
    (is_known && !["", ".", ".."].contains(&file)).then_some((folder, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_host_lies_in_etc_or_in_a_folder_that_is_known() {
        assert_eq!(place(CERTIFICATES), Some((Some("ssl/certs"), "ca-certificates.crt")));
        assert_eq!(place("machine-id"), Some((None, "machine-id")));
        let outside = [
            "",
            ".",
            "..",
            "/",
            "/passwd",
            "../passwd",
            "ssl/certs",
            "ssl/certs/",
            "ssl/certs/..",
            "ssl/certs/../x",
            "ssl//certs/x",
            "ssl/certs/x/y",
            "/ssl/certs/x",
            "./ssl/certs/x",
        ];
        for name in outside {
            // `ssl/certs` would be a file in a folder that is not in the list.
            assert_eq!(place(name), None, "{name}");
        }
    }

    #[test]
    fn every_service_has_a_name_a_port_and_a_protocol() {
        let (_, services) = NETWORK_FILES[1];
        let mut seen = std::collections::BTreeSet::new();
        for line in services.lines() {
            let mut words = line.split(' ');
            let (name, port) = (words.next().unwrap(), words.next().unwrap());
            let (number, protocol) = port.split_once('/').unwrap();
            assert!(number.parse::<u16>().is_ok() && ["tcp", "udp"].contains(&protocol), "{line}");
            assert!(seen.insert((name, protocol)), "{line}");
        }
        for (name, protocol) in [("https", "tcp"), ("domain", "udp"), ("ssh", "tcp"), ("git", "tcp")] {
            assert!(seen.contains(&(name, protocol)), "{name}");
        }
    }

    #[test]
    fn name_servers_are_written_one_a_line() {
        let servers = ["192.0.2.53".parse().unwrap(), "fd52:5500::53".parse().unwrap()];
        assert_eq!(resolv_conf(&servers), "nameserver 192.0.2.53\nnameserver fd52:5500::53\noptions edns0\n");
        assert_eq!(resolv_conf(&[]), "options edns0\n");
    }
}
